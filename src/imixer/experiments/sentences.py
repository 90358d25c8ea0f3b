"""Write sentences that the judgements of a page allow, and no others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from imixer.escaping import is_numeral
from imixer.experiments.comparison import CONFIDENCE, POWER, Judgement
from imixer.experiments.experiment_result import ExperimentResult, RowResult, mean_and_std
from imixer.tables import plus_minus

ON_PAGE = "in the tables of this page"
OF_EXPERIMENT = "of this experiment"


def summarise(judgements: Sequence[Mapping[str, Judgement]], where: str = ON_PAGE) -> str:
    """Count the verdicts of a page in one sentence.

    Args:
        judgements: The judgements of each experiment, by row, as `judge_page` returns them.
        where: Where these differences stand, in words.
    """
    every = [judgement for each in judgements for judgement in each.values()]
    if not every:
        return "Nothing is compared: no row and its baseline have both a finished trial"
    counts = Counter(judgement.verdict for judgement in every)
    return (
        f"Differences {where}: {len(every)}; larger {counts['larger']}, smaller "
        f"{counts['smaller']}, equivalent within the margin {counts['equivalent']}, undecided {counts['undecided']}"
    )


def describe(result: ExperimentResult, judgements: Mapping[str, Judgement]) -> list[str]:
    """Describe what an experiment shows: a sentence for each row that is decided, and one for all others.

    Args:
        result: The experiment.
        judgements: Its judgements by row, as `judge_page` returns them.
    """
    undecided = {
        row_result.row.name: row_result
        for row_result in result.rows
        if row_result.row.name in judgements and judgements[row_result.row.name].verdict == "undecided"
    }
    rest = [_undecided(undecided, judgements, result.experiment.baseline)] if undecided else []
    return describe_decided(result, judgements) + rest + describe_contraction(result)


def describe_decided(result: ExperimentResult, judgements: Mapping[str, Judgement]) -> list[str]:
    """Describe what an experiment decides, in a sentence for each row that is decided.

    Args:
        result: The experiment.
        judgements: Its judgements by row, as `judge_page` returns them.
    """
    rows = [row_result for row_result in result.rows if row_result.row.name in judgements]
    return [
        _decided(result, row_result, judgements[row_result.row.name])
        for row_result in rows
        if judgements[row_result.row.name].verdict != "undecided"
    ]


def describe_measures(subject: str, measures: Sequence[tuple[str, Judgement, bool]]) -> list[str]:
    """Describe what comparisons by several measures decide, in a sentence each, and what they leave open, in one.

    Args:
        subject: What is compared, such as `the iMixer`.
        measures: Name of each measure, its judgement of the subject minus another, and whether more of it is better.
    """
    sentences, undecided = [], []
    for name, judgement, higher_is_better in measures:
        if judgement.verdict == "undecided":
            undecided.append(name)
        elif judgement.verdict == "equivalent":
            sentences.append(f"{name}: equivalent within {judgement.margin:g} points ({_difference(judgement)})")
        else:
            better = (judgement.verdict == "larger") == higher_is_better
            sentences.append(f"{name}: {subject} is {'better' if better else 'worse'} {_significance(judgement)}")
    if undecided:
        sentences.append(f"Undecided: {'; '.join(undecided)}. Neither a difference nor its absence is shown")
    return sentences


def describe_contraction(result: ExperimentResult) -> list[str]:
    """Describe in which rows F is a contraction, and in which it is not. Return nothing where it was not measured."""
    measured = [(row_result, row_result.contraction) for row_result in result.rows]
    pairs = [(row_result, contraction) for row_result, contraction in measured if contraction]
    sentences = []
    for verdict, words in _CONTRACTION.items():
        own = [(row_result, contraction) for row_result, contraction in pairs if contraction.verdict == verdict]
        if own:
            norms = _range([contraction.norm for _, contraction in own])
            rows = _names([row_result for row_result, _ in own], len(pairs))
            sentences.append(f"{words} (largest Jacobian norm {norms}): {rows}")
    return sentences


_CONTRACTION = {
    "guaranteed": "F is a contraction for any input, by its bound",
    "observed": "F is a contraction on the images measured, with no guarantee for others",
    "undecided": "In at least one block the search for a fixed point came to no end, and whether F is a contraction "
    "there stays open",
    "violated": "In at least one block F is no contraction, and iterating may enlarge what is left of the equation",
}


def row_name(row_result: RowResult) -> str:
    """Name a row in a sentence, such as `h_r = 2, n = 4` or `S, Mixer`."""
    return ", ".join(
        f"{column} = {text}" if is_numeral(text) else text for column, text in row_result.row.labels.items() if text
    )


def verdict_words(judgement: Judgement) -> str:
    """Write a verdict for a table."""
    if judgement.verdict == "equivalent":
        return f"equivalent within {judgement.margin:g}"
    return judgement.verdict


def verdict_legend(tests: int, margin: float, where: str = ON_PAGE) -> str:
    """Explain the columns p and verdict of a table.

    Args:
        tests: Number of tests.
        margin: Points within which a difference counts as none.
        where: Where these tests stand, in words.
    """
    corrected = f"corrected by Holm for the {tests} test{'s' * (tests != 1)} {where}"
    return (
        f"p: {corrected}; the intervals are not. verdict: larger or smaller where p is at most {1 - CONFIDENCE:.2g}; "
        f"equivalent where the interval lies inside +-{margin:g} points, a margin named before the trials, and Holm's "
        "correction of that test leaves it so; undecided else, which shows nothing"
    )


def mean_words(values: Mapping[int, float], digits: int = 2) -> str:
    """Write mean and standard deviation over trials for a table, or a dash if there is no trial.

    Args:
        values: A number of each trial, by seed.
        digits: Digits after the point.
    """
    over_trials = mean_and_std(values)
    return "-" if over_trials is None else plus_minus(over_trials.mean, over_trials.std, digits)


def interval_words(judgement: Judgement) -> str:
    """Write the confidence interval of a difference, or nothing if there is none."""
    interval = judgement.comparison.interval
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""


def p_words(p: float | None) -> str:
    """Write a p-value, or nothing if there is none."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def detectable_words(detectable: float | None) -> str:
    """Write a detectable difference in points, or nothing if there is none. An accuracy has a hundred points."""
    if detectable is None:
        return ""
    return f"{detectable:.2f}" if detectable <= 100 else "> 100"


def paper_difference(result: ExperimentResult, row_result: RowResult) -> float | None:
    """Subtract the paper's mean of the baseline from its mean of a row. None if the paper lacks one of them."""
    baseline = result.baseline(row_result)
    if baseline is None or row_result.row.paper is None or baseline.row.paper is None:
        return None
    return row_result.row.paper.mean - baseline.row.paper.mean


def _decided(result: ExperimentResult, row_result: RowResult, judgement: Judgement) -> str:
    baseline = result.baseline(row_result)
    assert baseline is not None
    if judgement.verdict == "equivalent":
        said = f"equivalent to {row_name(baseline)} within {judgement.margin:g} points ({_difference(judgement)})"
    else:
        said = f"{judgement.verdict} than {row_name(baseline)} {_significance(judgement)}"
    reported = paper_difference(result, row_result)
    paper = "" if reported is None else f"; the paper's means differ by {reported:+.2f}"
    return f"{row_name(row_result)}: {said}{paper}"


def _difference(judgement: Judgement) -> str:
    return f"{judgement.comparison.difference:+.2f} points, {CONFIDENCE:.0%} interval {interval_words(judgement)}"


def _significance(judgement: Judgement) -> str:
    """Write the difference with its p-value, in parentheses, and whether it lies within the margin."""
    p = f"p {p_words(judgement.p)}" if (judgement.p or 0) < 0.001 else f"p = {p_words(judgement.p)}"
    less = f", by less than the margin of {judgement.margin:g}" if judgement.within else ""
    return f"({_difference(judgement)}, corrected {p}){less}"


def _undecided(rows: Mapping[str, RowResult], judgements: Mapping[str, Judgement], baseline: str) -> str:
    names = _names(list(rows.values()), len(judgements))
    seen = [each for name in rows if (each := judgements[name].detectable) is not None]
    said = f"Undecided against {baseline}: {names}. Neither a difference nor its absence is shown"
    if not seen:
        return f"{said}: there is no interval, for want of trials or of spread"
    if min(seen) > 100:
        return f"{said}: at this spread these trials could have seen no difference at all"
    smallest = detectable_words(min(seen)) + (f" to {detectable_words(max(seen))}" if len(seen) > 1 else "")
    return f"{said}; with {POWER:.0%} power these trials could have seen a difference of {smallest} points"


def _names(rows: Sequence[RowResult], of: int) -> str:
    return f"all {of} rows" if len(rows) == of > 2 else "; ".join(map(row_name, rows))


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.2g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"

"""Write an experiment as tables and sentences beside the paper's numbers: on screen, as Markdown, LaTeX, CSV, JSON."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from imixer.escaping import for_markdown
from imixer.experiments.comparison import CONFIDENCE, POWER, Judgement
from imixer.experiments.experiment_result import ExperimentResult, RowResult, judge_page, mean_and_std
from imixer.experiments.paper import CONDITIONS
from imixer.experiments.sentences import (
    OF_EXPERIMENT,
    ON_PAGE,
    describe,
    detectable_words,
    interval_words,
    mean_words,
    p_words,
    paper_difference,
    summarise,
    verdict_legend,
    verdict_words,
)
from imixer.experiments.trained_contraction import IMAGES
from imixer.tables import Grid, latex, markdown, on_screen, plus_minus
from imixer.writing import csv_text, json_text, write_text

_RAN_ON = "ran on: "
_METRIC_KEYS = {"top-1": "top1", "mIoU": "miou"}  # in JSON files
_PAPERS_MEANS = "; paper: of the paper's means"


@dataclass(frozen=True)
class Presentation:
    """Everything that a page shows of an experiment.

    Args:
        title: Title of the experiment.
        conditions: Scale, data, epochs and number of trials.
        sentences: Sentences that its comparisons allow.
        tables: Captions and tables: the results, then the differences.
        notes: The baseline of its rows, and what the paper leaves open.
        legend: Explanation of the columns.
        remarks: What is missing and why, and the hardware of the trials.
    """

    title: str
    conditions: str
    sentences: list[str]
    tables: list[tuple[str, Grid]]
    notes: list[str]
    legend: list[str]
    remarks: list[str]


def present(
    result: ExperimentResult, judgements: Mapping[str, Judgement], tests: int, where: str = ON_PAGE
) -> Presentation:
    """Collect everything that a page shows of an experiment.

    Args:
        result: The experiment.
        judgements: Its judgements by row, as `judge_page` returns them for the page.
        tests: Number of tests on the page, see `count_tests`.
        where: Where these tests stand, in words.
    """
    tables = [("Results", _results(result))]
    if any(row_result.row.baseline for row_result in result.rows):
        tables.append(("Differences", _differences(result, judgements)))
    return Presentation(
        result.experiment.title,
        conditions(result),
        describe(result, judgements),
        tables,
        [f"Each row is compared to {result.experiment.baseline}"] * bool(judgements) + list(result.experiment.notes),
        _legend(result, judgements, tests, where),
        remarks(result),
    )


def write_tables(result: ExperimentResult, console: Console) -> None:
    """Write `<experiment>.md`, `.tex`, `.csv` and `.json`, and print the tables.

    Args:
        result: The experiment, with the folder to write into.
        console: Where to print.
    """
    name = result.experiment.name
    judgements = judge_page([result])
    # what is written here is shown in reports beside others, which are corrected for their own tests
    page = present(result, judgements[0], count_tests(judgements), OF_EXPERIMENT)
    summary = summarise(judgements, OF_EXPERIMENT)
    records = [_record(result, row_result, judgements[0].get(row_result.row.name)) for row_result in result.rows]
    notes = [*page.notes, *page.legend, *page.remarks]
    shown = {
        "tables": [{"caption": caption, **asdict(grid)} for caption, grid in page.tables],
        "sentences": [summary, *page.sentences],
        "notes": notes,
    }
    texts = {
        "md": f"# {page.title}\n\n{for_markdown(page.conditions)}.\n\n{_body(page, [summary], notes)}",
        "tex": _latex(page, f"{name}-{result.scale.name}"),
        "csv": _csv(records),
        "json": json_text(_facts(result, summary) | {"rows": records, "shown": shown}, non_finite="null") + "\n",
    }
    files = {result.folder / f"{name}.{suffix}": text for suffix, text in texts.items()}
    for file, text in files.items():
        write_text(file, text)
    for caption, grid in page.tables:
        console.print(on_screen(grid, page.title if caption == "Results" else caption))
    for note in [summary, *page.sentences, page.conditions, *notes]:
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)


def count_tests(page: Sequence[Mapping[str, Judgement]]) -> int:
    """Count the tests of a page, for which its p-values are corrected.

    Args:
        page: The judgements of each experiment, by row, as `judge_page` returns them.
    """
    return sum(judgement.p is not None for judgements in page for judgement in judgements.values())


def conditions(result: ExperimentResult) -> str:
    """Write the scale, the data, the epochs and the number of trials in a sentence."""
    configs = [row_result.config for row_result in result.rows if row_result.config]
    epochs = " or ".join(sorted({config.length for config in configs}))
    there = [data for data in result.data.values() if not data.missing]
    data = ", ".join(
        f"{data.name} ({data.training:,} training and {data.held_out:,} held-out images)" for data in there
    )
    side, models = result.scale.image_size, result.experiment.models or result.scale.summary
    parts = [data, f"{side}x{side} pixels", epochs, _trials(result), models]
    return f"Scale {result.scale.name}: {'; '.join(part for part in parts if part)}"


def section(page: Presentation) -> str:
    """Write an experiment as a section of a Markdown page, without the remarks that the page makes once for all."""
    kept = [remark for remark in page.remarks if not remark.startswith(_RAN_ON)]
    return f"## {page.title}\n\n{for_markdown(page.conditions)}.\n\n{_body(page, notes=page.notes + kept)}"


def bullets(lines: Sequence[str]) -> str:
    """Write a Markdown list, an item per line."""
    return "".join(f"- {for_markdown(line)}\n" for line in lines)


def _body(page: Presentation, said: Sequence[str] = (), notes: Sequence[str] = ()) -> str:
    parts = [bullets([*said, *page.sentences]), *(markdown(grid) for _, grid in page.tables), bullets(notes)]
    return "\n".join(part for part in parts if part)


def _latex(page: Presentation, label: str) -> str:
    caption = f"The paper's {page.title}" if page.title.startswith("Table") else page.title  # LaTeX gives it a number
    parts = []
    for number, (kind, grid) in enumerate(page.tables):
        more = page.notes + page.legend if number == 0 else page.sentences
        words = " ".join(f"{text}." for text in [f"{caption}: {kind.lower()}", page.conditions, *more])
        parts.append(latex(grid, words, label if number == 0 else f"{label}-{kind.lower()}"))
    return "\n".join(parts)


def _results(result: ExperimentResult) -> Grid:
    labels = tuple(result.rows[0].row.labels)
    header = [*labels, "last epoch %", "best epoch %", *["paper %"] * _beside_paper(result), "trials"]
    if result.experiment.show_contraction:
        header += ["bound", "norm", "residual", "inverse"]
    header += ["time"] * result.experiment.show_time + ["parameters", "mult-adds"]
    rows = tuple((*row_result.row.labels.values(), *_numbers(result, row_result)) for row_result in result.rows)
    return Grid(tuple(header), rows, len(labels))


def _numbers(result: ExperimentResult, row_result: RowResult) -> list[str]:
    complexity, paper = row_result.complexity, row_result.row.paper
    return [
        "not run" if row_result.config is None else mean_words(row_result.last),
        "" if row_result.config is None else mean_words(row_result.best),
        *[plus_minus(paper.mean, paper.spread) if paper else ""] * _beside_paper(result),
        _count(row_result),
        *(_contraction(row_result) if result.experiment.show_contraction else []),
        *([_time(result, row_result)] if result.experiment.show_time else []),
        f"{complexity.parameters:,}" if complexity else "",
        f"{complexity.multiply_adds / 1e6:,.2f} M" if complexity and complexity.multiply_adds is not None else "",
    ]


def _contraction(row_result: RowResult) -> list[str]:
    measured = row_result.contraction
    if measured is None:
        return [""] * 4
    bound, norm = (f"{value:.3g}" if math.isfinite(value) else "-" for value in (measured.bound, measured.norm))
    verdict = measured.verdict if measured.found == 1 else f"{measured.verdict}, {measured.found:.0%} found"
    residual = 100 * measured.residual
    return [bound, norm, f"{residual:.0f} %" if residual >= 10 else f"{residual:.2g} %", verdict]


def _time(result: ExperimentResult, row_result: RowResult) -> str:
    own, others = mean_and_std(row_result.seconds), mean_and_std((result.baseline(row_result) or row_result).seconds)
    return f"{own.mean / others.mean:.2f}" if own and others and others.mean else ""


def _differences(result: ExperimentResult, judgements: Mapping[str, Judgement]) -> Grid:
    labels = tuple(result.rows[0].row.labels)
    interval = f"{CONFIDENCE:.0%} interval"
    paper = ["paper"] * _beside_paper(result)
    header = (*labels, "difference", interval, "test", "p", "detectable", *paper, "verdict")
    rows = tuple(
        (*row_result.row.labels.values(), *_difference(result, row_result, judgements.get(row_result.row.name)))
        for row_result in result.rows
        if row_result.row.baseline is not None
    )
    return Grid(header, rows, len(labels))


def _difference(result: ExperimentResult, row_result: RowResult, judgement: Judgement | None) -> list[str]:
    reported = paper_difference(result, row_result)
    paper = ["" if reported is None else f"{reported:+.2f}"] * _beside_paper(result)
    if judgement is None:
        return ["", "", "", "", "", *paper, ""]
    return [
        f"{judgement.comparison.difference:+.2f}",
        interval_words(judgement),
        _test(result, row_result, judgement),
        p_words(judgement.p),
        detectable_words(judgement.detectable),
        *paper,
        verdict_words(judgement),
    ]


def _test(result: ExperimentResult, row_result: RowResult, judgement: Judgement) -> str:
    """Name the test, with the number of pairs where a mean beside it is of other trials."""
    baseline, comparison = result.baseline(row_result), judgement.comparison
    assert baseline is not None
    alike = comparison.test != "paired" or comparison.pairs == len(row_result.last) == len(baseline.last)
    return comparison.test if alike else f"{comparison.test}, {comparison.pairs} seed{'s' * (comparison.pairs != 1)}"


def _count(row_result: RowResult) -> str:
    done, planned = len(row_result.finished), len(row_result.runs)
    left = ", ".join(f"{count} {status}" for status, count in row_result.counts.items() if status != "finished")
    return f"{done} of {planned} ({left})" if left else f"{done or ''}"


def _trials(result: ExperimentResult) -> str:
    several = "1 trial" if result.trials == 1 else f"{result.trials} trials"
    fewer = {
        row_result.row.data: len(row_result.runs)
        for row_result in result.rows
        if 0 < len(row_result.runs) < result.trials
    }
    return f"{several} per row" + "".join(f", of {data} {count}" for data, count in fewer.items())


def _legend(result: ExperimentResult, judgements: Mapping[str, Judgement], tests: int, where: str) -> list[str]:
    """Explain the columns, and the tests."""
    kinds = {judgement.comparison.test for judgement in judgements.values()}
    legend = [
        f"last epoch, best epoch: {result.experiment.metric} on the held-out images, mean +- standard deviation over "
        "the finished trials. The best epoch is chosen on the same images: an optimistic figure. All comparisons are "
        "of the last",
        *[f"paper: what it reports ({CONDITIONS})"] * _beside_paper(result),
    ]
    if result.experiment.show_contraction:
        legend.append(
            "bound, norm, residual, inverse: the worst of all blocks and trials. bound: of the Lipschitz constant of "
            f"F, for any input. norm: of its Jacobian at the fixed points of {IMAGES} held-out images. residual: "
            "||x - G(v) - F(x)|| / ||x|| after the row's own iterations. inverse: guaranteed by the bound, observed "
            "on the images (norm below 1), undecided where a search came to no end, or violated; and the share of the "
            "fixed points that were found, if not all"
        )
    if result.experiment.show_time:
        legend.append("time: of training, over the baseline's; trials that shared a machine with others blur it")
    if judgements:
        legend += [
            "difference: of the means, in points, of paired rows over the seeds that both have"
            f"{_PAPERS_MEANS * _beside_paper(result)}. detectable: the smallest that such trials find with "
            f"{POWER:.0%} power, at the spread observed and the level of the correction's first step",
            *_tests(kinds),
            verdict_legend(tests, result.margin, where),
        ]
    return [
        *legend,
        "mult-adds: multiply-adds of one image's forward, normalisation baked in; none where they depend on the image",
    ]


def _tests(tests: Collection[str]) -> list[str]:
    words = {
        "paired": "paired: t-test on the differences seed by seed, of rows whose trials of one seed share initial "
        "weights, order and augmentation",
        "Welch": "Welch: Welch's test, of rows that cannot share initial weights, since their parameters are others; a "
        "seed gives them order and augmentation in common, which makes this test, if anything, too cautious",
    }
    return [text for test, text in words.items() if test in tests]


def remarks(result: ExperimentResult) -> list[str]:
    """Say what is missing and why, and on what hardware the trials ran."""
    missing = [f"not run: {data.name}: {data.missing}" for data in result.data.values() if data.missing]
    failed = [f"failed: {run.path}: {run.outcome.error}" for run in result.failed]
    precisions = list(dict.fromkeys(filter(None, (each.get("precision") for each in result.environments))))
    mixed = [f"trials differ in precision: {' and '.join(precisions)}, which round otherwise"] * (len(precisions) > 1)
    ran_on = dict.fromkeys(f"{_RAN_ON}{machine(each)}" for each in result.environments)
    return [*missing, *failed, *mixed, *ran_on]


def machine(environment: Mapping[str, Any]) -> str:
    """Write hardware and versions in one line, and what of them changed when the run was resumed.

    Args:
        environment: As `environment.json` of a run has it.
    """
    hardware = ", ".join(environment["gpus"]) or f"{environment['cores']} cores of {environment['cpu']}"
    versions = ", ".join(f"{name} {environment[name]}" for name in ("python", "torch", "timm", "imixer"))
    precision = f"; precision {environment['precision']}" if "precision" in environment else ""
    later = dict.fromkeys(_resumed_with(each) for each in environment.get("resumed", ()))
    return "; ".join([f"{hardware}; {versions}, commit {environment.get('commit') or 'unknown'}{precision}", *later])


def _resumed_with(changes: Mapping[str, Any]) -> str:
    named = [
        f"{name} {', '.join(value) or 'none' if name == 'gpus' else value}"
        for name, value in changes.items()
        if name != "step"
    ]
    return f"resumed with {', '.join(named)}" if named else "resumed, and what it was begun with is lost"


def _facts(result: ExperimentResult, summary: str) -> dict[str, Any]:
    return {
        "experiment": result.experiment.name,
        "title": result.experiment.title,
        "scale": result.scale.name,
        "conditions": conditions(result),
        "trials": result.trials,
        "baseline": result.experiment.baseline,
        "margin": result.margin,
        "confidence": CONFIDENCE,
        "power": POWER,
        "summary": summary,
        "paper_conditions": CONDITIONS,
        "data": {name: asdict(data) for name, data in result.data.items()},
        "environments": result.environments,
    }


def _record(result: ExperimentResult, row_result: RowResult, judgement: Judgement | None) -> dict[str, Any]:
    """Return a row with all its numbers: accuracies in %, differences in points, times in seconds."""
    complexity, paper = row_result.complexity, row_result.row.paper
    last, best = mean_and_std(row_result.last), mean_and_std(row_result.best)
    measured = row_result.contraction
    return {
        "name": row_result.row.name,
        "labels": row_result.row.labels,
        "data": row_result.row.data,
        "last": asdict(last) if last else None,
        "best": asdict(best) if best else None,
        "finished": len(row_result.finished),
        "paper": asdict(paper) if paper else None,
        "paper_difference": paper_difference(result, row_result),
        "baseline": row_result.row.baseline,
        "comparison": _comparison(judgement) if judgement else None,
        "contraction": {name: _finite(value) for name, value in asdict(measured).items()} if measured else None,
        "parameters": complexity.parameters if complexity else None,
        "multiply_adds": complexity.multiply_adds if complexity else None,
        "config": asdict(row_result.config) if row_result.config else None,
        "runs": [
            {
                "seed": run.seed,
                "path": str(run.path),
                "status": run.outcome.status,
                "epoch": run.outcome.epoch,
                _METRIC_KEYS[result.experiment.metric]: _percent(run.outcome.score),
                "best_epoch": run.outcome.best_epoch,
                f"best_{_METRIC_KEYS[result.experiment.metric]}": _percent(run.outcome.best_score),
                "val_loss": run.outcome.val_loss,
                "seconds": run.outcome.seconds,
                "error": run.outcome.error,
            }
            for run in row_result.runs
        ],
    }


_COMPARISON = (
    "difference",
    "low",
    "high",
    "test",
    "pairs",
    "p",
    "p_corrected",
    "p_equivalence_corrected",
    "detectable",
    "margin",
    "verdict",
    "within_margin",
)


def _comparison(judgement: Judgement) -> dict[str, Any]:
    comparison = judgement.comparison
    low, high = comparison.interval or (None, None)
    values = (
        comparison.difference,
        low,
        high,
        comparison.test,
        comparison.pairs,
        comparison.p,
        judgement.p,
        judgement.p_equivalence,
        judgement.detectable,
        judgement.margin,
        judgement.verdict,
        judgement.within,
    )
    return dict(zip(_COMPARISON, values, strict=True))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _beside_paper(result: ExperimentResult) -> bool:
    """Tell whether the paper has numbers to set beside."""
    return any(row_result.row.paper is not None for row_result in result.rows)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(records: list[dict[str, Any]]) -> str:
    """Write the numbers of the records as CSV, without those of single trials, which the JSON file has."""
    groups = {
        "last": ("mean", "std"),
        "best": ("mean", "std"),
        "paper": ("mean", "spread"),
        "comparison": _COMPARISON,
        "contraction": ("bound", "norm", "found", "residual", "verdict"),
    }
    rows = []
    for record in records:
        row = dict(record["labels"])
        for name, value in record.items():
            if name in groups:
                row |= {f"{name}_{own}": (value or {}).get(own) for own in groups[name]}
            elif not isinstance(value, (dict, list)):
                row[name] = value
        row.pop("config", None)  # that of a row that was not run is no mapping
        rows.append(row | {"planned": len(record["runs"])})
    header = list(rows[0])
    return csv_text(header, ([row.get(name) for name in header] for row in rows))

"""Draw the figure of an experiment, and write beside it what can be read off it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from rich.console import Console

from imixer.analysis.convergence import BlockConvergence, Convergence, compare_convergence
from imixer.analysis.convergence_statements import (
    Statement,
    agree,
    first_block,
    first_two_blocks,
    last_block,
    middle_blocks,
)
from imixer.analysis.views import features
from imixer.analysis.views.convergence import comparison_numbers, draw_cosines, draw_first_block, draw_norms
from imixer.escaping import for_markdown
from imixer.experiments.data_sets import DatasetLocation
from imixer.experiments.experiment import FigureKind
from imixer.experiments.experiment_result import ExperimentResult, TrialRun
from imixer.plotting import drawn, save_print_figure
from imixer.progress import with_progress
from imixer.tables import Grid, markdown, on_screen
from imixer.training.finished_run import load_run
from imixer.writing import write_json, write_text

IMAGES = 16  # as many as the paper's
_DRAWINGS: dict[FigureKind, Callable[[Sequence[Convergence]], Figure]] = {
    "first block": draw_first_block,
    "norms": draw_norms,
    "cosines": draw_cosines,
}
_READINGS = {
    "first block": (first_block,),
    "norms": (first_two_blocks, middle_blocks, last_block),
    "cosines": (first_two_blocks, middle_blocks, last_block),
}


def draw_figure(result: ExperimentResult, console: Console, image: str | None = None) -> None:
    """Draw the figure of an experiment as PNG and PDF; write its numbers as JSON and its page as Markdown.

    Args:
        result: The result of an experiment that has a figure.
        console: Where to print.
        image: Image file to draw feature maps of. Default: the first held-out image.
    """
    console.print(result.experiment.title, style="bold")
    trials = _complete_trials(result)
    if not trials:
        missing = "; ".join(data.missing for data in result.data.values() if data.missing)
        console.print(f"not run: {missing or 'no trial of all its rows is finished'}", markup=False)
        return
    name = result.experiment.name
    picture = result.folder / f"{name}.png"
    wanted = result.experiment.figure == "features"
    page = _measure_features(result, trials, image) if wanted else _measure_convergence(result, trials)
    write_json(picture.with_suffix(".json"), _facts(result, page), non_finite="null")
    write_text(picture.with_suffix(".md"), _markdown(result, page, picture))
    made = drawn(picture, lambda path: save_print_figure(page.draw(), path))
    for grid, title in page.grids:
        console.print(on_screen(grid, title))
    for note in [page.conditions, *page.notes]:
        console.print(note, markup=False, soft_wrap=True)
    files = [picture.with_suffix(f".{suffix}") for suffix in (*(("png", "pdf") if made else ()), "json", "md")]
    console.print(f"written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)


@dataclass(frozen=True)
class _Page:
    """Everything that stands beside a figure.

    Args:
        conditions: Scale, data and images.
        numbers: All numbers that were measured.
        notes: Explanations of what is drawn.
        draw: Draws the figure.
        grids: Tables, each with its title.
    """

    conditions: str
    numbers: dict[str, Any]
    notes: list[str]
    draw: Callable[[], Figure]
    grids: tuple[tuple[Grid, str], ...] = ()


def _complete_trials(result: ExperimentResult) -> list[list[TrialRun]]:
    """Return the runs of each seed with which every row is finished, in the order of the rows."""
    rows = [{run.seed: run for run in row_result.finished} for row_result in result.rows]
    return [[row[seed] for row in rows] for seed in sorted(set.intersection(*map(set, rows)))]


def _measure_convergence(result: ExperimentResult, trials: list[list[TrialRun]]) -> _Page:
    figure = result.experiment.figure
    assert figure is not None
    names = [f"n = {row_result.row.labels['n']}" for row_result in result.rows]
    compared = (
        [compare_convergence([load_run(str(run.path)) for run in trial], images=IMAGES, names=names)]
        for trial in trials
    )
    measured = list(with_progress(compared, len(trials), "measuring convergence"))
    seeds = [trial[0].seed for trial in trials]
    read = [[test(each) for test in _READINGS[figure]] for each in measured]  # by trial
    statements = list(zip(*read, strict=True))
    of_seed, first = seeds[0], measured[0][0]
    blocks = range(1 if figure == "first block" else len(first.blocks))
    shown = first.blocks[: len(blocks)]
    measures = {"first block": ("norm", "cosine"), "norms": ("norm",), "cosines": ("cosine",)}[figure]
    (data,) = result.data.values()
    return _Page(
        conditions=_conditions(
            result, data, f"{first.images} of them at random, the same for all models, {first.n_iter} iterations"
        ),
        numbers=comparison_numbers(measured[0])
        | {
            "drawn_seed": of_seed,
            "panels": [{"block": block, "measure": measure} for block in blocks for measure in measures],
            "statements": [
                {
                    "text": each[0].text,
                    "criterion": each[0].criterion,
                    "verdict": agree([one.verdict for one in each]),
                    "trials": [
                        {"seed": seed, "verdict": one.verdict} | asdict(one)
                        for seed, one in zip(seeds, each, strict=True)
                    ],
                }
                for each in statements
            ],
        },
        notes=[
            f"drawn: the trial with seed {of_seed}; finished: {len(trials)}; curves: mean over the images; bands: "
            "from the smallest to the largest; large markers: a = n, where the model itself stops",
            "the paper calls the models imixer_s_ni1, imixer_s_ni2 and imixer_s_ni4",
            f"Norm_a = ||x^(a+1) - x^a|| / sqrt(S C), as in the paper; x^a has D_S C = {_sizes(shown, 'D')} entries, "
            f"and S C = {_sizes(shown, 'S')}",
            "rate: Norm_(a+1) / Norm_a of an image, geometric mean over a",
            "verdicts: by t intervals over the images, which hold together with 95 % for each statement; a statement "
            "is not confirmed if one of its conditions is not; trials that do not agree decide nothing",
            *(f"criterion: {each[0].text} {each[0].criterion}" for each in statements),
            *(f"not decidable, since {each[0].missing}: {each[0].text}" for each in statements if each[0].missing),
        ],
        draw=lambda: _DRAWINGS[figure](measured[0]),
        grids=(
            (_verdict_grid(statements, seeds), "What the paper reads off it"),
            *(
                (_condition_grid(each[0]), f"{each[0].text} Seed {of_seed}")
                for each in statements
                if each[0].conditions
            ),
        ),
    )


def _sizes(blocks: Sequence[BlockConvergence], name: Literal["S", "D"]) -> str:
    """Name S or D of blocks, times C, each once."""
    return " or ".join(dict.fromkeys(f"{getattr(block, name)} * {block.C}" for block in blocks))


def _verdict_grid(statements: Sequence[Sequence[Statement]], seeds: Sequence[int]) -> Grid:
    rows = []
    for each in statements:
        verdicts = [one.verdict for one in each]
        rows.append((each[0].text, agree(verdicts), *verdicts))
    return Grid(("the paper", "here", *(f"seed {seed}" for seed in seeds)), tuple(rows), 2 + len(seeds))


def _condition_grid(statement: Statement) -> Grid:
    rows = tuple(
        (each.what, each.asked, f"{each.value:.3g}", f"[{each.low:.3g}, {each.high:.3g}]", each.verdict)
        for each in statement.conditions
    )
    return Grid(("condition", "asked", "mean", "interval", "verdict"), rows, 2)


def _measure_features(result: ExperimentResult, trials: list[list[TrialRun]], image: str | None) -> _Page:
    (run,) = trials[0]
    chosen: dict[str, Any] = {} if image is None else {"image": image}
    measured = features.measure(load_run(str(run.path)), **chosen)
    (data,) = result.data.values()
    return _Page(
        conditions=_conditions(result, data, f"image: {measured.name}"),
        numbers=features.numbers(measured) | {"drawn_seed": run.seed},
        notes=[f"drawn: the trial with seed {run.seed}, block {measured.block}", *measured.explanations],
        draw=lambda: features.draw(measured),
    )


def _conditions(result: ExperimentResult, data: DatasetLocation, images: str) -> str:
    config = result.rows[0].config
    assert config is not None  # something is finished
    return (
        f"Scale {result.scale.name}: trained on {data.name}, {config.length}; measured on its {data.held_out_part} "
        f"({data.held_out:,} images): {images}; {result.scale.summary}"
    )


def _facts(result: ExperimentResult, page: _Page) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "experiment": result.experiment.name,
        "title": result.experiment.title,
        "scale": result.scale.name,
        "conditions": page.conditions,
        "notes": page.notes,
    }
    return facts | page.numbers


def _markdown(result: ExperimentResult, page: _Page, picture: Path) -> str:
    title = for_markdown(result.experiment.title)
    parts = [f"# {title}", for_markdown(page.conditions), f"![{title}]({picture.name})"]
    for grid, name in page.grids:
        parts += [f"## {for_markdown(name)}", markdown(grid).rstrip("\n")]
    parts.append("\n".join(f"- {for_markdown(note)}" for note in page.notes))
    return "\n\n".join(parts) + "\n"

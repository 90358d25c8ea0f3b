"""Reproduce experiments: train the trials that are missing, read the others, and write tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from imixer.analysis.robustness.corruptions import require_corruptions
from imixer.data.sources.image_files import load_image
from imixer.errors import InputError, did_you_mean
from imixer.escaping import shell_word
from imixer.experiments.anomaly_study import write_detectors
from imixer.experiments.comparison import check_margin
from imixer.experiments.complexity import model_complexity
from imixer.experiments.data_sets import DatasetLocation, locate_dataset
from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.experiment_result import ExperimentResult, RowResult, TrialRun
from imixer.experiments.figure_output import draw_figure
from imixer.experiments.index_page import write_index
from imixer.experiments.registry import experiments_at
from imixer.experiments.reuse import ReuseFinishedRuns
from imixer.experiments.robustness_output import write_robustness
from imixer.experiments.scales import DATA_SETS, SCALES, Scale
from imixer.experiments.table4 import TABLE_4
from imixer.experiments.table_output import write_tables
from imixer.experiments.trained_contraction import measure_contraction
from imixer.experiments.training_cost import cost_grid, describe_cost, training_cost
from imixer.progress import with_progress
from imixer.sweep.local_executor import LocalExecutor
from imixer.sweep.plan import Sweep, Trial
from imixer.sweep.results import SweepResults
from imixer.sweep.spec import SPEC, build_sweep
from imixer.sweep.sweep import Executor, check_folder, run_sweep
from imixer.tables import on_screen


@dataclass(frozen=True)
class _Plan:
    """An experiment with its sweep, which is None if all its data are missing."""

    experiment: Experiment
    rows: tuple[Row, ...]
    data: dict[str, DatasetLocation]
    sweep: Sweep | None


def reproduce(
    experiments: Sequence[Experiment],
    scale: Scale,
    console: Console,
    *,
    out: str | None = None,
    trials: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    margin: float | None = None,
    executor: Executor | None = None,
    image: str | None = None,
    rows: Sequence[str] | None = None,
    train: bool = True,
) -> list[ExperimentResult]:
    """Train the trials of some experiments that are not finished, and write a table or figure of each.

    The sweep of an experiment lies in `<out>/runs/<experiment>`. A trial that another experiment has finished there is
    linked, not trained again. Rows whose data are missing are left out. Several experiments get an `index.md` of all.

    Args:
        experiments: The experiments, in order.
        scale: Scale of the models, the data and the schedule.
        console: Where to print.
        out: Folder for tables, figures and runs, which may hold an earlier start. Default: `reproduced/<scale>`, with
            other data `reproduced/<scale>-<data>`.
        trials: Trials per row. Default: those of the scale, or fewer where a row asks for fewer.
        data: Data set of all experiments but Table 4, one of `DATA_SETS`. Default: that of the scale.
        data_dir: Folder of the data sets, see `locate_dataset`.
        margin: Points of accuracy within which a difference counts as none. Default: that of each experiment.
        executor: What runs the trials. Default: one after the other, in this process.
        image: Image file to draw feature maps of. Default: the first held-out image.
        rows: Names of the rows to train now. The pages have all rows, as far as they have come. Default: all.
        train: Whether to train at all. Without, pages are made of what is finished. An experiment that trains nothing,
            and measures packaged weights, measures nothing either.

    Returns:
        The result of each experiment.

    Raises:
        MissingExtraError: If what corrupts images is needed, and not installed.
        InputError: If a number is impossible, rows are given and none trained, the data set is unknown, all data are
            missing, the folder holds something else or runs whose data are missing, no experiment has such a row, or
            the margin or the image is not used, or the image cannot be read.
        KeyboardInterrupt: When interrupted. The experiment at hand is written first, as far as it has come.
    """
    if margin is not None:
        _check_margin(margin, experiments)
    if rows is not None and not train:
        raise InputError(f"rows is {' '.join(rows)}, and train is false, which trains none; leave one of them out")
    _check_image(image, experiments)
    if train and any(experiment.measured == "robustness" for experiment in experiments):
        require_corruptions("the experiment robustness")
    options = {"scale": scale.name, "out": out, "trials": trials, "data": data, "data_dir": data_dir, "margin": margin}
    whole = list(experiments) == experiments_at(scale.name)
    command = _typed(["all"] if whole else [each.name for each in experiments], options)
    scale, folder = _at(scale, experiments, out, trials, data)
    plans = _plans(experiments, scale, trials, data_dir)
    _check_rows(rows, plans)
    _check_folders(plans, folder)
    results: list[ExperimentResult] = []
    for plan in plans:
        interruption = None
        if train:
            cost = training_cost(_measured(plan, scale, trials, margin, folder, contraction=False), rows)
            if cost.left:
                console.print(describe_cost(plan.experiment.name, cost), markup=False, soft_wrap=True)
            interruption = _train(plan, folder, executor or LocalExecutor(), rows)
        folder.mkdir(parents=True, exist_ok=True)
        results.append(_measured(plan, scale, trials, margin, folder))
        if plan.experiment.figure:
            draw_figure(results[-1], console, image)
        elif plan.experiment.measured == "robustness":
            write_robustness(results[-1], console)
        elif plan.experiment.measured == "anomalies":
            write_detectors(results[-1], console, measure=train)
        else:
            write_tables(results[-1], console)
        if interruption:
            raise interruption
    if len(results) > 1:
        console.print(f"written: {write_index(results, command)}", markup=False, soft_wrap=True)
    return results


def list_experiments(
    scale: Scale,
    console: Console,
    *,
    out: str | None = None,
    trials: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Print the experiments that a scale has, with what they cost and how far they have come.

    Args:
        scale: The scale.
        console: Where to print.
        out: As in `reproduce`.
        trials: As in `reproduce`.
        data: As in `reproduce`.
        data_dir: As in `reproduce`.

    Raises:
        InputError: If trials is impossible, the data set is unknown, all data are missing, or the folder holds
            something else.
    """
    experiments = experiments_at(scale.name)
    scale, folder = _at(scale, experiments, out, trials, data)
    plans = _plans(experiments, scale, trials, data_dir)
    _check_folders(plans, folder)
    counted = ([_measured(plan, scale, trials, None, folder, contraction=False)] for plan in plans)
    results = list(with_progress(counted, len(plans), "counting multiply-adds"))
    console.print(on_screen(cost_grid(results), f"Scale {scale.name}: {scale.summary}"))
    console.print(f"{scale.trials if trials is None else trials} trials per row, in {folder}", markup=False)
    for name, data_set in {name: each for plan in plans for name, each in plan.data.items()}.items():
        if data_set.missing:
            console.print(f"left out: {name}: {data_set.missing}", markup=False, soft_wrap=True)
    console.print("multiply-adds of training, each experiment by itself; runs that several have are trained once")
    options = {"scale": scale.name, "out": out, "trials": trials, "data": data, "data_dir": data_dir}
    console.print(f"{_typed(['NAME'], options)} trains what is not finished", markup=False, soft_wrap=True)


def _check_image(image: str | None, experiments: Sequence[Experiment]) -> None:
    """Refuse an image that cannot be read, or that no experiment draws."""
    if image is None:
        return
    if all(experiment.figure != "features" for experiment in experiments):
        raise InputError(f"image is {image}, {_of_no_use(experiments)}; leave it out, or give fig7")
    load_image(image, 3)


def _check_margin(margin: float, experiments: Sequence[Experiment]) -> None:
    """Refuse a margin that is impossible, or that no experiment compares by."""
    check_margin(margin)
    if all(experiment.figure for experiment in experiments):
        raise InputError(f"margin is {margin:g}, {_of_no_use(experiments)}: figures compare nothing; leave it out")


def _of_no_use(experiments: Sequence[Experiment]) -> str:
    names = " and ".join(experiment.name for experiment in experiments)
    return f"of which reproduce {names} {'has' if len(experiments) == 1 else 'have'} no use"


def _check_rows(rows: Sequence[str] | None, plans: Sequence[_Plan]) -> None:
    """Refuse rows that no experiment has."""
    known = dict.fromkeys(row.name for plan in plans for row in plan.rows)
    for name in rows or ():
        if name not in known:
            raise InputError(
                f"no row {name!r}{did_you_mean(name, list(known))}; there are {', '.join(known) or 'none'}"
            )


def _check_folders(plans: Sequence[_Plan], folder: Path) -> None:
    """Refuse folders that hold something else, or runs whose data are missing, before anything is trained or read."""
    for plan in plans:
        runs = _sweep_folder(plan, folder)
        if plan.sweep:
            check_folder(runs, plan.sweep)
        elif plan.rows and (runs / SPEC).is_file():  # of a page that would be overwritten by nothing
            missing = "; ".join(each.missing for each in plan.data.values())
            raise InputError(f"{runs} has runs whose data are not there: {missing}; or name only other experiments")


def _at(
    scale: Scale, experiments: Sequence[Experiment], out: str | None, trials: int | None, data: str | None
) -> tuple[Scale, Path]:
    """Return the scale on the data asked for, and the folder."""
    if trials is not None and trials < 1:
        raise InputError(f"trials is {trials}; give 1 or more")
    if data is None:
        return scale, Path(out or f"reproduced/{scale.name}")
    asked = _on_data(experiments, scale, data)
    same = data == scale.data and all(each.rows(asked) == each.rows(scale) for each in experiments)
    return asked, Path(out or f"reproduced/{scale.name}" + f"-{data}" * (not same))


def _on_data(experiments: Sequence[Experiment], scale: Scale, data: str) -> Scale:
    """Return the scale on another data set."""
    if data not in DATA_SETS:
        known = ", ".join(DATA_SETS)
        raise InputError(
            f"data is {data!r}{did_you_mean(data, DATA_SETS)}; give one of {known}; the folder they lie in is "
            "--data_dir"
        )
    if scale.only_own:
        raise InputError(f"data is {data}, and the scale {scale.name} has {scale.data} of its own; leave it out")
    if all(experiment is TABLE_4 or experiment.measured == "anomalies" for experiment in experiments):
        names = " and ".join(experiment.name for experiment in experiments)
        raise InputError(f"data is {data}, and {names} has data sets of its own; leave it out")
    return replace(scale, data=data, data_given=True)


def _typed(names: Sequence[str], options: Mapping[str, object]) -> str:
    """Write the command that does it again, with the options that were given."""
    given = [f"--{name} {shell_word(value)}" for name, value in options.items() if value is not None]
    return " ".join(["imixer reproduce", *names, *given])


def _plans(experiments: Sequence[Experiment], scale: Scale, trials: int | None, folder: str | None) -> list[_Plan]:
    """Plan all experiments, so that whatever is wrong with one is refused before anything starts."""
    rows = {experiment.name: experiment.rows(scale) for experiment in experiments}
    used = dict.fromkeys(row.data for each in rows.values() for row in each)
    data = {name: _find(name, scale, folder) for name in used}
    if data and all(each.missing for each in data.values()):
        raise InputError("; ".join(each.missing for each in data.values()))
    plans = []
    for experiment in experiments:
        own = {row.data: data[row.data] for row in rows[experiment.name]}
        there = [row for row in rows[experiment.name] if not own[row.data].missing]
        spec = {
            "name": experiment.name,
            "cases": {row.name: row.settings | own[row.data].settings for row in there},
            "seeds": scale.trials if trials is None else trials,
            "case_seeds": {
                row.name: row.trials
                for row in there
                if trials is None and row.trials is not None and row.trials < scale.trials
            },
        }
        sweep = build_sweep(spec) if there else None
        plans.append(_Plan(experiment, tuple(rows[experiment.name]), own, sweep))
    return plans


def _find(name: str, scale: Scale, folder: str | None) -> DatasetLocation:
    if name != scale.data and name not in scale.table4_data:
        asked = "" if scale.data == SCALES[scale.name].data else f" with data {scale.data}; leave data out"
        return DatasetLocation(name, {}, missing=f"{name} is not part of the scale {scale.name}{asked}")
    return locate_dataset(name, folder)


def _train(plan: _Plan, folder: Path, executor: Executor, rows: Sequence[str] | None) -> KeyboardInterrupt | None:
    """Train the trials that are not finished. Return the interruption, if there was one."""
    try:
        if plan.sweep:
            trials = [trial for trial in plan.sweep.trials if rows is None or trial.cell.name in rows]
            run_sweep(plan.sweep, str(_sweep_folder(plan, folder)), ReuseFinishedRuns(executor), trials)
    except KeyboardInterrupt as interruption:
        return interruption
    return None


def _measured(
    plan: _Plan, scale: Scale, trials: int | None, margin: float | None, folder: Path, *, contraction: bool = True
) -> ExperimentResult:
    lines = {row.name: RowResult(row) for row in plan.rows}
    if plan.sweep:
        results = SweepResults(plan.sweep, _sweep_folder(plan, folder))
        for cell in plan.sweep.cells:
            row = lines[cell.name].row
            data = plan.data[row.data]
            own = [Trial(cell, seed) for seed in cell.seeds]
            runs = [TrialRun(trial.seed, results.folder / trial.name, results[trial]) for trial in own]
            if contraction and plan.experiment.show_contraction:
                looked_at = ([_with_contraction(run)] for run in runs)
                runs = list(with_progress(looked_at, len(runs), f"measuring contraction of {cell.name}"))
            lines[cell.name] = RowResult(
                row,
                cell.config,
                model_complexity(cell.config, data.in_chans, data.num_classes),
                tuple(runs),
            )
    return ExperimentResult(
        plan.experiment,
        scale,
        scale.trials if trials is None else trials,
        plan.experiment.margin if margin is None else margin,
        plan.data,
        tuple(lines.values()),
        folder,
    )


def _with_contraction(run: TrialRun) -> TrialRun:
    return replace(run, contraction=measure_contraction(run.path)) if run.outcome.status == "finished" else run


def _sweep_folder(plan: _Plan, folder: Path) -> Path:
    return folder / "runs" / plan.experiment.name

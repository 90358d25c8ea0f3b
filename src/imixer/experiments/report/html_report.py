"""Write the report: choose its sections, tables, charts and pictures, and say what they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from imixer.errors import InputError
from imixer.escaping import one_line
from imixer.experiments.report import charts
from imixer.experiments.report.collect import (
    ReportedExperiment,
    ReportedRun,
    differing_settings,
    find_experiments,
    find_runs,
)
from imixer.experiments.report.page import (
    Chart,
    Fold,
    Heading,
    HtmlTable,
    Item,
    Notes,
    Paragraph,
    PictureFile,
    Section,
    render,
)
from imixer.progress import announce
from imixer.training.run.directory import RunDirectory, short_names
from imixer.training.run.result import METRIC_NAMES
from imixer.writing import check_output_file, json_text, write_text

_ANOMALY_MEASURES = {
    "image_auroc": "image AUROC",
    "image_f1": "image F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_f1": "pixel F1",
    "pro": "PRO",
}
_MOST_RUNS = 40  # runs, of which each has its own figures
_ITERATIONS = (
    "What each iteration of x = G(v) + F(x) changes, Norm_a = ||x^(a+1) - x^a|| / sqrt(S C), and the cosine between "
    "its input and output; mean and standard deviation over images"
)
_COMPARED = (
    "What each iteration of x = G(v) + F(x) changes, Norm_a = ||x^(a+1) - x^a|| / sqrt(S C), and the cosine between "
    "its input and output; mean over the same images; a diamond: a = n, where the model itself stops"
)


def write_report(paths: Sequence[str], out: str | None = None) -> Path:
    """Write one HTML file about runs and reproduced experiments. It needs neither server nor network.

    Args:
        paths: Run directories, folders of runs, and folders of `imixer reproduce`. Of the latter the tables and figures
            are shown, not the runs.
        out: File to write. Default: `report.html` in the first path.

    Returns:
        The file.

    Raises:
        InputError: If there is no run at a path, a run is damaged, or the file cannot be written.
    """
    file = Path(out) if out else Path(paths[0]) / "report.html"
    if out or Path(paths[0]).is_dir():  # what is no folder of runs is named below
        check_output_file(file, "out", replace=True)
    by_path = [(path, find_experiments(path)) for path in paths]
    reproduced = _named([(path, experiments) for path, experiments in by_path if experiments])
    others = [path for path, experiments in by_path if not experiments]
    runs = find_runs(others) if others else []
    count = len(reproduced) + len(runs)
    announce(f"drawing tables and figures of {count:,} {'run' if count == 1 else 'runs'}")
    parts = [f"{len(reproduced)} tables and figures"] * bool(reproduced)
    parts += [runs[0].name if len(runs) == 1 else f"{len(runs)} runs"] * bool(runs)
    text = render(f"imixer: {' and '.join(parts)}", _sections(reproduced, runs))
    try:
        write_text(file, text)
    except OSError as error:
        raise InputError(f"out: {file} cannot be written, {error.strerror}") from error
    return file


def _named(by_path: Sequence[tuple[str, list[ReportedExperiment]]]) -> list[ReportedExperiment]:
    """Join the experiments of some folders. Of several folders, name each experiment after its folder too."""
    if len(by_path) == 1:
        return by_path[0][1]
    folders = short_names([Path(path) for path, _ in by_path])
    pairs = zip(folders, by_path, strict=True)
    return [replace(each, name=f"{folder} {each.name}") for folder, (_, own) in pairs for each in own]


def _sections(reproduced: list[ReportedExperiment], runs: list[ReportedRun]) -> list[Section]:
    return [
        *(Section(each.title, _experiment(each, number), each.name) for number, each in enumerate(reproduced)),
        Section("Summary", _summary(runs)),
        Section("Learning curves", _curves(runs)),
        Section("Convergence", _convergence(runs)),
        Section("Energy", _energy(runs)),
        Section("Classes", _classes(runs)),
        Section("Anomalies", _anomalies(runs)),
        Section("Pictures", _pictures(runs)),
        Section("Settings", _settings(runs)),
        Section("Environment", _environment(runs)),
    ]


@contextmanager
def _numbers_of(file: object) -> Iterator[None]:
    """Turn any error about the numbers of a file into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} is damaged: it holds something else than was written ({type(error).__name__}: {one_line(error)}); "
            "write it again by the command that wrote it, or remove it"
        ) from error


def _experiment(experiment: ReportedExperiment, number: int) -> list[Item]:
    with _numbers_of(f"{experiment.name}.json"):
        return _experiment_items(experiment, number)


def _experiment_items(experiment: ReportedExperiment, number: int) -> list[Item]:
    items: list[Item] = []
    if experiment.conditions:
        items.append(Paragraph(experiment.conditions))
    items += [Paragraph(f"{_typeset(sentence)}.") for sentence in experiment.sentences]
    for table in experiment.tables:
        rows = [[_typeset(cell) for cell in row] for row in table.rows]
        items.append(HtmlTable(f"{experiment.title}: {table.caption.lower()}", table.header, rows, table.text))
    if experiment.curves:
        items.append(Chart(_COMPARED, f"iterations-compared-{number}", charts.compared_iterations(experiment.curves)))
    if experiment.picture:
        items.append(PictureFile(experiment.title, experiment.picture))
    if experiment.notes:
        items.append(Notes([_typeset(note) for note in experiment.notes]))
    return items


def _typeset(text: str) -> str:
    return text.replace("+-", "±")


def _summary(runs: list[ReportedRun]) -> list[Item]:
    if not runs:
        return []
    rows = [_summary_row(run) for run in runs]
    header = [name for name in rows[0] if any(row[name] != "-" for row in rows)]
    unfinished = [run.name for run in runs if not run.finished]
    cells = [[row[name] for name in header] for row in rows]
    items: list[Item] = [HtmlTable("All runs", header, cells, cards=True)]
    if unfinished:
        items.append(Paragraph(f"Not finished, with the numbers of their last epoch: {', '.join(unfinished)}."))
    return items


def _summary_row(run: ReportedRun) -> dict[str, str]:
    with _numbers_of(RunDirectory(run.path).result):
        return _summarised(run)


def _summarised(run: ReportedRun) -> dict[str, str]:
    """Write the numbers of a run by the title of their column, the most wanted first."""
    last, best, test = (run.rows[-1] if run.rows else {}), run.best, run.test_evaluation
    unit = f" {METRIC_NAMES[run.metric]}" if run.metric != "val_acc" else ""
    epochs = int(run.settings["epochs"]) + int(run.settings["schedule.cooldown_epochs"])
    return {
        "run": run.name,
        "accuracy": f"{last[run.metric]:.2%}{unit}" if last else "-",
        "best epoch": f"{best[run.metric]:.2%} ({best['epoch']:.0f})" if best else "-",
        "test set": f"{_score(test):.2%}{unit}" if test else "-",
        "loss": f"{last['val_loss']:.4f}" if last else "-",
        "epochs": f"{len(run.rows)} of {epochs}",
        "model": str(run.settings["model.name"]),
        "data": str(run.result.get("data", run.settings["data.name"])),
        "parameters": f"{run.result['parameters']:,}" if run.finished else "-",
        "images/s": f"{last['images_per_s']:,.0f}" if "images_per_s" in last else "-",
        "time": f"{last['seconds']:,.0f} s" if last else "-",
        "seed": str(run.settings["seed"]),
        "device": str(run.result.get("device", "-")),
    }


def _score(evaluation: dict[str, Any]) -> float:
    """Return the accuracy of an evaluation, or the mIoU of a segmentation's."""
    return float(evaluation["miou"] if "miou" in evaluation else evaluation["top1"])


def _curves(runs: list[ReportedRun]) -> list[Item]:
    begun = [run for run in runs if run.rows and "train_loss" in run.rows[0]]  # others take no steps
    if not begun:
        return []
    scored = " or ".join(dict.fromkeys(METRIC_NAMES[run.metric] for run in begun))
    return [Chart(f"Losses in nats, and {scored} on the held-out images", "curves", charts.learning_curves(begun))]


def _convergence(runs: list[ReportedRun]) -> list[Item]:
    items: list[Item] = []
    for number, run in enumerate(runs[:_MOST_RUNS]):
        own: list[Item] = []
        if run.convergence:
            with _numbers_of(RunDirectory(run.path).convergence):
                chart = charts.convergence_by_epoch(run)
            own.append(
                Chart(
                    "What the iterations leave of x = G(v) + F(x), relative to x; the largest spectral norm before "
                    "normalisation; and the bound of F's Lipschitz constant: below 1, the inverse exists for any input",
                    f"convergence-{number}",
                    chart,
                )
            )
        if run.iterations:
            with _numbers_of(RunDirectory(run.path).analysis / "convergence.json"):
                own.append(Chart(_ITERATIONS, f"iterations-{number}", charts.iteration_steps(run.iterations)))
        items += [Heading(run.name), *own] if own else []
    return items


def _energy(runs: list[ReportedRun]) -> list[Item]:
    items: list[Item] = []
    for number, run in enumerate(run for run in runs[:_MOST_RUNS] if run.energy):
        with _numbers_of(RunDirectory(run.path).analysis / "energy.json"):
            chart = charts.energy_changes(run.energy)
        items += [
            Heading(run.name),
            Chart(
                "By how much each mixing step changes the energy of its own Hopfield network, mean and standard "
                "deviation over images, and whether it must fall; and how asymmetric the couplings are: 0 symmetric, "
                "as an energy wants them, 0.71 (dotted) independent",
                f"energy-{number}",
                chart,
            ),
        ]
    return items


def _classes(runs: list[ReportedRun]) -> list[Item]:
    items: list[Item] = []
    for number, run in enumerate(runs[:_MOST_RUNS]):
        own: list[Item] = []
        test_set = f"the test set {run.test_evaluation.get('data')}"
        for kind, images, classes in (
            ("confusion", "Held-out images", run.classes),
            ("test-confusion", f"Images of {test_set}", run.test_classes),
        ):
            if classes:
                masks = run.settings.get("task") == "segment"
                of_what = f"Pixels of {images[0].lower()}{images[1:]}" if masks else images
                caption = f"{of_what} of each class, and what they were taken for"
                chart = charts.confusion_matrix(*classes, unit="pixels" if masks else "images")
                own.append(Chart(caption, f"{kind}-{number}", chart))
        files = RunDirectory(run.path)
        for kind, of, scores, file in (
            ("classes", "the held-out images", run.evaluation, files.evaluation),
            ("test", test_set, run.test_evaluation, files.test_evaluation),
        ):
            if scores.get("per_class"):
                with _numbers_of(file):
                    images = f"{scores['images']:,} images"
                    said = (
                        f"mIoU {scores['miou']:.2%} on {images}"
                        if "miou" in scores
                        else f"{scores['top1']:.2%} of {images} are recognised"
                    )
                    caption = f"{said}: {of}, by class"
                    own.append(Chart(caption, f"{kind}-{number}", charts.class_accuracies(scores["per_class"])))
        items += [Heading(run.name), *own] if own else []
    return items


def _anomalies(runs: list[ReportedRun]) -> list[Item]:
    items: list[Item] = []
    for run in (run for run in runs[:_MOST_RUNS] if run.anomalies):
        with _numbers_of(RunDirectory(run.path).anomalies):
            rows = [
                [name.replace("_", " "), *(_per_cent(quality[measure]) for measure in _ANOMALY_MEASURES)]
                for name, quality in run.anomalies.items()
            ]
        items += [
            Heading(run.name),
            HtmlTable(
                f"How well each score tells anomalies in {run.anomaly_data or 'its data'}",
                ["score", *_ANOMALY_MEASURES.values()],
                rows,
                1,
            ),
        ]
    return items


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _pictures(runs: list[ReportedRun]) -> list[Item]:
    items: list[Item] = []
    for run in runs[:_MOST_RUNS]:
        if run.pictures:
            items.append(Heading(run.name))
            items += [PictureFile(f"{picture.title} of {run.name}", picture.file) for picture in run.pictures]
    if len(runs) > _MOST_RUNS:
        sections = "Convergence, energies, classes, anomalies and pictures"
        items.append(Paragraph(f"{sections} are of the first {_MOST_RUNS} of {len(runs)} runs."))
    return items


def _settings(runs: list[ReportedRun]) -> list[Item]:
    items: list[Item] = []
    if len(runs) > 1:
        changed = differing_settings(runs)
        rows = [[name, *map(_shown, values)] for name, values in changed]
        items.append(HtmlTable("Settings that differ", ["setting", *(run.name for run in runs)], rows))
    return items + [Fold(f"All settings of {run.name}", yaml.safe_dump(run.settings, sort_keys=False)) for run in runs]


def _environment(runs: list[ReportedRun]) -> list[Item]:
    texts: dict[str, list[str]] = {}
    for run in runs:
        known = {name: value for name, value in run.environment.items() if name != "run"}
        texts.setdefault(json_text(known), []).append(run.name)
    return [Fold(f"Versions and hardware of {', '.join(names)}", text) for text, names in texts.items()]


def _shown(value: object) -> str:
    return "-" if value is None else str(value)

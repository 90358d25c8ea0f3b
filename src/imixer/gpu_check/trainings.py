"""Train the rows of an experiment until the time is over, and write down each epoch as it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from imixer.console import PlainConsole
from imixer.experiments.data_sets import locate_dataset
from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.reproduce import reproduce
from imixer.experiments.scales import SCALES, Scale
from imixer.gpu_check.journal import Bench
from imixer.gpu_check.side_by_side import SideBySide
from imixer.reading import read_rows

_POLL_S = 1.0
_COLUMNS = {"epoch": int, "train_loss": float, "val_loss": float, "val_acc": float, "images_per_s": float}


def scale_here(bench: Bench, name: str) -> Scale:
    """Choose the scale, and the data that are here: CIFAR-10, or the digits, which come with the package.

    Args:
        bench: What the part works with.
        name: The scale for CIFAR-10.
    """
    missing = "the dry run" if bench.tiny else locate_dataset("cifar10", bench.data_dir).missing
    if not missing:
        return SCALES[name]
    bench.note(f"On the digits, at the scale smoke: {missing}.")
    return SCALES["smoke"]


def train_rows(bench: Bench, title: str, rows: list[Row], scale: Scale, *, seeds: int, at_once: int) -> None:
    """Train rows with seed after seed until the time is over, each seed's rows side by side.

    Args:
        bench: What the part works with.
        title: Title of the table that is compared at the end.
        rows: The rows; all begin with the same seeds.
        scale: The scale whose data they are trained on.
        seeds: The most seeds.
        at_once: Trainings at once.
    """
    common: dict[str, Any] = {"accelerator": "cpu" if bench.device.type == "cpu" else "cuda"}
    if bench.tiny:
        common |= {"epochs": 1, "schedule.warmup_epochs": 0}
    rows = [replace(row, settings=row.settings | common) for row in rows]
    experiment = Experiment(bench.part, title, "the first row", lambda scale: rows, show_time=True)
    page = bench.folder / f"{bench.part}.md"
    failed: set[Path] = set()
    for trials in range(1, seeds + 1):
        if bench.skipped(f"seed {trials - 1} and later ones"):
            return
        try:
            with _following(bench.folder / "runs" / bench.part, bench):
                (result,) = reproduce(
                    [experiment],
                    scale,
                    PlainConsole(width=160),
                    out=str(bench.folder),
                    trials=trials,
                    data_dir=bench.data_dir,
                    executor=SideBySide(at_once),
                )
        finally:  # interrupted, it has written how far it came
            if page.exists():
                bench.page(page.read_text(encoding="utf-8"))
        for row in result.rows:
            for run in row.runs:
                if run.outcome.status == "failed" and run.path not in failed:
                    failed.add(run.path)
                    bench.failed(f"{row.row.name}, seed {run.seed}", run.outcome.error)


@contextmanager
def _following(runs: Path, bench: Bench) -> Iterator[None]:
    """Write down the epochs that runs have written, while they train."""
    over = threading.Event()
    written = {file: len(read_rows(file, ("epoch",))[0]) for file in runs.rglob("metrics.csv")}

    def look() -> None:
        for file in sorted(runs.rglob("metrics.csv")):
            rows = read_rows(file, ("epoch",))[0]
            for row in rows[written.get(file, 0) :]:
                cells: dict[str, Any] = {name: kind(row[name]) for name, kind in _COLUMNS.items() if row.get(name)}
                bench.row("Epochs", run=file.parent.relative_to(runs).as_posix(), **cells)
            written[file] = len(rows)

    def follow(wait: Callable[[float], bool]) -> None:
        while not wait(_POLL_S):
            look()

    thread = threading.Thread(target=follow, args=(over.wait,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()

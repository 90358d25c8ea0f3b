"""Show the results of training, evaluation and prediction on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from imixer.escaping import shell_word
from imixer.training.evaluate import Evaluation, EvaluationFiles
from imixer.training.predict import SHOWN, Prediction
from imixer.training.run.result import TrainingResult, best_by

_MANY_CLASSES = 20


def report_training(result: TrainingResult, wall_s: float, console: Console) -> None:
    """Show what a run reached, where its files are, and what to type next.

    Args:
        result: The result of the run.
        wall_s: Seconds since the command started.
        console: The console to print on.
    """
    last, run = result.last, result.run
    grid = Table.grid(padding=(0, 2))
    top5 = f", top-5 {last['val_acc_top5']:.2%}" if "val_acc_top5" in last else ""
    if "val_miou" in last:
        pixels = f" on {result.held_out:,} held-out images, {last['val_acc']:.2%} of their pixels"
        grid.add_row("mIoU", Text.assemble((f"{last['val_miou']:.2%}", "bold"), pixels))
    else:
        accuracy = Text.assemble((f"{last['val_acc']:.2%}", "bold"), f" of {result.held_out:,} held-out images{top5}")
        grid.add_row("accuracy", accuracy)
    if result.best is not None:
        grid.add_row("best epoch", _best_epoch(result.best, last))
    grid.add_row("model", f"{result.model}, {result.parameters:,} parameters, on {result.data}")
    grid.add_row("time", f"{wall_s:.0f} s in all, {result.seconds:.0f} s for {result.epochs} epochs")
    grid.add_row("device", result.device)
    if result.skipped:
        grid.add_row("skipped", _skipped(result.skipped))
    drawn = [f", {file.name}" for file in (run.learning_curves, run.confusion_matrix) if file.exists()]
    grid.add_row("files", f"{run.path}: model/, metrics.csv{''.join(drawn)}")
    grid.add_row("next", f"imixer evaluate {shell_word(run.path)}")
    grid.add_row("", f"imixer predict {shell_word(run.path)}")
    if run.tensorboard.is_dir():
        grid.add_row("", f"tensorboard --logdir {shell_word(run.tensorboard)}")
    console.print(Panel(grid, title="trained", title_align="left", expand=False))


def _best_epoch(best: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Name the best epoch beside the last, whose weights are the model."""
    if best["epoch"] == last["epoch"]:
        return f"{best['epoch']}, the last"
    return f"{best['epoch']} of {last['epoch']}, with {best[best_by(best)]:.2%}; --checkpoint best takes its weights"


def report_evaluation(result: Evaluation, files: EvaluationFiles, console: Console) -> None:
    """Show the scores of a model, and those of each class unless there are many.

    Args:
        result: The scores.
        files: The files that were written.
        console: The console to print on.
    """
    top5 = f"  top-5 {result.top5:.2%}" if result.top5 is not None else ""
    console.print(
        f"top-1 {result.top1:.2%}{top5}  loss {result.loss:.4f}  calibration error {result.ece:.2%}  "
        f"{result.images:,} images at {result.images_per_s:,.0f} images/s on {result.device}"
    )
    if len(result.per_class) <= _MANY_CLASSES:
        table = Table("class", "images", "accuracy", "precision", box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for score in result.per_class:
            shares = ("-" if share is None else f"{share:.1%}" for share in (score.accuracy, score.precision))
            table.add_row(score.name, f"{score.images:,}", *shares)
        console.print(table)
    if result.skipped:
        console.print(f"skipped {_skipped(result.skipped)}")
    console.print(f"written: {', '.join(map(str, files.written))}", soft_wrap=True)


def _skipped(names: Sequence[str]) -> str:
    return f"{len(names)} unreadable {'image' if len(names) == 1 else 'images'}, the first {names[0]}"


def report_predictions(predictions: Sequence[Prediction], picture: Path, console: Console) -> None:
    """Show the most probable classes of each image.

    Args:
        predictions: The predictions.
        picture: The file they were drawn to, which need not be there.
        console: The console to print on.
    """
    known = any(p.truth is not None for p in predictions)
    table = Table("image", *(["true class"] if known else []), "predicted classes", box=None)
    for p in predictions:
        chances = "  ".join(f"{name} {chance:.1%}" for name, chance in zip(p.classes, p.probabilities, strict=True))
        table.add_row(p.image, *([p.truth or ""] if known else []), chances)
    console.print(table)
    truths = [p for p in predictions if p.truth is not None]
    if truths:
        right = sum(p.classes[0] == p.truth for p in truths)
        console.print(f"right: {right:,} of {len(truths):,} whose class is known{_of_unknown(predictions)}")
    if picture.exists():
        left_out = f", the first {SHOWN} of {len(predictions):,} images" if len(predictions) > SHOWN else ""
        console.print(f"picture: {picture}{left_out}", soft_wrap=True)


def _of_unknown(predictions: Sequence[Prediction]) -> str:
    unknown = sum(p.truth is None for p in predictions)
    return f"; {unknown:,} lie in no class folder" if unknown else ""

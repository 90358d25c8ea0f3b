"""Show the results of a segmentation on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from imixer.training.evaluate import EvaluationFiles
from imixer.training.evaluate_masks import MaskEvaluation
from imixer.training.predict_masks import MaskPrediction

_MANY_CLASSES = 30
_SHARES = 4  # of an image, in a line


def report_mask_evaluation(result: MaskEvaluation, files: EvaluationFiles, console: Console) -> None:
    """Show the scores of a segmentation, and those of each class unless there are many.

    Args:
        result: The scores.
        files: The files that were written.
        console: The console to print on.
    """
    console.print(
        f"mIoU {result.miou:.2%}  accuracy of pixels {result.pixel_accuracy:.2%}  loss {result.loss:.4f}  "
        f"{result.images:,} images at {result.images_per_s:,.0f} images/s on {result.device}"
    )
    if len(result.per_class) <= _MANY_CLASSES:
        table = Table("class", "pixels", "IoU", "accuracy", "precision", box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for score in result.per_class:
            shares = (score.iou, score.accuracy, score.precision)
            table.add_row(
                score.name, f"{score.pixels:,}", *("-" if share is None else f"{share:.1%}" for share in shares)
            )
        console.print(table)
    if result.skipped:
        count = len(result.skipped)
        console.print(f"skipped {count} {'image' if count == 1 else 'images'}, the first {result.skipped[0]}")
    console.print(f"written: {', '.join(map(str, files.written))}", soft_wrap=True)


def report_mask_predictions(predictions: Sequence[MaskPrediction], picture: Path, console: Console) -> None:
    """Show the largest classes of each image.

    Args:
        predictions: The predictions.
        picture: The picture of the first of them, which need not be there.
        console: The console to print on.
    """
    table = Table("image", "mask", "share of pixels", box=None)
    for each in predictions:
        shown = "  ".join(f"{name} {share:.1%}" for name, share in each.shares[:_SHARES])
        table.add_row(each.image, each.mask.name, shown)
    console.print(table)
    if predictions:
        console.print(f"masks: {predictions[0].mask.parent}, and below it overlays", soft_wrap=True)
    if picture.exists():
        console.print(f"picture: {picture}", soft_wrap=True)

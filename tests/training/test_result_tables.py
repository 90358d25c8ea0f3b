"""What an evaluation shows on the screen stands in the column that is named for it."""

import io
from pathlib import Path

from imixer.console import PlainConsole
from imixer.training.evaluate import ClassScore, Evaluation, evaluation_files
from imixer.training.evaluate_masks import MaskEvaluation, PixelClassScore
from imixer.training.mask_tables import report_mask_evaluation
from imixer.training.result_tables import report_evaluation
from imixer.training.run.directory import RunDirectory


def table(report, result):
    """The line before a table, and its rows by column and class."""
    console = PlainConsole(file=io.StringIO(), width=200)
    report(result, evaluation_files(RunDirectory(Path("run")), is_test=False), console)
    first, header, *rows, _ = console.file.getvalue().splitlines()
    cells = [row.split() for row in rows]
    return first, {row[0]: dict(zip(header.split()[1:], row[1:], strict=True)) for row in cells}


def test_each_score_of_a_class_stands_in_its_column():
    scores = [ClassScore("cat", 1200, 0.25, 0.75), ClassScore("dog", 0, None, None)]
    first, shown = table(
        report_evaluation, Evaluation("m", "d", 1200, 0.5, 0.875, 1.25, 0.0625, 30.0, "CPU", per_class=scores)
    )
    said = "top-1 50.00%  top-5 87.50%  loss 1.2500  calibration error 6.25%  1,200 images at 30 images/s on CPU"
    assert first == said
    assert shown == {
        "cat": {"images": "1,200", "accuracy": "25.0%", "precision": "75.0%"},
        "dog": {"images": "0", "accuracy": "-", "precision": "-"},
    }


def test_each_score_of_a_class_of_pixels_stands_in_its_column():
    scores = [PixelClassScore("road", 1200, 0.125, 0.25, 0.75), PixelClassScore("sky", 0, 0.0, None, 0.0)]
    first, shown = table(
        report_mask_evaluation, MaskEvaluation("m", "d", 9, 0.0625, 0.5, 1.25, 30.0, "CPU", per_class=scores)
    )
    assert first == "mIoU 6.25%  accuracy of pixels 50.00%  loss 1.2500  9 images at 30 images/s on CPU"
    assert shown == {
        "road": {"pixels": "1,200", "IoU": "12.5%", "accuracy": "25.0%", "precision": "75.0%"},
        "sky": {"pixels": "0", "IoU": "0.0%", "accuracy": "-", "precision": "0.0%"},
    }

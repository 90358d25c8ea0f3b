"""Confusion matrices as CSV: a header of predicted classes, then a row per true class. Free of torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from imixer.escaping import for_csv, from_csv
from imixer.writing import write_text


def write_confusion(counts: Sequence[Sequence[int]], class_names: Sequence[str], path: Path) -> None:
    """Write a confusion matrix.

    Args:
        counts: (classes, classes), a row per true class.
        class_names: Names in the order of the rows.
        path: File to write.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [for_csv(name) for name in class_names]
    writer.writerow(["true", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts, strict=True))
    write_text(path, text.getvalue())


def read_confusion(path: Path) -> tuple[list[str], list[list[int]]]:
    """Class names and counts of a file that `write_confusion` wrote.

    Raises:
        ValueError: If the file is damaged.
    """
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    names = header[1:]
    if not names or [row[0] for row in rows] != names or any(len(row) != len(header) for row in rows):
        raise ValueError(f"{path} has not a row and a column for each class")
    return [from_csv(name) for name in names], [[int(count) for count in row[1:]] for row in rows]

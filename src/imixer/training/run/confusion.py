"""Write and read confusion matrices as CSV: a header of predicted classes, then a row per true class.

Free of torch.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from imixer.escaping import from_csv
from imixer.writing import csv_text, write_text


def write_confusion(counts: Sequence[Sequence[int]], class_names: Sequence[str], path: Path) -> None:
    """Write a confusion matrix.

    Args:
        counts: Counts of images (classes, classes), a row per true class.
        class_names: The names of the classes in the order of the rows.
        path: The file.
    """
    rows = ([name, *row] for name, row in zip(class_names, counts, strict=True))
    write_text(path, csv_text(["true", *class_names], rows))


def read_confusion(path: Path) -> tuple[list[str], list[list[int]]]:
    """Read a confusion matrix that `write_confusion` wrote.

    Args:
        path: The file.

    Returns:
        The names of the classes; and the counts, a row per true class.

    Raises:
        ValueError: If the file is damaged.
    """
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    names, whole = header[1:], all(len(row) == len(header) for row in rows)
    if not names or not whole or [row[0] for row in rows] != names:
        raise ValueError(f"{path} has not a row and a column for each class")
    return [from_csv(name) for name in names], [[int(count) for count in row[1:]] for row in rows]

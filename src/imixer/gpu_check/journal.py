"""Write down results as they come, so that whatever is cut off has left its numbers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from imixer.writing import json_text

Record = dict[str, Any]
_LONGEST_REASON = 200  # characters


class Journal:
    """A file of JSON lines that several processes append to.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Record) -> None:
        """Append a record as one line, which is on its way to the disk when this returns."""
        line = json_text(record, non_finite="null", indent=None, default=str) + "\n"
        with self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = "\n" + line  # whoever wrote last was cut off
            file.write(line.encode())

    def records(self) -> list[Record]:
        """Read all records. Lines that were cut off are left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().decode(errors="replace").split("\n")
        return [record for line in lines if (record := _parsed(line))]


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def last_attempts(records: Sequence[Record]) -> list[Record]:
    """Leave out what parts wrote down in earlier attempts, but for one after which nothing was measured.

    Args:
        records: The records of a journal, in order.
    """
    attempts: dict[str | None, list[list[Record]]] = {}
    for record in records:
        own = attempts.setdefault(record.get("part"), [[]])
        if "begins" in record:
            own.append([])
        own[-1].append(record)
    kept = []
    for own in attempts.values():
        measured = [attempt for attempt in own if any({"table", "page"} & record.keys() for record in attempt)]
        kept += (measured or own)[-1]
    return kept


@dataclass
class Bench:
    """What a part of the check has to work with: a device, a time limit, and a journal.

    Args:
        part: Name of the part.
        device: The device to check.
        tiny: Whether this is the dry run, with sizes that a CPU can do.
        folder: Folder for whatever the part writes.
        data_dir: Folder of the data sets; None for the default.
        journal: Where results go.
        deadline: When the part is to end, on the clock of `time.monotonic`.
        clock: That clock.

    Attributes:
        complete: Whether nothing has been left out for want of time.
    """

    part: str
    device: torch.device
    tiny: bool
    folder: Path
    data_dir: str | None
    journal: Journal
    deadline: float
    clock: Callable[[], float] = field(default=time.monotonic)
    complete: bool = field(default=True, init=False)

    @property
    def left(self) -> float:
        """The seconds that are left for this part."""
        return self.deadline - self.clock()

    def row(self, table: str, **cells: Any) -> None:
        """Write down a row of a table of the page.

        Args:
            table: Title of the table.
            **cells: Its cells, by title of the column, with `_` for blanks.
        """
        self.journal.append({"part": self.part, "table": table, "row": cells})

    def failed(self, what: str, why: str) -> None:
        """Write down what has failed within this part, which makes the exit code 1.

        Args:
            what: What was tried.
            why: Why it failed, which is cut if it is long.
        """
        self.row("Failed", what=what, holds=False, why_not=" ".join(why.split())[:_LONGEST_REASON])

    def note(self, text: str) -> None:
        """Write down a sentence for the page."""
        self.journal.append({"part": self.part, "note": text})

    def page(self, text: str) -> None:
        """Write down a page that stands in this part as it is, in the place of an earlier one.

        Args:
            text: Markdown, whose headings are left out.
        """
        body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        self.journal.append({"part": self.part, "page": body.strip("\n")})

    def skipped(self, what: str) -> bool:
        """Return whether no time is left, and write down what is left out if so."""
        if self.left > 0:
            return False
        self.complete = False
        self.note(f"No time was left for {what}.")
        return True

"""Write the page of an experiment that compares what was measured of runs, and not their accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from imixer.escaping import for_markdown
from imixer.experiments.experiment_result import ExperimentResult
from imixer.experiments.table_output import bullets
from imixer.tables import Grid, markdown
from imixer.writing import NonFinite, write_json, write_text


@dataclass(frozen=True)
class MeasuredPage:
    """Hold what a page shows, in its order.

    Args:
        conditions: What was measured, and how, in a sentence.
        sentences: What the comparisons allow to be said.
        tables: The tables, by caption.
        notes: How to read them.
    """

    conditions: str
    sentences: Sequence[str]
    tables: Mapping[str, Grid]
    notes: Sequence[str]

    def write(
        self, result: ExperimentResult, facts: Mapping[str, Any], *, non_finite: NonFinite = "refuse"
    ) -> tuple[Path, Path]:
        """Write `<experiment>.md`, and `<experiment>.json` with the facts and all that is shown.

        Args:
            result: The experiment, with the folder to write into.
            facts: Numbers for the JSON file.
            non_finite: What to do about numbers that are not finite; see `imixer.writing.json_text`.

        Returns:
            Both files.
        """
        name, title = result.experiment.name, result.experiment.title
        page, numbers = (result.folder / f"{name}.{suffix}" for suffix in ("md", "json"))
        body = [f"## {caption}\n\n{markdown(grid)}" for caption, grid in self.tables.items()]
        parts = [
            f"# {title}",
            f"{for_markdown(self.conditions)}.",
            bullets(self.sentences),
            *body,
            bullets(self.notes),
        ]
        write_text(page, "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n")
        shown = {
            "tables": [{"caption": caption, **asdict(grid)} for caption, grid in self.tables.items()],
            "sentences": self.sentences,
            "notes": self.notes,
        }
        common = {"experiment": name, "title": title, "conditions": self.conditions, "margin": result.margin}
        write_json(numbers, {**common, **facts, "shown": shown}, non_finite=non_finite)
        return page, numbers

    def print_notes(self, files: Sequence[Path], console: Console) -> None:
        """Print what stands around the tables, and the files.

        Args:
            files: The files that were written.
            console: Where to print.
        """
        for note in [*self.sentences, self.conditions, *self.notes]:
            console.print(note, markup=False, soft_wrap=True)
        console.print(f"written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)

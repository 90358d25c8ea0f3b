"""The checkpoints of a run: written whole, checked by checksum, the latest few and the best kept."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from imixer.errors import InputError
from imixer.json_text import json_text
from imixer.training.atomic import replacing, write_text

State = Dict[str, Any]


class NotSaved(InputError):
    """A checkpoint could not be written; the message says which one is still there."""


@dataclass(frozen=True)
class Entry:
    """One checkpoint.

    Args:
        file: Its name.
        step: Optimizer steps done.
        sha256: Checksum of the file.
        best: Whether it holds the best epoch.
    """

    file: str
    step: int
    sha256: str
    best: bool = False


class Checkpoints:
    """The checkpoints in a folder.

    `index.json` lists them with their checksums. It is replaced after a checkpoint is whole and before an old one is
    removed, so that at any moment what it lists is there.

    Args:
        folder: Where they are. It is made with the first.
        keep: How many of the latest are kept, besides the best.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    @property
    def index(self) -> Path:
        """List of the checkpoints."""
        return self.folder / "index.json"

    def entries(self) -> List[Entry]:
        """The checkpoints, oldest first.

        Raises:
            InputError: If the list is damaged.
        """
        if not self.index.is_file():
            return []
        try:
            listed = json.loads(self.index.read_text(encoding="utf-8"))
            return sorted((Entry(**entry) for entry in listed), key=lambda entry: entry.step)
        except (ValueError, TypeError) as error:
            files = ", ".join(sorted(p.name for p in self.folder.glob("*.pt"))) or "none"
            raise InputError(
                f"{self.index} is damaged, so no checkpoint can be trusted ({files} are there); start a new run from "
                f"the weights of one, with --model.checkpoint"
            ) from error

    def save(self, state: State, step: int, *, best: bool = False) -> Path:
        """Add a checkpoint and remove those no longer wanted.

        Args:
            state: Tensors, numbers and text, in dictionaries and lists.
            step: Optimizer steps done. A checkpoint of this step is replaced, later ones are dropped.
            best: Whether this is the best so far.

        Raises:
            NotSaved: If it cannot be written, for want of space, say. Earlier ones are untouched.
        """
        path = self.folder / f"step-{step:08d}.pt"
        try:
            self.folder.mkdir(exist_ok=True)
            before = self.entries()
            with replacing(path) as temporary:
                with temporary.open("wb") as opened:  # with a file of its own, torch hides what the system says
                    torch.save(state, opened)
                checksum = _checksum(temporary)
            others = [entry for entry in before if entry.step < step]  # later ones were damaged, and are passed by
            if best:
                others = [Entry(entry.file, entry.step, entry.sha256) for entry in others]
            best = best or any(entry.best for entry in before if entry.step == step)
            wanted = self._wanted([*others, Entry(path.name, step, checksum, best)])
            self._write(wanted)
        except (OSError, RuntimeError) as error:  # torch may wrap what the system says
            raise NotSaved(self._unsaved(path, error)) from error
        kept = {entry.file for entry in wanted}
        for file in [*self.folder.glob("*.pt"), *self.folder.glob(".*.writing")]:  # the latter of a killed process
            if file.name not in kept:
                file.unlink(missing_ok=True)
        return path

    def latest(self, *, loud: bool = True) -> Optional[State]:
        """The state in the latest checkpoint that is whole; None if there has never been one.

        One that is damaged is passed over.

        Args:
            loud: Say so on stderr.

        Raises:
            InputError: If there are some and all are damaged.
        """
        entries = self.entries()
        for entry in reversed(entries):
            path = self.folder / entry.file
            problem = _problem(path, entry)
            if problem is None:
                state: State = torch.load(path, map_location="cpu", weights_only=True)
                return state
            if loud:
                print(f"{path} {problem}; the checkpoint before it is tried", file=sys.stderr, flush=True)
        if entries:
            raise InputError(f"no checkpoint in {self.folder} is whole; start the run again")
        return None

    def _wanted(self, entries: List[Entry]) -> List[Entry]:
        entries = sorted(entries, key=lambda entry: entry.step)
        return [entry for place, entry in enumerate(entries) if entry.best or place >= len(entries) - self.keep]

    def _write(self, entries: List[Entry]) -> None:
        write_text(self.index, json_text([asdict(entry) for entry in entries], indent=1))

    def _unsaved(self, path: Path, error: Exception) -> str:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        why = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        entries = self.entries()
        left = f"that of step {entries[-1].step} is whole" if entries else "there is none before it"
        again = f"make room, then `imixer train --resume {self.folder.parent}`"
        return f"checkpoint {path} could not be written ({why}); {left}; {again}"


def _problem(path: Path, entry: Entry) -> Optional[str]:
    if not path.is_file():
        return "is gone"
    if _checksum(path) != entry.sha256:
        return "is damaged: its checksum is not the one it was written with"
    return None


def _checksum(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()

"""Save and load the checkpoints of a run: written atomically, checked by checksum, the latest few and the best kept."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import zipfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from imixer.errors import InputError
from imixer.escaping import shell_word
from imixer.reading import parse_json, read_text
from imixer.training.run.result import best_by, best_row
from imixer.writing import json_text, replacing, write_text

State = dict[str, Any]  # what a checkpoint holds
_log = logging.getLogger(__name__)


class NotSaved(InputError):
    """An error in writing a checkpoint; the message says which earlier one is still there."""


@dataclass(frozen=True)
class CheckpointInfo:
    """An entry of the list of checkpoints.

    Args:
        file: The name of the file.
        step: Optimizer steps done.
        sha256: The checksum of the file.
        best: Whether it was saved after the best epoch.
        replaced: The checksum of a file of that name that is being replaced; empty if none is.
    """

    file: str
    step: int
    sha256: str
    best: bool = False
    replaced: str = ""


class Checkpoints:
    """The checkpoints in the folder of a run.

    `index.json` lists them with their checksums. It is replaced after a checkpoint is whole and before an old one is
    removed, so that at any moment what it lists is there.

    Args:
        folder: The folder. It is made with the first checkpoint.
        keep: The number of latest checkpoints to keep, besides the best.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    @property
    def index(self) -> Path:
        """The file that lists the checkpoints."""
        return self.folder / "index.json"

    @property
    def files(self) -> list[Path]:
        """The files of all checkpoints that are there, listed or not."""
        return sorted(self.folder.glob("step-*.pt"))

    def entries(self) -> list[CheckpointInfo]:
        """Return the list of checkpoints, oldest first. A list that is gone or damaged is made again from the files.

        Raises:
            InputError: If the list names a file elsewhere, or it is gone and no file is whole.
        """
        try:
            if self.index.is_file():
                return self._listed()
        except _Damaged as error:
            return self._rebuild(str(error))
        return self._rebuild(f"{self.index} is gone") if self.files else []

    def _listed(self) -> list[CheckpointInfo]:
        try:
            listed = parse_json(read_text(self.index), str(self.index))
        except InputError as error:
            raise _Damaged(str(error)) from error
        if not isinstance(listed, list) or not all(map(_is_entry, listed)):
            raise _Damaged(f"{self.index} is damaged: it is no list of checkpoints")
        entries = [CheckpointInfo(**entry) for entry in listed]
        if outside := [entry.file for entry in entries if not re.fullmatch(r"[^/\\\0]+\.pt", entry.file)]:
            raise InputError(
                f"{self.index} names {outside[0]!r}, which lies elsewhere and is no checkpoint of this run; remove "
                f"{self.index.name}, and it is made again from the checkpoints that are there"
            )
        if len({entry.file for entry in entries}) < len(entries):
            raise _Damaged(f"{self.index} is damaged: a file stands there twice")
        return sorted(entries, key=lambda entry: entry.step)

    def _rebuild(self, problem: str) -> list[CheckpointInfo]:
        """List the files anew. Each is read, since there is no checksum to hold it against."""
        whole: list[CheckpointInfo] = []
        best, left_out = None, []
        for file in self.files:
            state = _whole_state(file)
            if state is None or not _knows_its_step(state) or file != self.file(state["step"]):
                left_out.append(file.name)
                continue
            whole.append(CheckpointInfo(file.name, state["step"], _checksum(file)))
            best = _best_step(state) or best
        entries = [CheckpointInfo(each.file, each.step, each.sha256, each.step == best) for each in whole]
        unread = f"; {', '.join(left_out)} cannot be read" if left_out else ""
        names = ", ".join(each.file for each in whole) or "none"
        _log.warning(f"{problem}; listed again from the checkpoints: {names}{unread}")
        if whole:
            self._write(entries)
        elif left_out:
            raise InputError(f"no checkpoint in {self.folder} is whole; start the run again")
        return entries

    def file(self, step: int) -> Path:
        """Return the file of the checkpoint of a step, whether it is there or not."""
        return self.folder / f"step-{step:08d}.pt"

    def save(self, state: State, step: int, *, best: bool = False) -> Path:
        """Save a checkpoint, and remove those that are not to be kept any more.

        Args:
            state: The content: tensors, numbers and text, in dictionaries and lists.
            step: Optimizer steps done. A checkpoint of this step is replaced, later ones are dropped.
            best: Whether this is the best epoch so far.

        Returns:
            The file.

        Raises:
            NotSaved: If it cannot be written, because the disk is full, say. Earlier checkpoints are untouched.
        """
        path = self.file(step)
        try:
            self.folder.mkdir(exist_ok=True)
            before = self.entries()
            with replacing(path) as temporary:
                with temporary.open("wb") as opened:  # with a file of its own, torch hides what the system says
                    torch.save(state, opened)
                checksum = _checksum(temporary)
                old = next((entry for entry in before if entry.step == step), None)
                if old and path.is_file():  # killed from here on, it is the old one or the new one
                    both = replace(old, sha256=checksum, replaced=_checksum(path))
                    self._write([both if entry is old else entry for entry in before])
            others = [entry for entry in before if entry.step < step]  # later ones were damaged, and are passed by
            if best:
                others = [replace(entry, best=False) for entry in others]
            best = best or bool(old and old.best)
            wanted = self._wanted([*others, CheckpointInfo(path.name, step, checksum, best)])
            self._write(wanted)
        except (OSError, RuntimeError) as error:  # torch may wrap what the system says
            raise NotSaved(self._unsaved(path, error)) from error
        kept = {entry.file for entry in wanted}
        for file in [*self.folder.glob("*.pt"), *self.folder.glob(".*.writing")]:  # the latter of a killed process
            if file.name not in kept:
                file.unlink(missing_ok=True)
        return path

    def latest(self, *, loud: bool = True) -> State | None:
        """Load the latest checkpoint that is whole. Damaged ones are passed over.

        Args:
            loud: Whether to log a warning about damaged ones.

        Returns:
            The content; None if there has never been a checkpoint.

        Raises:
            InputError: If there are checkpoints and all are damaged.
        """
        entries = self.entries()
        for entry in reversed(entries):
            path = self.folder / entry.file
            problem = _problem(path, entry)
            if problem is None:
                state = _whole_state(path)
                if state is not None:
                    return state
                problem = "has the right checksum and is no checkpoint"
            if loud:
                _log.warning(f"{path} {problem}; the checkpoint before it is tried")
        listed = {entry.file for entry in entries}
        if any(file.name not in listed for file in self.files):  # the list is older than they are
            self._rebuild(f"nothing that {self.index} lists is whole")
            return self.latest(loud=loud)
        if entries:
            raise InputError(f"no checkpoint in {self.folder} is whole; start the run again")
        return None

    def best(self) -> State:
        """Load the checkpoint of the best epoch.

        Returns:
            The content.

        Raises:
            InputError: If none is there, or it is damaged.
        """
        entry = next((entry for entry in self.entries() if entry.best), None)
        if entry is None:
            raise InputError(
                f"{self.folder} holds no checkpoint of the best epoch, whose weights are asked for; take those of the "
                "last with `--checkpoint last`"
            )
        path = self.folder / entry.file
        problem, state = _problem(path, entry), None
        if problem is None and ((state := _whole_state(path)) is None or not _knows_its_step(state)):
            problem = "has the right checksum and is no checkpoint"
        if problem is not None or state is None:
            raise InputError(
                f"{path}, the checkpoint of the best epoch, {problem}; take the weights of the last epoch with "
                "`--checkpoint last`"
            )
        return state

    def _wanted(self, entries: list[CheckpointInfo]) -> list[CheckpointInfo]:
        entries = sorted(entries, key=lambda entry: entry.step)
        return [entry for place, entry in enumerate(entries) if entry.best or place >= len(entries) - self.keep]

    def _write(self, entries: list[CheckpointInfo]) -> None:
        listed = [{name: value for name, value in asdict(entry).items() if value != ""} for entry in entries]
        write_text(self.index, json_text(listed, indent=1))

    def _unsaved(self, path: Path, error: Exception) -> str:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        why = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        entries = self.entries()
        left = f"that of step {entries[-1].step} is whole" if entries else "there is none before it"
        go_on = f"then `imixer train --resume {shell_word(self.folder.parent)}`" if entries else "and start again"
        return f"checkpoint {path} could not be written ({why}); {left}; make room, {go_on}"


class _Damaged(InputError):
    """An error in the list of checkpoints; the message says why it cannot be read."""


def _is_entry(entry: Any) -> bool:
    kinds: dict[str, Any] = {field.name: field.type for field in fields(CheckpointInfo)}
    return (
        isinstance(entry, dict)
        and {"file", "step", "sha256"} <= entry.keys() <= kinds.keys()
        and all(type(value).__name__ == kinds[name] for name, value in entry.items())
        and entry["step"] >= 0
    )


def _whole_state(path: Path) -> State | None:
    """Read the state in a file; None if the file is damaged or holds something else. Nothing in it is executed."""
    try:
        with zipfile.ZipFile(path) as parts:
            if parts.testzip() is not None:  # which torch does not look at
                return None
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError):
        return None
    return state if isinstance(state, dict) else None


def _knows_its_step(state: State) -> bool:
    return type(state.get("step")) is int and state["step"] >= 0 and isinstance(state.get("rows"), list)


def _best_step(state: State) -> int | None:
    """Return the step after the best epoch that a state knows of."""
    rows = [row for row in state["rows"] if isinstance(row, dict) and {best_by(row), "step"} <= row.keys()]
    return best_row(rows)["step"] if rows else None


def _problem(path: Path, entry: CheckpointInfo) -> str | None:
    if not path.is_file():
        return "is gone"
    if _checksum(path) not in (entry.sha256, entry.replaced):
        return "is damaged: its checksum is not the one it was written with"
    return None


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()

"""Find trained models that ship with the package.

Each is a folder here whose name is the model's name in timm, ARCHITECTURE.TAG. It is a finished run without its
checkpoints: configuration, result, scores, model, and a card. `imixer export RUN --format package` makes one. Nothing
lists them but the folders themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imixer.errors import InputError, did_you_mean
from imixer.reading import read_json

FOLDER = Path(__file__).parent
MOST_BYTES = 8_000_000  # of all of them together, as everyone who installs the package downloads them


def packaged_models() -> dict[str, Path]:
    """List every model that ships with the package: its name in timm, and its folder."""
    return {
        file.parent.parent.name: file.parent.parent for file in sorted(FOLDER.glob("[!.]*/model/model.safetensors"))
    }


def find_packaged(name: str) -> Path:
    """Find the folder of a packaged model.

    Args:
        name: Such as `imixer_n2_8.digits`.

    Raises:
        InputError: If there is no such model; it names the closest.
    """
    known = packaged_models()
    if name not in known:
        meant = did_you_mean(name, known, cutoff=0.4)
        there = ", ".join(known) or "none"
        raise InputError(f"no packaged model {name!r}{meant or f'; there is {there}'}")
    return known[name]


def is_packaged(path: Path) -> bool:
    """Return whether a folder is that of a packaged model."""
    return path.resolve().parent == FOLDER.resolve()


def size_of(path: Path) -> int:
    """Count the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def packaged_config(folder: Path) -> dict[str, Any]:
    """Read what timm needs to build a packaged model: its architecture, arguments, classes and preparation.

    Args:
        folder: The folder of the model.

    Raises:
        InputError: If the file is missing or damaged.
    """
    return read_json(folder / "model" / "config.json", ["model_args", "label_names", "pretrained_cfg"])


def require_room(folder: Path) -> None:
    """Check that all packaged models together are small enough to ship.

    Args:
        folder: One more, which may still have a temporary name.

    Raises:
        InputError: If they would take more than `MOST_BYTES`.
    """
    total = sum(map(size_of, {*packaged_models().values(), folder}))
    if total > MOST_BYTES:
        raise InputError(
            f"out: the packaged models would take {total / 1e6:.1f} MB together, more than {MOST_BYTES / 1e6:g}; "
            "remove one, or train a smaller one"
        )

"""YAML recipes, addressed by their path without the suffix."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Dict

from imixer.errors import InputError

_FOLDER = Path(__file__).parent


def recipes() -> Dict[str, str]:
    """Name and one-line description (the first comment) of every recipe that ships with the package."""
    found = sorted(_FOLDER.rglob("*.yaml"))
    return {path.relative_to(_FOLDER).with_suffix("").as_posix(): _description(path) for path in found}


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Raises:
        InputError: If there is no such recipe; it names the closest.
    """
    if name not in recipes():
        close = get_close_matches(name, recipes(), cutoff=0.4)
        meant = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"no recipe {name!r}{meant}; `imixer recipes` lists them")
    return _FOLDER / f"{name}.yaml"


def _description(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""

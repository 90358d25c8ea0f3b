"""YAML recipes, addressed by their path without the suffix.

A recipe is a configuration file with one key more: `base` lists what to build on. Those settings come first, in order,
then its own. A file whose name begins with an underscore is a part to build on, no recipe by itself.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from imixer.errors import InputError

_FOLDER = Path(__file__).parent


def recipes() -> dict[str, str]:
    """Name and one-line description (the first comment) of every recipe that ships with the package."""
    found = sorted(_FOLDER.rglob("[!_]*.yaml"))
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


def load_recipe(name: str) -> dict[str, Any]:
    """All settings of a recipe, nested as in its file, those of its bases included.

    Raises:
        InputError: If there is no such recipe; it names the closest.
    """
    return _settings(find_recipe(name))


def _settings(path: Path) -> dict[str, Any]:
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings: dict[str, Any] = {}
    for base in own.pop("base", []):
        settings = _merged(settings, _settings(_FOLDER / f"{base}.yaml"))
    return _merged(settings, own)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(under[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(under.get(k), dict)}
    return under | over | both


def _description(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""

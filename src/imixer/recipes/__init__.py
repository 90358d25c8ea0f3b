"""Find and load recipes: configuration files that ship with the package.

A recipe is named by its path without the suffix. It has one key more than a configuration file: `base` lists the files
to build on. Their settings are taken first, in order; the recipe's own win over them. A file whose name begins with an
underscore is a part to build on, and no recipe by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from imixer.errors import InputError, did_you_mean

_FOLDER = Path(__file__).parent


def recipes() -> dict[str, str]:
    """List every recipe that ships with the package: its name, and its first comment as a description."""
    files = sorted(_FOLDER.rglob("[!_]*.yaml"))
    return {file.relative_to(_FOLDER).with_suffix("").as_posix(): _description(file) for file in files}


def find_recipe(name: str) -> Path:
    """Find the file of a recipe.

    Args:
        name: Such as `paper/imixer_s16_cifar10`.

    Raises:
        InputError: If there is no such recipe; it names the closest.
    """
    if name not in recipes():
        meant = did_you_mean(name, recipes(), cutoff=0.4)
        raise InputError(f"no recipe {name!r}{meant}; `imixer recipes` lists them")
    return _FOLDER / f"{name}.yaml"


def load_recipe(name: str) -> dict[str, Any]:
    """Load all settings of a recipe, those of its bases included, nested as in its file.

    Args:
        name: Such as `paper/imixer_s16_cifar10`.

    Raises:
        InputError: If there is no such recipe; it names the closest.
    """
    return _settings(find_recipe(name))


def finetune_settings(part: str) -> dict[str, Any]:
    """Load the settings that `--finetune` brings. They are no recipe, since they need weights to start from.

    Args:
        part: `head`, `last` or `all`.
    """
    return _settings(_FOLDER / "finetune" / f"_{part}.yaml")


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

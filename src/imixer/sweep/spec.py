"""Build a sweep from YAML, and refuse whatever is wrong with it before anything starts. Free of torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, reduce
from itertools import product
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentParser

from imixer.errors import InputError, did_you_mean
from imixer.escaping import slug
from imixer.reading_yaml import read_yaml
from imixer.recipes import finetune_settings, load_recipe
from imixer.sweep.plan import Sweep, SweepCell, Trial
from imixer.training.run.config import FinetunePart, TrainConfig
from imixer.training.run.parsing import (
    build_config,
    default_recipe,
    merge_settings,
    parse,
    train_parser,
)
from imixer.writing import json_text

SPEC, SETTINGS, RESULTS, SUMMARY, RAY_LOG = _FILES = (  # beside the cells
    "spec.yaml",
    "settings.json",
    "results.csv",
    "summary.csv",
    "ray.log",
)
_FIELDS = ("name", "recipe", "config", "set", "grid", "cases", "seeds", "case_seeds")
_OTHERWISE = {
    "seed": "list the seeds under seeds",
    "out": "give --out to `imixer sweep`; each trial gets its folder in there",
    "recipe": "name the recipe beside set, not in it",
    "config": "name the file beside set, not in it",
}
_WHOLE = {"masks.palette"}  # mappings that are one value
_LONGEST_NAME = 150
_MOST_TRIALS = 10_000
_NO_RECIPE = {"data", "data.name", "model.from_mixer", "model.checkpoint"}  # where one is set


def read_sweep(path: str) -> Sweep:
    """Read the YAML file of a sweep, see `build_sweep`.

    Args:
        path: The file. A sweep without `name` is called like it.

    Raises:
        InputError: If the file cannot be read, or `build_sweep` refuses it.
    """
    file = Path(path)
    spec = read_yaml(file)
    try:
        return build_sweep(spec, file.stem, file.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def build_sweep(spec: object, name: str = "sweep", folder: Path = Path()) -> Sweep:
    """Build the sweep that a specification describes. Every trial of it is a valid configuration.

    The fields of a specification are all optional. Settings are dotted (`model.n_iter`) or nested.

    - `recipe`: name of a recipe to start from. Default: where neither data nor weights to start from are
      named, `digits`, or `scenes` for segmentation; none otherwise.
    - `config`: file to start from, as for `imixer train --config`. It wins over the recipe.
    - `set`: settings of all cells. They win over both.
    - `cases`: settings of cells, by name of the cell. They win over `set`.
    - `grid`: lists of values, by setting. Every case is trained with every combination.
    - `seeds`: a list, or a number n for 0 to n - 1. Default: 1.
    - `case_seeds`: seeds of single cases.
    - `name`: name of the sweep.

    Args:
        spec: The mapping.
        name: Name of the sweep if the specification has none.
        folder: Folder that `config` is relative to.

    Raises:
        InputError: If a field or a setting is unknown, of a wrong type, stands twice or is impossible, if two cells
            are the same, or nothing is left to train.
    """
    if not isinstance(spec, dict):
        raise InputError(f"a sweep is a mapping with the fields {', '.join(_FIELDS)}")
    for field in spec:
        if field not in _FIELDS:
            raise InputError(
                f"unknown field {field}{did_you_mean(str(field), _FIELDS)}; there are {', '.join(_FIELDS)}"
            )
    recipe, file = _starts(spec, folder)
    base = merge_settings(recipe, file)
    fixed = _settings(spec.get("set", {}), "set")
    grid, cases = _grid(spec), _cases(spec)
    for where, settings in {"set": fixed, **{f"cases.{case}": own for case, own in cases.items()}}.items():
        if both := settings.keys() & grid:
            raise InputError(f"{min(both)} stands in {where} and in grid; leave it out of one")
    named = {field for settings in (base, fixed, grid, *cases.values()) for field in settings}
    varied = [*grid.get("model.pretrained", ()), *(own.get("model.pretrained") for own in cases.values())]
    open_start = not named & _NO_RECIPE and not any(varied)
    if spec.get("recipe") is None and open_start and (default := default_recipe(base | fixed)):
        recipe = _flat(load_recipe(default), "the file")
    base, cases = _with_finetune([recipe, file, fixed], cases, grid)
    name, seeds, case_seeds = _name(spec.get("name", name)), _seeds(spec.get("seeds", 1)), _case_seeds(spec, cases)
    cells = tuple(_cells(base, grid, cases, seeds, case_seeds))
    resolved = {
        "name": name,
        "set": base,
        "grid": grid,
        "cases": cases,
        "seeds": seeds,
        "case_seeds": case_seeds,
    }
    together = dict.fromkeys(seed for cell in sorted(cells, key=lambda cell: -len(cell.seeds)) for seed in cell.seeds)
    return Sweep(name, cells, tuple(together), {k: v for k, v in resolved.items() if v})


def select_share(sweep: Sweep, which: str) -> tuple[Trial, ...]:
    """Select every n-th trial of a sweep, so that n jobs share it.

    Args:
        sweep: The sweep.
        which: `i/n` for the i-th of n shares, from 0.

    Raises:
        InputError: If there is no such share.
    """
    numbers = re.fullmatch(r"(\d+)/(\d+)", which)
    if not numbers or int(numbers[1]) >= int(numbers[2]):
        raise InputError(f"share is {which!r}; give I/N with I from 0, below N")
    return sweep.trials[int(numbers[1]) :: int(numbers[2])]


def setting_text(value: object) -> str:
    """Write a setting's value in one line, as YAML has it."""
    return value if isinstance(value, str) else json_text(value, non_finite="null", indent=None, default=str)


def _starts(spec: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Load the settings of the recipe, and those of the file.

    Seed and folder are left out: the file may be that of a finished run.
    """
    starts: list[dict[str, Any]] = []
    for field, load in (("recipe", load_recipe), ("config", lambda file: read_yaml(folder / file))):
        given = spec.get(field)
        if given is None:
            starts.append({})
            continue
        if not isinstance(given, str):
            raise InputError(f"{field} is {given!r}; give text")
        try:
            loaded = _flat(load(given), "the file")
            settings = {name: loaded[name] for name in loaded if name not in ("seed", "out")}
            starts.append(_settings(settings, "the file"))
        except InputError as error:
            raise InputError(f"{field} {given}: {error}") from error
    return starts


def _with_finetune(
    layers: Sequence[dict[str, Any]], cases: dict[str, dict[str, Any]], grid: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Merge recipe, file and fixed settings, and what `finetune` brings over the recipe, as on the command line.

    Where a case says what is fine-tuned, each has what its own part brings.
    """
    if "finetune" in grid:
        raise InputError("grid.finetune: each part brings settings of its own; spell them out under cases")

    def merged(part: object) -> dict[str, Any]:
        brought = _flat(finetune_settings(str(part)), "finetune") if part in get_args(FinetunePart) else {}
        whole = reduce(merge_settings, [layers[0], brought, *layers[1:]])
        return {field: value for field, value in whole.items() if field not in grid}

    base = merged(None)
    part = base.get("finetune")
    if not any("finetune" in own for own in cases.values()):
        return merged(part), cases
    wholes = {case: merged(own.get("finetune", part)) for case, own in cases.items()}
    return base, {
        case: merge_settings({k: v for k, v in wholes[case].items() if k not in base or base[k] != v}, own)
        for case, own in cases.items()
    }


def _settings(given: object, where: str) -> dict[str, Any]:
    settings = _flat(given, where)
    for field in settings.keys() & _OTHERWISE.keys():
        raise InputError(f"{field} cannot be set in {where}; {_OTHERWISE[field]}")
    _nested(settings)  # refuses what contradicts itself, before other settings come to it
    return settings


def _grid(spec: dict[str, Any]) -> dict[str, list[Any]]:
    grid = _settings(spec.get("grid", {}), "grid")
    if not grid and "grid" in spec:
        raise InputError("grid is empty; list values of a setting, or leave it out")
    for field, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{field} is {values!r}; give a list of values, such as [1, 2]")
        if any(isinstance(value, dict) for value in values):
            raise InputError(f"grid.{field} lists mappings; spell them out under cases, which have names")
    return grid


def _cases(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cases = spec.get("cases", {})
    if not isinstance(cases, dict) or (not cases and "cases" in spec):
        raise InputError(f"cases is {cases!r}; give a mapping of names to settings, or leave it out")
    for case in cases:
        if not isinstance(case, str) or _slug(case) != case:
            raise InputError(f"cases: {case!r} cannot name a folder; use letters, digits and _ . + - =, in quotes")
    return {case: _settings({} if given is None else given, f"cases.{case}") for case, given in cases.items()}


def _seeds(given: object, where: str = "seeds") -> list[int]:
    if isinstance(given, int) and given > _MOST_TRIALS:
        raise InputError(f"{where} is {given}; give at most {_MOST_TRIALS:,}")
    seeds = list(range(given)) if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
        raise InputError(f"{where} is {given!r}; give their number, 1 or more, or a list of whole numbers")
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise InputError(f"{where}: {twice[0]} stands there twice")
    return seeds


def _case_seeds(spec: dict[str, Any], cases: dict[str, Any]) -> dict[str, list[int]]:
    given = spec.get("case_seeds", {})
    if not isinstance(given, dict):
        raise InputError(f"case_seeds is {given!r}; give a mapping of cases to their seeds, or leave it out")
    for case in given:
        if case not in cases:
            raise InputError(f"case_seeds: there is no case {case!r}{did_you_mean(str(case), cases)}")
    return {case: _seeds(seeds, f"case_seeds.{case}") for case, seeds in given.items()}


def _name(given: object) -> str:
    if not isinstance(given, str) or _slug(given) != given:
        raise InputError(f"name is {given!r}, which cannot name a folder; use letters, digits and _ . + - =")
    return given


def _cells(
    base: dict[str, Any],
    grid: dict[str, list[Any]],
    cases: dict[str, dict[str, Any]],
    seeds: list[int],
    case_seeds: dict[str, list[int]],
) -> Iterable[SweepCell]:
    number = math.prod(map(len, grid.values())) * max(1, len(cases))
    if number > _MOST_TRIALS:
        raise InputError(f"grid has {number:,} cells; give at most {_MOST_TRIALS:,}")
    short = _short_names(grid)
    cells: dict[str, SweepCell] = {}  # by what they train
    taken = {file: file for file in _FILES}  # file systems may not tell case apart
    for case, own in (cases or {"": {}}).items():
        for values in product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            parts = [case] * bool(case) + [
                f"{short[field]}={_slug(setting_text(value))}" for field, value in point.items()
            ]
            name = ",".join(parts) or "base"
            if len(name) > _LONGEST_NAME:
                raise InputError(f"cell {name} has too long a name for a folder; spell such cells out under cases")
            if other := taken.get(name.lower()):
                raise InputError(f"cell {name} and {other} would share a folder; leave one out, or use cases")
            taken[name.lower()] = name
            own_seeds = case_seeds.get(case, seeds)
            config = _config(merge_settings(merge_settings(base, own), point), own_seeds, name)
            if same := cells.get(repr(config)):
                raise InputError(f"cells {same.name} and {name} are the same; leave one out")
            cells[repr(config)] = SweepCell(name, own | point, config, tuple(own_seeds))
    return cells.values()


def _config(settings: dict[str, Any], seeds: list[int], cell: str) -> TrainConfig:
    try:
        config = _parsed(yaml.safe_dump(_nested(settings)))
        for seed in seeds:
            replace(config, seed=seed)  # refuses what is impossible
    except InputError as error:
        raise InputError(f"cell {cell}: {error}") from error
    if config.choose:
        raise InputError(
            f"choose is {', '.join(config.choose)}, as in the recipe photos, by which trials may differ in what they "
            "choose; start from the config.yaml of a finished run, which has what was chosen, or pass choose: []"
        )
    return config


@lru_cache(maxsize=1024)  # experiments have configurations in common, and a sweep is read more than once
def _parsed(text: str) -> TrainConfig:
    return build_config(parse(_parser(), ["--config", text]))


@lru_cache(maxsize=1)  # it takes as long to make as to use
def _parser() -> ArgumentParser:
    return train_parser()


def _short_names(grid: Iterable[str]) -> dict[str, str]:
    """Shorten each dotted name to its last word, unless another setting ends with the same one."""
    last = {field: field.rpartition(".")[2] for field in grid}
    return {field: word if list(last.values()).count(word) == 1 else field for field, word in last.items()}


def _slug(value: str) -> str:
    return slug(value, kept=r"\w.+=-", edges="._", empty="none")


def _flat(settings: object, where: str, group: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names: `{a: {b: 1}}` becomes `{a.b: 1}`. What is one value stays whole."""
    if not isinstance(settings, dict):
        raise InputError(f"{where} is {settings!r}; give a mapping of settings to values")
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{group}{key}"
        nested = isinstance(value, dict) and name not in _WHOLE
        for field, leaf in (_flat(value, where, f"{name}.") if nested else {name: value}).items():
            if field in flat:
                raise InputError(f"{where}: {field} stands there twice")
            flat[field] = leaf
    return flat


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Nest dotted names: `{a.b: 1}` becomes `{a: {b: 1}}`."""
    nested: dict[str, Any] = {}
    for field, value in settings.items():
        *groups, last = field.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise InputError(f"{group} is {inner!r}, and {field} is set too; leave one out")
        if isinstance(inner.get(last), dict):
            raise InputError(f"{field} is {value!r}, and settings in it are set too; leave one out")
        inner[last] = value
    return nested

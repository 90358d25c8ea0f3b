"""Parse command line and YAML into a configuration, and turn an error in either into one plain line. Free of torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from imixer.data.config import DataConfig, MaskConfig
from imixer.data.names import is_photo_folder
from imixer.errors import InputError, did_you_mean
from imixer.escaping import is_encodable, printable
from imixer.reading_yaml import parse_yaml, read_yaml
from imixer.recipes import finetune_settings, load_recipe
from imixer.training.run.config import (
    AnomalyConfig,
    CheckpointConfig,
    FinetunePart,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    SegmentConfig,
    TaskName,
    TrainConfig,
)
from imixer.training.run.directory import RunDirectory, open_begun
from imixer.writing import json_text, write_text

_GROUPS: dict[str, Any] = {
    "data": DataConfig,
    "model": ModelConfig,
    "optim": OptimConfig,
    "schedule": ScheduleConfig,
    "masks": MaskConfig,
    "segment": SegmentConfig,
    "anomaly": AnomalyConfig,
    "checkpoints": CheckpointConfig,
}
_TRUE = ("true", "yes")  # of a setting in a file, or as it was typed
_STARTS = ("model.checkpoint", "model.from_mixer")
_CHOSEN_BY_HAND: dict[str, tuple[str, ...]] = {  # by what `choose` may name, the settings that leave nothing to choose
    "model": ("model.name", "model.pretrained", *_STARTS),
    "batch_size": ("data.batch_size",),
    "steps": ("steps", "epochs", "budget"),
    "loading": ("data.workers", "data.keep_decoded", "data.pipeline"),
}
_RIVALS = {  # by setting, those that would be taken in its place
    "epochs": ("budget", "steps"),
    "budget": ("steps",),
    "steps": ("budget",),
    "schedule.warmup_epochs": ("schedule.warmup_share",),
}
_OPTION = re.compile(r"--\w[\w.-]*")
_NEGATIVE = re.compile(r"-\.?\d")
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")  # which argparse takes for a value
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def train_parser() -> ArgumentParser:
    """Build the parser of `imixer train`, with one option for each field of `TrainConfig`, and `--config`.

    `--resume` and `--recipe` are only described here; `expand_config_flags` takes them from the command line first.
    """
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        usage="%(prog)s [--resume RUN] [--recipe NAME] [--config FILE] [--SETTING VALUE ...]",
        description="Train a model. Where no data are named: the built-in handwritten digits, by the recipe digits. "
        "Where a folder of photos is named, and nothing is said of the model: by the recipe photos. Both win over the "
        "defaults below.",
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="Recipe to start from; `imixer recipes` lists them. Default: digits for the digits, photos for a folder "
        "of class folders where no model is named, none otherwise.",
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, metavar="FILE", help="YAML file, applied over the recipe. Flags win."
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="Continue this run from its latest checkpoint, as if it had never stopped. Only how and where it is "
        "computed may change, such as devices, workers and checkpoints.",
    )
    parser.add_class_arguments(TrainConfig)
    return parser


def expand_config_flags(argv: Sequence[str]) -> list[str]:
    """Replace `--resume`, `--recipe` and `--config` by the configurations they stand for, and put these first.

    jsonargparse applies options from left to right, so that all other flags win over files, wherever they stand.
    `--config` wins over the settings that `finetune` brings, on the command line or in a file; these win over
    `--recipe`, which wins over `--resume`. Files are read here, since jsonargparse would keep the last of two equal
    keys, and write out any aliases. Where neither a run nor a recipe is named, `default_recipe` tells the recipe.

    Args:
        argv: The words after `imixer train`.

    Returns:
        The words with configurations as YAML after `--config`. `--resume` is still among them.

    Raises:
        InputError: If there is no such run, recipe or file, a file is no configuration, or the words say the same thing
            in two ways, such as `epochs` and `budget`.
    """
    taken: dict[str, list[str]] = {"--resume": [], "--recipe": [], "--config": []}
    rest, words = [], iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in taken:
            rest.append(word)
        elif equals:
            taken[name].append(value)
        elif (following := next(words, None)) is not None:
            taken[name].append(following)
        else:
            raise InputError(f"{name} needs a value")
    flags = _flags(rest)
    _require_single_keys(flags)
    resumed = [_read_settings(open_begun(path).config) for path in taken["--resume"]]
    recipes = [load_recipe(name) for name in taken["--recipe"]]
    files = [_read_settings(Path(file)) for file in taken["--config"]]
    _refuse_rivals(flags)  # a file may be a run's own configuration, which spells out every setting
    given = _given([*map(_chosen_settings, files), flags])
    if not (resumed or recipes) and (recipe := default_recipe(given)):
        recipes = [load_recipe(recipe)]
    part = None if resumed else _finetuned(files, flags)  # of a run, the configuration has all that was brought
    brought = [finetune_settings(part)] if part else []
    configs = resumed + recipes + brought + files
    for setting in [] if resumed else _overruled(recipes + brought + files, flags):  # every change is looked at
        group, _, field = setting.partition(".")
        configs.append({group: {field: None} if field else None})
    choosing = next((chosen for each in reversed(recipes + files) if (chosen := each.get("choose")) is not None), None)
    given |= _given(map(flatten, brought))
    if choosing:
        configs.append({"choose": left_to_choose(choosing, given)})
    if asked := _names(flags.get("choose")):
        rest += ["--choose", json_text(left_to_choose(asked, given), indent=None)]
    first = [word for config in configs for word in ("--config", yaml.safe_dump(config, sort_keys=False))]
    return first + [word for path in taken["--resume"] for word in ("--resume", path)] + rest


def merge_settings(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge settings by dotted name, of which those of `over` win.

    A setting of `over` also wins over the one in `under` that says the same thing in another way and would be taken
    instead: `epochs` over `budget` and `steps`, `schedule.warmup_epochs` over `schedule.warmup_share`.

    Args:
        under: Settings, such as those of a recipe.
        over: Settings, such as those of the command line.
    """
    pairs = [(name, rival) for name, rivals in _RIVALS.items() for rival in rivals]
    gone = {rival: None for name, rival in pairs if over.get(name) is not None and under.get(rival) is not None}
    return under | gone | over


def default_recipe(settings: Mapping[str, Any]) -> str | None:
    """Return the recipe that is meant where none is named.

    Args:
        settings: The settings that are given, by dotted name.

    Returns:
        `digits` for the digits, which are meant where no data are named, and `scenes` in their place for segmentation;
        `photos` for a folder of class folders, unless a model is named. None for other data, for weights to start from,
        and for the detection of anomalies, which takes no steps.
    """
    pretrained = str(settings.get("model.pretrained")).lower() in _TRUE
    if pretrained or any(name in settings for name in _STARTS) or settings.get("task") == "anomaly":
        return None
    if settings.get("task") == "segment":
        return None if {"data", "data.name"} & settings.keys() else "scenes"
    data = settings.get("data.name") or ("digits" if "data" not in settings else None)
    if data == "digits":
        return "digits"
    named = any(name in settings for name in _CHOSEN_BY_HAND["model"])
    return "photos" if isinstance(data, str) and not named and is_photo_folder(data) else None


def left_to_choose(choosing: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Return what of `choose` is left to choose, beside settings that are given.

    Args:
        choosing: What is to be chosen.
        settings: The settings that are given, by dotted name.
    """
    return [each for each in choosing if not any(name in settings for name in _CHOSEN_BY_HAND.get(each, ()))]


def _chosen_settings(file: dict[str, Any]) -> dict[str, Any]:
    """Flatten the settings of a file; of one that says itself what to choose, those alone that are not the default.

    A whole configuration, as `--print_config` writes it, spells out the others.
    """
    settings = flatten(file)
    return _not_default(settings) if settings.get("choose") else settings


def _names(text: str | None) -> list[str]:
    """Read a list of names as it is typed; anything else is left to the parser, which refuses it."""
    try:
        names = None if text is None else yaml.safe_load(text)
    except yaml.YAMLError:
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _given(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge settings that files and flags give, without those that say nothing, as `model.pretrained false` does."""
    given = {name: value for layer in layers for name, value in layer.items() if value is not None}
    return {name: value for name, value in given.items() if name != "model.pretrained" or str(value).lower() in _TRUE}


def _flags(words: Sequence[str]) -> dict[str, str | None]:
    """List the flags among the words of a command line by name, with their values."""
    flags: dict[str, str | None] = {}
    for word, following in zip(words, [*words[1:], None], strict=False):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            given = value if equals else following
            flags[name[2:]] = None if given == "null" else given
    return flags


def _overruled(configs: Sequence[dict[str, Any]], flags: dict[str, str | None]) -> list[str]:
    """Find the settings that files or flags say in another way, see `merge_settings`."""
    settings: dict[str, Any] = {}
    for over in [*map(flatten, configs), flags]:
        settings = merge_settings(settings, over)
    rivals = {rival for each in _RIVALS.values() for rival in each}
    return sorted(rival for rival in rivals if rival in settings and settings[rival] is None)


def _require_single_keys(flags: Mapping[str, str | None]) -> None:
    """Refuse mappings in flags of which two keys are equal, as in files: the last would be taken without a word."""
    for name, value in flags.items():
        if value is not None and value.lstrip().startswith(("{", "[")):
            try:
                yaml.compose(value, yaml.SafeLoader)
            except yaml.YAMLError:  # text such as a folder's name, or what the parser refuses
                continue
            parse_yaml(value, f"--{name}")


def _refuse_rivals(flags: Mapping[str, str | None]) -> None:
    """Refuse flags of which one would be taken in another's place."""
    for name, rivals in _RIVALS.items():
        for rival in rivals:
            if flags.get(name) is not None and flags.get(rival) is not None:
                raise InputError(
                    f"--{name} is {flags[name]} and --{rival} is {flags[rival]}, which say the same thing in two ways; "
                    "leave one of them out"
                )


def _finetuned(files: Sequence[dict[str, Any]], flags: dict[str, str | None]) -> FinetunePart | None:
    """Return what `finetune` is, if it is one of its choices: that of the command line, or of the last file with it."""
    chosen = [settings["finetune"] for settings in [*files, flags] if "finetune" in settings]
    return next((part for part in get_args(FinetunePart) if part in chosen[-1:]), None)


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Parse the words of a command line.

    Raises:
        InputError: If the parser complains, with its complaint in one line that names what to do.
    """
    try:
        return parser.parse_args(_with_negative_values(argv))
    except argparse.ArgumentError as error:
        raise InputError(explain(str(error), parser)) from error


def _with_negative_values(argv: Sequence[str]) -> list[str]:
    """Join an option and a value such as -1P or -1e-3, which argparse would take for an option, by an equals sign."""
    words: list[str] = []
    for word in argv:
        if words and _OPTION.fullmatch(words[-1]) and _NEGATIVE.match(word) and not _NEGATIVE_NUMBER.fullmatch(word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def build_config(namespace: Namespace) -> TrainConfig:
    """Build the typed configuration from what `train_parser` parsed.

    Args:
        namespace: The options by name, with groups such as `optim` as mappings.

    Raises:
        InputError: If a value, or a combination of them, is impossible.
    """
    values = namespace.as_dict()
    if values.get("recipe") is not None:  # `expand_config_flags` has taken it from the command line
        raise InputError("recipe stands in a configuration file; name it on the command line, as --recipe")
    chosen = {f.name: values[f.name] for f in fields(TrainConfig)}
    _require_mappings(chosen)
    for name, group in _GROUPS.items():
        _require_values(chosen[name], group, f"{name}.")
        chosen[name] = group(**chosen[name])
    _require_values(chosen, TrainConfig, "")
    return TrainConfig(**chosen)


def _require_mappings(settings: dict[str, Any]) -> None:
    """Refuse a group of settings that is something else. jsonargparse takes that for anything."""
    for name in _GROUPS.keys() & settings.keys():
        if not isinstance(settings[name], dict):
            first = fields(_GROUPS[name])[0].name
            raise InputError(f"{name} is {settings[name]!r}; give a mapping such as {name}.{first}")


def _require_values(chosen: dict[str, Any], kind: Any, prefix: str) -> None:
    """Refuse null where it is no choice. jsonargparse takes it for anything."""
    for name, hint in get_type_hints(kind).items():
        if chosen.get(name, 0) is None and type(None) not in get_args(hint):
            raise InputError(f"{prefix}{name} is null; give {_describe(hint)}, or leave it out")


def load_config(path: Path) -> TrainConfig:
    """Load the configuration in a file that `save_config` wrote, or in any other for `--config`.

    Args:
        path: The file.

    Raises:
        InputError: If the file is missing or is not such a configuration.
    """
    settings = yaml.safe_dump(_read_settings(path), sort_keys=False)
    try:
        return build_config(parse(train_parser(), ["--config", settings]))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def task_of(path: str) -> TaskName:
    """Return the task of a run; `classify` where there is none, which is said when it is opened.

    Args:
        path: The directory of the run.
    """
    file = RunDirectory(Path(path)).config
    return load_config(file).task if file.is_file() else "classify"


def _read_settings(file: Path) -> dict[str, Any]:
    """Read a configuration file, and check that its settings have the right types."""
    settings = read_yaml(file)
    if not isinstance(settings, dict):
        raise InputError(f"{file} is no configuration: it is not a YAML mapping of settings to values")
    try:
        parse(train_parser(), ["--config", yaml.safe_dump(settings, sort_keys=False)])
        _require_mappings(settings)  # here, since a flag such as --data.name would replace it
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return settings


def save_config(config: TrainConfig, path: Path) -> None:
    """Write every field of a configuration to a YAML file.

    Args:
        config: The configuration.
        path: The file.

    Raises:
        InputError: If a path in it is not named in UTF-8, as YAML could not be read again.
    """
    for name, value in flatten(asdict(config)).items():
        if isinstance(value, str) and not is_encodable(value):
            raise InputError(f"{name}: {printable(value)} is not named in UTF-8; rename that folder")
    write_text(path, yaml.safe_dump(_plain(asdict(config)), sort_keys=False))


def flatten(settings: dict[str, Any]) -> dict[str, Any]:
    """Flatten nested settings: `{"optim": {"lr": 1}}` becomes `{"optim.lr": 1}`. Tuples become lists."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = {f"{name}.{rest}": leaf for rest, leaf in flatten(value).items()} if isinstance(value, dict) else None
        flat |= {name: _plain(value)} if inner is None else inner
    return flat


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of a configuration that are not the default, by dotted name."""
    return _not_default(flatten(asdict(config)))


def _not_default(settings: Mapping[str, Any]) -> dict[str, Any]:
    default = flatten(asdict(TrainConfig()))
    return {name: value for name, value in settings.items() if value != default.get(name)}


def explain(text: str, parser: ArgumentParser) -> str:
    """Rewrite a message of jsonargparse as one line that names the option, the value and what would do."""
    if unknown := re.search(r"unrecognized arguments: (.*)", text, re.IGNORECASE):
        words = unknown[1].split()
        name = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
        kind = "option" if name.startswith("-") else "argument"
        return f"unknown {kind} {name}{_meant(name.lstrip('-'), parser, '--')}"
    if unknown := re.match(r"Option '(.+)' is not accepted|Group '(.+)' does not accept option '(.+)'", text):
        name = unknown[1] or f"{unknown[2]}.{unknown[3]}"
        return f"unknown setting {name} in the configuration{_meant(name, parser, '')}"
    if bad := re.match(r'Parser key "(.+?)":\s*(.*)', text, re.DOTALL):
        return _explain_value(bad[1], bad[2], parser)
    if missing := re.search(r"arguments are required: (\w+)", text):
        return f"{missing[1].upper()} is missing; `{parser.prog} --help` tells more"
    return " ".join(text.split())


def _explain_value(key: str, problem: str, parser: ArgumentParser) -> str:
    if file := re.search(r"Unable to load config '(.*?)'", problem):
        return f"--{key} takes a YAML file, and {file[1]!r} is none; did you mean --{key}.name {file[1]}?"
    value = re.search(r"(?:Got|Given) value: (.*)", problem, re.DOTALL)
    action = next((a for a in parser._actions if a.dest == key), None)
    hint = getattr(action, "_typehint", None) or getattr(action, "type", None)
    if value and hint:
        return f"{key} is {value[1].strip()!r}; give {_describe(hint)}"
    return f"{key}: {' '.join(problem.split())}"


def _describe(hint: Any) -> str:
    """Describe a type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (Union, UnionType):
        return " or ".join(_describe(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        return f"[{', '.join(_describe(arg) for arg in args)}]"
    if origin is dict:
        return "a mapping"
    return _NAMES.get(hint, str(hint))


def _meant(name: str, parser: ArgumentParser, dashes: str) -> str:
    """Name the options that are like a mistyped one, in a clause; `lr` is like `optim.lr`."""
    options = [o[2:] for action in parser._actions for o in action.option_strings if o.startswith("--")]
    inner = [option for option in options if option.endswith(f".{name}")]
    if inner:
        return f"; did you mean {dashes}{inner[0]}?"
    return did_you_mean(name, options, prefix=dashes)


def _plain(value: Any) -> Any:
    """Replace tuples by lists, which plain YAML has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value

"""Read the weights of a model out of a file of any author. Nothing in the file is executed."""

from __future__ import annotations

import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imixer.errors import InputError, in_short

_KEY = "model.checkpoint_key"  # belongs to the option `model.checkpoint` alone
_DEPTH = 2  # of mappings in mappings: a file, its parts, the parts of those
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|average|averaged|averaging)(?:$|[._])")
_TRAINED = ("state_dict", "model")
# Records that stand beside weights in files of timm, Lightning and Hydra. They are not built, nor their code imported.
_RECORDS = [
    "argparse.Namespace",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "types.SimpleNamespace",
    "typing.Any",
    *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "set", "str", "tuple")),
    *(
        f"{module}.{kind}"
        for module in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
    ),
]
_MAPPINGS = [  # are filled item by item, which torch does to its own kinds of mappings only
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
]
_ARRAYS = [
    *(f"{module}.multiarray.{how}" for module in ("numpy.core", "numpy._core") for how in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
]


@dataclass(frozen=True)
class WeightSet:
    """A set of weights of one model in a file, of which there may be several. `read_weights` finds them.

    Args:
        name: The place in the file: keys and prefixes, joined by dots. Empty if the file is one set.
        state: Names, without those, to tensors.
        ignored: Entries of the same mapping that are not among them.
        matches: How many of the model's names they have.
    """

    name: str
    state: dict[str, Tensor]
    ignored: tuple[str, ...]
    matches: int


def read_weights(
    path: Path, wanted: set[str], key: str | None = None, *, option: str = "model.checkpoint"
) -> tuple[WeightSet, list[WeightSet]]:
    """Read the set of weights in a file that belongs to a model, and find the others.

    The weights may be anywhere in the file, and under whatever prefixes wrappers gave them. Where there are several
    sets, it takes the average, as timm does, since that is what was validated.

    Args:
        path: A file of safetensors, or a pickle whose objects are tensors, numbers, text and plain records.
        wanted: The names in the model's state dict.
        key: The name of the set to take, such as `state_dict`. Default: the only one, the average, or `state_dict` or
            `model`.
        option: What messages call the file's option.

    Returns:
        The set, and the other sets that would have fitted.

    Raises:
        InputError: If the file is unreadable or holds other objects; if it has no set of that name, or several and none
            is the obvious one; or if the set has values that are not finite.
    """
    chosen, others = _choose(_sets(_read(path, option), wanted, path, option), key, path, option)
    _check_finite(chosen, others, path, option)
    return chosen, others


def model_folder(path: Path) -> Path:
    """Return the directory with the `config.json` of a model: that in a finished run, or else the path itself.

    For the `model.safetensors` of such a directory it is the directory, which says more of the weights.
    """
    if (path / "model" / "config.json").is_file():
        return path / "model"
    return path.parent if path.name == "model.safetensors" and _is_of_timm(path.parent / "config.json") else path


def _is_of_timm(config: Path) -> bool:
    """Whether a file is timm's record of a model, and not that of another library."""
    try:
        record = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and "architecture" in record


class _Record:
    """Stands in for an object beside the weights, and takes in silence whatever that is to be built from."""

    def __new__(cls, *args: Any) -> _Record:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _mapping(*args: Any) -> dict[Any, Any]:
    return {}


def _read(path: Path, option: str) -> Any:
    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder; name a file in it, or a finished run")
    if not path.is_file():
        raise InputError(f"{option}: no file {path}; correct the path")
    if path.suffix in (".npz", ".npy"):
        raise InputError(
            f"{option}: {path} is a file of numpy, which is not read; give the name that timm has for such weights, "
            "as mixer_b16_224.goog_in21k_ft_in1k is one, or a state dict"
        )
    stand_ins: list[Any] = [(_Record, name) for name in (*_RECORDS, *_ARRAYS)]
    stand_ins += [(OrderedDict, name) for name in _MAPPINGS] + [(_mapping, "collections.defaultdict")]
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        what = f" (it asks for {wanted[1]})" if wanted else ""
        raise InputError(
            f"{option}: {path} is not a file of plain tensors and was not executed{what}; "
            "save the state dict alone, best as safetensors"
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds on a damaged file
        said = in_short(error)
        why = f" ({said})" if " " in said else ""  # some say no more than the byte that they stumbled over
        raise InputError(
            f"{option}: {path} cannot be read as weights{why}; it is damaged or cut short: fetch or copy it again"
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Look at the first bytes: the length of a header, and the header's first brace."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (start[4:] == b"\0\0\0\0{")


def _sets(content: Any, wanted: set[str], path: Path, option: str) -> list[WeightSet]:
    """Find the sets of weights in a file: mappings, or parts of one under a prefix, that share names with the model."""
    sets = [each for name, entries in _mappings(content, ()) for each in _by_prefix(name, entries, wanted)]
    if not sets:
        raise InputError(f"{option}: {path} holds no state dict, a mapping of names to tensors")
    most = max(each.matches for each in sets)
    return [each for each in sets if 2 * each.matches >= most]


def _mappings(content: Any, at: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], dict[str, Any]]]:
    if not isinstance(content, Mapping):
        return
    entries = {name: value for name, value in content.items() if isinstance(name, str)}
    if any(_is_weight(value) for value in entries.values()):
        yield at, entries
    if len(at) < _DEPTH:
        for name, value in entries.items():
            yield from _mappings(value, (*at, name))


def _by_prefix(at: tuple[str, ...], entries: dict[str, Any], wanted: set[str]) -> list[WeightSet]:
    """Split a mapping by the prefixes under which it has names of the model."""
    matches: dict[str, int] = {}
    for name, value in entries.items():
        if _is_weight(value):
            for prefix in _prefixes(name):
                matches[prefix] = matches.get(prefix, 0) + (name[len(prefix) :] in wanted)
    most = max(matches.values())
    prefixes = [prefix for prefix, count in matches.items() if count and 2 * count >= most] or [""]
    sets = []
    for prefix in prefixes:
        state = {n[len(prefix) :]: v for n, v in entries.items() if n.startswith(prefix) and _is_weight(v)}
        nested = [n for n, v in entries.items() if not n.startswith(prefix) and _is_weight(v)]
        ignored = tuple(n for n in nested if not any(n.startswith(other) for other in prefixes if other))
        sets.append(WeightSet(".".join((*at, *prefix.split("."))).strip("."), state, ignored, matches.get(prefix, 0)))
    return sets


def _is_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def _prefixes(name: str) -> Iterable[str]:
    """Yield what a name may begin with besides the model's own: nothing, or whole words up to a dot."""
    yield ""
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()]


def _choose(sets: list[WeightSet], key: str | None, path: Path, option: str) -> tuple[WeightSet, list[WeightSet]]:
    """Choose one of several sets, and never by guessing."""
    if key is not None:
        chosen = [each for each in sets if each.name == key] or [e for e in sets if e.name.startswith(f"{key}.")]
    else:
        averaged = [each for each in sets if _AVERAGED.search(each.name)]
        trained = [each for each in sets if each.name.partition(".")[0] in _TRAINED]
        chosen = next((few for few in (sets, averaged, trained) if len(few) == 1), [])
    if len(chosen) == 1:
        return chosen[0], [each for each in sets if each is not chosen[0]]
    names = ", ".join(each.name or "the whole file" for each in sets)
    if key is not None:
        raise InputError(f"{_KEY} is {key!r}, but the weights in {path} are: {names}")
    remedy = f"choose one with {_KEY}" if _KEY.startswith(option) else "save the one you mean alone"
    raise InputError(f"{option}: {path} has several sets of weights: {names}; {remedy}")


def _check_finite(chosen: WeightSet, others: list[WeightSet], path: Path, option: str) -> None:
    for name, value in chosen.state.items():
        if not (value.is_floating_point() or value.is_complex()):
            continue
        bad = value.numel() - int(torch.isfinite(value if value.element_size() > 1 else value.float()).sum())
        if bad:
            instead = f"{others[0].name} with {_KEY}, or " if others and _KEY.startswith(option) else ""
            raise InputError(
                f"{option}: {name} in {path} is not finite, in {bad} of {value.numel()} values; take "
                f"{instead}an earlier checkpoint"
            )

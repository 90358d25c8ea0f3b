"""Load the weights that a training starts from, out of a file of any author, a run, or a Mixer.

Nothing in a file is executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.layers import to_2tuple
from torch import Tensor, nn

from imixer.errors import InputError, did_you_mean, in_short
from imixer.models import IMixer, MixerWeights, read_mixer, start_from_mixer
from imixer.models.from_mixer import matching_variant
from imixer.models.weight_files import model_folder, read_weights
from imixer.reading import read_json
from imixer.training.run.config import ModelConfig
from imixer.weights import packaged_models

FROM_DATA = {"img_size", "in_chans", "num_classes"}
SEGMENTER = "segmenter"  # the name of a segmentation in timm
_HUB = "hf-hub:"


@dataclass(frozen=True)
class LoadedWeights:
    """A report of what `load_weights` took from a file, which `str` puts in a line.

    Args:
        path: The file.
        name: The name of the set of weights taken, such as `state_dict_ema`; empty if the file is one set.
        others: The names of the other sets that would have fitted.
        ignored: The entries beside the weights of that set that the model does not have.
        classifier: Whether the classifier was loaded too. It is not if it has another number of classes.
        resampled: The token grids (height, width) there and here, if token mixing was resampled from one to another.
    """

    path: str
    name: str
    others: tuple[str, ...]
    ignored: tuple[str, ...]
    classifier: bool
    resampled: tuple[tuple[int, int], tuple[int, int]] | None = None

    def __str__(self) -> str:
        """Describe in one line which weights were taken."""
        parts = [f"weights taken from {self.path}: {self.name or 'all of it'}"]
        if self.others:
            parts.append(f"not {', '.join(self.others)}, which model.checkpoint_key would choose")
        if self.ignored:
            more = f" and {len(self.ignored) - 3} more" if len(self.ignored) > 3 else ""
            parts.append(f"{', '.join(self.ignored[:3])}{more} left out")
        if self.resampled:
            there, here = (f"{height}x{width}" for height, width in self.resampled)
            parts.append(f"token mixing resampled from {there} to {here} tokens")
        if not self.classifier:
            parts.append("the classifier, for another number of classes, starts afresh")
        return "; ".join(parts)


@dataclass(frozen=True)
class Start:
    """What a training starts from, and what that says of the model. `find_start` finds it.

    Args:
        name: The name of the model in timm that the weights are for; None if they do not say.
        args: The keyword arguments of `timm.create_model` that the model was built with, but for those that follow
            from the data.
        preparation: The preparation of images for the weights, in timm's words.
        path: The file of weights; None if there is none.
        key: The name of the set of weights in the file.
        mixer: The weights of a Mixer, for an iMixer to start from.
        img_size: The image size (height, width) that the weights are for; None if they do not say.
    """

    name: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    preparation: dict[str, Any] = field(default_factory=dict)
    path: str | None = None
    key: str | None = None
    mixer: MixerWeights | None = None
    img_size: tuple[int, int] | None = None

    def load_into(self, model: nn.Module) -> str | None:
        """Load the weights into a model.

        Args:
            model: The model.

        Returns:
            A line that says what was loaded; None if there is nothing to load.

        Raises:
            InputError: If the weights do not fit the model; see `load_weights` and `start_from_mixer`.
        """
        if self.mixer is not None:
            if not isinstance(model, IMixer):
                raise InputError(
                    f"model.from_mixer is {self.mixer.source}, which starts an iMixer, and the model is a "
                    f"{type(model).__name__}; give an imixer_* as model.name, or leave it out"
                )
            return str(start_from_mixer(model, self.mixer, option="model.from_mixer", prefix="model."))
        if self.path is not None:
            return str(load_weights(model, self.path, self.key, self.img_size))
        return None


def find_start(config: ModelConfig) -> Start:
    """Find what a training starts from.

    Args:
        config: The configuration of the model.

    Raises:
        InputError: If a name is close to that of a packaged model, the directory holds no model or that of a
            segmentation, or the Mixer cannot be read or has sizes that no iMixer has by name.
    """
    if config.from_mixer:
        mixer = read_mixer(config.from_mixer, "model.from_mixer")
        name = config.name or matching_variant(mixer)
        if name is None:
            sizes = " and ".join(f"model.{option} {value}" for option, value in mixer.sizes.items())
            raise InputError(
                f"model.from_mixer: {mixer.source} has sizes that no iMixer has by name; give model.name, such as "
                f"imixer_s16_224, with {sizes}"
            )
        return Start(name, preparation=mixer.preparation, mixer=mixer, img_size=mixer.img_size)
    if not config.checkpoint:
        return Start()
    path = named_place(config.checkpoint)
    folder = model_folder(path)
    if not (folder / "config.json").is_file():
        return Start(path=str(path), key=config.checkpoint_key)
    packed = read_json(folder / "config.json", ["architecture"])
    built_with = packed.get("model_args") or {}  # which timm leaves out of models with its own defaults
    if packed["architecture"] == SEGMENTER:
        raise InputError(
            f"model.checkpoint is {config.checkpoint}, a segmentation, which keeps no more of its model than its head "
            "reads; give a classification, or the weights that it started from"
        )
    args = {name: value for name, value in built_with.items() if name not in FROM_DATA}
    described = packed.get("pretrained_cfg") or {}
    size = built_with.get("img_size") or described.get("input_size", ())[-2:]
    return Start(
        packed["architecture"],
        args,
        normalisation(described),
        str(folder / "model.safetensors"),
        config.checkpoint_key,
        img_size=to_2tuple(size) if size else None,
    )


def named_place(name: str) -> Path:
    """Return the folder of the packaged model that is called so, a copy of the hub's, or the path that a name is.

    The package goes first, since what commands write of a packaged model lies in a folder of its name: `./NAME` is the
    folder.

    Args:
        name: The value of `model.checkpoint`.

    Raises:
        InputError: If there is nothing of that name, and it is close to that of a packaged model, or a model of the hub
            cannot be fetched.
    """
    path, packaged = Path(os.path.expanduser(name)), packaged_models()
    if name in packaged:
        return packaged[name]
    if name.startswith(_HUB):
        return _fetched(name)
    if not os.path.exists(path) and path.name == name and (meant := did_you_mean(name, packaged)):
        raise InputError(f"model.checkpoint: there is no file, run or packaged model {name!r}{meant}")
    return path


def _fetched(name: str) -> Path:
    """Fetch `hf-hub:USER/NAME` or `hf-hub:USER/NAME@REVISION`, and return the folder of its copy."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.removeprefix(_HUB).partition("@")
    try:
        wanted = ["config.json", "model.safetensors"]
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # the hub client, its HTTP client and the network each raise their own
        raise InputError(
            f"model.checkpoint: {name} could not be fetched ({in_short(error, 120)}); check the name and the network, "
            "or give the folder of a copy"
        ) from error


def normalisation(pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return how images were normalised for the weights that timm's record belongs to, as far as it says."""
    return {name: pretrained_cfg[name] for name in ("mean", "std") if pretrained_cfg.get(name)}


def load_weights(
    model: nn.Module, path: str, key: str | None = None, img_size: tuple[int, int] | None = None
) -> LoadedWeights:
    """Load a set of weights in a file into a model, and nothing else of the file.

    It reads state dicts, and the checkpoints of timm, Lightning, Fabric, torch's averaged models and our own runs. The
    weights may be anywhere in the file, and under whatever prefixes wrappers gave them. Where there are several sets,
    it takes the average, as timm does, since that is what was validated. A classifier for another number of classes is
    left out: the model's own stays.

    Args:
        model: A timm model.
        path: A file of safetensors, or a pickle whose objects are tensors, numbers, text and plain records.
        key: The name of the set to take, such as `state_dict`. Default: the only one, the average, or `state_dict` or
            `model`.
        img_size: The image size (height, width) that they are for. Default: unknown, so that a model for another takes
            their token grid for a square.

    Returns:
        A report of what was taken.

    Raises:
        InputError: If the file is unreadable or holds other objects; if it has no set of that name, or several and none
            is the obvious one; or if the set belongs to another architecture or has values that are not finite.
    """
    chosen, others = read_weights(Path(path), set(model.state_dict()), key)
    state = dict(chosen.state)
    heads = _drop_other_classifier(model, state)
    resampled = None
    try:
        if img_size is not None and isinstance(model, IMixer):
            model.adapt_weights(state, img_size=img_size)
            grids = model.stem.dynamic_feat_size(img_size), model.stem.grid_size
            resampled = grids if grids[0] != grids[1] else None
        result = model.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:
        sizes = _other_size(model, img_size)
        what = _first_mismatch(str(error))
        raise InputError(f"model.checkpoint: {path} does not fit the model: {what}{sizes}") from error
    missing = [name for name in result.missing_keys if name not in heads]
    for names, problem in ((missing, "it has no"), (result.unexpected_keys, "the model has no")):
        if names:
            raise InputError(
                f"model.checkpoint: {path} does not fit the model: {problem} {names[0]}{_shape(state, names[0])}"
            )
    return LoadedWeights(path, chosen.name, tuple(each.name for each in others), chosen.ignored, not heads, resampled)


def _drop_other_classifier(model: Any, state: dict[str, Tensor]) -> list[str]:
    """Remove classifiers of another number of classes, as timm does for pretrained weights."""
    names = model.pretrained_cfg.get("classifier") or ()
    names = (names,) if isinstance(names, str) else names
    own, dropped = model.state_dict(), []
    for key in (f"{name}.{part}" for name in names for part in ("weight", "bias")):
        if key in state and key in own and len(state[key]) != len(own[key]):
            del state[key]
            dropped.append(key)
    return dropped


def _other_size(model: Any, img_size: tuple[int, int] | None) -> str:
    """Name the image size of weights that are for another than the model's, which only an iMixer resamples."""
    embedding: Any = getattr(model, "stem", None) or getattr(model, "patch_embed", None)
    if img_size is None or img_size == getattr(embedding, "img_size", img_size) or isinstance(model, IMixer):
        return ""
    height, width = img_size
    given = f"{height}" if height == width else f"[{height}, {width}]"
    return f"; they are for images of {height}x{width}: give data.image_size {given}"


def _first_mismatch(message: str) -> str:
    """Quote the first parameter that torch names, with both shapes."""
    shapes = re.search(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)", message, re.DOTALL)
    if not shapes:
        return " ".join(message.split())[:200]
    said = f"{shapes[1]} is {shapes[2]} there and {shapes[3]} here"
    there, here = (re.findall(r"\d+", size) for size in (shapes[2], shapes[3]))
    if shapes[1].startswith("stem.") and len(there) == len(here) == 4 and there[1] != here[1]:
        said += f"; its images have channels: {there[1]}, and the data's {here[1]}: convert them, or take other weights"
    return said


def _shape(state: dict[str, Tensor], key: str) -> str:
    return f" {list(state[key].shape)}" if key in state else ""

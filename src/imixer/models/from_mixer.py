"""Start an iMixer from the weights of an MLP-Mixer: with F = 0 an iMixer is that Mixer."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Mlp, PatchEmbed
from timm.models import adapt_input_conv
from timm.models.mlp_mixer import MixerBlock, MlpMixer
from torch import Tensor, nn

from imixer.errors import InputError, did_you_mean, in_short
from imixer.implicit import Contraction, OrthogonalLinear, SpectralLinear, TransposedLinear
from imixer.models.checkpoints import rename_published
from imixer.models.imixer import IMixer
from imixer.models.imlp import IMLP
from imixer.models.timm_tags import find_pretrained_cfg, other_tags
from imixer.models.weight_files import model_folder, read_weights

_PREPARED = ("mean", "std", "crop_pct", "interpolation")  # how images were prepared for the weights
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_LAYER = re.compile(r"stem\.layers\.(\d+)\.weight")
_FILE = re.compile(r"\.(safetensors|pth|pt|bin|ckpt|tar|npz)$")
_PATCH_STEM = {"stem.proj.weight", "stem.proj.bias"}
_OTHERS = {  # by a part of a name that only they have
    ".contraction.": "an iMixer; start from it by model.checkpoint, or load its state dict",
    ".linear_tokens.": "a ResMLP, which mixes tokens without hidden neurons",
    ".gate.": "a gMLP, which gates tokens instead of mixing them by an MLP",
}


@dataclass(frozen=True)
class MixerWeights:
    """The weights of an MLP-Mixer. `read_mixer` finds them.

    Args:
        source: What they were asked for by.
        state: The state dict, with the names of an iMixer.
        pretrained_cfg: timm's record of the model, with the preparation of images. Empty if a file has none.
        activation: The activation of its MLPs. None if a file does not say, which is taken for GELU.
        img_size: The image size (height, width) that they are for. None if a file does not say.
    """

    source: str
    state: dict[str, Tensor]
    pretrained_cfg: dict[str, Any]
    activation: type[nn.Module] | None = None
    img_size: tuple[int, int] | None = None

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments of `IMixer` that the weights were made with, as far as shapes tell; lists if it has stages."""
        return _sizes(self.state)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without a classifier."""
        return len(self.state["head.weight"]) if "head.weight" in self.state else 0

    @property
    def in_chans(self) -> int | None:
        """The number of channels of an image; None if the stem is no plain patch embedding."""
        return self.state["stem.proj.weight"].shape[1] if "stem.proj.weight" in self.state else None

    @property
    def preparation(self) -> dict[str, Any]:
        """The preparation of images that the weights were trained with, in timm's words: mean, std and resizing."""
        return {name: self.pretrained_cfg[name] for name in _PREPARED if self.pretrained_cfg.get(name) is not None}


@dataclass(frozen=True)
class MixerStart:
    """A report of what `start_from_mixer` did, which `str` puts in a line.

    Args:
        source: What the weights were asked for by.
        resampled: The numbers of tokens there and here, if they are of different grids.
        classifier: Whether the classifier was taken too. It is not if it has another number of classes.
    """

    source: str
    resampled: tuple[int, int] | None
    classifier: bool

    def __str__(self) -> str:
        """Describe in one line what was taken."""
        parts = [f"weights taken from the Mixer {self.source}, F starts as zero"]
        if self.resampled:
            there, here = self.resampled
            grids = f"from {there} to {here} tokens" if there != here else f"to another grid of {here} tokens"
            parts.append(f"token mixing resampled {grids}")
        if not self.classifier:
            parts.append("the classifier, for another number of classes, starts afresh")
        return "; ".join(parts)


def read_mixer(source: str, option: str = "from_mixer") -> MixerWeights:
    """Read the weights of an MLP-Mixer.

    Args:
        source: A name that timm has weights for, such as `mixer_b16_224.goog_in21k_ft_in1k`, loaded as timm does, from
            its cache where they are there; a file of weights; a directory of a model; or that of a finished run.
        option: What messages call the source.

    Raises:
        InputError: If there are no such weights, they cannot be read, are not finite, or are not those of a Mixer.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir() or model_folder(path) != path:
        return _of_directory(path, source, option)
    if path.is_file() or _FILE.search(source) or source.startswith((".", "/", "~")):
        return _of_file(path, source, option)
    return _of_name(source, option)


@torch.no_grad()
def start_from_mixer(model: IMixer, mixer: MixerWeights, *, option: str = "from_mixer", prefix: str = "") -> MixerStart:
    """Give an iMixer the weights of a Mixer, and a zero F, so that its logits are the Mixer's.

    The last layer of F becomes zero and the first keeps its random start: then F is zero, and its gradient is not.
    Token mixing for another image size is resampled. A classifier for another number of classes is left out.

    Args:
        model: The iMixer.
        mixer: The weights.
        option: What messages call the source of the weights.
        prefix: What messages put before the names of the model's arguments.

    Returns:
        A report of what was done.

    Raises:
        InputError: If the Mixer has other sizes or another activation, or the options of the iMixer leave no room for a
            zero F: tied couplings, decay, a step, an orthogonal or hard normalisation.
    """
    _check_options(model, mixer, option, prefix)
    state = dict(mixer.state)
    own = model.state_dict()
    cuts_patches = {name for name in state if name.startswith("stem.")} == _PATCH_STEM
    kernels = [each["stem.proj.weight"].shape[2:] for each in (state, own) if "stem.proj.weight" in each]
    if cuts_patches and type(model.stem) is not PatchEmbed and kernels[0] != kernels[-1]:
        raise InputError(f"{option}: {mixer.source} cuts patches, and this stem does not; give {prefix}stem patch")
    _check_sizes(state, own, mixer.source, option, prefix)
    _adapt_channels(state, own, mixer.source, option)
    before, mixing = _token_mixing(state), _token_mixing(own)
    assert before is not None and mixing is not None  # a Mixer has blocks, and the model as many
    tokens = before.shape[1], mixing.shape[1]
    try:
        model.adapt_weights(state, img_size=mixer.img_size)
    except ValueError as error:
        raise InputError(f"{option}: {mixer.source}: {error}") from error
    heads = [name for name in ("head.weight", "head.bias") if name in own]
    kept = [name for name in heads if name in state and state[name].shape == own[name].shape]
    state = {name: value for name, value in state.items() if not name.startswith("head.")} | {
        name: state[name] for name in kept
    }
    wanted = {name for name in own if ".contraction." not in name and name not in heads}
    given = set(state) - set(heads)
    for names, problem in ((wanted - given, "it has no"), (given - wanted, "the model has no")):
        if names:
            raise InputError(f"{option}: {mixer.source} does not fit the model: {problem} {min(names)}")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise InputError(
                f"{option}: {mixer.source} does not fit the model: {name} is {list(value.shape)} there and "
                f"{list(own[name].shape)} here"
            )
    model.load_state_dict(state, strict=False)
    for module in model.modules():
        if isinstance(module, IMLP) and module.contraction is not None:
            _make_zero(module.contraction)
    resampled = tokens if _token_mixing(state) is not before else None
    return MixerStart(mixer.source, resampled, kept == heads)


def matching_variant(mixer: MixerWeights) -> str | None:
    """Find the registered iMixer that has the sizes of a Mixer; None if there is none."""
    for name in timm.list_models("imixer_*"):
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        if _sizes(model.state_dict()) == mixer.sizes:
            return name
    return None


def _of_name(name: str, option: str) -> MixerWeights:
    known = [each for each in timm.list_pretrained("*mixer*") if not each.startswith(("convmixer", "gmixer"))]
    if ":" not in name:
        if not timm.is_model(name.partition(".")[0]):
            meant = did_you_mean(name, [*known, *timm.list_models("*mixer*")])
            raise InputError(f"{option}: there is no file, directory or timm model {name!r}{meant}")
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            skeleton = timm.create_model(name.partition(".")[0], num_classes=0)
        _require_mixer(skeleton, name, option)  # before anything is loaded
        cfg = find_pretrained_cfg(name)
        if cfg is None:
            raise InputError(f"{option}: timm has no weights for {name}{other_tags(name)}")
        if not cfg.has_weights:
            listed = ", ".join(each for each in known if each.startswith("mixer_")) or "none"
            raise InputError(f"{option}: timm has no weights for {name}; it has some for {listed}; or give a file")
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            mixer = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub client, the network and timm each raise their own
        said = in_short(error, 120)
        raise InputError(f"{option}: no weights for {name} could be had; give a file ({said})") from error
    return _of_model(mixer, name, option)


def _of_directory(path: Path, source: str, option: str) -> MixerWeights:
    folder = model_folder(path)
    weights = folder / "model.safetensors"
    if not (folder / "config.json").is_file() or not weights.is_file():
        raise InputError(
            f"{option}: {path} has no config.json with model.safetensors, neither itself nor in model/; give a "
            "finished run, a directory of a model, or a file"
        )
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # weights have numbers, wherever a model is built
            # as a file, since timm 1.0.23 takes the safetensors of a directory for a pickle
            overlay = {"source": "", "file": str(weights)}
            mixer = timm.create_model(f"local-dir:{folder}", pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # json, safetensors, torch and timm each raise their own
        said = in_short(error)
        raise InputError(
            f"{option}: {folder} holds no model that can be read ({said}); fetch or copy it again"
        ) from error
    return _of_model(mixer, source, option)


def _of_model(mixer: Any, source: str, option: str) -> MixerWeights:
    _require_mixer(mixer, source, option)
    state = dict(mixer.state_dict())
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"{option}: {name} of {source} is not finite; take other weights")
    act = next((type(module.act) for module in mixer.modules() if isinstance(module, Mlp)), None)
    return MixerWeights(source, _renamed(state), dict(mixer.pretrained_cfg), act, mixer.stem.img_size)


def _of_file(path: Path, source: str, option: str) -> MixerWeights:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        names = set(timm.create_model("mixer_l16_224").state_dict())  # a deep one has the names of all others
    chosen, _ = read_weights(path, names, option=option)
    state = dict(chosen.state)
    for part, what in _OTHERS.items():
        if any(part in name for name in state):
            raise InputError(f"{option}: {path} holds the weights of {what}")
    first = next((value for name, value in state.items() if name.endswith("mlp_tokens.fc1.weight")), None)
    last = next((value for name, value in state.items() if name.endswith("mlp_tokens.fc2.weight")), None)
    if first is None or last is None or "norm.weight" not in state:
        raise InputError(f"{option}: {path} holds no weights of an MLP-Mixer, such as blocks.0.mlp_tokens.fc1.weight")
    if first.shape[0] != last.shape[1]:
        raise InputError(f"{option}: {path} holds the weights of a gated Mixer, whose token mixing is no plain MLP")
    return MixerWeights(source, _renamed(state), {})


def _require_mixer(model: nn.Module, source: str, option: str) -> None:
    """Refuse what is no MLP-Mixer of plain MLPs."""
    kind = type(model).__name__
    blocks = [block for block in getattr(model, "blocks", []) if isinstance(block, MixerBlock)]
    if not isinstance(model, MlpMixer) or not blocks:
        what = kind if not isinstance(model, MlpMixer) else f"made of {type(model.blocks[0]).__name__}s"
        raise InputError(f"{option}: {source} is no MLP-Mixer but {what}; give one, such as mixer_b16_224")
    inner = type(blocks[0].mlp_tokens)
    if hasattr(blocks[0].mlp_tokens, "contraction"):
        raise InputError(f"{option}: {source} is {_OTHERS['.contraction.']}")
    if inner is not Mlp:
        raise InputError(f"{option}: {source} mixes tokens by a {inner.__name__}, which is no plain MLP; give another")


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rename_published(state)
    return state


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tell the arguments of a Mixer from its state dict, with the names of an iMixer."""
    numbers = {int(match[1]) for name in state if (match := _BLOCK.match(name))}
    merges = [number for number in sorted(numbers) if f"blocks.{number}.conv.weight" in state]
    starts, ends = [0, *(number + 1 for number in merges)], [*merges, max(numbers, default=-1) + 1]
    sizes: dict[str, Any] = {"num_blocks": [end - start for start, end in zip(starts, ends, strict=True)]}
    if "norm.weight" in state:
        before = [state[f"blocks.{number}.conv.weight"].shape[1] for number in merges]
        sizes["embed_dim"] = [*before, len(state["norm.weight"])]
    sizes |= _stem_sizes(state)
    if _token_mixing(state) is not None:
        firsts = (state.get(f"blocks.{start}.mlp_tokens.fc_in.weight") for start in starts)
        sizes["tokens_dim"] = [1 if first is None else len(first) for first in firsts]  # without blocks any will do
    if merges:
        return sizes
    return {name: value[0] if isinstance(value, list) else value for name, value in sizes.items()}


def _stem_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tell the arguments of a stem, which is `patch` unless it is named.

    A single convolution behind whitened pixels is taken for that of `whitened`, though `deep` may have made it.
    """
    if "stem.proj.weight" not in state:
        return {}
    first = state["stem.proj.weight"]
    weights = {int(match[1]): value for name, value in state.items() if (match := _LAYER.match(name))}
    learned = [weights[number] for number in sorted(weights) if weights[number].ndim == 4]
    if not learned:
        return {"patch_size": first.shape[-1]}
    if 0 in weights:  # a norm, where the others have GELU
        name, learned = "conv", [first, *learned]
    else:
        name = "whitened" if len(learned) == 1 or 2 in weights else "deep"  # which pools before that norm
    halvings = (len(learned) + 1) // 2 if name == "deep" else len(learned)
    width = {"stem_width": len(learned[0])} if len(learned) > 1 else {}
    return {"stem": name, **width, "patch_size": 2**halvings}


def _token_mixing(state: Mapping[str, Tensor]) -> Tensor | None:
    """Return the first block's weights (D_S, S) of its tokens; None without blocks."""
    return next((value for name, value in state.items() if name.endswith(".mlp_tokens.fc_in.weight")), None)


def _check_sizes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str, option: str, prefix: str) -> None:
    there, here = ({"stem": "patch"} | _sizes(each) for each in (state, own))
    other = {name: value for name, value in there.items() if here.get(name, value) != value}
    if "embed_dim" in other and 2 * other.get("tokens_dim", 0) == other["embed_dim"]:
        del other["tokens_dim"]  # follows
    if other:
        has = " and ".join(f"{name} {value}" for name, value in other.items())
        mine = " and ".join(f"{here[name]}" for name in other)
        give = " and ".join(f"{prefix}{name} {value}" for name, value in other.items())
        raise InputError(f"{option}: {source} has {has}, and the model {mine}; give {give}")
    ratio = {
        name: len(value) / value.shape[1]
        for name, value in state.items()
        if name.endswith(".mlp_channels.fc1.weight") and name in own and len(value) != len(own[name])
    }
    if ratio:
        kwargs = "kwargs." if prefix else ""
        tokens = state[next(iter(ratio)).replace("mlp_channels.fc1", "mlp_tokens.fc_in")]
        wide = len(tokens) / state[next(iter(ratio))].shape[1]
        raise InputError(
            f"{option}: {source} mixes channels with {next(iter(ratio.values())):g} times as many neurons as channels, "
            f"and the model does not; give {prefix}{kwargs}mlp_ratio [{wide:g}, {next(iter(ratio.values())):g}]"
        )


def _adapt_channels(state: dict[str, Tensor], own: Mapping[str, Tensor], source: str, option: str) -> None:
    """Sum or repeat the filters of the stem for another number of channels, as timm does."""
    name = "stem.proj.weight"
    if name not in state or name not in own or state[name].shape[1] == own[name].shape[1]:
        return
    there, here = state[name].shape[1], own[name].shape[1]
    if there == 1:
        state[name] = state[name].repeat(1, here, 1, 1) / here
        return
    if here == 1:  # timm sums in threes only
        state[name] = state[name].sum(1, keepdim=True)
        return
    try:
        state[name] = adapt_input_conv(here, state[name])
    except NotImplementedError as error:
        raise InputError(f"{option}: {source} takes images of {there} channels, and the model of {here}") from error


def _check_options(model: IMixer, mixer: MixerWeights, option: str, prefix: str) -> None:
    """Refuse options with which the model would not be the Mixer, or F could not start as zero."""
    block: Any = next((module for module in model.blocks if hasattr(module, "mlp_tokens")), None)
    if block is None:
        return
    imlp = block.mlp_tokens
    wrong = None
    if imlp.tied:
        wrong = ("tied", "true: what leads out is what leads in, which no Mixer has", "false")
    elif block.decay != 0.0:
        wrong = ("decay", f"{block.decay:g}, and a Mixer has none", "0")
    elif block.step != 1.0:
        wrong = ("step", f"{block.step:g}, and that of a Mixer is 1", "1")
    elif imlp.contraction is not None and isinstance(imlp.contraction.fc2, OrthogonalLinear):
        wrong = ("norm", "orthogonal, with which F cannot be zero", "spectral")
    elif getattr(getattr(imlp.contraction, "fc2", None), "scaling", "soft") == "hard":
        wrong = ("scaling", "hard, with which F would leap from zero to the ceiling", "soft")
    elif type(imlp.act) is not (mixer.activation or nn.GELU) or type(block.mlp_channels.act) is not type(imlp.act):
        act = (mixer.activation or nn.GELU).__name__
        wrong = ("act_layer", f"{type(imlp.act).__name__}, and that of the Mixer {act}", act.lower())
    if wrong:
        name, why, give = wrong
        raise InputError(f"{option} is {mixer.source}, but {prefix}{name} is {why}; give {prefix}{name} {give}")


def _make_zero(F: Contraction) -> None:
    """Make F zero at its last layer, so that the gradient of that layer is not."""
    last = F.bn2 if isinstance(F.bn2, nn.BatchNorm1d) else F.fc2
    assert isinstance(last, (nn.BatchNorm1d, nn.Linear)) and not isinstance(last, TransposedLinear)
    last.weight.zero_()
    last.bias.zero_()
    if isinstance(last, SpectralLinear):
        last.warm_up()

"""The models that timm knows by name. A name pins every hyperparameter.

A name without a tag, or with the tag `untrained`, is a model without weights, whose hyperparameters stand here. Any
other tag is a packaged model, and brings its own.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from timm.layers import to_2tuple
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor

from imixer.errors import InputError
from imixer.models.dense import DenseFeatures
from imixer.models.from_mixer import MixerStart, read_mixer, start_from_mixer
from imixer.models.imixer import IMixer
from imixer.models.mixer import Mixer
from imixer.models.stems import Whitening
from imixer.weights import packaged_config, packaged_models

_log = logging.getLogger(__name__)

# What the paper's experiments share (section 5, caption of Table 1).
_PAPER: dict[str, Any] = dict(
    num_layers=3, n_iter=2, hidden_ratio=2.0, coeff=0.9, n_power_iterations=8, solver="fixed", gradient="unroll"
)


_WEIGHTS = Path("model") / "model.safetensors"  # in the folder of a packaged model


def _cfg(size: int = 224) -> dict[str, Any] | PretrainedCfg:
    return dict(
        num_classes=1000,
        input_size=(3, size, size),
        pool_size=None,
        crop_pct=0.875 if size == 224 else 1.0,
        interpolation="bicubic",
        fixed_input_size=True,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        first_conv="stem.proj",
        classifier="head",
        license="apache-2.0",
    )


def _packaged_cfg(folder: Path) -> dict[str, Any] | PretrainedCfg:
    config = packaged_config(folder)
    prepared = {name: value for name, value in config["pretrained_cfg"].items() if name != "tag"}
    return PretrainedCfg(
        file=str(folder / _WEIGHTS), label_names=tuple(config["label_names"]), license="apache-2.0", **prepared
    )


# The star makes `untrained` the default, which would otherwise be the first tag that has weights.
default_cfgs = generate_default_cfgs(
    {name: _packaged_cfg(folder) for name, folder in packaged_models().items()}
    | {
        "imixer_s32_224.untrained*": _cfg(),
        "imixer_s16_224.untrained*": _cfg(),
        "imixer_b32_224.untrained*": _cfg(),
        "imixer_b16_224.untrained*": _cfg(),
        "imixer_l32_224.untrained*": _cfg(),
        "imixer_l16_224.untrained*": _cfg(),
        "imixer_s4_32.untrained*": _cfg(32),
        "imixer_t4_32.untrained*": _cfg(32),
        "imixer_laptop_32.untrained*": _cfg(32),
        "imixer_t2_8.untrained*": _cfg(8),
        "imixer_n2_8.untrained*": _cfg(8),
        "mixer_s4_32.untrained*": _cfg(32),
        "mixer_t4_32.untrained*": _cfg(32),
        "mixer_t2_8.untrained*": _cfg(8),
        "mixer_n2_8.untrained*": _cfg(8),
    }
)


def packaged_args(variant: str, cfg: object) -> dict[str, Any]:
    """Return the arguments that a packaged model was built with, beyond those of its architecture's name.

    Args:
        variant: Name of the architecture.
        cfg: What timm is asked for: a tag, a `PretrainedCfg`, or one as a mapping.

    Returns:
        Keyword arguments; none if that is no packaged model.
    """
    asked = asdict(cfg) if isinstance(cfg, PretrainedCfg) else cfg
    for name, folder in packaged_models().items():
        architecture, _, tag = name.partition(".")
        # A mapping may come from elsewhere, with the same tag and other arguments: the file tells.
        same = asked == tag or (isinstance(asked, dict) and asked.get("file") == str(folder / _WEIGHTS))
        if architecture == variant and same:
            args: dict[str, Any] = packaged_config(folder)["model_args"]
            return args
    return {}


def _create(
    cls: Callable[..., MlpMixer],
    variant: str,
    pretrained: bool,
    pinned: dict[str, Any],
    kwargs: dict[str, Any],
) -> Any:
    cfg = kwargs.get("pretrained_cfg")
    packaged = packaged_args(variant, cfg)
    given = pinned | packaged | kwargs
    size, saved = packaged.get("img_size"), kwargs.get("pretrained_model_args")
    if saved and isinstance(cfg, dict):  # of a folder or the hub; without arguments, nobody knows if its size is meant
        size = saved.get("img_size") or (cfg.get("input_size") or ())[-2:]
    if size:
        given["pretrained_filter_fn"] = partial(_from_size, to_2tuple(size))
    if isinstance(cfg, dict) and cfg.get("source") == "local-dir":
        weights = Path(cfg["file"]) / "model.safetensors"
        if weights.exists():  # timm 1.0.23 would read it as a pickle, but reads it well as a file
            given["pretrained_cfg"] = cfg | {"source": "", "file": str(weights)}
    if given.get("features_only") and given.get("feature_cls", "getter") in ("getter", DenseFeatures):
        given["feature_cls"] = DenseFeatures
        given.setdefault("dynamic_img_size", True)
        feature_cfg = dict(out_indices=given.pop("out_indices", None), out_strides=given.pop("out_strides", None))
    else:
        feature_cfg = dict(out_indices=given.pop("out_indices", 3), feature_cls="getter")
    try:
        model: Any = build_model_with_cfg(cls, variant, pretrained, feature_cfg=feature_cfg, **given)
    except RuntimeError as error:
        if pretrained and given.get("stem") in ("whitened", "deep"):
            _refuse_other_channels(variant, given.get("in_chans", 3), str(error))
        raise
    if packaged:
        model._model_args = packaged  # timm writes them down where it saves the model for elsewhere
    return model


def _from_size(size: tuple[int, int], state: dict[str, Tensor], model: MlpMixer) -> dict[str, Tensor]:
    """Bring weights for an image size (height, width) to a model for another, which may have as many tokens."""
    if isinstance(model, IMixer):
        model.adapt_weights(state, img_size=size)
    return state


def _refuse_other_channels(variant: str, channels: int, message: str) -> None:
    """Raise InputError if weights fail to load for their whitening: timm adapts its filters, but not how many they are.

    Args:
        variant: Name of the architecture.
        channels: Channels of the images.
        message: What torch says.
    """
    filters = re.search(r"size mismatch for stem\.proj\.weight: [^\n]*?Size\(\[(\d+)", message)
    if filters:
        trained = int(filters[1]) // Whitening(1).out_channels
        raise InputError(
            f"in_chans is {channels}, and the pretrained weights of {variant} begin with a whitening of {trained} "
            f"channels in {filters[1]} filters, whose number cannot be changed; leave in_chans at {trained} and give "
            "such images (image.expand(-1, 3, -1, -1) repeats a gray one), or leave pretrained out"
        ) from None


def _imixer(variant: str, pretrained: bool, sizes: dict[str, Any], kwargs: dict[str, Any]) -> IMixer:
    pinned = _PAPER | sizes
    source = kwargs.pop("from_mixer", None)
    saved = kwargs.get("pretrained_model_args") or {}
    # The weights of a saved model hold its beginning already; without them it is drawn anew, as any model.
    if source is None or source == saved.get("from_mixer"):
        return _create(IMixer, variant, pretrained, pinned, kwargs)
    return _imixer_from_mixer(variant, pretrained, str(source), pinned, kwargs)


def _imixer_from_mixer(
    variant: str, pretrained: bool, source: str, pinned: dict[str, Any], kwargs: dict[str, Any]
) -> IMixer:
    """Build an iMixer that is a Mixer at the start, with its classes and channels unless others are given."""
    if pretrained:
        raise InputError(f"from_mixer is {source}, and pretrained asks for other weights; leave one of them out")
    mixer = read_mixer(source)
    kwargs = {"num_classes": mixer.num_classes, "in_chans": mixer.in_chans or 3} | kwargs

    def build(**options: Any) -> IMixer:  # before timm takes out what gives features only
        model = IMixer(**options)
        report: MixerStart = start_from_mixer(model, mixer)
        if report.resampled:
            _log.warning(str(report))
        return model

    model = _create(build, variant, False, pinned, kwargs)
    model.pretrained_cfg = {**model.pretrained_cfg, **mixer.preparation}
    return model


def _mixer(variant: str, pretrained: bool, sizes: dict[str, Any], kwargs: dict[str, Any]) -> MlpMixer:
    return _create(Mixer, variant, pretrained, sizes, kwargs)


_S = dict(num_blocks=8, embed_dim=512)
_B = dict(num_blocks=12, embed_dim=768)
_L = dict(num_blocks=24, embed_dim=1024)
_TINY_32 = dict(num_blocks=8, embed_dim=128, patch_size=4)
_TINY_8 = dict(num_blocks=4, embed_dim=96, patch_size=2)
_NANO_8 = dict(num_blocks=2, embed_dim=48, patch_size=2)
_LAPTOP: dict[str, Any] = dict(
    stem="whitened", patch_size=2, num_blocks=[2, 4, 2], embed_dim=[64, 128, 192], tokens_dim=[128, 64, 32],
    mlp_ratio=(0.5, 3.0), n_iter=1, hidden_ratio=0.5,
)  # fmt: skip


@register_model
def imixer_s32_224(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-S/32 at 224x224 (published code)."""
    return _imixer("imixer_s32_224", pretrained, dict(patch_size=32, **_S), kwargs)


@register_model
def imixer_s16_224(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-S/16 at 224x224 (paper)."""
    return _imixer("imixer_s16_224", pretrained, dict(patch_size=16, **_S), kwargs)


@register_model
def imixer_b32_224(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-B/32 at 224x224 (published code)."""
    return _imixer("imixer_b32_224", pretrained, dict(patch_size=32, **_B), kwargs)


@register_model
def imixer_b16_224(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-B/16 at 224x224 (paper)."""
    return _imixer("imixer_b16_224", pretrained, dict(patch_size=16, **_B), kwargs)


@register_model
def imixer_l32_224(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-L/32 at 224x224 (published code)."""
    return _imixer("imixer_l32_224", pretrained, dict(patch_size=32, **_L), kwargs)


@register_model
def imixer_l16_224(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-L/16 at 224x224 (paper)."""
    return _imixer("imixer_l16_224", pretrained, dict(patch_size=16, **_L), kwargs)


@register_model
def imixer_s4_32(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-S with 4x4 patches for 32x32 images."""
    return _imixer("imixer_s4_32", pretrained, dict(patch_size=4, **_S), kwargs)


@register_model
def imixer_t4_32(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build a tiny iMixer with 4x4 patches for 32x32 images: 128 channels, 8 blocks."""
    return _imixer("imixer_t4_32", pretrained, _TINY_32, kwargs)


@register_model
def imixer_t2_8(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build a tiny iMixer with 2x2 patches for 8x8 images: 96 channels, 4 blocks."""
    return _imixer("imixer_t2_8", pretrained, _TINY_8, kwargs)


@register_model
def imixer_n2_8(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build the smallest iMixer, with 2x2 patches for 8x8 images: 48 channels, 2 blocks."""
    return _imixer("imixer_n2_8", pretrained, _NANO_8, kwargs)


@register_model
def imixer_laptop_32(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build the iMixer of recipe `laptop/imixer_cifar10`, for 32x32 images: a whitened stem and three stages."""
    return _imixer("imixer_laptop_32", pretrained, _LAPTOP, kwargs)


@register_model
def mixer_s4_32(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """Build timm's MLP-Mixer at the sizes of `imixer_s4_32`: its baseline."""
    return _mixer("mixer_s4_32", pretrained, dict(patch_size=4, **_S), kwargs)


@register_model
def mixer_t4_32(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """Build timm's MLP-Mixer at the sizes of `imixer_t4_32`: its baseline."""
    return _mixer("mixer_t4_32", pretrained, _TINY_32, kwargs)


@register_model
def mixer_t2_8(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """Build timm's MLP-Mixer at the sizes of `imixer_t2_8`: its baseline."""
    return _mixer("mixer_t2_8", pretrained, _TINY_8, kwargs)


@register_model
def mixer_n2_8(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """Build timm's MLP-Mixer at the sizes of `imixer_n2_8`: its baseline."""
    return _mixer("mixer_n2_8", pretrained, _NANO_8, kwargs)

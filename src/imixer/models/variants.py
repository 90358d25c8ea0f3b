"""The models that timm knows by name. A name pins every hyperparameter."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import MlpMixer

from imixer.errors import InputError
from imixer.models.from_mixer import MixerStart, read_mixer, start_from_mixer
from imixer.models.imixer import IMixer
from imixer.models.mixer import Mixer

_log = logging.getLogger(__name__)

# What the paper's experiments share (section 5, caption of Table 1).
_PAPER: dict[str, Any] = dict(
    num_layers=3, n_iter=2, hidden_ratio=2.0, coeff=0.9, n_power_iterations=8, solver="fixed", gradient="unroll"
)


def _cfg(size: int = 224, **kwargs: Any) -> dict[str, Any]:
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
        **kwargs,
    )


default_cfgs = generate_default_cfgs(
    {
        "imixer_s32_224.untrained": _cfg(),
        "imixer_s16_224.untrained": _cfg(),
        "imixer_b32_224.untrained": _cfg(),
        "imixer_b16_224.untrained": _cfg(),
        "imixer_l32_224.untrained": _cfg(),
        "imixer_l16_224.untrained": _cfg(),
        "imixer_s4_32.untrained": _cfg(32),
        "imixer_t4_32.untrained": _cfg(32),
        "imixer_t2_8.untrained": _cfg(8),
        "mixer_s4_32.untrained": _cfg(32),
        "mixer_t4_32.untrained": _cfg(32),
        "mixer_t2_8.untrained": _cfg(8),
    }
)


def _create(
    cls: Callable[..., MlpMixer], variant: str, pretrained: bool, out_indices: int | Sequence[int] = 3, **kwargs: Any
) -> Any:
    cfg = kwargs.get("pretrained_cfg")
    if isinstance(cfg, dict) and cfg.get("source") == "local-dir":
        weights = Path(cfg["file"]) / "model.safetensors"
        if weights.exists():  # timm 1.0.23 would read it as a pickle, but reads it well as a file
            kwargs["pretrained_cfg"] = cfg | {"source": "", "file": str(weights)}
    return build_model_with_cfg(
        cls, variant, pretrained, feature_cfg=dict(out_indices=out_indices, feature_cls="getter"), **kwargs
    )


def _imixer(variant: str, pretrained: bool, sizes: dict[str, int], kwargs: dict[str, Any]) -> IMixer:
    options = _PAPER | sizes | kwargs
    source = options.pop("from_mixer", None)
    if source is None:
        return _create(IMixer, variant, pretrained, **options)
    return _imixer_from_mixer(variant, pretrained, str(source), options)


def _imixer_from_mixer(variant: str, pretrained: bool, source: str, options: dict[str, Any]) -> IMixer:
    """Build an iMixer that is a Mixer at the start, with its classes and channels unless others are given."""
    if pretrained:
        raise InputError(f"from_mixer is {source}, and pretrained asks for other weights; leave one of them out")
    mixer = read_mixer(source)
    options = {"num_classes": mixer.num_classes, "in_chans": mixer.in_chans or 3} | options

    def build(**kwargs: Any) -> IMixer:  # before timm takes out what gives features only
        model = IMixer(**kwargs)
        report: MixerStart = start_from_mixer(model, mixer)
        if report.resampled:
            _log.warning(str(report))
        return model

    model = _create(build, variant, False, **options)
    model.pretrained_cfg = {**model.pretrained_cfg, **mixer.preparation}
    return model


def _mixer(variant: str, pretrained: bool, sizes: dict[str, int], kwargs: dict[str, Any]) -> MlpMixer:
    return _create(Mixer, variant, pretrained, **(sizes | kwargs))


_S = dict(num_blocks=8, embed_dim=512)
_B = dict(num_blocks=12, embed_dim=768)
_L = dict(num_blocks=24, embed_dim=1024)
_TINY_32 = dict(num_blocks=8, embed_dim=128, patch_size=4)
_TINY_8 = dict(num_blocks=4, embed_dim=96, patch_size=2)


@register_model
def imixer_s32_224(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-S/32 at 224x224 (paper)."""
    return _imixer("imixer_s32_224", pretrained, dict(patch_size=32, **_S), kwargs)


@register_model
def imixer_s16_224(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-S/16 at 224x224 (paper)."""
    return _imixer("imixer_s16_224", pretrained, dict(patch_size=16, **_S), kwargs)


@register_model
def imixer_b32_224(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-B/32 at 224x224 (paper)."""
    return _imixer("imixer_b32_224", pretrained, dict(patch_size=32, **_B), kwargs)


@register_model
def imixer_b16_224(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-B/16 at 224x224 (paper)."""
    return _imixer("imixer_b16_224", pretrained, dict(patch_size=16, **_B), kwargs)


@register_model
def imixer_l32_224(pretrained: bool = False, **kwargs: Any) -> IMixer:
    """Build iMixer-L/32 at 224x224 (paper)."""
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

"""iMixer: timm's MLP-Mixer with another token mixing MLP.

S: tokens, C: channels (`embed_dim`), D_S, D_C: widths of the token and channel mixing MLPs.
"""

import math
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models.mlp_mixer import MixerBlock, MlpMixer
from torch import Tensor, nn

from imixer.errors import check_n_iter
from imixer.implicit import SpectralLinear, fold
from imixer.implicit.spectral import advance_once, release
from imixer.inverse_options import shows_options, split_options
from imixer.models.activations import ActLayers, activation
from imixer.models.checkpoints import bring_to_grid, rename_published, tell_guesses
from imixer.models.imlp import IMLP
from imixer.models.mixer import Mixer
from imixer.models.penalties import take_penalty


class IMixerBlock(MixerBlock):
    """Mixer block whose tokens are mixed by an `IMLP` and whose channels by an ordinary MLP.

    Choose it as `block_layer` of a mixer of your own; it takes the arguments of timm's `MixerBlock`. One `act_layer`
    serves both MLPs. A sequence of them, one per hidden layer of the token mixing, leaves GELU to the channels. The
    tokens are mixed by one step of the visible neurons' equation, v <- v + step (iMLP(LN(v)) - decay v).

    Args:
        decay: alpha, how fast v decays by itself, 0 or more. The paper's 0 is the skip connection as it is.
        step: dt in units of tau_v, above 0. The paper's is 1. Choose less, with more blocks, to follow the flow closer.
        imlp: Options of the inverse, by name, see `imixer.inverse_options.InverseOptions`.

    Raises:
        ValueError: If decay is negative, step not positive, step x decay 2 or more, or `IMLP` refuses its arguments.

    Source: paper section 4.1; decay and step: (12), (14).
    """

    def __init__(
        self,
        dim: int,
        seq_len: int,
        mlp_ratio: float | tuple[float, float] = (0.5, 4.0),
        act_layer: ActLayers = nn.GELU,
        drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        decay: float = 0.0,
        step: float = 1.0,
        imlp: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 <= decay < math.inf:
            raise ValueError(f"decay is {decay}; give the token mixing's alpha, 0 or more")
        if not 0 < step < math.inf:
            raise ValueError(f"step is {step}; give dt in units of tau_v, above 0")
        if step * decay >= 2:
            raise ValueError(
                f"step x decay is {step * decay:g}, by which v would grow from block to block with alternating sign; "
                "give less than 2"
            )
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        channels_act: Any = nn.GELU if isinstance(act_layer, (list, tuple)) else activation(act_layer)
        super().__init__(dim, seq_len, mlp_ratio, act_layer=channels_act, drop=drop, **dd, **kwargs)
        tokens_dim = int(to_2tuple(mlp_ratio)[0] * dim)
        self.mlp_tokens = IMLP(seq_len, tokens_dim, act_layer=act_layer, drop=drop, **(imlp or {}), **dd)
        self.decay = float(decay)
        self.step = float(step)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, S, C), then channels."""
        mixed = self.drop_path(self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2))
        if self.decay == 0.0 and self.step == 1.0:
            x = x + mixed
        else:
            x = (1 - self.step * self.decay) * x + self.step * mixed
        return x + self.drop_path(self.mlp_channels(self.norm2(x)))


def _of_inversion(option: str) -> property:
    """Make an option of every block's inversion an attribute of the model."""

    def get(self: "IMixer") -> Any:
        return getattr(self._first_imlp().inversion, option)

    def set_(self: "IMixer", value: Any) -> None:
        changed = replace(self._first_imlp().inversion, **{option: value})  # raises before anything has changed
        for imlp in self._imlps():
            imlp.inversion = changed
        self._keep_arg(option, value)

    return property(get, set_)


class IMixer(Mixer):
    """timm's `MlpMixer` with `IMixerBlock`s: logits (B, num_classes) of an image (B, in_chans, H, W).

    Choose it for sizes of your own; `timm.create_model` makes those that have names, such as `imixer_s16_224`, and
    finds weights for them.

    Weights trained at another image size, square or not, load through any of timm's ways, as do those of the published
    code. The attributes `n_iter`, `solver`, `gradient`, `tolerance`, `max_steps`, `gradient_terms` and `on_failure` may
    be set on a trained model.

    Args:
        decay: alpha of the token mixing, see `IMixerBlock`.
        step: dt / tau_v of the token mixing, see `IMixerBlock`.
        act_layer: Activation, a class or a name, see `imixer.models.activations`. Or a sequence with one for each of
            the token mixing's layers 2 to L; the channel mixing then has GELU.
        kwargs: Options of the inverse, see `imixer.inverse_options.InverseOptions`; and arguments of
            `imixer.models.Mixer`: the stem, the stages, and those of timm's `MlpMixer`.

    Raises:
        TypeError: If an argument is unknown.
        ValueError: If `IMLP`, `IMixerBlock` or `Mixer` refuse their arguments.

    Source: paper section 4.
    """

    _model_args: dict[str, Any]  # those that timm made the model with, and saves

    @shows_options
    def __init__(self, *, decay: float = 0.0, step: float = 1.0, act_layer: ActLayers = nn.GELU, **kwargs: Any) -> None:
        options, others = split_options(kwargs)
        block_layer: Any = partial(IMixerBlock, decay=decay, step=step, imlp=options)
        super().__init__(block_layer=block_layer, act_layer=act_layer, **others)

        for name, module in self.named_modules():
            if isinstance(module, IMLP):
                module.name = name
        self._legacy = bool(options.get("legacy"))

    def forward_features(self, x: Tensor) -> Tensor:
        """Turn images (B, in_chans, H, W) into tokens (B, S, C)."""
        advanced = self._advance()
        try:
            return super().forward_features(x)
        finally:
            release(advanced)

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the features after the chosen blocks, and the last, as timm's does."""
        advanced = self._advance()
        try:
            return super().forward_intermediates(*args, **kwargs)
        finally:
            release(advanced)

    def penalty(self) -> Tensor | None:
        """Return what the last training forward adds to the loss, a scalar, and forget it.

        Call it once after each forward pass of a loop of your own: `loss = loss + model.penalty()`. `imixer train` does
        it.

        Returns:
            The sum over the blocks of the options `jacobian_penalty`, `trajectory_penalty` and `correction_penalty`;
            None if all are 0, or nothing was computed since.
        """
        return take_penalty(self)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the model a new head for `num_classes`, or none for 0; `global_pool` is `avg` or ``."""
        if isinstance(self.head, nn.Identity):  # timm 1.0.23 asks the old head for its device
            like = next(self.parameters())
            self.head = nn.Linear(self.embed_dim, 1, device=like.device, dtype=like.dtype)
        super().reset_classifier(num_classes, global_pool)

    def adapt_weights(
        self, state: MutableMapping[str, Tensor], prefix: str = "", img_size: Sequence[int] | None = None
    ) -> None:
        """Give weights from elsewhere the names and the token grids of this model, in place.

        Loading a state dict does it. Call it for a loader that sets tensors one by one.

        Args:
            state: State dict with our names, those of the published code, or MLP-Mixer's.
            prefix: What the names begin with.
            img_size: Image size (height, width) that the weights are for. Default: weights of as many tokens as this
                model has are taken for its grid, and others for squares, of which a warning tells.

        Raises:
            ValueError: If the source of the token mixing weights is neither of that size nor square.
        """
        self._adapt_weights(state, prefix, img_size, certain=True)

    def _adapt_weights(
        self, state: MutableMapping[str, Tensor], prefix: str, img_size: Sequence[int] | None, *, certain: bool
    ) -> None:
        rename_published(state, prefix)
        likely = self.stem.dynamic_feat_size((img_size[0], img_size[1])) if img_size else None
        guessed: set[int] = set()
        for i, grid in enumerate(self.grids):
            shrink = self.stem.grid_size[0] // grid[0]  # of the stages before
            source = likely and (likely[0] // shrink, likely[1] // shrink)
            guessed |= bring_to_grid(state, grid, source, within=f"{prefix}blocks.{i}.", certain=certain)
        tell_guesses(guessed, "call model.adapt_weights(state_dict, img_size=(height, width)) before they are loaded")

    def _advance(self) -> list[SpectralLinear]:
        """Run a training forward's power iterations, and return the layers that are not to run them again in it.

        Otherwise each runs its own: whoever calls the blocks alone, as a feature extractor does, keeps the ceiling.
        """
        if not self.training or self._legacy:  # which normalises between iterations, hence within the blocks
            return []
        # Only its block knows a sharded weight as a whole, see torch.distributed.fsdp.fully_shard.
        return advance_once(layer for layer in self._spectral_layers() if not _is_sharded(layer))

    def _spectral_layers(self) -> Iterator[SpectralLinear]:
        return (module for module in self.blocks.modules() if isinstance(module, SpectralLinear))

    def __prepare_scriptable__(self) -> MlpMixer:
        # TorchScript is for inference: it gets the folded model, as the plain class whose forward it understands, with
        # every iMLP traced: n iterations are a fixed graph.
        self.require_one_size()
        folded = fold(self)
        if self.solver == "fixed":
            folded.gradient, folded.on_failure = "unroll", None
        if not folded._first_imlp().inversion.unrolled:
            raise ValueError(f"solver is {self.solver}, and TorchScript knows fixed; set model.solver and model.n_iter")
        for name, imlp in [(name, module) for name, module in folded.named_modules() if isinstance(module, IMLP)]:
            v = next(imlp.parameters()).new_zeros(1, 1, imlp.fc_in.in_features)
            folded.set_submodule(name, torch.jit.trace(imlp, v))
        scriptable: MlpMixer = folded
        scriptable.__class__ = MlpMixer
        return scriptable

    @property
    def n_iter(self) -> int:
        """Fixed point iterations n of every block."""
        return self._first_imlp().n_iter

    @n_iter.setter
    def n_iter(self, value: int) -> None:
        check_n_iter(value)
        for imlp in self._imlps():
            imlp.n_iter = value
        self._keep_arg("n_iter", value)

    solver = _of_inversion("solver")
    gradient = _of_inversion("gradient")
    tolerance = _of_inversion("tolerance")
    max_steps = _of_inversion("max_steps")
    gradient_terms = _of_inversion("gradient_terms")
    on_failure = _of_inversion("on_failure")

    def _keep_arg(self, name: str, value: Any) -> None:
        """Tell timm of an option that was set on the model by name or number: it saves those that it was made with."""
        if hasattr(self, "_model_args") and (value is None or isinstance(value, (str, int, float))):
            self._model_args = {**self._model_args, name: value}

    def _imlps(self) -> list[IMLP]:
        return [module for module in self.blocks.modules() if isinstance(module, IMLP)]

    def _first_imlp(self) -> IMLP:
        for imlp in self._imlps():
            return imlp
        raise ValueError("num_blocks is 0, and the model has no block with an inverse; give at least one")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        cfg = getattr(self, "pretrained_cfg", None)
        # what this model is made for may not be what these weights are for
        self._adapt_weights(state_dict, prefix, cfg["input_size"][-2:] if cfg else None, certain=False)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _is_sharded(layer: SpectralLinear) -> bool:
    return isinstance(layer.weight, nn.Parameter) and hasattr(layer.weight, "device_mesh")

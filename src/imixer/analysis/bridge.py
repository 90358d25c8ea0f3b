"""Build the Hopfield networks that the blocks of a trained mixer are.

S: tokens, C: channels. The visible neurons are v (S, C), with LayerNorm over the channels as their activation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import Mlp
from timm.models.mlp_mixer import MixerBlock, MlpMixer
from torch import Tensor, nn

from imixer.hopfield import (
    LAGRANGIANS,
    AdiabaticUpdate,
    HopfieldNetwork,
    Lagrangian,
    LinearSynapse,
    Neurons,
    lagrangian,
)
from imixer.hopfield.lagrangians import LayerNorm
from imixer.implicit import fold
from imixer.implicit.nest import levels
from imixer.models import IMLP
from imixer.models.activations import ACTIVATIONS
from imixer.models.mixer import Merge

_NAMES = {type(make()): name for name, make in ACTIVATIONS.items()}


@dataclass(frozen=True)
class BlockNetworks:
    """Hold the two Hopfield networks of a mixer block; calling it computes the block's output.

    Use it to study a trained block by its energy. For training and inference, the block itself is faster.

    Attributes:
        tokens: Update x1(t+1) = x1(t) + F1(x1(t)) - alpha x1(t), which is v + iMLP along the tokens.
        channels: Update that is v + MLP along the channels.
        step: dt / tau of the update of tokens, 1 in the paper.
    """

    tokens: AdiabaticUpdate
    channels: AdiabaticUpdate
    step: float = 1.0

    def mix_tokens(self, v: Tensor) -> Tensor:
        """Apply the update of tokens with the step dt, (B, S, C) -> (B, S, C)."""
        if self.step == 1:
            return self.tokens(v)
        return v + self.step * self.tokens.velocity(v)  # tau is 1

    def __call__(self, v: Tensor) -> Tensor:
        """Return the block's output (B, S, C) for its input (B, S, C), without dropout or dropped paths."""
        return self.channels(self.mix_tokens(v))


def block_networks(block: MixerBlock) -> BlockNetworks:
    """Build the networks whose adiabatic update is a mixer block: timm's, or an iMixer's of any depth.

    The decay of the visible neurons is the block's. It is mostly 0, which makes the skip connection, and which the zero
    mode of LayerNorm allows. LayerNorm's affine weights differ between channels, so they belong to no Lagrangian. Its
    gain multiplies the coupling from v upwards, and not the one back. Its shift joins the field of the next layer. Only
    a gain that is the same for all channels goes into the Lagrangian.

    Args:
        block: The block. It is left as it is; the networks have weights of their own, normalised.

    Raises:
        ValueError: If an activation has no Lagrangian here, or the block mixes in another way; the message names its
            type.

    Source: paper sections 3.2 (L = 2) and 4.1 (L = 3), appendix B (deeper); docs/theory.md, section 4.
    """
    if isinstance(block, Merge):
        raise ValueError("it merges tokens between two stages, which is no step of a network")
    if not isinstance(block, MixerBlock):  # timm's ResMLP and gMLP are an MlpMixer of other blocks
        raise ValueError(f"a {type(block).__name__} is no block whose networks are known; give a MixerBlock")
    with torch.no_grad():
        tokens, channels = _levels(block.mlp_tokens), _levels(block.mlp_channels)
        shape = tokens[0].up.shape[1], channels[0].up.shape[1]
        return BlockNetworks(
            tokens=_update(
                block.norm1,
                tokens,
                shape,
                axis=-2,
                n_iter=_iterations(block.mlp_tokens),
                decay=getattr(block, "decay", 0.0),
            ),
            channels=_update(block.norm2, channels, shape, axis=-1, n_iter=0),
            step=getattr(block, "step", 1.0),
        )


def model_networks(model: MlpMixer) -> dict[int, BlockNetworks]:
    """Build the networks of every block of a mixer, by the number of the block.

    What merges tokens between two stages is no step of a network, and has no entry. Each stage has visible neurons of
    its own, and so an energy of its own.

    Raises:
        ValueError: If `block_networks` refuses a block; the message says which.
    """
    networks = {}
    for i, block in enumerate(model.blocks):
        if isinstance(block, Merge):
            continue
        try:
            networks[i] = block_networks(cast(MixerBlock, block))
        except ValueError as error:
            raise ValueError(f"block {i}: {error}") from error
    return networks


@dataclass(frozen=True)
class _Level:
    """Hold a layer of neurons, and its coupling with the layer below."""

    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    activation: nn.Module


def _update(
    norm: nn.Module, chain: Sequence[_Level], shape: tuple[int, int], *, axis: int, n_iter: int, decay: float = 0.0
) -> AdiabaticUpdate:
    S, C = shape
    visible, gain, shift = _layer_norm(norm, C)
    shift = shift.to(chain[0].up)
    neurons = {"x1": Neurons(shape, visible, decay=decay, field=_along(chain[0].down_bias, axis))}
    synapses: list[Any] = []
    top_down_bias = {}
    for i, level in enumerate(chain):
        below, name = f"x{i + 1}", f"x{i + 2}"
        field = _along(level.up_bias, axis)
        coupling = _coupling(level, axis, gain if i == 0 else None)
        if i == 0:  # LayerNorm's shift, as the first matrix passes it on
            field = field + (level.up @ shift.expand(S, C) if axis == -2 else level.up @ shift)
        if i + 1 < len(chain):
            top_down_bias[name] = _along(chain[i + 1].down_bias, axis)
            field = field + top_down_bias[name]
        hidden = (len(level.up), C) if axis == -2 else (S, len(level.up))
        neurons[name] = Neurons(hidden, _lagrangian_of(level.activation, axis), field=field)
        synapses.append(((below, name), coupling))
    network = HopfieldNetwork(neurons, synapses).to(chain[0].up)
    return AdiabaticUpdate(network, n_iter=n_iter, top_down_bias=top_down_bias).requires_grad_(False)


def _iterations(mlp: nn.Module) -> int:
    """Count the plain steps that compute what the MLP does; if it solves to a tolerance, as many as it may take."""
    if not isinstance(mlp, IMLP):
        return 0
    steps = mlp.inversion.steps(mlp.n_iter)
    if steps != mlp.n_iter and mlp.contraction is not None and mlp.contraction.inner is not None:
        raise ValueError(
            f"its outer inverse takes up to {steps} steps and those inside {mlp.n_iter}, and a network has one n_iter; "
            "train with --model.solver fixed, or set the solver of a model in Python"
        )
    return steps


def _coupling(level: _Level, axis: int, gain: Tensor | None) -> LinearSynapse:
    tied = gain is None and torch.equal(level.up, level.down.T)
    synapse = LinearSynapse(level.up.shape[1], level.up.shape[0], axis, tied=tied, gain=gain)
    synapse.weight.copy_(level.up)
    if synapse.feedback is not None:
        synapse.feedback.copy_(level.down)
    return synapse


def _levels(mlp: nn.Module) -> list[_Level]:
    if isinstance(mlp, IMLP):
        plain = fold(mlp)
        fc_in, fc_out = plain.fc_in, plain.fc_out
        inside = [] if plain.contraction is None else levels(plain.contraction)
        return [
            _linear_level(fc_in, cast(nn.Linear, fc_out), plain.act),
            *(_linear_level(F.fc1, cast(nn.Linear, F.fc2), F.act_hidden) for F in inside),
        ]
    if isinstance(mlp, Mlp):
        return [_linear_level(cast(nn.Linear, mlp.fc1), cast(nn.Linear, mlp.fc2), mlp.act)]
    raise ValueError(f"{type(mlp).__name__} is no MLP whose Hopfield network is known; give a mixer's block")


def _linear_level(there: nn.Linear, back: nn.Linear, activation: nn.Module) -> _Level:
    return _Level(there.weight, there.bias, back.weight, back.bias, activation)


def _layer_norm(norm: nn.Module, channels: int) -> tuple[LayerNorm, Tensor | None, Tensor]:
    """Return the Lagrangian, the gain (C,) if it does not fit into that, and the shift (C,)."""
    if not isinstance(norm, nn.LayerNorm):
        raise ValueError(f"the visible neurons are normalised by {type(norm).__name__}; only LayerNorm is known here")
    if norm.weight is None:
        return LayerNorm(eps=norm.eps), None, torch.zeros(channels)
    shift = norm.bias if norm.bias is not None else torch.zeros_like(norm.weight)
    if torch.equal(norm.weight, norm.weight[0].expand_as(norm.weight)):
        return LayerNorm(eps=norm.eps, gain=float(norm.weight[0])), None, shift
    return LayerNorm(eps=norm.eps), norm.weight, shift


def _lagrangian_of(activation: nn.Module, axis: int) -> Lagrangian:
    name = _NAMES.get(type(activation), type(activation).__name__.lower())
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    known = LAGRANGIANS.get(name)
    if known is None or not torch.allclose(known().activation(x), activation(x), atol=1e-6):
        raise ValueError(f"the activation {activation} has no Lagrangian here; known are {', '.join(LAGRANGIANS)}")
    return lagrangian(name, axis=axis) if name == "softmax" else known()  # the MLP sees its axis last


def _along(bias: Tensor, axis: int) -> Tensor:
    """Shape a bias of features on `axis` to broadcast to (S, C)."""
    return bias[:, None] if axis == -2 else bias

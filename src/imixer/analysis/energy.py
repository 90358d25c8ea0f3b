"""Measure the energy of a trained mixer's blocks: does mixing go downhill, and how symmetric are the couplings?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor

from imixer.analysis.bridge import model_networks
from imixer.hopfield import AdiabaticUpdate, LinearSynapse
from imixer.models.mixer import Mixer
from imixer.verdict import Verdict


@dataclass(frozen=True)
class MixingEnergy:
    """Hold the energies of one mixing step of one block: a Hopfield network whose hidden layers are at rest.

    Energies are those of the symmetric part of the couplings. They are per visible neuron and have no unit.

    Attributes:
        block: Number of the block, from 0.
        mixing: `tokens` or `channels`.
        asymmetry: ||xi - xi~^T|| / (||xi|| + ||xi~||) of each synapse, by its name: 0 if symmetric, 0.71 if the two
            matrices are independent, 1 if antisymmetric.
        before, after: Energy (images,) of the step's input and output.
        rest_residual: Largest |inputs - x| of a hidden neuron, which n iterations leave.
        violated_conditions: Conditions of a guarantee of descent that do not hold, each as `name: reason`. If all hold,
            the energy does not rise. Without a decay of v, E = -L(xi g + b) is concave in g. With a decay alpha, a step
            dt changes it by at most (alpha - 1 / dt) <v' - v, g(v') - g(v)>. A convex Lagrangian of v keeps the product
            from being negative. The step may therefore be of any length without a decay, and 1 / alpha with one.
        untrained: The same step of the same model before any training, to compare with; None if it was not measured.
    """

    block: int
    mixing: str
    asymmetry: dict[str, float]
    before: Tensor
    after: Tensor
    rest_residual: float
    violated_conditions: tuple[str, ...]
    untrained: MixingEnergy | None = None

    @property
    def change(self) -> Tensor:
        """Energy after the step minus that before it, (images,)."""
        return self.after - self.before

    @property
    def share_falling(self) -> float:
        """Share of the images whose energy falls."""
        return float((self.after < self.before).double().mean())

    @property
    def verdict(self) -> Verdict:
        """Verdict on descent: `guaranteed` by theory, `observed` on all images, or `violated` where it rises on some.

        A step that changes nothing violates nothing.
        """
        if not (self.change <= 0).all():  # also where it is not a number
            return "violated"
        return "observed" if self.violated_conditions else "guaranteed"


@torch.no_grad()
def energy_along_depth(model: MlpMixer, images: Tensor) -> list[MixingEnergy]:
    """Measure the energy of every mixing step of a mixer, from block to block.

    In a model of stages each block has the neurons of its own stage. What merges tokens between two has no energy, and
    is passed over.

    Args:
        model: An iMixer, or timm's MLP-Mixer, in evaluation mode.
        images: (B, in_chans, H, W), normalised as the model expects.

    Returns:
        Two entries per block that mixes: mixing of tokens, then of channels.

    Raises:
        ValueError: If a block is not a Hopfield network of a known kind, or the images are of another size than the
            model's.

    Source: paper (6), in the adiabatic limit; taking it there is ours, see docs/theory.md, section 6.
    """
    energies = []
    blocks = model_networks(model)
    v = _first_tokens(model, images)
    for i, block in enumerate(model.blocks):
        networks = blocks.get(i)
        if networks is None:
            v = block(v)
            continue
        for mixing in ("tokens", "channels"):
            update: AdiabaticUpdate = getattr(networks, mixing)
            moved = networks.mix_tokens(v) if mixing == "tokens" else update(v)
            step = networks.step if mixing == "tokens" else 1.0
            energies.append(_measure(i, mixing, update, v, moved, step))
            v = moved
    return energies


def token_energies(model: MlpMixer) -> Callable[[Tensor], Tensor]:
    """Build the networks of a mixer's token mixing, to compute their energies from images.

    Choose it over `energy_along_depth` where many images are measured.

    Args:
        model: An iMixer, or timm's MLP-Mixer, in evaluation mode.

    Returns:
        A function from images (B, in_chans, H, W), normalised as the model expects, to the energies (B, blocks) per
        neuron at each block's input, hidden neurons at rest.

    Raises:
        ValueError: If a block is not a Hopfield network of a known kind. The function raises it for images of another
            size than the model's.
    """
    blocks = model_networks(model)

    @torch.no_grad()
    def measure(images: Tensor) -> Tensor:
        v, energies = _first_tokens(model, images), []
        for i, block in enumerate(model.blocks):
            if i in blocks:
                energies.append(_energy(blocks[i].tokens, v)[0])
            v = block(v)
        return torch.stack(energies, 1)

    return measure


def _first_tokens(model: MlpMixer, images: Tensor) -> Tensor:
    """Return the tokens (B, S, C) before the first block, of which the networks have as many neurons."""
    if not isinstance(model, Mixer):
        return cast(Tensor, model.stem(images))
    v, grid = model.stem_tokens(images)
    own = model.stem.grid_size
    if grid != own:
        height, width = images.shape[-2:]
        raise ValueError(
            f"images of {height}x{width} give {grid[0]}x{grid[1]} tokens, and the networks have {own[0]}x{own[1]}; "
            "give images of the model's own size"
        )
    return v


def _measure(block: int, mixing: str, update: AdiabaticUpdate, v: Tensor, moved: Tensor, step: float) -> MixingEnergy:
    before, rest_residual = _energy(update, v)
    after, _ = _energy(update, moved)
    synapses = {name: update.network.synapse(name) for name in update.network.synapses}
    violated_conditions = update.network.violated_conditions()
    if update.depth > 2:
        violated_conditions.append(f"x2: its inverse is cut off after {update.n_iter} iterations")
    if (decayed := step * update.network.layer("x1").decay) > 1:
        violated_conditions.append(f"x1: step x decay is {decayed:.4g}, above 1, and such a step may overshoot")
    return MixingEnergy(
        block=block,
        mixing=mixing,
        asymmetry={name: s.asymmetry for name, s in synapses.items() if isinstance(s, LinearSynapse)},
        before=before.cpu(),
        after=after.cpu(),
        rest_residual=rest_residual,
        violated_conditions=tuple(violated_conditions),
    )


def _energy(update: AdiabaticUpdate, v: Tensor) -> tuple[Tensor, float]:
    """Return the energy (B,) per visible neuron at v, with hidden layers at rest, and how far they are from rest."""
    hidden = update.hidden(v)
    state = dict(zip(update.layers, [v, *hidden], strict=True))
    energy = update.network.energy(state, symmetrised=True) / v[0].numel()
    return energy, float(update.residual(v, hidden).max())

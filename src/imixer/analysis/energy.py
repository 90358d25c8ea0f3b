"""The energy of a trained mixer's blocks: does mixing go downhill, and how symmetric did the couplings become?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Tuple

import torch
from torch import Tensor

from imixer.analysis.bridge import model_networks
from imixer.analysis.energy_figure import draw_energy
from imixer.analysis.images import held_out_images
from imixer.analysis.record import record
from imixer.analysis.statistics import spread
from imixer.errors import InputError
from imixer.hopfield import AdiabaticUpdate, LinearSynapse
from imixer.training.reload import reload

Verdict = Literal["guaranteed", "observed", "violated"]


@dataclass(frozen=True)
class MixingEnergy:
    """One mixing step of one block, seen as a Hopfield network with its hidden layers at rest.

    Energies are those of the symmetric part of the couplings, per visible neuron, without unit.

    Attributes:
        block: Number of the block, from 0.
        mixing: `tokens` or `channels`.
        asymmetry: Synapse -> ||xi - xi~^T|| / (||xi|| + ||xi~||): 0 symmetric, 0.71 independent, 1 antisymmetric.
        before, after: Energy (images,) of what goes in and of what comes out.
        unrest: Largest |inputs - x| of a hidden neuron, which n iterations leave.
        obstacles: What stands against a guarantee that the energy falls, each as `name: reason`. Without any it falls
            however large the step: E = -L(xi g + b) is concave in g, so that it changes by at most
            -<v' - v, g(v') - g(v)>, which a convex Lagrangian of v makes negative.
    """

    block: int
    mixing: str
    asymmetry: Dict[str, float]
    before: Tensor
    after: Tensor
    unrest: float
    obstacles: Tuple[str, ...]

    @property
    def falls(self) -> float:
        """Share of the images whose energy falls."""
        return float((self.after < self.before).double().mean())

    @property
    def verdict(self) -> Verdict:
        """`guaranteed` by theory, `observed` on all images, or `violated` on some."""
        if self.falls < 1:
            return "violated"
        return "observed" if self.obstacles else "guaranteed"


@torch.no_grad()
def energy_along_depth(model: Any, images: Tensor) -> List[MixingEnergy]:
    """Follow images through a mixer, from block to block.

    Args:
        model: An iMixer, or timm's MLP-Mixer.
        images: (B, in_chans, H, W), normalised as the model expects.

    Returns:
        Two per block: mixing of tokens, then of channels.

    Raises:
        ValueError: If a block is no Hopfield network that is known here.

    Source: paper (6), in the adiabatic limit.
    """
    found = []
    v = model.stem(images)
    for i, networks in enumerate(model_networks(model)):
        for mixing in ("tokens", "channels"):
            update: AdiabaticUpdate = getattr(networks, mixing)
            measured, v = _measure(i, mixing, update, v)
            found.append(measured)
    return found


def _measure(block: int, mixing: str, update: AdiabaticUpdate, v: Tensor) -> Tuple[MixingEnergy, Tensor]:
    before, unrest = _energy(update, v)
    v = update(v)
    after, _ = _energy(update, v)
    synapses = {name: update.network.synapse(name) for name in update.network.synapses}
    obstacles = update.network.obstacles()
    if update.depth > 2:
        obstacles.append(f"x2: its inverse is cut off after {update.n_iter} iterations")
    return (
        MixingEnergy(
            block=block,
            mixing=mixing,
            asymmetry={name: s.asymmetry for name, s in synapses.items() if isinstance(s, LinearSynapse)},
            before=before.cpu(),
            after=after.cpu(),
            unrest=unrest,
            obstacles=tuple(obstacles),
        ),
        v,
    )


def _energy(update: AdiabaticUpdate, v: Tensor) -> Tuple[Tensor, float]:
    """Energy (B,) per visible neuron at v, the hidden layers at rest, and what is left of their unrest."""
    hidden = update.hidden(v)
    state = dict(zip(update.layers, [v, *hidden], strict=True))
    energy = update.network.energy(state, symmetrised=True) / v[0].numel()
    return energy, float(update.residual(v, hidden).max())


def analyze_energy(
    path: str, *, images: int = 64, data: Optional[str] = None, device: str = "auto"
) -> Tuple[List[MixingEnergy], Path]:
    """Measure a run on its held-out images and write `energy.json` and `energy.png` into its `analysis` folder.

    Args:
        path: The run's directory.
        images: Held-out images, evenly spread.
        data: Where its data lie now. Default: where they lay.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        The measurements and the folder.

    Raises:
        InputError: If run or data are not there, or the model is no mixer whose networks are known.
    """
    reloaded = reload(path, device)
    batch = held_out_images(reloaded, images, data)
    try:
        found = energy_along_depth(reloaded.model, batch)
    except (ValueError, AttributeError) as error:
        raise InputError(f"the model of {path} is no mixer with a known Hopfield network: {error}") from error
    rows: List[Dict[str, Any]] = [
        {
            "block": m.block,
            "mixing": m.mixing,
            "asymmetry": {name: round(value, 6) for name, value in m.asymmetry.items()},
            "energy_before": spread(m.before),
            "energy_after": spread(m.after),
            "change": spread(m.after - m.before),
            "share_falling": m.falls,
            "unrest": m.unrest,
            "verdict": m.verdict,
            "obstacles": list(m.obstacles),
        }
        for m in found
    ]
    written = {"images": len(batch), "mixings": rows}
    return found, record(reloaded.run, "energy", written, lambda path: draw_energy(found, path))

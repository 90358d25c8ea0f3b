"""Score images so that those of the kind a model was trained on get higher scores than others.

The signs are fixed here, by what is known of each beforehand, and fitted to no data.
"""

from dataclasses import dataclass

import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from imixer.analysis.energy import energy_along_depth
from imixer.models.probe import capture_activations, implicit_layers


@dataclass(frozen=True)
class Score:
    """Describe a score.

    Attributes:
        label: Name in tables and figures.
        formula: Definition, sign included.
        reason: Reason why it should be higher on images of the model's own kind.
    """

    label: str
    formula: str
    reason: str


SCORES: dict[str, Score] = {
    "max_softmax": Score(
        "max softmax", "largest class probability", "a classifier is less sure of what it has not seen"
    ),
    "logsumexp": Score("energy score", "log sum exp of the logits", "training raises the logits of what was seen"),
    "hopfield_mean": Score(
        "Hopfield energy, mean",
        "- energy per neuron of token mixing at each block's input, mean over blocks",
        "an associative memory has the lowest energy at what it has stored",
    ),
    "hopfield_last": Score(
        "Hopfield energy, last",
        "- energy per neuron of token mixing at the last block's input",
        "an associative memory has the lowest energy at what it has stored",
    ),
    "residual": Score(
        "fixed point residual",
        "- ||x - G(v) - F(x)|| / ||x||, mean over blocks",
        "F was trained to let the iterations come close on what was seen",
    ),
}


@torch.no_grad()
def ood_scores(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Compute the scores of images, (B,) in float64, by their names in `SCORES`, as far as the model has them.

    Args:
        model: Model in evaluation mode. The Hopfield energy needs a mixer whose networks are known, the residual an
            iMixer with an inverse.
        images: Images (B, in_chans, H, W), normalised as the model expects.

    Source: Hendrycks & Gimpel, A baseline for detecting misclassified and out-of-distribution examples in neural
        networks, 2017; Liu et al., Energy-based out-of-distribution detection, 2020, (4) at T = 1; ours.
    """
    logits = model(images).double()
    scores = {"max_softmax": logits.softmax(1).amax(1), "logsumexp": logits.logsumexp(1)}
    energies = _token_energies(model, images)
    if energies is not None:
        scores |= {"hopfield_mean": -energies.mean(0), "hopfield_last": -energies[-1]}
    if implicit_layers(model):
        scores["residual"] = -_residuals(model, images).mean(0)
    # What is not a number, as of an inverse that diverges, is like nothing seen.
    return {
        name: score.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).cpu()
        for name, score in scores.items()
    }


def _token_energies(model: nn.Module, images: Tensor) -> Tensor | None:
    """Return the energies (blocks, B) of the symmetric part of the couplings, with hidden neurons at rest."""
    if not isinstance(model, MlpMixer):
        return None
    try:
        steps = energy_along_depth(model, images)
    except ValueError:  # a mixer with parts whose network is unknown
        return None
    return torch.stack([step.before for step in steps if step.mixing == "tokens"]).double()


def _residuals(model: nn.Module, images: Tensor) -> Tensor:
    """Return the relative residuals (blocks, B)."""
    pairs = [(block.residual(torch.float64), block.x.double()) for block in capture_activations(model, images)]
    return torch.stack([left.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1) for left, x in pairs])

"""Take out of a model what the hidden neurons of token mixing read from the image, and what they write back.

S: tokens on a grid (gh, gw), D: hidden neurons, D_S.
"""

from dataclasses import dataclass

import torch
from timm.layers import Mlp
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from imixer.errors import InputError
from imixer.models import IMLP
from imixer.models.mixer import Merge, grid_of


@dataclass(frozen=True)
class TokenMixing:
    """Hold the token mixing matrices of one block: of G and H in an iMixer, of both layers of the MLP in a Mixer.

    Attributes:
        block: Number of the block, from 0.
        reads: Rows of the first matrix: by which weight each hidden neuron reads each token, (D, gh, gw).
        writes: Columns of the last matrix: by which weight it writes to each token, (D, gh, gw).
    """

    block: int
    reads: Tensor
    writes: Tensor

    @property
    def energies(self) -> Tensor:
        """Energy ||read||^2 ||write||^2 of each neuron, (D,): squared norm of the matrix that it adds to the mixing."""
        return self.reads.flatten(1).square().sum(1) * self.writes.flatten(1).square().sum(1)

    @property
    def effective(self) -> float:
        """Effective number of neurons, (sum of energies)^2 / (sum of their squares): D if all energies are equal."""
        return float(self.energies.sum() ** 2 / self.energies.square().sum())

    @property
    def cosines(self) -> Tensor:
        """Cosine of the angle between what a neuron reads and what it writes, (D,): 1 for a symmetric coupling."""
        return torch.cosine_similarity(self.reads.flatten(1), self.writes.flatten(1), dim=1)

    def strongest(self, count: int) -> Tensor:
        """Return the numbers of the neurons of most energy, the strongest first."""
        return self.energies.topk(min(count, len(self.energies))).indices

    def energy_share(self, count: int) -> float:
        """Return the share of all energy that the strongest neurons have."""
        return float(self.energies[self.strongest(count)].sum() / self.energies.sum())


def token_mixing_matrices(model: nn.Module) -> tuple[TokenMixing, ...]:
    """Return the token mixing matrices of an iMixer or a Mixer, a set per block, in float64.

    Raises:
        InputError: If the model is no iMixer or Mixer.
    """
    blocks = enumerate(model.blocks if isinstance(model, MlpMixer) else ())
    mixing = [(i, getattr(block, "mlp_tokens", None)) for i, block in blocks if not isinstance(block, Merge)]
    mlps = [(i, mlp) for i, mlp in mixing if isinstance(mlp, (IMLP, Mlp))]
    if not mlps or len(mlps) < len(mixing):
        raise InputError(
            f"the model of this run is of the kind {type(model).__name__}, without an MLP that mixes tokens; give a "
            "run of an iMixer or a Mixer"
        )
    mixings = []
    for number, mlp in mlps:
        first, last = _matrices(mlp)
        grid = grid_of(model, number)
        reads, writes = (matrix.detach().double().cpu().unflatten(1, grid) for matrix in (first, last.T))
        mixings.append(TokenMixing(number, reads, writes))
    return tuple(mixings)


def _matrices(mlp: IMLP | Mlp) -> tuple[Tensor, Tensor]:
    """Return the first and the last matrix, (D, S) and (S, D)."""
    if isinstance(mlp, IMLP):
        return mlp.fc_in.weight, mlp.fc_out.weight if isinstance(mlp.fc_out, nn.Linear) else mlp.fc_in.weight.T
    return mlp.fc1.weight, mlp.fc2.weight

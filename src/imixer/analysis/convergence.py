"""How the fixed point iteration of each iMLP settles: the paper's Figures 3, 5 and 6.

S: tokens, C: channels, D: D_S, width of x.
"""

from dataclasses import dataclass
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from imixer.errors import InputError
from imixer.models import IMLP
from imixer.models.inside import Inside, look_inside


@dataclass(frozen=True)
class BlockConvergence:
    """One block's iteration, for a = 0, ..., n - 1, with x^0 = G(v).

    Attributes:
        block: Number of the block, from 0.
        norms: Norm_a = ||x^(a+1) - x^a|| / sqrt(S C), (n, images).
        cosines: cos_a, of the angle between x^(a+1) and x^a, (n, images).
    """

    block: int
    norms: Tensor
    cosines: Tensor

    @property
    def rate(self) -> Optional[Tensor]:
        """Norm_(a+1) / Norm_a, (images,), as the geometric mean over a: below 1 where it settles. None if n is 1."""
        n = len(self.norms)
        return (self.norms[-1] / self.norms[0]) ** (1 / (n - 1)) if n > 1 else None


@dataclass(frozen=True)
class Convergence:
    """The iterations of all iMLPs of a model.

    Attributes:
        trained: The model's own n; None if it solves to a tolerance.
        blocks: One per iMLP.
        seed: Of the draw of images, where they were drawn.
    """

    trained: Optional[int]
    blocks: Tuple[BlockConvergence, ...]
    seed: Optional[int] = None

    @property
    def n_iter(self) -> int:
        """Iterations looked at."""
        return len(self.blocks[0].norms)

    @property
    def images(self) -> int:
        """Images looked at."""
        return self.blocks[0].norms.shape[1]


@torch.no_grad()
def convergence_along_depth(model: Any, images: Tensor, n_iter: Optional[int] = None) -> Convergence:
    """Norm_a and cos_a of every iMLP, per image, over its tokens and channels together.

    What enters a block is what the model computes with its own n, whatever n_iter is: only the block looked at goes on
    iterating.

    Args:
        model: An iMixer in evaluation mode.
        images: (B, in_chans, H, W), normalised as the model expects.
        n_iter: Iterations to look at. Default: the model's own n.

    Raises:
        InputError: If the model has no inverse, n_iter is below 1, or it is missing where the model has no n.

    Source: paper section 5.1 (Figure 3), appendix C.3 (Figures 5 and 6).
    """
    insides = look_inside(model, images, "iterate")
    imlp = insides[0].imlp
    n = resolve_n_iter(imlp, n_iter)
    return Convergence(
        trained=imlp.n_iter if imlp.inversion.solver == "fixed" else None,
        blocks=tuple(_measure(inside, n) for inside in insides),
    )


def resolve_n_iter(imlp: IMLP, n_iter: Optional[int]) -> int:
    """The number of iterations asked for, or else the iMLP's own.

    Raises:
        InputError: If it is below 1, or there is none.
    """
    if n_iter is None:
        if imlp.inversion.solver != "fixed":
            raise InputError(
                f"the model of this run solves to a tolerance with {imlp.inversion.solver}, so that it has no "
                "n_iter of its own; give n_iter"
            )
        n_iter = imlp.n_iter
    if n_iter < 1:
        raise InputError(
            f"n_iter is {n_iter}, and without iterations there is nothing to compare; give n_iter 1 or more"
        )
    return n_iter


@torch.no_grad()
def iterates(inside: Inside, n_iter: int) -> Tensor:
    """x^0 = G(v), x^(a+1) = G(v) + F(x^a): (n_iter + 1, images, C, D). Inverses inside F keep the model's n.

    Source: paper (29).
    """
    F, z = inside.F, inside.z
    weights = F.weights()
    found = [z]
    for _ in range(n_iter):
        found.append(z + F(found[-1], weights, inside.imlp.n_iter))
    return torch.stack(found)


def _measure(inside: Inside, n_iter: int) -> BlockConvergence:
    x = iterates(inside, n_iter).double().flatten(2)
    tokens_and_channels = inside.v[0].numel()
    return BlockConvergence(
        block=inside.block,
        norms=(torch.linalg.vector_norm(x.diff(dim=0), dim=2) / tokens_and_channels**0.5).cpu(),
        cosines=torch.cosine_similarity(x[1:], x[:-1], dim=2).cpu(),
    )

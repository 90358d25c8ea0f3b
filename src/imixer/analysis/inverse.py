"""Go back from the inner state x = (1 - F)^-1 G(v) to G(v), and to what G sees of v: the i in iMixer.

Back is easier than there: G(v) = x - F(x) takes one evaluation of F and no iteration.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imixer.analysis.statistics import relative_error
from imixer.implicit import Contraction, fold
from imixer.implicit.nest import CONVERGED, apply, fixed_point
from imixer.implicit.solvers import Solver
from imixer.models.probe import BlockActivations, capture_activations


@torch.no_grad()
def recover_G(F: Contraction, x: Tensor, n_iter: int | None = None, solver: Solver = CONVERGED) -> Tensor:
    """Recover G(v) = x - F(x) from an inner state.

    This is exact if x = (1 - F)^-1 G(v). After n iterations x_n = G(v) + F(x_(n-1)), and this returns
    G(v) - (F(x_n) - F(x_(n-1))). What is missing is x_(n+1) - x_n, the truncation. Its norm is at most
    Lip(F) ||x_n - x_(n-1)||.

    Args:
        F: The contraction, used in evaluation mode.
        x: Inner state (..., D_S), in the dtype to compute in.
        n_iter: Iterations n of inverses inside F. Default: as many as `solver` takes.
        solver: Solver of inverses inside F, if n_iter is None.

    Returns:
        G(v), (..., D_S).

    Source: paper (25), (27), (29).
    """
    if n_iter is None:
        return x - apply(F, x.flatten(0, -2), solver).view(x.shape)
    plain = fold(F).to(x)
    return x - plain(x, plain.weights(), n_iter)


@torch.no_grad()
def recover_v(fc_in: nn.Linear, z: Tensor) -> Tensor:
    """Recover the v of least norm with fc_in(v) as near to z as possible: W^+ (z - b), W^+ being the pseudoinverse.

    For z = fc_in(v) that is `visible_part(fc_in, v)`, the projection of v onto the row space of W. It is all of v if W
    has as many independent rows as v has entries.

    Args:
        fc_in: The layer G.
        z: G(v), (..., D_S), in the dtype to compute in.

    Returns:
        v, (..., S).
    """
    W = fc_in.weight.to(z)
    z = z if fc_in.bias is None else z - fc_in.bias.to(z)
    return z @ torch.linalg.pinv(W).T


@torch.no_grad()
def visible_part(fc_in: nn.Linear, v: Tensor) -> Tensor:
    """Project v (..., S) onto the row space of fc_in's matrix W: W^+ W v, all that G sees of v, in the dtype of v."""
    W = fc_in.weight.to(v)
    return v @ W.T @ torch.linalg.pinv(W).T


@dataclass(frozen=True)
class BlockInverse:
    """Hold the errors of going to one block's inner state and back. They are relative, one per image, (images,).

    Attributes:
        block: Number of the block, from 0.
        error_run: Error of G(v) from the x that the run computes: the truncation of its iterations.
        error_solved: Error of G(v) from the fixed point, in float64.
        error_v_run: Error of what G sees of v, from the x that the run computes.
        error_v_solved: Error of what G sees of v, from the fixed point, in float64.
        rank: Rank of G's matrix.
        tokens: S, entries of v.
        condition: Largest over smallest singular value of G's matrix that is not 0: the factor by which going back to v
            may enlarge an error.
        visible: ||what G sees of v||^2 / ||v||^2.
        converged: Whether the fixed point was found in all channels, (images,). Where it was not, errors from it are
            those from where the search ended.
    """

    block: int
    error_run: Tensor
    error_solved: Tensor
    error_v_run: Tensor
    error_v_solved: Tensor
    rank: int
    tokens: int
    condition: float
    visible: Tensor
    converged: Tensor


def inverse_along_depth(model: nn.Module, images: Tensor) -> list[BlockInverse]:
    """Measure the way back from the inner state of every block of an iMixer.

    Args:
        model: The model, in evaluation mode.
        images: (B, in_chans, H, W), normalised as the model expects.

    Raises:
        InputError: If the model has no inverse.
    """
    return [_measure(inside) for inside in capture_activations(model, images, "invert")]


def _measure(inside: BlockActivations) -> BlockInverse:
    F, fc_in = inside.F, inside.imlp.fc_in
    v, W = inside.v.double(), fc_in.weight.detach().double()
    z = nn.functional.linear(v, W, None if fc_in.bias is None else fc_in.bias.detach().double())
    solution = fixed_point(F, z.flatten(0, -2))
    solved = solution.states[0].view(z.shape)
    back_run, back_solved = recover_G(F, inside.x.double()), recover_G(F, solved)
    seen = visible_part(fc_in, v)
    singular = torch.linalg.svdvals(W)
    nonzero = singular[singular > singular[0] * max(W.shape) * torch.finfo(fc_in.weight.dtype).eps]
    return BlockInverse(
        block=inside.block,
        error_run=relative_error(back_run, z),
        error_solved=relative_error(back_solved, z),
        error_v_run=relative_error(recover_v(fc_in, back_run), seen),
        error_v_solved=relative_error(recover_v(fc_in, back_solved), seen),
        rank=len(nonzero),
        tokens=v.shape[-1],
        condition=float(nonzero[0] / nonzero[-1]),
        visible=(seen.flatten(1).square().sum(1) / v.flatten(1).square().sum(1)).cpu(),
        converged=solution.converged.view(z.shape[:-1]).flatten(1).all(1).cpu(),
    )

"""Measure the convergence of the fixed point iteration of each iMLP: the paper's Figures 3, 5 and 6.

S: tokens, C: channels, D: D_S, width of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from imixer.analysis.images import random_images
from imixer.errors import InputError
from imixer.escaping import few_names
from imixer.models import IMLP
from imixer.models.probe import BlockActivations, capture_activations, require_implicit_layers
from imixer.training.finished_run import FinishedRun
from imixer.training.finite_checks import require_finite_outputs
from imixer.training.run.directory import short_names

MOST_ITERATIONS = 10_000  # all are kept; more would never end


@dataclass(frozen=True)
class BlockConvergence:
    """Hold how far each iteration of one block moves x, for a = 0, ..., n - 1, with x^0 = G(v).

    Attributes:
        block: Number of the block, from 0.
        norms: Norm_a = ||x^(a+1) - x^a|| / sqrt(S C), (n, images).
        cosines: cos_a, cosine of the angle between x^(a+1) and x^a, (n, images).
        S: Number of tokens, which differs between stages, as C and D do.
        C: Number of channels.
        D: Width D_S of x, which has D C entries.
    """

    block: int
    norms: Tensor
    cosines: Tensor
    S: int
    C: int
    D: int

    @property
    def rate(self) -> Tensor | None:
        """Geometric mean of Norm_(a+1) / Norm_a over a, (images,): below 1 where x settles. None if n is 1."""
        n = len(self.norms)
        return (self.norms[-1] / self.norms[0]) ** (1 / (n - 1)) if n > 1 else None


@dataclass(frozen=True)
class Convergence:
    """Hold how far the iterations of all iMLPs of a model move x.

    Attributes:
        trained: Number of iterations n of training; None if the model solves to a tolerance.
        blocks: Convergence of each iMLP.
        seed: Seed of the draw of images, if they were drawn.
        name: Name of the model beside others.
    """

    trained: int | None
    blocks: tuple[BlockConvergence, ...]
    seed: int | None = None
    name: str = ""

    @property
    def n_iter(self) -> int:
        """Number of iterations."""
        return len(self.blocks[0].norms)

    @property
    def images(self) -> int:
        """Number of images."""
        return self.blocks[0].norms.shape[1]

    @property
    def stop(self) -> int | None:
        """The a of the model's own result x^n; None if Norm_a was not measured there, one step beyond its last."""
        return self.trained if self.trained is not None and self.trained < self.n_iter else None


@torch.no_grad()
def convergence_along_depth(model: nn.Module, images: Tensor, n_iter: int | None = None) -> Convergence:
    """Measure Norm_a and cos_a of every iMLP, per image, over its tokens and channels together.

    The input of a block is what the model computes with its own n. Only the iteration inside the block goes on to
    n_iter. It does so in float64, since float32 rounds away what late steps still change.

    Args:
        model: An iMixer in evaluation mode.
        images: (B, in_chans, H, W), normalised as the model expects.
        n_iter: Number of iterations. Default: the model's own n.

    Raises:
        InputError: If the model has no inverse, n_iter is not 1 to 10,000, or it is not given and the model solves to a
            tolerance.

    Source: paper section 5.1 (Figure 3), appendix C.3 (Figures 5 and 6).
    """
    insides = capture_activations(model, images, "iterate")
    imlp = insides[0].imlp
    n = resolve_n_iter(imlp, n_iter)
    return Convergence(
        trained=imlp.n_iter if imlp.inversion.solver == "fixed" else None,
        blocks=tuple(_measure(inside, n) for inside in insides),
    )


def resolve_n_iter(imlp: IMLP, n_iter: int | None) -> int:
    """Return the number of iterations asked for, or else the iMLP's own.

    Raises:
        InputError: If it is not 1 to 10,000, or none is given and the iMLP solves to a tolerance.
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
    if n_iter > MOST_ITERATIONS:
        raise InputError(f"n_iter is {n_iter}; give at most {MOST_ITERATIONS:,}")
    return n_iter


@torch.no_grad()
def block_iterates(inside: BlockActivations, n_iter: int, dtype: torch.dtype | None = None) -> Tensor:
    """Iterate x^0 = G(v), x^(a+1) = G(v) + F(x^a). Inverses inside F keep the model's n.

    Args:
        inside: Activations of the block.
        n_iter: Number of iterations.
        dtype: Precision of the iteration. Default: the model's.

    Returns:
        x^0 to x^n_iter, (n_iter + 1, images, C, D).

    Source: paper (29).
    """
    F, z = inside.F, inside.z
    if dtype is not None:
        F, z = deepcopy(F).to(dtype), z.to(dtype)
    weights = F.weights()
    states = [z]
    for _ in range(n_iter):
        states.append(z + F(states[-1], weights, inside.imlp.n_iter))
    return torch.stack(states)


def _measure(inside: BlockActivations, n_iter: int) -> BlockConvergence:
    x = block_iterates(inside, n_iter, torch.float64).flatten(2)
    C, S = inside.v.shape[1:]
    return BlockConvergence(
        block=inside.block,
        norms=(torch.linalg.vector_norm(x.diff(dim=0), dim=2) / (S * C) ** 0.5).cpu(),
        cosines=torch.cosine_similarity(x[1:], x[:-1], dim=2).cpu(),
        S=S,
        C=C,
        D=inside.z.shape[2],
    )


N_ITER = 10  # enough for every n of the paper


def compare_convergence(
    runs: Sequence[FinishedRun],
    *,
    images: int = 16,
    n_iter: int | None = None,
    seed: int = 0,
    data: str | None = None,
    names: Sequence[str] | None = None,
) -> list[Convergence]:
    """Measure the convergence of several runs on the same images, over the same number of iterations.

    Use it to compare trained models; `convergence_along_depth` measures one model on images that are at hand.

    Args:
        runs: The runs. Data, image size and number of blocks are the same in all.
        images: Held-out images to draw; all if there are fewer.
        n_iter: Number of iterations. Default: 10, or one more than the largest n of the runs if that is more.
        seed: Seed of the draw.
        data: Where the data lie now. Default: where they lay.
        names: Names of the runs. Default: the ends of their paths, and their n.

    Returns:
        One measurement per run, in their order.

    Raises:
        InputError: If two runs differ in images or blocks, a model has no inverse, n_iter or images is below 1, seed is
            negative, the data are not there, or what a model makes of them is not finite.

    Source: paper appendix C.3.
    """
    _check_alike(runs)
    if n_iter is None:
        own = [imlp.n_iter for run in runs for _, imlp in require_implicit_layers(run.model, "iterate")[:1]]
        n_iter = max(N_ITER, *(n + 1 for n in own))
    drawn = _draw(runs, images, seed, data)
    models = [convergence_along_depth(run.model, seen, n_iter) for run, seen in zip(runs, drawn, strict=True)]
    names = names or _names(runs, models)
    return [replace(model, seed=seed, name=name) for model, name in zip(models, names, strict=True)]


def _names(runs: Sequence[FinishedRun], models: Sequence[Convergence]) -> list[str]:
    trained = ("to a tolerance" if model.trained is None else f"n = {model.trained}" for model in models)
    return [f"{name}, {n}" for name, n in zip(short_names([run.directory.path for run in runs]), trained, strict=True)]


def _check_alike(runs: Sequence[FinishedRun]) -> None:
    """Raise InputError unless all runs know the same classes, take images of one size, and have as many blocks."""
    first = runs[0]
    for run in runs[1:]:
        one, other = first.name, run.name
        if run.class_names != first.class_names:
            raise InputError(
                f"{one} was trained on {first.config.data.name} ({few_names(first.class_names)}) and {other} on "
                f"{run.config.data.name} ({few_names(run.class_names)}); give runs of the same data"
            )
        if run.input_size != first.input_size:
            raise InputError(
                f"{one} takes images of {_size(first)} and {other} of {_size(run)}; give runs of the same image size"
            )
        blocks = [_blocks(each) for each in (first, run)]
        if blocks[0] != blocks[1]:
            raise InputError(f"{one} has {blocks[0]} and {other} has {blocks[1]}; give runs with as many blocks")


def _blocks(run: FinishedRun) -> str:
    count = len(require_implicit_layers(run.model, "iterate"))
    return f"{count} {'block' if count == 1 else 'blocks'}"


def _draw(runs: Sequence[FinishedRun], images: int, seed: int, data: str | None) -> list[Tensor]:
    """Draw the images as each run takes them.

    Raise InputError unless they are the same for all, and what each model makes of them is finite.
    """
    drawn: list[Tensor] = []
    for run in runs:
        same = next((i for i, each in enumerate(runs[: len(drawn)]) if _sees_like(each, run)), None)
        if same is None:
            drawn.append(random_images(run, images, seed, data))
        else:
            drawn.append(drawn[same].to(run.device))
            require_finite_outputs(run.model, drawn[-1], run.name)  # as `random_images` does
        if drawn[0].shape != drawn[-1].shape or not torch.equal(drawn[0], drawn[-1].to(drawn[0])):
            one, other = (f"{each.name} ({each.config.data.name})" for each in (runs[0], run))
            raise InputError(
                f"{one} and {other} do not see the same images: their held-out parts, or how images are resized and "
                "normalised, differ; give runs with the same settings of data"
            )
    return drawn


def _sees_like(one: FinishedRun, other: FinishedRun) -> bool:
    """Tell whether two runs have equal settings of data, so that opening one's data is enough."""
    keys = ("input_size", "mean", "std", "crop_pct", "interpolation")
    mine, others = ([run.pretrained_cfg[key] for key in keys] for run in (one, other))
    return one.config.data == other.config.data and mine == others


def _size(run: FinishedRun) -> str:
    channels, height, width = run.input_size
    return f"{height}x{width} pixels in {channels} {'channel' if channels == 1 else 'channels'}"

"""Convergence of several runs on the same images, as in the paper's Figures 3, 5 and 6."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from imixer.analysis.convergence import Convergence, convergence_along_depth
from imixer.analysis.images import random_images
from imixer.data.image_data import few_names
from imixer.errors import InputError
from imixer.models.inside import implicit_blocks
from imixer.training.reload import Reloaded

N_ITER = 10  # enough for every n of the paper


def compare_convergence(
    runs: Sequence[Reloaded],
    *,
    images: int = 16,
    n_iter: int | None = None,
    seed: int = 0,
    data: str | None = None,
    names: Sequence[str] | None = None,
) -> list[Convergence]:
    """Measure the convergence of several runs on the same images, over the same number of iterations.

    Args:
        runs: The runs, of the same data, image size and number of blocks.
        images: Held-out images to draw; fewer if there are not as many.
        n_iter: Iterations to look at. Default: 10, or one more than the largest n of the runs if that is more.
        seed: Of the draw.
        data: Where the data lie now. Default: where they lay.
        names: What to call the runs. Default: their paths.

    Returns:
        One measurement per run, in their order.

    Raises:
        InputError: If two runs differ in images or blocks, a model has no inverse, n_iter, images or seed is
            impossible, or the data are not there.

    Source: paper appendix C.3.
    """
    names = [str(run.run.path) for run in runs] if names is None else names
    _check_alike(runs, names)
    if n_iter is None:
        own = [imlp.n_iter for run in runs for _, imlp in implicit_blocks(run.model, "iterate")[:1]]
        n_iter = max(N_ITER, *(n + 1 for n in own))
    drawn = _draw(runs, names, images, seed, data)
    return [
        replace(convergence_along_depth(run.model, seen, n_iter), seed=seed, name=name)
        for run, seen, name in zip(runs, drawn, names, strict=True)
    ]


def _check_alike(runs: Sequence[Reloaded], names: Sequence[str]) -> None:
    """Raises InputError unless all runs know the same classes, take images of one size, and have as many blocks."""
    first = runs[0]
    for run, name in zip(runs[1:], names[1:], strict=True):
        if run.class_names != first.class_names:
            raise InputError(
                f"{names[0]} was trained on {first.config.data.name} ({few_names(first.class_names)}) and {name} on "
                f"{run.config.data.name} ({few_names(run.class_names)}); give runs of the same data"
            )
        if run.input_size != first.input_size:
            raise InputError(
                f"{names[0]} takes images of {_size(first)} and {name} of {_size(run)}; give runs of the same image "
                "size"
            )
        blocks = [len(implicit_blocks(each.model, "iterate")) for each in (first, run)]
        if blocks[0] != blocks[1]:
            raise InputError(
                f"{names[0]} has {blocks[0]} blocks and {name} has {blocks[1]}; give runs with as many blocks"
            )


def _draw(runs: Sequence[Reloaded], names: Sequence[str], images: int, seed: int, data: str | None) -> list[Tensor]:
    """The images as each run takes them. Raises InputError unless they are the same."""
    found: list[Tensor] = []
    for run, name in zip(runs, names, strict=True):
        same = next((i for i, each in enumerate(runs[: len(found)]) if _sees_like(each, run)), None)
        found.append(random_images(run, images, seed, data) if same is None else found[same].to(run.device))
        if found[0].shape != found[-1].shape or not torch.equal(found[0], found[-1].to(found[0])):
            raise InputError(
                f"{names[0]} ({runs[0].config.data.name}) and {name} ({run.config.data.name}) do not see the same "
                "images: their held-out parts, or how images are resized and normalised, differ; give runs with the "
                "same settings of data"
            )
    return found


def _sees_like(one: Reloaded, other: Reloaded) -> bool:
    """Whether two runs have equal settings of data, so that opening one's data is enough."""
    keys = ("input_size", "mean", "std", "crop_pct", "interpolation")
    mine, others = ([run.model.pretrained_cfg[key] for key in keys] for run in (one, other))
    return one.config.data == other.config.data and mine == others


def _size(run: Reloaded) -> str:
    channels, height, width = run.input_size
    return f"{height}x{width} pixels in {channels} {'channel' if channels == 1 else 'channels'}"

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
from imixer.training.run_directory import short_names

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
        names: What to call the runs. Default: the ends of their paths, and their n.

    Returns:
        One measurement per run, in their order.

    Raises:
        InputError: If two runs differ in images or blocks, a model has no inverse, n_iter, images or seed is
            impossible, or the data are not there.

    Source: paper appendix C.3.
    """
    _check_alike(runs)
    if n_iter is None:
        own = [imlp.n_iter for run in runs for _, imlp in implicit_blocks(run.model, "iterate")[:1]]
        n_iter = max(N_ITER, *(n + 1 for n in own))
    drawn = _draw(runs, images, seed, data)
    found = [convergence_along_depth(run.model, seen, n_iter) for run, seen in zip(runs, drawn, strict=True)]
    names = names or _names(runs, found)
    return [replace(each, seed=seed, name=name) for each, name in zip(found, names, strict=True)]


def _names(runs: Sequence[Reloaded], found: Sequence[Convergence]) -> list[str]:
    trained = ("to a tolerance" if each.trained is None else f"n = {each.trained}" for each in found)
    return [f"{name}, {n}" for name, n in zip(short_names([run.run.path for run in runs]), trained, strict=True)]


def _check_alike(runs: Sequence[Reloaded]) -> None:
    """Raises InputError unless all runs know the same classes, take images of one size, and have as many blocks."""
    first = runs[0]
    for run in runs[1:]:
        one, other = first.run.path, run.run.path
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


def _blocks(run: Reloaded) -> str:
    count = len(implicit_blocks(run.model, "iterate"))
    return f"{count} {'block' if count == 1 else 'blocks'}"


def _draw(runs: Sequence[Reloaded], images: int, seed: int, data: str | None) -> list[Tensor]:
    """The images as each run takes them. Raises InputError unless they are the same."""
    found: list[Tensor] = []
    for run in runs:
        same = next((i for i, each in enumerate(runs[: len(found)]) if _sees_like(each, run)), None)
        found.append(random_images(run, images, seed, data) if same is None else found[same].to(run.device))
        if found[0].shape != found[-1].shape or not torch.equal(found[0], found[-1].to(found[0])):
            one, other = (f"{each.run.path} ({each.config.data.name})" for each in (runs[0], run))
            raise InputError(
                f"{one} and {other} do not see the same images: their held-out parts, or how images are resized and "
                "normalised, differ; give runs with the same settings of data"
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

"""Measure what iterations are worth at test time: accuracy and latency of one trained model."""

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from imixer.data.image_data import IGNORED
from imixer.implicit import Contraction
from imixer.implicit.solve import solve
from imixer.implicit.solvers import Picard
from imixer.models import IMLP
from imixer.models.inversion import Inversion
from imixer.models.probe import require_implicit_layers
from imixer.progress import with_progress
from imixer.timing import wait_for

NUMBERS = tuple(range(9))
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
BATCH_SIZE = 64
MAX_STEPS = 200


@dataclass(frozen=True)
class Setting:
    """Choose how a model solves for x in every block: in n iterations, to a tolerance, or else as it was trained.

    Args:
        n_iter: Iterations of every inverse.
        tolerance: Relative residual ||G + F(x) - x|| / ||G + F(x)|| at which an image stops. Each image stops on its
            own, after at most `MAX_STEPS` evaluations. Inverses inside F keep the n they were trained with.
    """

    n_iter: int | None = None
    tolerance: float | None = None

    def __str__(self) -> str:
        if self.tolerance is not None:
            return f"tolerance {self.tolerance:g}"
        return "as trained" if self.n_iter is None else f"n = {self.n_iter}"


@dataclass(frozen=True)
class SettingResult:
    """Hold what a model does with a setting.

    Attributes:
        setting: The setting.
        correct: Whether each image is recognised, (images,); of a segmentation, the share of its pixels that are, and
            NaN where no pixel counts.
        same: Whether each image is classified as by the model as trained, (images,); likewise.
        change: ||logits - logits as trained|| / ||logits as trained||, (images,).
        evaluations: Evaluations of F for each image, (blocks, images); None if the model's own solver does not tell.
        converged: Share of all pairs of block and image whose tolerance was met; None without a tolerance.
        latency: Milliseconds per image, one entry per repeat.
        miou: Mean IoU of the classes that are there, over all pixels; None unless pixels are classified.
    """

    setting: Setting
    correct: Tensor
    same: Tensor
    change: Tensor
    evaluations: Tensor | None
    converged: float | None
    latency: tuple[float, ...]
    miou: float | None = None

    @property
    def accuracy(self) -> float:
        """Share of the images that are recognised, or mean share of their pixels, of images where some count."""
        return float(self.correct.double().nanmean())

    @property
    def without_pixels(self) -> int:
        """Number of images of which no pixel counts, and which are no part of the accuracy."""
        return int(self.correct.isnan().sum())

    @property
    def accuracy_error(self) -> float:
        """Standard error of the accuracy, by the number of images."""
        if self.correct.is_floating_point():
            judged = self.correct[~self.correct.isnan()]
            return float(judged.std() / len(judged) ** 0.5) if len(judged) > 1 else math.nan
        return float((self.accuracy * (1 - self.accuracy) / len(self.correct)) ** 0.5)

    @property
    def latency_quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the latency, in ms per image."""
        low, middle, high = statistics.quantiles(self.latency, n=4, method="inclusive")
        return low, middle, high


@dataclass(frozen=True)
class SettingsComparison:
    """Hold what a model does with each of several settings.

    Attributes:
        trained: Setting of training, such as `n = 2`.
        results: What each setting does.
        batch_size: Images per step when timed.
        device: Device that it ran on; of a CPU with the number of threads.
    """

    trained: str
    results: tuple[SettingResult, ...]
    batch_size: int
    device: str


class EarlyExit:
    """Stand in for an iMLP's `Inversion`: solve for each image on its own, to a tolerance and no further.

    `solving_by` hands one out; choose it to learn how many evaluations a tolerance took.

    Args:
        tolerance: Relative residual at which an image stops.

    Attributes:
        counts: Evaluations of F that each image took, (images,), per call.
        met: Whether the tolerance was met, (images,), per call.
    """

    unrolled = False

    def __init__(self, tolerance: float) -> None:
        self.solver = Picard(rtol=tolerance, atol=0.0, max_steps=MAX_STEPS)
        self.counts: list[Tensor] = []
        self.met: list[Tensor] = []

    def __call__(
        self, F: Contraction, z: Tensor, weights: list[Tensor], n_iter: int, name: str, masks: object = None
    ) -> Tensor:
        """Compute x = (1 - F)^-1 z, as `Inversion` does, in evaluation mode."""

        def f(x: Tensor, *weights: Tensor) -> Tensor:
            return F(x, list(weights), n_iter)

        solution = solve(f, z, weights, solver=self.solver, on_failure="ignore", early_exit=True, name=name)
        assert solution.residuals is not None and solution.converged is not None
        going = ~(solution.residuals <= self.solver.rtol)  # also where it is not a number
        self.counts.append((going.int().cumprod(0).sum(0) + 1).clamp_max(len(going)))
        self.met.append(solution.converged)
        return solution.value


def default_settings(model: nn.Module) -> list[Setting]:
    """List settings that show what iterations are worth: 0 to 8 of them, five tolerances, and the model's own.

    Args:
        model: An iMixer.

    Raises:
        InputError: If the model has no inverse.
    """
    _, imlp = require_implicit_layers(model, "iterate")[0]
    fixed = imlp.inversion.solver == "fixed"
    numbers = sorted({*NUMBERS, *[imlp.n_iter] * fixed})
    own = [] if fixed else [Setting()]
    return [*(Setting(n_iter=n) for n in numbers), *(Setting(tolerance=t) for t in TOLERANCES), *own]


@contextmanager
def solving_by(model: nn.Module, setting: Setting) -> Iterator[EarlyExit | None]:
    """Let a model solve by a setting within the context. Afterwards it is as it was.

    Args:
        model: An iMixer in evaluation mode.
        setting: The setting.

    Yields:
        What counts the evaluations of every block, in the order of blocks and calls; None without a tolerance.

    Raises:
        InputError: If the model has no inverse.
    """
    imlps = [imlp for _, imlp in require_implicit_layers(model, "iterate")]
    before = [(imlp.n_iter, imlp.inversion) for imlp in imlps]
    try:
        yield _apply(setting, imlps, before)
    finally:
        _apply(Setting(), imlps, before)


@torch.no_grad()
def compare_iterations(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    settings: Sequence[Setting],
    *,
    repeats: int = 11,
) -> SettingsComparison:
    """Measure a model on labelled images with each of several settings, and time it.

    Args:
        model: An iMixer in evaluation mode. It is left as it was.
        batches: Images (B, in_chans, H, W) and labels (B,) or masks (B, H, W). The first batch is timed.
        settings: The settings.
        repeats: Timings per setting, after one that does not count. Settings take turns, so that whatever else the
            machine does slows all alike.

    Raises:
        InputError: If the model has no inverse.
    """
    imlps = [imlp for _, imlp in require_implicit_layers(model, "iterate")]
    before = [(imlp.n_iter, imlp.inversion) for imlp in imlps]
    try:
        seen: list[list[dict[str, Any]]] = [[] for _ in settings]
        first: Tensor | None = None
        for images, labels in batches:
            first = images if first is None else first
            _apply(Setting(), imlps, before)
            reference = model(images).float()
            for rows, setting in zip(seen, settings, strict=True):
                rows.append(_run(model, images, labels, reference, setting, imlps, before))
        assert first is not None
        latencies = _time(model, first, settings, imlps, before, repeats)
    finally:
        _apply(Setting(), imlps, before)
    return SettingsComparison(
        trained=_trained(imlps[0]),
        results=tuple(_joined(s, rows, ms) for s, rows, ms in zip(settings, seen, latencies, strict=True)),
        batch_size=len(first),
        device=str(first.device) if first.device.type != "cpu" else _cpu(),
    )


def _apply(setting: Setting, imlps: Sequence[IMLP], before: Sequence[tuple[int, Inversion]]) -> EarlyExit | None:
    early = None if setting.tolerance is None else EarlyExit(setting.tolerance)
    for imlp, (n_iter, inversion) in zip(imlps, before, strict=True):
        imlp.n_iter = n_iter if setting.n_iter is None else setting.n_iter
        if early is not None:
            imlp.inversion = cast(Inversion, early)  # it is called in the same way
        elif setting.n_iter is not None:
            # In evaluation all gradients, and the published code's normalisation, compute the same.
            imlp.inversion = replace(inversion, solver="fixed", gradient="unroll", legacy=False)
        else:
            imlp.inversion = inversion
    return early


def _run(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    reference: Tensor,
    setting: Setting,
    imlps: Sequence[IMLP],
    before: Sequence[tuple[int, Inversion]],
) -> dict[str, Any]:
    early = _apply(setting, imlps, before)
    logits = model(images).float()
    answer, trained = logits.argmax(1), reference.argmax(1)
    counts = None
    correct, same = answer == labels, answer == trained
    if labels.ndim > 1:
        known = labels != IGNORED
        classes = logits.shape[1]
        places = labels[known] * classes + answer[known]
        counts = torch.bincount(places, minlength=classes**2).reshape(classes, classes)
        correct = (correct & known).flatten(1).sum(1) / known.flatten(1).sum(1)  # NaN where nothing is known
        same = same.flatten(1).double().mean(1)
    norm, dims = torch.linalg.vector_norm, tuple(range(1, logits.ndim))
    return {
        "correct": correct,
        "same": same,
        "counts": counts,
        "change": norm(logits - reference, dim=dims) / norm(reference, dim=dims),
        "evaluations": _evaluations(imlps, images) if early is None else torch.stack(early.counts),
        "met": None if early is None else torch.stack(early.met),
    }


def _evaluations(imlps: Sequence[IMLP], images: Tensor) -> Tensor | None:
    """Return the numbers of iterations as evaluations of F, (blocks, images), unless a solver decides on them."""
    if any(imlp.inversion.solver != "fixed" for imlp in imlps):
        return None
    return torch.tensor([imlp.n_iter for imlp in imlps])[:, None].expand(-1, len(images))


def _joined(setting: Setting, rows: Sequence[dict[str, Any]], latency: list[float]) -> SettingResult:
    def join(name: str) -> Tensor:
        return torch.cat([row[name] for row in rows], -1).cpu()

    return SettingResult(
        setting=setting,
        correct=join("correct"),
        same=join("same"),
        change=join("change"),
        evaluations=None if rows[0]["evaluations"] is None else join("evaluations"),
        converged=None if setting.tolerance is None else float(join("met").double().mean()),
        latency=tuple(latency),
        miou=None if rows[0]["counts"] is None else _miou(sum(row["counts"] for row in rows)),
    )


def _miou(counts: Tensor) -> float:
    """Average the IoU of the classes that are there, from counts of true (row) against predicted (column) class."""
    both = counts.sum(0) + counts.sum(1) - counts.diag()
    there = both > 0
    return float((counts.diag()[there].double() / both[there]).mean())


def _time(
    model: nn.Module,
    images: Tensor,
    settings: Sequence[Setting],
    imlps: Sequence[IMLP],
    before: Sequence[tuple[int, Inversion]],
    repeats: int,
) -> list[list[float]]:
    taken: list[list[float]] = [[] for _ in settings]
    turns = ([repeat] for repeat in range(repeats + 1))
    for repeat in with_progress(turns, repeats + 1, "timing, turn by turn"):
        for times, setting in zip(taken, settings, strict=True):
            _apply(setting, imlps, before)
            wait_for(images.device)
            began = time.perf_counter()
            model(images)
            wait_for(images.device)
            if repeat:
                times.append(1e3 * (time.perf_counter() - began) / len(images))
    return taken


def _cpu() -> str:
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"


def _trained(imlp: IMLP) -> str:
    solver = imlp.inversion.solver
    if solver == "fixed":
        return str(Setting(n_iter=imlp.n_iter))
    return f"{solver} to {imlp.inversion.tolerance:g}" if isinstance(solver, str) else type(solver).__name__

"""Inspect what a model makes of one image: classes, convergence and energy of each block, feature maps.

All numbers are plain Python ones, ready for JSON; None stands for one that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from imixer.analysis.convergence import block_iterates
from imixer.analysis.energy import MixingEnergy, energy_along_depth
from imixer.analysis.features import features_at
from imixer.analysis.iterations import MAX_STEPS, EarlyExit, Setting, solving_by
from imixer.errors import InputError
from imixer.implicit import NotConvergedError
from imixer.implicit.nest import levels
from imixer.models.probe import BlockActivations, capture_activations, implicit_layers, number_ranges
from imixer.training.finished_run import FinishedRun
from imixer.training.finite_checks import require_finite_logits
from imixer.verdict import Verdict

FEWEST_SHOWN = 10  # iterations whose residuals are shown, however few the model takes
_MOST_ITERATIONS = 100
_MOST_EVALUATIONS = 10_000  # of the innermost map, in one block
_CHANNELS = 6

Number = float | None


@dataclass(frozen=True)
class BlockResiduals:
    """The way of one block to its fixed point.

    Args:
        block: Number of the block, from 0.
        residuals: ||x^(a+1) - x^a|| / ||x^(a+1)|| for a = 0, 1, ..., of the plain iteration x^(a+1) = G(v) + F(x^a). A
            tolerance is compared with these.
        left: Relative residual ||x - G(v) - F(x)|| / ||G(v) + F(x)|| of the x that the model went on with.
        evaluations: Evaluations of F that led there; None if the model's own solver does not tell.
        met: Whether the tolerance was met; None without one.
    """

    block: int
    residuals: tuple[Number, ...]
    left: Number
    evaluations: int | None
    met: bool | None


@dataclass(frozen=True)
class StepEnergy:
    """The energy of one mixing step of one block, per visible neuron; see `imixer.analysis.energy.MixingEnergy`.

    Args:
        block: Number of the block, from 0.
        mixing: `tokens` or `channels`.
        before: Energy of the input.
        after: Energy of the output.
        verdict: `guaranteed`, `observed` or `violated` descent.
        violated_conditions: Conditions of a guarantee that do not hold.
    """

    block: int
    mixing: str
    before: Number
    after: Number
    verdict: Verdict
    violated_conditions: tuple[str, ...]


@dataclass(frozen=True)
class FeatureMaps:
    """The feature maps of some channels after some iterations of one block.

    Args:
        block: Number of the block, from 0.
        iterations: The iterations a that are shown.
        channels: The channels, the most varied first.
        maps: H(x^a) over the grid of tokens, (channels, iterations, gh, gw).
    """

    block: int
    iterations: tuple[int, ...]
    channels: tuple[int, ...]
    maps: list[list[list[list[Number]]]]


@dataclass(frozen=True)
class Inspection:
    """What a model makes of one image.

    Args:
        setting: How the inverses were found, in words.
        classes: The most probable classes and their probabilities.
        blocks: The convergence of each block that has an inverse.
        energies: The energy of each mixing step.
        features: The feature maps of one block; None if no block has an inverse.
        notes: A sentence for each part that cannot be shown, by the name of the part.
    """

    setting: str
    classes: tuple[tuple[str, float], ...]
    blocks: tuple[BlockResiduals, ...]
    energies: tuple[StepEnergy, ...]
    features: FeatureMaps | None
    notes: dict[str, str]


def most_iterations(model: nn.Module) -> int:
    """Return the largest n that `inspect_image` takes: 100, or fewer where inverses nest; 0 without an inverse."""
    depth = max((len(levels(imlp.contraction)) for _, imlp in implicit_layers(model) if imlp.contraction), default=0)
    if not depth:
        return 0
    most = _MOST_ITERATIONS
    while most > 1 and most**depth > _MOST_EVALUATIONS:
        most -= 1
    return most


@torch.no_grad()
def inspect_image(
    run: FinishedRun,
    image: Tensor,
    *,
    n_iter: int | None = None,
    tolerance: float | None = None,
    block: int | None = None,
    top: int = 5,
) -> Inspection:
    """Inspect what a model makes of one image, with a number of iterations or to a tolerance. The model is left as is.

    Args:
        run: The run.
        image: (in_chans, H, W), normalised as the model expects.
        n_iter: Iterations of every inverse. Default: as trained.
        tolerance: Relative residual to solve to, in place of `n_iter`.
        block: Block whose feature maps are shown. Default: the last that has an inverse.
        top: Number of classes.

    Raises:
        InputError: If n_iter, tolerance, block or top is out of range, n_iter or tolerance is given for a model that
            does not iterate, the model's own solver fails, or the logits are not finite.
    """
    setting = _checked_setting(run, n_iter, tolerance)
    if top < 1:
        raise InputError(f"top is {top}; give 1 or more classes")
    try:
        if not implicit_layers(run.model):
            return _inspect_plain(run, image, top)
        return _inspect_implicit(run, image, setting, block, top)
    except NotConvergedError as error:
        raise InputError(str(error)) from error


def _checked_setting(run: FinishedRun, n_iter: int | None, tolerance: float | None) -> Setting:
    if n_iter is not None and tolerance is not None:
        raise InputError(f"n_iter is {n_iter} and tolerance is {tolerance:g}; leave one of them out")
    most = most_iterations(run.model)
    for name, value in (("n_iter", n_iter), ("tolerance", tolerance)):
        if value is not None and not most:
            raise InputError(f"{name} is {value:g}, and the model of {run.name} does not iterate; leave it out")
    if n_iter is not None and not 0 <= n_iter <= most:
        raise InputError(f"n_iter is {n_iter}; give 0 to {most}")
    if tolerance is not None and not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance:g}; give a relative residual between 0 and 1")
    return Setting(n_iter, tolerance)


def _inspect_plain(run: FinishedRun, image: Tensor, top: int) -> Inspection:
    energies, note = _energies(run.model, image)
    sentence = f"{type(run.model).__name__} has no block with an inverse: there is nothing to iterate."
    notes = {"blocks": sentence, "features": sentence} | ({"energies": note} if note else {})
    return Inspection("no iterations", _classes(run, image, top), (), energies, None, notes)


def _inspect_implicit(run: FinishedRun, image: Tensor, setting: Setting, block: int | None, top: int) -> Inspection:
    model, most = run.model, most_iterations(run.model)
    numbers = [number for number, _ in implicit_layers(model)]
    if block is not None and block not in numbers:
        raise InputError(f"block is {block}; this model has inverses in the blocks {number_ranges(numbers)}")
    with solving_by(model, setting) as early:
        classes = _classes(run, image, top)
        solver = _solver(model, early, len(numbers))
        shown = max(FEWEST_SHOWN, min(most, max(solver.evaluations or [0])))
        insides = capture_activations(model, image[None], "explore")
        blocks = tuple(_residuals(inside, shown, solver, i) for i, inside in enumerate(insides))
    # A network has one n: that of the block which took most evaluations to the tolerance meets it in all.
    n_iter = None if solver.evaluations is None else min(most, max(solver.evaluations))
    with solving_by(model, Setting(n_iter)):
        energies, note = _energies(model, image)
        features = _feature_maps(model, image, block, max(1, shown if n_iter is None else n_iter))
    notes = {"energies": note} if note else {}
    return Inspection(_in_words(setting, insides), classes, blocks, energies, features, notes)


@dataclass(frozen=True)
class _Solver:
    """What is known of the solvers of all blocks: the evaluations of F, and whether the tolerance was met."""

    evaluations: list[int] | None = None
    met: list[bool] | None = None


def _solver(model: nn.Module, early: EarlyExit | None, blocks: int) -> _Solver:
    if early is not None:
        return _Solver([int(each) for each in early.counts[:blocks]], [bool(each) for each in early.met[:blocks]])
    _, imlp = implicit_layers(model)[0]
    return _Solver([imlp.n_iter] * blocks) if imlp.inversion.solver == "fixed" else _Solver()


def _classes(run: FinishedRun, image: Tensor, top: int) -> tuple[tuple[str, float], ...]:
    logits = run.model(image[None]).float()
    require_finite_logits(run.model, image[None], logits, run.name)
    chances, places = logits.softmax(1)[0].topk(min(top, logits.shape[1]))
    return tuple((run.class_names[i], chance) for i, chance in zip(places.tolist(), chances.tolist(), strict=True))


def _residuals(inside: BlockActivations, shown: int, solver: _Solver, place: int) -> BlockResiduals:
    x = block_iterates(inside, shown, torch.float64).flatten(1)
    x_run = inside.x.double()
    residual = inside.residual(torch.float64)
    return BlockResiduals(
        block=inside.block,
        residuals=_numbers(_norm(x.diff(dim=0)) / _norm(x[1:])),
        left=_number(_norm(residual.flatten(1)) / _norm((x_run - residual).flatten(1))),
        evaluations=solver.evaluations[place] if solver.evaluations else None,
        met=solver.met[place] if solver.met else None,
    )


def _energies(model: nn.Module, image: Tensor) -> tuple[tuple[StepEnergy, ...], str]:
    """Return the energies, or a sentence that says why there are none."""
    if not isinstance(model, MlpMixer):
        return (), f"{type(model).__name__} is no mixer whose energy is known."
    try:
        measured = energy_along_depth(model, image[None])
    except ValueError as error:
        return (), f"No energy is defined here: {error}."
    return tuple(map(_step_energy, measured)), ""


def _step_energy(energy: MixingEnergy) -> StepEnergy:
    before, after = _number(energy.before), _number(energy.after)
    return StepEnergy(energy.block, energy.mixing, before, after, energy.verdict, energy.violated_conditions)


def _feature_maps(model: nn.Module, image: Tensor, block: int | None, n_iter: int) -> FeatureMaps:
    features = features_at(model, image, block=block, n_iter=n_iter)
    channels = features.channels(_CHANNELS)
    maps = features.maps[list(features.shown)][:, list(channels)].transpose(0, 1)
    cells = [[[list(_numbers(row)) for row in picture] for picture in channel] for channel in maps]
    return FeatureMaps(features.block, features.shown, channels, cells)


def _in_words(setting: Setting, insides: Sequence[BlockActivations]) -> str:
    if setting.tolerance is not None:
        return f"solved to a tolerance of {setting.tolerance:g}, by at most {MAX_STEPS} evaluations in each block"
    imlp = insides[0].imlp
    n = imlp.n_iter if setting.n_iter is None else setting.n_iter
    trained = " as trained" if setting.n_iter is None else ""
    if setting.n_iter is None and imlp.inversion.solver != "fixed":
        return f"solved by {imlp.inversion.solver} to a tolerance of {imlp.inversion.tolerance:g}, as trained"
    return f"n = {n} {'iteration' if n == 1 else 'iterations'} in each block{',' * bool(trained)}{trained}"


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dim=-1)


def _number(value: Tensor) -> Number:
    return float(f"{number:.6g}") if math.isfinite(number := float(value)) else None


def _numbers(values: Tensor) -> tuple[Number, ...]:
    return tuple(float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist())

"""Certify each block's F as a contraction, in theory and on images, and measure the error its iterations leave."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from imixer.analysis.statistics import relative_error
from imixer.implicit.certificate import Certificate, iterations_needed, on_data, worst_case
from imixer.implicit.nest import levels
from imixer.models.activations import slope_or_infinity
from imixer.models.probe import BlockActivations, capture_activations
from imixer.verdict import Verdict

Requirement = Literal["guaranteed", "observed"]
ERRORS = (1e-2, 1e-4, 1e-6)
TOLERANCE = 1e-3
MAX_STEPS = 1000


@dataclass(frozen=True)
class BlockContraction:
    """Hold what is known of the contraction F of one block. A level is F itself, or a contraction nested inside it.

    Attributes:
        block: Number of the block, from 0.
        iterations: How the run solves for x: its n, such as `n = 2`, or the name of its solver.
        certificate: Certificate of F: worst case, and at the images' fixed points.
        norms: Norm of each level's Jacobian at each image, the largest over its channels, (levels, images).
        settled: Whether the power iteration for the norm met its tolerance, (levels, images). If not, the norm is a
            lower bound.
        start: ||G(v) - x|| / ||x||, (images,), x being the fixed point: the error of 0 iterations.
        left: ||x_n - x|| / ||x||, (images,), x_n being what the run computes.
        unknown: Names of activations whose largest slope is not known; the bound is then infinite.
    """

    block: int
    iterations: str
    certificate: Certificate
    norms: Tensor
    settled: Tensor
    start: Tensor
    left: Tensor
    unknown: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Verdict of the certificate; see `Certificate.verdict`."""
        return self.certificate.verdict

    @property
    def rates(self) -> dict[str, float]:
        """Largest factor of an error in one iteration: `bound`, and `data` by the largest norm on the images."""
        return {"bound": self.certificate.worst.bound, "data": float(self.norms[0].max())}

    def needed(self, error: float) -> dict[str, int | None]:
        """Return the iterations that shrink the error of the start so far, by each of `rates`; None if none do.

        Args:
            error: Error to reach, relative to that of the start.
        """
        counts = {name: iterations_needed(rate, error) for name, rate in self.rates.items()}
        return {name: int(n) if math.isfinite(n) else None for name, n in counts.items()}


def contraction_along_depth(model: nn.Module, images: Tensor) -> list[BlockContraction]:
    """Certify every block of an iMixer and measure it on images.

    Args:
        model: The model, in evaluation mode.
        images: (B, in_chans, H, W), normalised as the model expects.

    Raises:
        InputError: If the model has no inverse.

    Source: paper section 4.1; the bounds are ours, see docs/theory.md, section 5.
    """
    return [_measure(inside) for inside in capture_activations(model, images, "certify")]


def _measure(inside: BlockActivations) -> BlockContraction:
    F, imlp = inside.F, inside.imlp
    slopes, unknown = _slopes([F.act, *(level.act_hidden for level in levels(F))])
    # not by `certify`, which refuses what an earlier block that diverges makes of the images
    data = on_data(F, inside.z, tol=TOLERANCE, max_steps=MAX_STEPS)
    certificate = Certificate(worst_case(F, slopes), data)
    x = certificate.data.x
    norms, channel = certificate.data.norms.max(-1)
    solver = imlp.inversion.solver
    return BlockContraction(
        block=inside.block,
        iterations=f"n = {imlp.n_iter}" if solver == "fixed" else str(solver),
        certificate=certificate,
        norms=norms.cpu(),
        settled=certificate.data.settled.gather(-1, channel[..., None])[..., 0].cpu(),
        start=relative_error(inside.z, x),
        left=relative_error(inside.x, x),
        unknown=unknown,
    )


def _slopes(acts: Sequence[nn.Module]) -> tuple[list[float], tuple[str, ...]]:
    slopes = [slope_or_infinity(act) for act in acts]
    unknown = {type(act).__name__ for act, slope in zip(acts, slopes, strict=True) if math.isinf(slope)}
    return slopes, tuple(sorted(unknown))


def failed_blocks(blocks: Sequence[BlockContraction], require: Requirement) -> str | None:
    """Name the blocks that fail a requirement, and a remedy, in one line; return None if all blocks meet it.

    Args:
        blocks: What `contraction_along_depth` returned.
        require: `guaranteed`: contractions by the bound; `observed`: at least on the images.
    """
    accepted = ("guaranteed",) if require == "guaranteed" else ("guaranteed", "observed")
    bad = [block for block in blocks if block.verdict not in accepted]
    if not bad:
        return None
    named = ", ".join(f"{block.block} ({block.verdict})" for block in bad)
    remedy = "--model.coeff auto, or with a lower --model.coeff"
    if unknown := sorted({name for block in bad for name in block.unknown}):
        remedy = f"another --model.act_layer: how steep {' and '.join(unknown)} may be is not known"
    elif any(block.certificate.worst.coeff is None for block in bad):
        remedy = "--model.norm spectral --model.coeff auto: these have no ceiling"
    return f"{require} is required of every block, and these are not: {named}; retrain with {remedy}"

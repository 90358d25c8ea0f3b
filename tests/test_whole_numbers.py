"""A number of steps or neurons that is not whole is refused by its name, before anything is computed."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from imixer.hopfield import (
    AdiabaticUpdate,
    AssociativeMemory,
    AttentionSynapse,
    ConvSynapse,
    LinearSynapse,
    RestingLayerSynapse,
    integrate,
    two_layer,
)
from imixer.implicit import (
    Anderson,
    Broyden,
    CheckpointedUnroll,
    Contraction,
    FixedIterations,
    L2Attention,
    MonotoneContraction,
    Picard,
    ResidualFlow,
    SpectralConv2d,
    SpectralLinear,
    certify,
    iterates,
    jacobian_penalty,
    residual_log_det,
)
from imixer.models import IMLP

x = torch.zeros(2, 3)
network = two_layer(3, 4)
memory = AssociativeMemory(torch.eye(4, dtype=torch.float64))

CALLS: dict[str, Callable[[], object]] = {
    "n_iter of FixedIterations": lambda: FixedIterations(2.5),
    "max_steps of Picard": lambda: Picard(max_steps=2.5),
    "check_every of Picard": lambda: Picard(check_every=2.5),
    "memory of Anderson": lambda: Anderson(memory=2.5),
    "memory of Broyden": lambda: Broyden(memory=2.5),
    "checkpoints of CheckpointedUnroll": lambda: CheckpointedUnroll(2.5),
    "n_iter of IMLP": lambda: IMLP(4, n_iter=2.5),
    "n_power_iterations of IMLP": lambda: IMLP(4, n_power_iterations=2.5),
    "n_power_iterations of SpectralLinear": lambda: SpectralLinear(3, 3, n_power_iterations=2.5),
    "n_power_iterations of SpectralConv2d": lambda: SpectralConv2d(3, 3, 3, (8, 8), n_power_iterations=2.5),
    "dilation of SpectralConv2d": lambda: SpectralConv2d(3, 3, 3, (8, 8), dilation=2.5),
    "tokens of L2Attention": lambda: L2Attention(4, num_heads=2, tokens=2.5),
    "features of MonotoneContraction": lambda: MonotoneContraction(2.5, 3),
    "terms of ResidualFlow": lambda: ResidualFlow(nn.Identity(), terms=2.5),
    "terms of residual_log_det": lambda: residual_log_det(torch.tanh, x, terms=2.5),
    "probes of jacobian_penalty": lambda: jacobian_penalty(torch.tanh, x, probes=2.5),
    "steps of iterates": lambda: iterates(torch.tanh, x, steps=2.5),
    "max_steps of certify": lambda: certify(Contraction(3, [3]), z=x, max_steps=2.5),
    "frames of integrate": lambda: integrate(network, network.initial_state(v=x), 1.0, frames=2.5),
    "max_steps of integrate": lambda: integrate(network, network.initial_state(v=x), 1.0, max_steps=2.5),
    "n_iter of AdiabaticUpdate": lambda: AdiabaticUpdate(network, n_iter=2.5),
    "steps of AssociativeMemory": lambda: memory(torch.zeros(1, 4, dtype=torch.float64), steps=2.5),
    "steps of retrieve": lambda: memory.retrieve(torch.zeros(1, 4, dtype=torch.float64), steps=2.5),
    "in_features of LinearSynapse": lambda: LinearSynapse(2.5, 3),
    "stride of ConvSynapse": lambda: ConvSynapse(1, 1, 3, stride=2.5),
    "hidden of RestingLayerSynapse": lambda: RestingLayerSynapse(3, 2.5),
    "num_heads of AttentionSynapse": lambda: AttentionSynapse(4, num_heads=2.5),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_number_that_is_not_whole_is_refused_by_its_name(what: str) -> None:
    with pytest.raises(ValueError, match=rf"^{what.split()[0]} is 2\.5; give a whole number$"):
        CALLS[what]()


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_tolerance_that_every_state_or_none_would_meet_is_refused(number: float) -> None:
    for options in ({"rtol": number}, {"atol": number}):
        with pytest.raises(ValueError, match=f"{number}.*give finite numbers of 0 or more, and one above 0"):
            Picard(**options)
    with pytest.raises(ValueError, match=f"ridge is {number}; give a finite number above 0"):
        Anderson(ridge=number)

"""A number of steps or neurons that is not whole is refused by its name, before anything is computed."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from imixer.hopfield import (
    AdiabaticUpdate,
    AssociativeMemory,
    AttentionSynapse,
    ConvSynapse,
    LinearSynapse,
    Neurons,
    RestingLayerSynapse,
    chain,
    integrate,
    two_layer,
)
from imixer.hopfield.lagrangians import Softmax
from imixer.implicit import (
    Anderson,
    Broyden,
    CheckpointedUnroll,
    Contraction,
    FixedIterations,
    L2Attention,
    MonotoneContraction,
    OrthogonalLinear,
    Picard,
    ResidualFlow,
    SpectralConv1d,
    SpectralConv2d,
    SpectralLinear,
    certify,
    convolution_sigma,
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
    "head_features of AttentionSynapse": lambda: AttentionSynapse(8, head_features=2.5),
    "steps of AdiabaticUpdate": lambda: AdiabaticUpdate(network)(x, steps=2.5),
    "features of Contraction": lambda: Contraction(2.5, 3),
    "in_features of SpectralLinear": lambda: SpectralLinear(2.5, 3),
    "out_features of OrthogonalLinear": lambda: OrthogonalLinear(3, 2.5),
    "in_channels of ConvSynapse": lambda: ConvSynapse(2.5, 1, 3),
    "out_channels of ConvSynapse": lambda: ConvSynapse(1, 2.5, 3),
    "dilation of convolution_sigma": lambda: convolution_sigma(torch.ones(1, 1, 3, 3), (8, 8), dilation=2.5),
    "groups of convolution_sigma": lambda: convolution_sigma(torch.ones(1, 1, 3, 3), (8, 8), groups=2.5),
}

five = np.int64(5)
OF_NUMPY: dict[str, Callable[[], object]] = {
    "shape of Neurons": lambda: Neurons(five),
    "shapes of Neurons": lambda: Neurons((five, 3)),
    "axis of Softmax": lambda: Softmax(axis=np.int64(-1)),
    "shapes of chain": lambda: chain([five, 4], ["relu", "relu"], field=True),
    "v of two_layer": lambda: two_layer(five, 4),
    "n_iter and steps of AdiabaticUpdate": lambda: AdiabaticUpdate(network, n_iter=five)(x, steps=five),
    "AttentionSynapse": lambda: AttentionSynapse(five, head_features=five),
    "ConvSynapse": lambda: ConvSynapse(five, five, five),
    "Contraction": lambda: Contraction(five, five)(torch.zeros(2, 5), Contraction(5, 5).weights()),
    "Contraction of a nest": lambda: Contraction(five, [five, five]),
    "SpectralLinear": lambda: SpectralLinear(five, five)(torch.zeros(2, 5)),
    "SpectralConv1d": lambda: SpectralConv1d(five, five, five, five)(torch.zeros(2, 5, 5)),
    "SpectralConv2d": lambda: SpectralConv2d(3, 3, five, (five, five), sigma="power")(torch.zeros(2, 3, 5, 5)),
    "FixedIterations": lambda: FixedIterations(five)(torch.sin, x),
    "Anderson": lambda: Anderson(memory=five, max_steps=five),
    "IMLP": lambda: IMLP(five, five, n_iter=five)(torch.zeros(2, 3, 5)),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_number_that_is_not_whole_is_refused_by_its_name(what: str) -> None:
    with pytest.raises(ValueError, match=rf"^{what.split()[0]} is 2\.5; give a whole number$"):
        CALLS[what]()


@pytest.mark.parametrize("what", OF_NUMPY)
def test_a_whole_number_of_numpy_is_taken(what: str) -> None:
    OF_NUMPY[what]()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Contraction(3, 2.5), "^hidden_features is 2.5; give a whole number, or one per inner layer$"),
        (lambda: Contraction(3, []), r"^hidden_features is \[\]; give a whole number, or one per inner layer$"),
        (lambda: Contraction(3, [3, 2.5]), r"^hidden_features is \[3, 2.5\]; give a whole number, or one per inner"),
        (lambda: Neurons(2.5), "^shape is 2.5; give one or more sizes of 1 or more$"),
        (lambda: chain([2.5, 4], ["relu", "relu"]), "^layer x1: shape is 2.5; give one or more sizes of 1 or more$"),
        (lambda: SpectralConv2d(3, 3, 2.5, (8, 8)), "^kernel_size is 2.5; give one odd number, or 2$"),
        (lambda: SpectralConv2d(3, 3, 3, (8, 2.5)), r"^size is \(8, 2.5\); give the height and the width"),
    ],
)
def test_sizes_that_are_not_whole_are_refused_by_their_name(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_tolerance_that_every_state_or_none_would_meet_is_refused(number: float) -> None:
    for options in ({"rtol": number}, {"atol": number}):
        with pytest.raises(ValueError, match=f"{number}.*give finite numbers of 0 or more, and one above 0"):
            Picard(**options)
    with pytest.raises(ValueError, match=f"ridge is {number}; give a finite number above 0"):
        Anderson(ridge=number)

"""Every synapse gives minus the gradient of its energy; what is its own adjoint is so exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from imixer.hopfield import (
    AttentionSynapse,
    ConvSynapse,
    EnergySynapse,
    HopfieldNetwork,
    LinearSynapse,
    Neurons,
    Synapse,
)


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(3, *shape, dtype=torch.float64, generator=g) for shape in shapes]


def slopes(synapse: Synapse, *g: Tensor) -> tuple[Tensor, ...]:
    g = tuple(x.clone().requires_grad_() for x in g)
    return torch.autograd.grad(synapse.energy(*g).sum(), g)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


CASES = {
    "channels": (lambda tied: LinearSynapse(4, 5, tied=tied), (2, 4), (2, 5)),
    "tokens": (lambda tied: LinearSynapse(4, 5, axis=-2, tied=tied), (4, 2), (5, 2)),
    "third axis": (lambda tied: LinearSynapse(4, 5, axis=-3, tied=tied), (4, 2, 3), (5, 2, 3)),
    "all": (lambda tied: LinearSynapse(6, 5, axis=None, tied=tied), (2, 3), (5,)),
    "conv": (lambda tied: ConvSynapse(2, 3, 3, tied=tied), (2, 5, 4), (3, 3, 2)),
    "conv with rows left over": (lambda tied: ConvSynapse(2, 3, 3, 2, tied=tied), (2, 6, 5), (3, 2, 2)),
    "conv padded": (lambda tied: ConvSynapse(2, 3, 3, 3, 1, tied=tied), (2, 7, 6), (3, 3, 2)),
    "patches": (lambda tied: ConvSynapse(2, 3, 2, 2, tied=tied), (2, 4, 6), (3, 2, 3)),
}
bilinear = pytest.mark.parametrize(("build", "a", "b"), CASES.values(), ids=CASES)


def built(build, a, b, tied=True):
    torch.manual_seed(0)
    synapse = build(tied).double()
    synapse.connect(a, b)
    return synapse


@bilinear
def test_tied_inputs_are_minus_the_gradient_of_the_energy(build, a, b):
    synapse, g = built(build, a, b), drawn(a, b)
    for received, slope in zip(synapse.inputs(*g), slopes(synapse, *g), strict=True):
        close(received, -slope)


@bilinear
def test_the_way_down_is_the_adjoint_of_the_way_up(build, a, b):
    synapse, (g_a, g_b) = built(build, a, b), drawn(a, b)
    close((synapse.up(g_a) * g_b).sum(), (g_a * synapse.down(g_b)).sum())


@bilinear
def test_untied_energy_is_that_of_the_symmetric_part(build, a, b):
    synapse, other, g = built(build, a, b, tied=False), built(build, a, b), drawn(a, b)
    assert not synapse.symmetric and other.symmetric
    feedback = synapse.feedback if isinstance(synapse, ConvSynapse) else synapse.feedback.T
    with torch.no_grad():
        other.weight.copy_((synapse.weight + feedback) / 2)
    close(synapse.energy(*g), other.energy(*g))
    with torch.no_grad():
        other.weight.copy_(feedback)
    close(synapse.inputs(*g)[0], other.inputs(*g)[0])


@given(data=st.data())
@settings(max_examples=60)
def test_convolution_and_its_adjoint_fit_for_any_size_stride_and_padding(data):
    kernel, stride, padding = (data.draw(st.integers(*r)) for r in ((1, 4), (1, 4), (0, 2)))
    size = [data.draw(st.integers(max(1, kernel - 2 * padding), 9)) for _ in range(2)]
    a, b = (2, *size), (3, *((n + 2 * padding - kernel) // stride + 1 for n in size))
    synapse = built(lambda tied: ConvSynapse(2, 3, kernel, stride, padding, tied=tied), a, b)
    g_a, g_b = drawn(a, b)
    assert synapse.down(g_b).shape == g_a.shape
    close((synapse.up(g_a) * g_b).sum(), (g_a * synapse.down(g_b)).sum())


def test_a_linear_coupling_is_shared_along_the_other_axes():
    synapse, (g_a, _) = built(CASES["tokens"][0], (4, 2), (5, 2)), drawn((4, 2), (5, 2))
    close(synapse.up(g_a), torch.einsum("ts,bsc->btc", synapse.weight, g_a))


def test_a_gain_scales_what_goes_up_only():
    gain = torch.tensor([1.0, -2.0, 0.5, 3.0])
    synapse = LinearSynapse(4, 5, tied=False, gain=gain).double()
    synapse.connect((2, 4), (2, 5))
    g_a, g_b = drawn((2, 4), (2, 5))
    close(synapse.up(g_a), g_a @ (synapse.weight * gain).T)
    close(synapse.down(g_b), g_b @ synapse.feedback.T)
    assert LinearSynapse(4, 5, tied=False, gain=torch.arange(4)).gain.dtype == torch.float32
    close(synapse.energy(g_a, g_b), -((synapse.up(g_a) * g_b).sum((1, 2)) + (synapse.down(g_b) * g_a).sum((1, 2))) / 2)


@pytest.mark.parametrize(
    ("feedback", "expected"), [(lambda W: W.T, 0.0), (lambda W: -W.T, 1.0), (lambda W: torch.randn_like(W.T), 0.5**0.5)]
)
def test_the_asymmetry_index_is_0_symmetric_1_antisymmetric_and_0_71_independent(feedback, expected):
    torch.manual_seed(0)
    synapse = LinearSynapse(100, 100, tied=False)
    nn.init.normal_(synapse.weight)
    with torch.no_grad():
        synapse.feedback.copy_(feedback(synapse.weight))
    assert synapse.asymmetry == pytest.approx(expected, abs=0.02 if 0 < expected < 1 else 1e-6)
    assert LinearSynapse(3, 4).asymmetry == 0


@pytest.mark.parametrize("queries", [None, 1, 6])
@pytest.mark.parametrize("beta", [None, 3.0])
def test_attention_gives_minus_the_gradient_of_its_energy(queries, beta):
    torch.manual_seed(0)
    synapse = AttentionSynapse(4, num_heads=2, head_features=3, beta=beta).double()
    shapes = [(5, 4)] if queries is None else [(queries, 4), (5, 4)]
    synapse.connect(*shapes)
    g = drawn(*shapes)
    for received, slope in zip(synapse.inputs(*g), slopes(synapse, *g), strict=True):
        close(received, -slope)


def test_a_query_receives_the_keys_by_their_softmax():
    torch.manual_seed(0)
    synapse = AttentionSynapse(4, num_heads=2).double()
    queries, keys = drawn((6, 4), (5, 4))
    q, k = (torch.einsum("bnc,hdc->bhnd", x, W) for x, W in ((queries, synapse.query), (keys, synapse.key)))
    seen = nn.functional.scaled_dot_product_attention(q, k, k)
    close(synapse.inputs(queries, keys)[0], torch.einsum("bhnd,hdc->bnc", seen, synapse.query))


def test_a_given_energy_has_the_inputs_of_the_hand_written_one():
    torch.manual_seed(0)
    linear, attention = LinearSynapse(4, 5).double(), AttentionSynapse(4).double()
    linear.connect((2, 4), (2, 5))
    for synapse, g in ((linear, drawn((2, 4), (2, 5))), (attention, drawn((3, 4)))):
        for ours, theirs in zip(EnergySynapse(synapse.energy).inputs(*g), synapse.inputs(*g), strict=True):
            close(ours, theirs)


def test_a_given_energys_module_is_trained_with_the_network():
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(torch.randn(3, 3))

        def forward(self, v: Tensor, h: Tensor) -> Tensor:
            return -torch.tanh(v @ self.W * h).sum(-1)

    network = HopfieldNetwork({"v": Neurons(3), "h": Neurons(3)}, [(("v", "h"), EnergySynapse(Energy().double()))])
    velocity = network.velocity({"v": drawn((3,))[0], "h": drawn((3,), (3,))[1]})
    sum(v.square().sum() for v in velocity.values()).backward()
    assert [name for name, p in network.named_parameters() if p.grad.any()] == ["synapses.v-h.function.W"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_given_energy_may_use_tensors_of_any_precision(dtype):
    M = torch.randn(3, 2, dtype=dtype)
    network = HopfieldNetwork({"v": Neurons(3)}, [(("v",), EnergySynapse(lambda v: -(v @ M).square().sum(-1) / 2))])
    x = torch.randn(4, 3, dtype=dtype)
    torch.testing.assert_close(network.inputs({"v": x})["v"], x @ M @ M.T)


def test_an_energy_is_differentiated_outside_inference_mode_where_torch_2_11_gets_it_wrong(in_mode):
    synapse, g = EnergySynapse(lambda a, b: -torch.log1p((a * b).sum(1).square())), drawn((4,), (4,))
    expected = synapse.inputs(*g)
    in_mode.clear()
    with torch.inference_mode():
        ours = synapse.inputs(*(each + 0 for each in g))
    assert in_mode == [False]
    for x, y in zip(ours, expected, strict=True):
        close(x, y)


def test_inputs_are_not_cut_off_from_autograd():
    torch.manual_seed(0)
    synapse = EnergySynapse(lambda a, b: -torch.log1p((a * b).sum(1).square()))
    g = [x.requires_grad_() for x in drawn((4,), (4,))]
    assert torch.autograd.gradcheck(synapse.inputs, g)


def test_one_inverse_temperature_of_attention_may_be_a_tensor():
    assert (
        AttentionSynapse(8, 1, beta=torch.tensor(0.5)).beta
        == AttentionSynapse(8, 2, beta=torch.tensor(0.5)).beta
        == 0.5
    )


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: LinearSynapse(0, 3), "a coupling of 0 to 3"),
        (lambda: LinearSynapse(3, 3, axis=0), "axis is 0"),
        (lambda: LinearSynapse(3, 3, gain=torch.ones(3)), "tied=False"),
        (lambda: LinearSynapse(3, 3, tied=False, gain=[1.0] * 3), "gain is list; give a tensor of real numbers"),
        (lambda: LinearSynapse(3, 3, tied=False, gain=1j * torch.ones(3)), "gain is torch.complex64; give a tensor"),
        (
            lambda: LinearSynapse(3, 3, tied=False, gain=torch.ones(3) / 0),
            "gain has 3 values that are not finite; give",
        ),
        (lambda: ConvSynapse(1, 1, 0), "kernel_size"),
        (lambda: ConvSynapse(1, 1, 3, 0), "stride"),
        (lambda: ConvSynapse(1, 1, 3, 1, -1), "padding"),
        (lambda: ConvSynapse(0, 1, 3), "a coupling of 0"),
        (lambda: AttentionSynapse(4, num_heads=0), "num_heads"),
        (lambda: AttentionSynapse(4, num_heads=8), "head_features"),
        (lambda: AttentionSynapse(4, head_features=0), "head_features"),
        (lambda: AttentionSynapse(4, beta=0.0), "beta"),
        (lambda: AttentionSynapse(4, beta=float("nan")), "beta"),
        (lambda: AttentionSynapse(4, beta=float("inf")), "beta"),
    ],
)
def test_impossible_synapses_are_refused_by_name(build, named):
    with pytest.raises(ValueError, match=named):
        build()

"""Where the energy is called bounded from below, no search gets below; where it runs away, the verdict says so."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from imixer.hopfield import (
    LAGRANGIANS,
    AttentionSynapse,
    BilinearSynapse,
    ConvSynapse,
    EnergySynapse,
    HopfieldNetwork,
    Lagrangian,
    LinearSynapse,
    Neurons,
    boundedness_violations,
    chain,
    descent,
    integrate,
    lagrangian,
)
from imixer.hopfield.lagrangians import Elementwise, LayerNorm, RectifiedPower, Sigmoid, Softmax, Tanh


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def negative_beta(kind: type) -> Lagrangian:
    made = kind(learnable=True).double()
    made.beta.data.fill_(-1.5)
    made.requires_grad_(False)
    return made


CASES = {name: lagrangian(name) for name in LAGRANGIANS} | {
    "rectified_power 1": RectifiedPower(1),
    "tanh beta": Tanh(3.0),
    "layer_norm concave": LayerNorm(gain=-2.0, shift=0.3),
    "sigmoid negative": negative_beta(Sigmoid),
    "softmax negative": negative_beta(Softmax),
    "tanh negative": negative_beta(Tanh),
    "elementwise": Elementwise(lambda x: 1.5 * x.square() + torch.cos(x), convex=True, lipschitz=4.0),
}


def heights(made: Lagrangian, x: Tensor, slope: float) -> Tensor:
    """<x, g> - L(x) - ||g||^2 / (2 slope) of samples x (B, N)."""
    g = made.activation(x)
    return (x * g - g.square() / (2 * slope)).sum(-1) - made.density(x).flatten(1).sum(-1)


@pytest.mark.parametrize("made", CASES.values(), ids=CASES.keys())
def test_the_asymptotic_slope_is_what_it_promises(made):
    s = made.asymptotic_slope
    assert s is not None
    near, far = normal(4000, 3) * 3, normal(4000, 3, seed=1) * 10 ** (1 + 3 * torch.rand(4000, 1, dtype=torch.float64))
    for factor in (1.01, 2.0) if s > 0 else (0.1, 1.0):
        slope = factor * s if s > 0 else factor
        low = heights(made, near, slope).min()
        assert low.isfinite() and heights(made, far, slope).min() >= 1.1 * min(float(low), 0) - 10 / min(slope, 1)
    if s == 0:
        assert made.activation(far).abs().max() <= made.activation(near).abs().max() * 1.5 + 1
    elif math.isfinite(s):
        sharp = 3.0 if type(made) is Elementwise else s  # it can only be told its Lipschitz constant
        assert heights(made, torch.full((1, 3), 1e4).double(), 0.95 * sharp) < -1e4


def test_a_lagrangian_that_is_neither_convex_nor_tells_is_not_known():
    class Wave(Lagrangian):
        convex = False

        def density(self, x: Tensor) -> Tensor:
            return -torch.cos(x)

        def activation(self, x: Tensor) -> Tensor:
            return torch.sin(x)

    assert Wave().asymptotic_slope is None
    assert boundedness_violations(chain([3], [Wave()])) == ["x1: Wave has no known asymptotic slope"]
    Wave.asymptotic_slope = math.inf  # says nothing of linear terms unless it is convex
    assert boundedness_violations(chain([3], [Wave()]))
    exponential = lagrangian("exponential", learnable=True)
    assert not boundedness_violations(chain([3, 4], ["tanh", exponential]))
    exponential.beta.data.fill_(-1.0)
    assert boundedness_violations(chain([3, 4], ["tanh", exponential])) == [
        "x2: Exponential has no known asymptotic slope"
    ]


# --- whole networks


def deepest(network: HopfieldNetwork, state: dict[str, Tensor], steps: int = 40) -> Tensor:
    """Energies along steps down the gradient whose length grows with the state, where an unbounded energy is lost."""
    x, seen = {name: value.clone() for name, value in state.items()}, []
    for _ in range(steps):
        leaves = {name: value.requires_grad_() for name, value in x.items()}
        energy = network.energy(leaves)
        seen.append(energy.detach())
        grads = torch.autograd.grad(energy.sum(), list(leaves.values()), allow_unused=True)
        size = torch.sqrt(sum(g.square().sum() for g in grads if g is not None)) + 1e-300
        reach = 0.3 * (1 + torch.sqrt(sum(value.detach().square().sum() for value in x.values())))
        x = {
            name: (value if g is None else value - reach * g / size).detach()
            for (name, value), g in zip(leaves.items(), grads, strict=True)
        }
    return torch.stack(seen)


@given(data=st.data())
@settings(max_examples=40)  # of those that have a bound, which are a third
def test_no_search_gets_far_below_where_a_lower_bound_is_known(networks, random_state, data):
    network = data.draw(networks(names=[name for name in LAGRANGIANS if name != "exponential"]))
    for synapse in network.synapses.values():
        if isinstance(synapse, EnergySynapse):
            synapse.bounded_below = False  # -log(1 + s^2), which is not
        for p in synapse.parameters():
            p.data.mul_(data.draw(st.sampled_from([0.1, 0.3, 1.0])))
    assume(not boundedness_violations(network))
    network.requires_grad_(False)
    rays = [network.energy(random_state(network, 20, scale=10.0**k)) for k in range(-1, 7)]
    assert min(float(e.min()) for e in rays) > -1e3
    assert deepest(network, random_state(network, 3)).min() > -1e3


def test_the_search_is_one_that_finds_most_of_the_networks_without_a_bound():
    known, others, lost = 0, 0, 0
    for seed in range(60):
        torch.manual_seed(seed)
        kinds = [["relu", "gelu", "tanh", "softmax", "identity", "softplus"][i] for i in torch.randint(6, (3,))]
        network = chain([3, 2, 3], kinds).double().requires_grad_(False)
        state = {name: normal(3, *network.layer(name).shape, seed=seed) for name in network.neurons}
        below = bool(deepest(network, state).min() < -1e3)
        if boundedness_violations(network):
            others, lost = others + 1, lost + below
        else:
            known += 1
            assert not below
    assert known >= 15 and others >= 15 and lost >= others / 2


@pytest.mark.parametrize("kinds", [["identity", "identity"], ["identity", "relu"], ["relu", "relu"], ["gelu", "silu"],
                                   ["softplus", "relu"], ["gelu_1lip", "gelu_1lip"]])  # fmt: skip
@pytest.mark.parametrize("decay", [(1.0, 1.0), (0.5, 3.0)])
def test_two_unbounded_layers_are_bounded_up_to_the_strength_that_is_named_and_no_further(kinds, decay):
    network = chain([3, 4], kinds, decay=decay, field=True).double().requires_grad_(False)
    W = network.synapse("x1-x2").weight
    W.abs_()
    slopes = [lagrangian(kind).asymptotic_slope for kind in kinds]
    limit = math.sqrt(decay[0] * decay[1] / (slopes[0] * slopes[1]))
    U, _, V = torch.linalg.svd(W)
    a, b = V[0].abs(), U[:, 0].abs()  # positive, by Perron and Frobenius
    for strength in (0.97, 1.03):
        W.mul_(strength * limit / torch.linalg.matrix_norm(W, 2))
        t = 10.0 ** torch.arange(1, 7, dtype=torch.float64)[:, None]
        # In these proportions the couplings outweigh the layers the most.
        x = {"x1": t * a / slopes[0] * math.sqrt(slopes[0] / decay[0]),
             "x2": t * b / slopes[1] * math.sqrt(slopes[1] / decay[1])}  # fmt: skip
        energy = network.energy(x)
        if strength < 1:
            assert not boundedness_violations(network) and energy.min() > -1e3
        else:
            (why,) = boundedness_violations(network)
            assert why.startswith("x1, x2: ") and "strength 1.03" in why
            assert (energy.diff() < 0).all() and energy[-1] < -1e9


def test_the_lower_bound_of_the_proof_holds_for_identity_and_relu():
    """E >= |b|^2 / (2 (strength - 1)), at its minimum over both layers."""
    torch.manual_seed(0)
    network = chain([4, 5, 3], ["identity", "relu", "identity"], field=True).double().requires_grad_(False)
    fields = [network.layer(name).field.normal_() for name in network.neurons]
    for name in network.synapses:
        W = network.synapse(name).weight
        W.mul_(0.6 / torch.linalg.matrix_norm(W, 2))
    assert not boundedness_violations(network)
    strength = 0.6 * math.sqrt(2)  # of the chain of three
    floor = -sum(float(b.square().sum()) for b in fields) / (2 * (1 - strength))
    state = {name: normal(50, *network.layer(name).shape) for name in network.neurons}
    assert deepest(network, state, 300).min() > floor


def test_bounded_activations_allow_any_couplings_and_any_growth_beside_them():
    strong = chain([3, 4, 5], ["layer_norm", "tanh", "softmax"], decay=[0.0, 1.0, 1.0])
    for name in strong.synapses:
        strong.synapse(name).weight.data.mul_(1e6)
    assert not boundedness_violations(strong)
    assert not boundedness_violations(chain([3, 4], ["tanh", "rectified_power"]))
    assert not boundedness_violations(chain([3, 4], ["softmax", "identity"]))
    (why,) = boundedness_violations(chain([3, 4], ["identity", "rectified_power"]))
    assert why == "x1, x2: unbounded activations, coupled with strength inf (below 1 is safe)"


def test_layers_that_are_not_joined_are_judged_alone():
    torch.manual_seed(0)
    neurons = {name: Neurons(3, kind) for name, kind in zip("abcd", ["relu", "relu", "tanh", "relu"], strict=True)}
    weak, strong = LinearSynapse(3, 3), LinearSynapse(3, 3)
    for synapse, norm in ((weak, 0.5), (strong, 5.0)):
        synapse.weight.data.mul_(norm / torch.linalg.matrix_norm(synapse.weight.data, 2))
    network = HopfieldNetwork(neurons, [("ab", weak), ("bc", strong), ("cd", strong)])
    assert not boundedness_violations(network)  # tanh, whose activations are bounded, keeps a and b from d
    network = HopfieldNetwork(neurons, [("ab", weak), ("dd", strong)])
    assert [why.split(":")[0] for why in boundedness_violations(network)] == ["d"]


# --- couplings


def test_the_norm_of_a_convolution_is_bounded():
    for stride, padding in ((1, 0), (1, 1), (2, 1), (3, 0)):
        torch.manual_seed(stride)
        synapse = ConvSynapse(2, 3, 3, stride, padding).double().requires_grad_(False)
        basis = torch.eye(2 * 7 * 7, dtype=torch.float64).view(-1, 2, 7, 7)
        exact = torch.linalg.matrix_norm(synapse.up(basis).flatten(1), 2)
        assert exact <= synapse.norm <= 9 * exact


@pytest.mark.parametrize("joined", [1, 2])
def test_the_energy_of_attention_falls_no_faster_than_its_growth_says(joined):
    torch.manual_seed(0)
    synapse = AttentionSynapse(4, num_heads=2).double().requires_grad_(False)
    shapes = [(3, 4), (5, 4)][:joined]
    K = synapse.growth(*shapes).double()
    worst = math.log(shapes[-1][0]) * 2 * 3 / synapse.beta  # of logsumexp over its largest term: heads, queries
    for k in range(4):
        g = [10.0**k * normal(500, *shape, seed=k) for shape in shapes]
        n = torch.stack([x.flatten(1).norm(dim=1) for x in g], 1)
        assert (synapse.energy(*g) >= -((n @ K) * n).sum(1) / 2 - worst).all()
    network = HopfieldNetwork({"q": Neurons((3, 4)), "k": Neurons((5, 4))}, [(["q", "k"][:joined], synapse)]).double()
    assert boundedness_violations(network)
    synapse.query.mul_(1e-3)
    assert not boundedness_violations(network)


def test_the_norm_of_untied_couplings_bounds_their_symmetric_part():
    torch.manual_seed(0)
    gain = 1 + torch.rand(4)
    synapse = LinearSynapse(4, 3, tied=False, gain=gain).double()
    half = (synapse.weight * gain + synapse.feedback.T) / 2
    assert torch.linalg.matrix_norm(half, 2) <= synapse.norm


def test_energies_and_linear_maps_of_ones_own_are_not_known_unless_they_say_so():
    network = HopfieldNetwork({"a": Neurons(3, "tanh")}, [("a", EnergySynapse(lambda g: g.sum(1).square()))])
    assert boundedness_violations(network) == ["a-a: EnergySynapse has no known bound"]
    own = EnergySynapse(lambda g: g.sum(1).square(), bounded_below=True)
    assert not boundedness_violations(HopfieldNetwork({"a": Neurons(3)}, [("a", own)]))

    class Flip(BilinearSynapse):
        def up(self, g: Tensor) -> Tensor:
            return g.flip(-1)

        down = up

    assert not boundedness_violations(HopfieldNetwork({"a": Neurons(3), "b": Neurons(3, "tanh")}, [("ab", Flip())]))
    assert boundedness_violations(HopfieldNetwork({"a": Neurons(3), "b": Neurons(3)}, [("ab", Flip())]))


# --- what `descent` says


@torch.no_grad()
def test_a_chain_that_runs_away_does_not_read_guaranteed_without_a_word():
    torch.manual_seed(0)
    network = chain([8, 20], ["relu", "relu"]).double()
    start = network.initial_state(x1=torch.rand(2, 8).double())
    found = descent(network, integrate(network, start, 30.0))
    assert found.verdict == "guaranteed" and found.bounded == "runaway" and found.energy[-1].min() < -1e15
    assert f"{float(found.energy[-1].min()):.3g}" in str(found)
    assert "descent guaranteed" in str(found) and "but it runs away, to -" in str(found) and "x1, x2" in str(found)
    early = descent(network, integrate(network, start, 1.0))
    assert early.bounded == "unknown" and "not known to be bounded from below: x1, x2: unbounded" in str(early)


@torch.no_grad()
def test_where_a_bound_is_known_descent_says_so_and_large_states_are_no_runaway():
    network = chain([3, 4], ["identity", "tanh"], field=True).double()
    network.layer("x1").field.fill_(1e6)
    found = descent(network, integrate(network, network.initial_state(x1=torch.zeros(2, 3).double()), 10.0))
    assert found.bounded == "known" and not found.boundedness_violations
    assert str(found).endswith("all couplings symmetric; bounded from below")


@torch.no_grad()
def test_a_flow_that_comes_to_rest_without_a_known_bound_is_no_runaway():
    network = chain([3, 4], ["relu", "relu"], field=True).double()
    network.synapse("x1-x2").weight.copy_(-2 * torch.rand(4, 3))  # inhibitory: bounded, though the theory cannot tell
    network.layer("x1").field.fill_(1e5)
    found = descent(network, integrate(network, network.initial_state(x1=torch.zeros(1, 3).double()), 20.0))
    assert found.bounded == "unknown" and found.verdict == "guaranteed"
    assert network.layer("x1").field.max() == 1e5 and float(found.energy[-1]) < -1e9

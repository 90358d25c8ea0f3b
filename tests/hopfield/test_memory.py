"""Associative memories: what each kind computes, stores and retrieves, and that its energy never rises."""

import copy
import math
import re
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imixer.hopfield import descent, integrate
from imixer.hopfield.memory import AssociativeMemory, Retrieval, binarised, overlaps
from imixer.hopfield.memory_kinds import BINARY, Kind

KINDS = get_args(Kind)
ONE_HIDDEN_LAYER = [kind for kind in KINDS if kind != "hierarchical"]
N = 64
quick = settings(max_examples=60)


def signs(count: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, *(shape or (8, 8))), generator=generator).double() * 2 - 1


def flip(patterns: Tensor, share: float, seed: int = 1) -> Tensor:
    """Change the sign of that share of the values of each pattern."""
    values = patterns.flatten(1)
    draw = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed))
    chosen = draw.argsort(1)[:, : round(share * values.shape[1])]
    return values.scatter(1, chosen, -values.gather(1, chosen)).view_as(patterns)


def share_retrieved(kind: str, patterns: Tensor, flips: float, **options) -> float:
    found = AssociativeMemory(patterns, kind, **options).retrieve(flip(patterns, flips))
    right = (found.nearest == torch.arange(len(patterns))) & (found.overlap >= 0.95)
    return float(right.double().mean())


# What a step is


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 2, 3)])
def test_a_step_of_the_modern_memory_is_attention(shape):
    torch.manual_seed(0)
    xi, x = torch.randn(7, *shape).double(), torch.randn(4, *shape).double()
    memory = AssociativeMemory(xi, "modern", beta=0.7)
    keys, queries = xi.flatten(1), x.flatten(1)
    attention = torch.nn.functional.scaled_dot_product_attention(queries, keys, keys, scale=0.7)
    torch.testing.assert_close(memory(x).flatten(1), attention, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(memory(x).flatten(1), torch.softmax(0.7 * queries @ keys.T, 1) @ keys)


def test_a_step_by_distance_is_the_mean_of_a_mixture_of_gaussians():
    torch.manual_seed(0)
    xi, x = torch.randn(7, 5).double(), torch.randn(4, 5).double()
    memory = AssociativeMemory(xi, "modern", beta=0.7, similarity="distance")
    squares = torch.cdist(x, xi).square()
    torch.testing.assert_close(memory(x), torch.softmax(-0.7 * squares / 2, 1) @ xi)
    log_density = torch.logsumexp(-0.7 * squares / 2, 1) / 0.7
    torch.testing.assert_close(memory.energy(x), -log_density)


@pytest.mark.parametrize(
    ("kind", "options", "answer"),
    [
        ("classical", {"steepness": 3.0}, lambda m: m),
        ("polynomial", {"order": 3, "threshold": 0.5, "steepness": 3.0}, lambda m: (m.clamp(min=0) / 0.5) ** 2),
        ("polynomial", {"order": 20, "threshold": 0.2, "steepness": 3.0}, lambda m: (m.clamp(min=0) / 0.2) ** 19),
        ("exponential", {"beta": 9.0, "threshold": 0.25, "steepness": 3.0}, lambda m: torch.exp(9 * (m - 0.25))),
        ("exponential", {"steepness": 10.0}, lambda m: torch.exp(40 * m)),
    ],
)
def test_a_step_of_the_binary_memories(kind, options, answer):
    xi, x = signs(5, N), 0.3 * torch.randn(4, N, generator=torch.Generator().manual_seed(0)).double()
    memory = AssociativeMemory(xi, kind, **options)
    m = torch.tanh(options["steepness"] * x) @ xi.T / N
    torch.testing.assert_close(memory.update(x), answer(m) @ xi, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(memory(x), torch.tanh(options["steepness"] * memory.update(x)))


def test_the_hierarchy_is_made_of_patches_primitives_and_patterns():
    xi = signs(5, 2, 8, 4)
    memory = AssociativeMemory(xi, "hierarchical", patch_size=2)
    visible = memory.to_visible(xi)
    assert visible.shape == (5, 8, 8)
    torch.testing.assert_close(visible[:, 1], xi[:, :, :2, 2:].flatten(1))
    torch.testing.assert_close(memory.from_visible(visible), xi)
    torch.testing.assert_close(memory.patterns, xi)
    network = memory.network
    assert [network.layer(name).shape[-1] for name in network.neurons] == [8, memory.options["primitives"], 5]
    # a dictionary is shared: each of its entries once, whatever the position
    dictionary = network.synapse("visible-primitives").weight
    assert len(dictionary.unique(dim=0)) == len(dictionary) == len(visible.flatten(0, 1).unique(dim=0))


def test_a_small_dictionary_assembles_patterns_approximately():
    xi = signs(20, N)
    memory = AssociativeMemory(xi, "hierarchical", patch_size=4, primitives=8)
    assert memory.options["primitives"] == 8
    similar = overlaps(memory.patterns, xi).diagonal()
    assert 0.5 < similar.min() and similar.max() < 1
    whole = AssociativeMemory(xi, "hierarchical", patch_size=4, primitives=999)
    torch.testing.assert_close(whole.patterns, xi)
    assert whole.options["primitives"] <= 16


# What is stored and retrieved


@pytest.mark.parametrize("kind", KINDS)
def test_few_random_patterns_are_fixed_points(kind):
    xi = signs(3)
    memory = AssociativeMemory(xi, kind)
    torch.testing.assert_close(memory(xi, steps=1), xi, rtol=0, atol=1e-3)
    found = memory.retrieve(xi)
    assert found.converged.all() and found.steps.max() <= 2
    torch.testing.assert_close(found.retrieved, xi, rtol=0, atol=1e-3)
    torch.testing.assert_close(memory.patterns, xi)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_the_signs_flipped_is_mended(kind, seed):
    xi = signs(4, 16, 16, seed=seed)
    found = AssociativeMemory(xi, kind).retrieve(flip(xi, 0.2))
    assert found.converged.all()
    assert found.nearest.tolist() == [0, 1, 2, 3]
    assert (found.overlap > 0.999).all()
    torch.testing.assert_close(found.retrieved, xi, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batched", [False, True])
def test_half_a_pattern_is_completed_and_what_is_known_stays(kind, batched):
    xi = signs(4)
    known = torch.zeros(8, 8, dtype=torch.bool)
    known[:, :4] = True
    mask = known.expand(4, 8, 8) if batched else known
    query = torch.where(known, flip(xi, 0.1), 0.0)
    memory = AssociativeMemory(xi, kind)
    found = memory.retrieve(query, known=mask)
    assert found.nearest.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(found.retrieved[:, ~known], xi[:, ~known], rtol=0, atol=0.05)
    for state in found.states:
        assert torch.equal(state[:, known], found.states[0][:, known])
    steps = int(found.steps[0])
    torch.testing.assert_close(memory(query, steps, known=mask)[0], found.retrieved[0])


def test_modern_kinds_store_what_the_classical_cannot():
    """30 patterns of 64 neurons are three times the classical capacity of 0.14 N, and 10 signs are wrong in 64."""
    xi = signs(30)
    assert share_retrieved("classical", xi, 0.15) < 0.2
    for kind in ("polynomial", "exponential", "modern", "hierarchical"):
        assert share_retrieved(kind, xi, 0.15) == 1.0, kind


def test_capacity_grows_with_the_order():
    xi = signs(200)
    shares = [share_retrieved("polynomial", xi, 0.2, order=order) for order in (2, 3, 4)]
    assert shares[0] < 0.1 < shares[1] < 0.9 < shares[2]


def test_the_classical_memory_mixes_correlated_patterns():
    """Patterns that share most signs: what the newer kinds tell apart flows together into their common part."""
    base = signs(1)
    xi = torch.cat([flip(base, 0.15, seed=seed) for seed in range(5)])
    assert share_retrieved("classical", xi, 0.05) == 0.0
    for kind in ("exponential", "modern"):
        assert share_retrieved(kind, xi, 0.05) == 1.0, kind


@pytest.mark.parametrize("count", [3, 12, 40])
def test_storkeys_rule_is_his_formula_lifted_until_no_eigenvalue_is_negative(count):
    """W_ij += (xi_i xi_j - xi_i h_ji - h_ij xi_j) / N, with h_ij what i receives from all but i and j."""
    xi = signs(count, 16)
    N = 16
    W = torch.zeros(N, N).double()
    for pattern in xi:
        h = torch.zeros(N, N).double()
        for i in range(N):
            for j in range(N):
                h[i, j] = sum(W[i, k] * pattern[k] for k in range(N) if k not in (i, j))
        W = W + (torch.outer(pattern, pattern) - pattern[:, None] * h.T - h * pattern[None]) / N
    W.fill_diagonal_(0)
    A = AssociativeMemory(xi, "classical", rule="storkey").network.synapse("visible-hidden").weight
    expected = W - torch.eye(N).double() * torch.linalg.eigvalsh(W)[0]
    torch.testing.assert_close(A.T @ A, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_pattern_stored_twice_is_not_unlearnt_by_storkeys_rule(sign):
    xi = signs(3, 40)
    once = AssociativeMemory(xi, "classical", rule="storkey").network.synapse("visible-hidden").weight
    memory = AssociativeMemory(torch.cat([xi[:1], sign * xi]), "classical", rule="storkey")
    A = memory.network.synapse("visible-hidden").weight
    torch.testing.assert_close(A.T @ A, once.T @ once)
    assert memory.retrieve(sign * xi).overlap.min() > 0.99


def test_the_pseudo_inverse_projects_on_the_patterns():
    xi = torch.cat([signs(20), signs(1)])  # one of them twice
    memory = AssociativeMemory(xi, "classical", rule="pseudo_inverse")
    A = memory.network.synapse("visible-hidden").weight
    flat = xi.flatten(1)
    torch.testing.assert_close(A.T @ A, torch.linalg.pinv(flat) @ flat, rtol=1e-9, atol=1e-9)
    assert torch.equal(memory.patterns, xi) and "21 patterns" in repr(memory)
    torch.testing.assert_close(memory(xi), xi, rtol=0, atol=1e-3)


def test_other_rules_store_more_and_correlated_patterns_too():
    stored = {
        rule: (share_retrieved("classical", signs(16), 0.05, rule=rule), correlated)
        for rule in ("hebbian", "storkey", "pseudo_inverse")
        for correlated in [share_retrieved("classical", correlated_patterns(5), 0.02, rule=rule)]
    }
    assert stored["hebbian"][0] < 0.6 < stored["storkey"][0] and stored["pseudo_inverse"][0] == 1.0
    assert stored["hebbian"][1] == 0.0 and stored["pseudo_inverse"][1] == 1.0


def correlated_patterns(count: int) -> Tensor:
    """Patterns that share most signs."""
    return torch.cat([flip(signs(1), 0.15, seed=seed) for seed in range(count)])


def test_the_default_beta_tells_the_most_similar_patterns_apart():
    """Digits on a bright ground: all cosines are near 1."""
    xi = 10 + torch.randn(12, 30, generator=torch.Generator().manual_seed(0)).double()
    assert overlaps(xi, xi).fill_diagonal_(0).max() > 0.98
    query = xi + 0.2 * torch.randn(12, 30, generator=torch.Generator().manual_seed(1)).double()
    memory = AssociativeMemory(xi, "modern", similarity="distance")
    found = memory.retrieve(query)
    assert found.nearest.tolist() == list(range(12)) and not found.merged.any()
    torch.testing.assert_close(found.retrieved, xi, rtol=0, atol=0.1)
    blind = AssociativeMemory(xi, "modern", similarity="distance", beta=100 / float(xi.square().sum(1).mean()))
    with pytest.warns(
        UserWarning, match=r"12 of 12 queries came to rest between patterns, such as query 0, .* alpha=2"
    ):
        assert blind.retrieve(query).merged.all()
    apart = AssociativeMemory(signs(3), "modern")
    assert apart.options["beta"] == pytest.approx(100 / 64)


def test_the_default_beta_tells_patterns_apart_that_differ_by_a_thousandth():
    torch.manual_seed(0)
    xi = torch.randn(1, 50).double() + 1e-3 * torch.randn(3, 50).double()
    found = AssociativeMemory(xi, "modern", similarity="distance").retrieve(xi)
    assert found.nearest.tolist() == [0, 1, 2] and not found.merged.any()


def test_copies_of_a_pattern_do_not_sharpen_a_memory():
    assert AssociativeMemory(torch.cat([signs(3), signs(3)]), "modern").options["beta"] == pytest.approx(100 / 64)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_a_sparse_memory_answers_as_the_entmax_package_and_with_the_pattern_itself(alpha):
    entmax = pytest.importorskip("entmax")
    xi, x = torch.randn(7, 5).double(), torch.randn(4, 5).double()
    memory = AssociativeMemory(xi, "modern", beta=0.7, alpha=alpha)
    p = entmax.entmax_bisect(0.7 * x @ xi.T, alpha, dim=1, n_iter=60)
    torch.testing.assert_close(memory(x), p @ xi, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(memory.weights(x), p, rtol=1e-9, atol=1e-9)
    stored = signs(10)
    found = AssociativeMemory(stored, "modern", alpha=alpha).retrieve(flip(stored, 0.1))
    torch.testing.assert_close(found.retrieved, stored, rtol=0, atol=1e-12)
    assert found.energy_decreases


def test_each_pattern_of_an_exponential_memory_has_its_own_inverse_temperature():
    xi, x = signs(5, N), 0.3 * torch.randn(4, N, generator=torch.Generator().manual_seed(0)).double()
    beta = torch.tensor([5.0, 10.0, 20.0, 30.0, 40.0]).double()
    memory = AssociativeMemory(xi, "exponential", beta=beta, steepness=3.0)
    m = torch.tanh(3 * x) @ xi.T / N
    torch.testing.assert_close(memory.update(x), torch.exp(beta * m) @ xi, rtol=1e-9, atol=1e-9)
    assert memory.retrieve(flip(xi, 0.1)).energy_decreases


# Keys, masks, memories per query


def test_values_are_read_as_by_attention():
    torch.manual_seed(0)
    keys, values, x = torch.randn(7, 5).double(), torch.randn(7, 2, 3).double(), torch.randn(4, 5).double()
    mask = torch.rand(4, 7) < 0.6
    mask[:, 0] = True
    memory = AssociativeMemory(keys, "modern", beta=0.7)
    attention = torch.nn.functional.scaled_dot_product_attention
    flat = values.flatten(1)
    torch.testing.assert_close(memory(x, values=values).flatten(1), attention(x, keys, flat, scale=0.7))
    masked = attention(x, keys, flat, attn_mask=mask, scale=0.7)
    torch.testing.assert_close(memory(x, among=mask, values=values).flatten(1), masked)
    twice = attention(attention(x, keys, keys, scale=0.7), keys, flat, scale=0.7)
    torch.testing.assert_close(memory(x, 2, values=values).flatten(1), twice)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_values_are_weighted_by_the_hidden_activations_of_the_last_step(kind, steps):
    """Far from saturation, where a visible activation is another number than the state that it is of."""
    patterns = signs(4)
    memory = AssociativeMemory(patterns, kind)
    query = 0.03 * (patterns[:2] + patterns[1:3]) + 0.02 * torch.randn(2, 8, 8, dtype=torch.float64)
    x = memory.to_visible(query)
    for _ in range(steps - 1):
        x = memory.update(x)
    g = memory.network.layer(memory.update.layers[-1]).activation(memory.update.hidden(x)[-1]).clamp(min=0)
    shares = memory(query, steps, values=torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(shares, g / g.sum(1, keepdim=True))


@pytest.mark.parametrize("kind", ["classical", "polynomial", "exponential", "modern"])
def test_memories_of_their_own_may_be_mapped_over(kind):
    memory = AssociativeMemory(signs(3, 16), kind)
    own, queries = torch.stack([signs(4, 16, seed=s) for s in (5, 6)]), signs(2, 16, seed=7)
    found = torch.func.vmap(lambda xi, x: memory(x[None], 2, patterns=xi[None])[0])(own, queries)
    torch.testing.assert_close(found, memory(queries, 2, patterns=own))
    masked = torch.func.vmap(lambda x, allowed: memory(x[None], among=allowed)[0])
    allowed = torch.tensor([[True, False, True], [False, True, True]])
    torch.testing.assert_close(masked(queries, allowed), memory(queries, among=allowed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_numbers_are_compared_in_wide_ones(dtype):
    xi = signs(3, 16).to(dtype)
    memory = AssociativeMemory(xi, "modern")
    assert torch.equal(memory.retrieve(xi).nearest, torch.arange(3)) and memory(xi).dtype == dtype


def test_a_value_may_be_one_number():
    keys, x = torch.randn(7, 5).double(), torch.randn(4, 5).double()
    memory = AssociativeMemory(keys, "modern", beta=0.7)
    values = torch.arange(7.0).double()
    torch.testing.assert_close(memory(x, values=values), memory(x, values=values[:, None])[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_that_are_masked_are_as_if_not_stored(kind):
    xi = signs(6)
    allowed = torch.tensor([True, False, True, True, False, True])
    memory, fewer = AssociativeMemory(xi, kind), AssociativeMemory(xi[allowed], kind)
    query = flip(xi, 0.15)
    found, expected = memory.retrieve(query, among=allowed), fewer.retrieve(query)
    if kind != "hierarchical":  # whose dictionary still has all patches
        torch.testing.assert_close(found.retrieved, expected.retrieved, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.energies.diff(dim=0), expected.energies.diff(dim=0), rtol=1e-6, atol=1e-6)
    assert found.nearest[allowed].tolist() == [0, 2, 3, 5] and allowed[found.nearest].all()
    each = allowed.expand(6, 6)
    torch.testing.assert_close(memory.retrieve(query, among=each).retrieved, found.retrieved)
    assert memory.retrieve(query).nearest.tolist() == list(range(6))  # the memory itself is as before


@pytest.mark.parametrize("kind", ONE_HIDDEN_LAYER)
def test_a_memory_of_its_own_for_each_query_is_that_memory(kind):
    xi = torch.stack([signs(5, seed=seed) for seed in range(3)])
    options = {"similarity": "distance", "beta": 0.3} if kind == "modern" else {}
    memory = AssociativeMemory(signs(2, seed=9), kind, **options)
    query = torch.cat([flip(own[:1], 0.2) for own in xi])
    among = torch.ones(3, 5, dtype=torch.bool)
    among[0, 3:] = False
    found = memory.retrieve(query, patterns=xi, among=among)
    assert found.energy_decreases
    for i in range(3):
        alone = AssociativeMemory(xi[i][among[i]], kind, **options).retrieve(query[i : i + 1])
        assert alone.nearest[0] == found.nearest[i] and alone.steps[0] == found.steps[i]
        torch.testing.assert_close(found.retrieved[i], alone.retrieved[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.energies[: alone.steps[0], i], alone.energies[: alone.steps[0], 0])
    learned = xi.clone().requires_grad_()
    mild = AssociativeMemory(signs(2), kind, steepness=0.1) if kind in BINARY else memory
    mild(query, patterns=learned).sum().backward()
    assert learned.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_neurons_that_move_one_at_a_time_retrieve_and_never_raise_the_energy(kind):
    xi = signs(3, 4, 8)
    memory = AssociativeMemory(xi, kind)
    found = memory.retrieve(flip(xi, 0.12), asynchronous=True, generator=torch.Generator().manual_seed(0))
    assert found.converged.all() and found.nearest.tolist() == [0, 1, 2]
    torch.testing.assert_close(found.retrieved, xi, rtol=0, atol=0.05)
    assert found.energy_decreases or kind == "hierarchical"


def test_a_sweep_is_what_a_loop_over_the_neurons_gives():
    xi = signs(4, 10)
    memory = AssociativeMemory(xi, "classical", steepness=2.0)
    query = flip(xi, 0.2)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3)).tolist()
    x, W = query.clone(), xi.T @ xi / 10
    for i in order:
        x[:, i] = torch.tanh(2 * x) @ W[i]
    found = memory.retrieve(query, steps=1, asynchronous=True, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found.states[1], torch.tanh(2 * x))


# Energy


@quick
@given(
    kind=st.sampled_from(ONE_HIDDEN_LAYER),
    count=st.integers(1, 40),
    seed=st.integers(0, 99),
    clamped=st.booleans(),
    size=st.sampled_from([0.01, 0.3, 1.0, 3.0]),
    options=st.integers(0, 2),
)
def test_the_energy_never_rises(kind, count, seed, clamped, size, options):
    """From anywhere, far above capacity too, in parallel steps."""
    chosen = {
        "classical": [{}, {"steepness": 1.0}, {"steepness": 100.0}],
        "polynomial": [{}, {"order": 2}, {"order": 11, "threshold": 0.3, "steepness": 0.5}],
        "exponential": [{}, {"beta": 5.0, "threshold": 0.5}, {"beta": 64.0, "threshold": 0.1}],
        "modern": [{}, {"beta": 0.1}, {"beta": 0.5, "similarity": "distance"}],
    }[kind][options]
    memory = AssociativeMemory(signs(count, seed=seed), kind, **chosen)
    generator = torch.Generator().manual_seed(seed)
    query = size * torch.randn(5, 8, 8, generator=generator).double()
    known = torch.rand(8, 8, generator=generator) < 0.5 if clamped else None
    found = memory.retrieve(query, known=known, steps=20)
    assert found.energies.isfinite().all()
    assert found.energy_decreases, (found.largest_rise, found.tolerance)
    assert (found.tolerance < 1e-8 * (1 + found.energies.abs().amax(0))).all()


def test_the_energy_of_the_hierarchy_falls_from_noisy_patterns():
    """Observed, not guaranteed."""
    xi = signs(20)
    found = AssociativeMemory(xi, "hierarchical").retrieve(flip(xi, 0.15))
    assert found.energy_decreases
    assert (found.energies[-1] < found.energies[0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_flow_in_time_retrieves_the_same(kind):
    xi = signs(3)
    query = flip(xi, 0.15)
    memory = AssociativeMemory(xi, kind)
    start = memory.state(query)
    torch.testing.assert_close(memory.read(start), memory.retrieve(query, steps=0).retrieved)
    with torch.no_grad():
        path = integrate(memory.network, start, t_end=20.0)
    found = memory.retrieve(query)
    torch.testing.assert_close(memory.read(path.final), found.retrieved, rtol=0, atol=5e-3)
    assert descent(memory.network, path).verdict == "guaranteed"


# What comes back


def test_frames_are_those_of_the_steps_taken():
    xi = signs(30)
    memory = AssociativeMemory(xi, "polynomial")
    query = flip(xi, 0.2)
    found = memory.retrieve(query)
    taken = len(found.states) - 1
    assert found.states.shape == (taken + 1, 30, 8, 8) and found.energies.shape == (taken + 1, 30)
    assert taken == found.steps.max() < 50
    for step, state in enumerate(found.states):
        torch.testing.assert_close(state, memory(query, steps=step).detach())
    cut = memory.retrieve(query, steps=1)
    assert len(cut.states) == 2 and (cut.steps == 1).all() and not cut.converged.all()
    none = memory.retrieve(query, steps=0)
    assert len(none.states) == 1 and not none.converged.any() and none.largest_rise == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_does_not_depend_on_the_rest_of_the_batch(kind):
    xi = signs(12)
    memory = AssociativeMemory(xi, kind)
    query = torch.cat([xi[:2], flip(xi, 0.25), torch.zeros(1, 8, 8)])
    together = memory.retrieve(query)
    for i in range(len(query)):
        alone = memory.retrieve(query[i : i + 1])
        assert alone.steps == together.steps[i] and alone.converged == together.converged[i]
        assert alone.nearest == together.nearest[i]
        torch.testing.assert_close(alone.retrieved[0], together.retrieved[i], rtol=0, atol=1e-9)
        torch.testing.assert_close(alone.overlap[0], together.overlap[i], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("pixels", "options"), [(64, {}), (784, {}), (64, {"beta": 20.0, "threshold": 0.3})])
def test_an_exponential_memorys_energy_at_a_pattern_is_what_the_guide_says(pixels, options):
    xi = signs(4, pixels)
    memory = AssociativeMemory(xi, "exponential", **options)
    beta, threshold = (memory.options[name] for name in ("beta", "threshold"))
    expected = torch.full((4,), -pixels * math.exp(beta * (1 - threshold)) / beta, dtype=torch.float64)
    torch.testing.assert_close(memory.energy(xi).detach(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("pixels", [8, 64, 784])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.5}, {"threshold": -1.0}])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_default_beta_of_exponentials_keeps_energies_finite_in_every_type(dtype, options, pixels):
    xi = signs(3, pixels).to(dtype)
    memory = AssociativeMemory(xi, "exponential", **options)
    assert memory.retrieve(xi).energies.isfinite().all() and memory.energy(xi).isfinite().all()


def test_an_exponential_memory_whose_energies_leave_float16_is_refused():
    xi = signs(3, 64)
    said = (
        r"beta 40 at threshold 0.0 drives the visible neurons by e\^40, beyond e\^4.83; lower beta .* give float32 patt"
    )
    with pytest.raises(ValueError, match=said):
        AssociativeMemory(xi.half(), "exponential", beta=40.0)
    many = signs(300, 784).half()
    with pytest.raises(ValueError, match="give float32 patterns"):
        AssociativeMemory(many, "exponential")
    assert AssociativeMemory(xi.half(), "exponential", beta=4.5).retrieve(xi.half()).energies.isfinite().all()
    assert AssociativeMemory(xi.bfloat16(), "exponential", beta=40.0).retrieve(xi.bfloat16()).energies.isfinite().all()


def test_a_polynomial_memory_whose_energies_leave_float16_is_refused():
    xi = signs(3, 784)
    said = r"order 4 at threshold 0.2 drives .* beyond e\^3.43; raise the threshold .* or give float32 patterns"
    with pytest.raises(ValueError, match=said):
        AssociativeMemory(xi.half(), "polynomial")
    for fitting, options in ((xi.half(), {"threshold": 0.5}), (signs(3, 64).half(), {}), (xi.bfloat16(), {})):
        assert AssociativeMemory(fitting, "polynomial", **options).retrieve(fitting).energies.isfinite().all()


def test_too_weak_a_query_is_forgotten():
    xi = signs(3)
    found = AssociativeMemory(xi, "exponential", threshold=0.8).retrieve(flip(xi, 0.25))
    assert found.retrieved.abs().max() < 1e-3
    assert found.converged.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pixels", [64, 784, 4096])
def test_exponentials_neither_overflow_nor_vanish(pixels, dtype):
    """Demircigil's exponents reach 4096 here; ours stay within 40, and store as much."""
    xi = signs(50, pixels).to(dtype)
    query = torch.cat([flip(xi, 0.3), -xi[:1]])
    found = AssociativeMemory(xi, "exponential").retrieve(query)
    assert found.retrieved.dtype == dtype
    assert found.states.isfinite().all() and found.energies.isfinite().all()
    assert (found.nearest[:50] == torch.arange(50)).double().mean() > 0.95
    assert found.overlap[:50].median() > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_can_be_learned(kind):
    """The gradient reaches every pattern, and is that of finite differences."""
    options = {"steepness": 1.0} if kind in BINARY else {"beta": 0.2}
    if kind in ("polynomial", "exponential"):
        options["threshold"] = 0.5
    if kind == "exponential":
        options["beta"] = 2.0
    if kind == "hierarchical":
        options["patch_size"] = 2
    memory = AssociativeMemory(signs(3, 4, 4), kind, **options)
    query = flip(signs(3, 4, 4), 0.1)

    def loss() -> Tensor:
        return (memory(query, steps=2) - signs(3, 4, 4)).square().mean()

    loss().backward()
    for name, parameter in memory.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        with torch.no_grad():
            at = int(parameter.grad.abs().argmax())
            values = []
            for shift in (1e-5, -2e-5):
                parameter.view(-1)[at] += shift
                values.append(float(loss()))
            parameter.view(-1)[at] += 1e-5
        assert math.isclose((values[0] - values[1]) / 2e-5, float(parameter.grad.view(-1)[at]), rel_tol=1e-4), name


def test_training_sharpens_a_memory():
    torch.manual_seed(0)
    data = torch.randn(4, 16).double()
    memory = AssociativeMemory(torch.randn(4, 16).double(), "modern", beta=1.0)
    optimiser = torch.optim.Adam(memory.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (memory(data + 0.3 * torch.randn_like(data)) - data).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_state_dicts_hold_the_patterns_once(kind):
    memory = AssociativeMemory(signs(3), kind)
    other = AssociativeMemory(signs(3), kind)
    torch.testing.assert_close(copy.deepcopy(memory).patterns, memory.patterns)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.mul_(1.5)
    other.load_state_dict(memory.state_dict())
    torch.testing.assert_close(other.patterns, memory.patterns)
    assert list(memory.state_dict()) == ["_extra_state", *(name for name, _ in memory.named_parameters())]
    assert f"{kind}, 3 patterns of shape (8, 8)" in repr(memory)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in KINDS]
    + [("modern", {"similarity": "distance"}), ("modern", {"alpha": 1.5}), ("classical", {"rule": "pseudo_inverse"}),
       ("hierarchical", {"feedback": 0.5, "primitives": 5})],
)  # fmt: skip
@pytest.mark.parametrize("inside", [False, True])
def test_a_memory_of_other_patterns_becomes_the_one_whose_state_dict_it_loads(kind, options, inside):
    def build(scale: float, seed: int) -> AssociativeMemory:
        xi = signs(3, seed=seed)
        # as many patches that differ, in both
        patches = scale * torch.randn(12, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
        images = patches.view(3, 2, 2, 4, 4).transpose(2, 3).reshape(3, 8, 8)
        return AssociativeMemory(xi if kind in BINARY else images, kind, **options)

    memory, other = build(1.0, 0), build(3.0, 5)
    query = memory.patterns.detach() + 0.3 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(other(query, 3), memory(query, 3))
    state = memory.state_dict()
    if inside:
        outer = torch.nn.ModuleList([other])
        outer.load_state_dict({f"0.{name}": value for name, value in state.items()})
    else:
        other.load_state_dict(state)
    assert torch.equal(other(query, 3), memory(query, 3))
    assert torch.equal(other.patterns, memory.patterns)
    assert torch.equal(other.energy(other.to_visible(query)), memory.energy(memory.to_visible(query)))
    assert other.options == memory.options


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_of_before_is_loaded_where_nothing_is_missing_and_refused_otherwise(kind):
    memory = AssociativeMemory(signs(3), kind)
    state = {name: value for name, value in memory.state_dict().items() if name != "_extra_state"}
    again = AssociativeMemory(signs(3), kind)
    again.load_state_dict(state)
    assert torch.equal(again(signs(3), 2), memory(signs(3), 2))
    other = AssociativeMemory(signs(3, seed=1), kind)
    if kind in BINARY:
        other.load_state_dict(state)
        assert torch.equal(other(signs(3), 2), memory(signs(3), 2))
    else:
        with pytest.raises(ValueError, match=r"^the state dict has no _extra_state.*get_extra_state\(\)$"):
            other.load_state_dict(state)
        beta = other.options["beta"]
        other.load_state_dict(state | {"_extra_state": other.get_extra_state()})
        assert other.options["beta"] == beta


def test_a_state_dict_of_another_kind_of_memory_is_refused():
    with pytest.raises(ValueError, match="another kind of memory than classical"):
        AssociativeMemory(signs(3), "classical").load_state_dict(AssociativeMemory(signs(3), "modern").state_dict())


def test_building_one_draws_no_random_numbers():
    before = torch.random.get_rng_state()
    for kind in KINDS:
        AssociativeMemory(signs(3), kind)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_whole_numbers_are_taken_too():
    assert AssociativeMemory(signs(3).int(), "classical").patterns.dtype == torch.float32


def test_binarised_means_above_the_own_mean():
    images = torch.tensor([[0.0, 0.2, 1.0], [5.0, 5.0, 5.0], [-3.0, -1.0, -1.0]])
    expected = torch.tensor([[-1.0, -1.0, 1.0], [-1.0, -1.0, -1.0], [-1.0, 1.0, 1.0]])
    assert torch.equal(binarised(images), expected)
    assert torch.equal(AssociativeMemory(images, "classical", binarise=True).patterns.sign(), expected)


def test_a_vanished_state_overlaps_with_nothing():
    assert torch.equal(overlaps(torch.zeros(1, 4), torch.ones(2, 4)), torch.zeros(1, 2))
    empty = torch.zeros(2, 1)
    still = Retrieval(
        torch.zeros(2, 1, 4), empty, torch.tensor([1]), torch.tensor([True]), empty[0], empty[0], 0.0, empty[0]
    )
    assert torch.equal(still.retrieved, torch.zeros(1, 4))


def test_a_rise_of_one_query_is_not_hidden_by_the_size_of_anothers_energy():
    xi = signs(3, 40)
    found = AssociativeMemory(xi, "classical").retrieve(torch.cat([xi[:1], 1e9 * xi[1:2]]), steps=3)
    assert found.energy_decreases and found.tolerance.shape == (2,) and found.tolerance[0] < 1e-10
    risen = found.energies.clone()
    risen[1:, 0] += 1e-9
    assert not replace(found, energies=risen).energy_decreases


def test_a_retrieval_fits_a_line():
    xi = signs(3, 40)
    assert repr(AssociativeMemory(xi).retrieve(xi)) == (
        "Retrieval(3 of 3 queries at rest after 1 steps, 0 between patterns, overlap 1.00)"
    )


def test_a_pseudo_inverse_that_is_too_full_is_not_advised_to_become_one():
    with pytest.warns(UserWarning, match="no retrieval; store fewer patterns, or choose another kind"):
        AssociativeMemory(signs(20, 10), "classical", rule="pseudo_inverse").retrieve(signs(2, 10, seed=3))


# Bad input


@pytest.mark.parametrize(
    ("patterns", "kind", "options", "parts"),
    [
        (signs(3), "clasical", {}, ["'clasical'", "did you mean classical", "hierarchical"]),
        (signs(3), "modern", {"betta": 1.0}, ["modern", "'betta'", "did you mean beta", "similarity"]),
        (signs(3), "classical", {"beta": 1.0}, ["classical", "'beta'", "steepness"]),
        (torch.ones(5), "modern", {}, ["(5,)", "(K, *shape)"]),
        (torch.ones(0, 5), "modern", {}, ["(0, 5)", "one or more"]),
        ([[1.0]], "modern", {}, ["list", "tensor"]),
        (torch.tensor([[1.0, math.nan], [math.inf, 1.0]]), "modern", {}, ["2 values", "not finite"]),
        (torch.tensor([[1.0, 0.5]]), "classical", {}, ["1 of the patterns' values", "0.5", "binarise=True"]),
        (torch.rand(2, 5), "polynomial", {}, ["-1 and +1", "binarise=True"]),
        (signs(3), "classical", {"steepness": 0.0}, ["steepness is 0.0"]),
        (signs(3), "polynomial", {"order": 1}, ["order is 1", "2 or more"]),
        (signs(3), "polynomial", {"threshold": 0.0}, ["threshold is 0.0"]),
        (signs(3), "polynomial", {"order": 60}, ["order 60", "e^95", "lower the order"]),
        (signs(3), "exponential", {"beta": -1.0}, ["beta is -1"]),
        (signs(3), "exponential", {"beta": torch.ones(2)}, ["beta has shape (2,)", "3, one per pattern"]),
        (signs(3), "classical", {"rule": "hebb"}, ["rule is 'hebb'", "storkey", "did you mean hebbian"]),
        (signs(3), "modern", {"alpha": 3.0}, ["alpha is 3.0", "2 (sparsemax)"]),
        (signs(3), "modern", {"beta": math.inf}, ["beta is inf", "temperature of 0"]),
        (signs(3), "modern", {"beta": torch.ones(3)}, ["share one softmax", "kind='exponential'"]),
        (signs(3), "exponential", {"beta": 80.0}, ["beta 80", "e^80", "lower beta"]),
        (signs(3), "exponential", {"threshold": 2.0}, ["threshold is 2.0"]),
        (signs(3), "modern", {"beta": math.nan}, ["beta is nan"]),
        (signs(3), "modern", {"similarity": "cosine"}, ["'cosine'", "dot or distance"]),
        (signs(3), "hierarchical", {"patch_size": 3}, ["patch_size is 3", "8 and 8"]),
        (signs(3, 10), "hierarchical", {}, ["patch_size is 4", "divisor of 10"]),
        (signs(3), "hierarchical", {"primitives": 0}, ["primitives is 0"]),
        (signs(3), "hierarchical", {"feedback": 0.0}, ["feedback is 0.0"]),
        (signs(3), "hierarchical", {"n_iter": 0}, ["n_iter is 0"]),
    ],
)
def test_bad_memories(patterns, kind, options, parts):
    with pytest.raises(ValueError, match=re.escape(parts[0])) as error:
        AssociativeMemory(patterns, kind, **options)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("query", "options", "parts"),
    [
        (signs(1)[0], {}, ["(8, 8)", "(B, 8, 8)", "query[None]"]),
        (signs(2, 8, 4), {}, ["(2, 8, 4)", "(B, 8, 8)"]),
        (signs(2) / 0, {}, ["128 values", "known"]),
        (signs(2), {"steps": -1}, ["steps is -1"]),
        (signs(2), {"until": -1.0}, ["until is -1.0"]),
        (signs(2), {"until": math.nan}, ["until is nan"]),
        (signs(2), {"known": torch.ones(8, 8)}, ["known", "float32", "booleans"]),
        (signs(2), {"known": torch.ones(8, 8, dtype=torch.bool)}, ["known holds every pixel", "free some"]),
        (
            signs(2),
            {"known": torch.tensor([False, True])[:, None, None].expand(2, 8, 8)},
            ["known holds every pixel of query 1,", "free some"],
        ),
        (signs(2), {"among": torch.ones(3)}, ["among is of torch.float32", "booleans"]),
        (signs(2), {"among": torch.ones(2, dtype=torch.bool)}, ["among has shape (2,)", "(3,) or (2, 3)"]),
        (signs(2), {"among": torch.zeros(3, dtype=torch.bool)}, ["among leaves the queries no pattern"]),
        (
            signs(2),
            {"among": torch.tensor([[True] * 3, [False] * 3])},
            ["among leaves query 1 no pattern", "allow one"],
        ),
        (signs(2), {"patterns": signs(4)}, ["patterns has shape (4, 8, 8)", "(2, K, 8, 8)"]),
        (signs(2), {"known": torch.ones(8, dtype=torch.bool)}, ["known has shape (8,)", "(8, 8)", "(2, 8, 8)"]),
    ],
)
def test_bad_queries(query, options, parts):
    with pytest.raises(ValueError, match=re.escape(parts[0])) as error:
        AssociativeMemory(signs(3)).retrieve(query, **options)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda memory, x: memory.retrieve(x, among=[True] * 3), "among is of list; give booleans"),
        (lambda memory, x: memory.retrieve(x, known=[True] * 8), "known is of list; give booleans"),
        (lambda memory, x: memory.retrieve(None), r"the query is NoneType; give a tensor of one or more, \(B, 8\)"),
        (lambda memory, x: memory(1j * x), "the query is complex; give real numbers"),
        (lambda memory, x: memory(x, patterns=[x]), "patterns is list; give a tensor, the patterns of each query"),
        (lambda memory, x: memory(x, patterns=[x], values=x), "patterns is list; give a tensor"),
        (lambda memory, x: memory(x, values=[1.0, 2.0, 3.0]), "values are of list; give floating numbers"),
        (lambda memory, x: memory(x, values=torch.arange(3)), r"values are of torch.int64; .* one_hot\(labels\)"),
        (lambda memory, x: memory(x, -1), "steps is -1; give 0 or more"),
        (lambda memory, x: memory(x, values=torch.ones(4)), r"values has shape \(4,\); give one per pattern, \(3, "),
        (lambda memory, x: AssociativeMemory(1j * x), "the patterns are complex; give real numbers"),
        (lambda memory, x: memory.retrieve(x[:0]), r"the query is \(0, 8\); give a tensor of one or more, \(B, 8\)"),
        (lambda memory, x: AssociativeMemory(x, "modern", beta="1"), "beta is '1'; give a number above 0"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_a_sentence(call, said):
    patterns = torch.randn(3, 8)
    with pytest.raises(ValueError, match=said):
        call(AssociativeMemory(patterns, "modern"), patterns)


@pytest.mark.parametrize("kind", ["polynomial", "classical"])
def test_a_query_that_overlaps_with_no_pattern_is_given_no_label(kind):
    pattern = torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    memory = AssociativeMemory(pattern, kind)
    assert memory.weights(pattern).tolist() == [[1.0]]
    query = torch.cat([pattern, -pattern if kind == "polynomial" else torch.tensor([[1.0, 1.0, 1.0, -1.0]])])
    for ask in (memory.weights, lambda query: memory(query, values=torch.eye(3)[:1])):
        with pytest.raises(ValueError, match=r"query 1 overlaps with no pattern.*; give a nearer one, or take"):
            ask(query)


@pytest.mark.parametrize("kind", ["modern", "hierarchical"])
@pytest.mark.parametrize(
    ("beta", "said"),
    [
        ("1", "beta is '1'; give a number above 0"),
        (torch.ones(2), r"beta has shape \(2,\),.*; give one number"),
        (math.inf, "beta is inf; .* give a large one, such as 1e4, for a temperature of 0"),
    ],
)
def test_a_beta_that_is_not_one_positive_number_is_refused_by_every_kind_with_one(kind, beta, said):
    with pytest.raises(ValueError, match=said):
        AssociativeMemory(torch.randn(3, 8, 8), kind, beta=beta)

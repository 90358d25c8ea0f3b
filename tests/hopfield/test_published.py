"""Published energies are those of networks here: equal to their own code on the same weights.

The numbers were computed once with the authors' code, in float64: bhoov/energy-transformer-jax at f01e90c
(`architecture.py`, gradients by differences of the fourth order), ml-jku/hopfield-layers at f56f929 (`HopfieldCore`).
"""

import math

import pytest
import torch
from torch import Tensor

from imixer.hopfield import AssociativeMemory, energy_transformer


def waves(*shape: int, start: float) -> Tensor:
    """Weights that anyone can write down: sin(start), sin(start + 1), ..."""
    return torch.sin(start + torch.arange(math.prod(shape), dtype=torch.float64)).view(shape)


def test_the_energy_transformers_block_is_the_authors():
    network = energy_transformer(
        3, 4, num_heads=2, head_features=3, memories=5, gain=1.3, shift=waves(4, start=150.0)
    ).double()
    attention, recall = (network.synapse(name) for name in network.synapses)
    with torch.no_grad():
        attention.query.copy_(waves(2, 3, 4, start=1.0))
        attention.key.copy_(waves(2, 3, 4, start=50.0))
        recall.weight.copy_(waves(4, 5, start=100.0).T)
    state = {"tokens": waves(3, 4, start=200.0)[None]}
    energies = network.energies(state)
    assert energies["tokens-tokens"].item() == pytest.approx(-63.36882203862077, rel=1e-12)
    assert energies["tokens-tokens (2)"].item() == pytest.approx(-16.56516644243996, rel=1e-12)
    assert network.energy(state).item() == pytest.approx(-79.93398848106074, rel=1e-12)
    update = [
        [-14.91482261014217, -5.825713225486121, 9.76566897546623, 15.88439491240952],
        [3.2754773570786706, -7.409266892821619, -10.194577926488552, -2.4280523658622615],
        [2.2046909715337883, 17.30876926420895, 14.133657961797514, -3.0122541903191777],
    ]
    torch.testing.assert_close(
        network.velocity(state)["tokens"][0], torch.tensor(update, dtype=torch.float64), rtol=0, atol=1e-7
    )


def test_an_energy_transformers_energy_falls_and_its_network_draws_itself():
    torch.manual_seed(0)
    network = energy_transformer(5, 8, num_heads=2, head_features=4)
    x, energies = torch.randn(3, 5, 8), []
    for _ in range(5):
        energies.append(network.energy({"tokens": x}))
        x = x + 0.01 * network.velocity({"tokens": x})["tokens"]
    assert (torch.stack(energies).diff(dim=0) < 0).all()
    assert network.violated_conditions() == []
    assert "ReLU(ξ 32 × 8)" in network.draw().svg


REFERENCE = {  # update_steps_max -> outputs of query 0 and 2
    0: [
        [
            [2.78155691096, 3.35410792543, 3.65947262546, 3.67332583413, 3.39456401278, 2.84539316827],
            [1.58863114610, 2.61358384625, 3.43033995558, 3.97383715066, 4.20078075652, 4.09309257563],
        ],
        [
            [0.97078371172, 1.87702358226, 2.63374083033, 3.18065579379, 3.47420154018, 3.49099438365],
            [1.51492036058, 2.54409804132, 3.37061433063, 3.92862941473, 4.17369213194, 4.08628092670],
        ],
    ],
    2: [
        [
            [2.90483143324, 2.88232366741, 2.63021165066, 2.16857848173, 1.53419759419, 0.77760340585],
            [1.51276025769, 2.53726238069, 3.35964763705, 3.91440528873, 4.15734365924, 4.06911041727],
        ],
        [
            [0.95221193261, 1.80603138898, 2.51598342030, 3.02551365477, 3.29403320604, 3.30015196058],
            [1.51276919665, 2.53729017065, 3.35969206429, 3.91446281420, 4.15740970049, 4.06917971349],
        ],
    ],
}


@pytest.mark.parametrize("more", REFERENCE)
def test_an_association_of_hflayers_is_a_modern_memory_per_query_and_head(more):
    """Two heads, two samples, three queries, five patterns, of which sample 1 may not see the last."""
    heads, width, samples = 2, 3, 2
    inward, outward = waves(18, 6, start=1.0), waves(6, 6, start=200.0)
    q, k, v = inward.chunk(3)
    query, stored = waves(3, samples, 6, start=300.0), waves(5, samples, 6, start=400.0)
    allowed = torch.ones(samples, 5, dtype=torch.bool)
    allowed[1, 4] = False
    memory = AssociativeMemory(torch.zeros(1, width).double(), "modern", beta=0.9)

    def split(x: Tensor) -> Tensor:  # (n, samples, 6) -> (samples, heads, n, width)
        return x.unflatten(-1, (heads, width)).movedim(0, 2)

    keys, values = (split(stored @ w.T)[:, :, None].expand(-1, -1, 3, -1, -1).flatten(0, 2) for w in (k, v))
    among = allowed[:, None, None].expand(-1, heads, 3, -1).flatten(0, 2)
    answers = memory(split(query @ q.T).flatten(0, 2), more + 1, patterns=keys, among=among, values=values)
    out = answers.view(samples, heads, 3, width).movedim(2, 0).flatten(2) @ outward.T
    torch.testing.assert_close(out[[0, 2]], torch.tensor(REFERENCE[more], dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_a_shift_that_is_not_one_per_feature_is_refused():
    with pytest.raises(ValueError, match=r"shift is \(3,\); give one number per feature, \(4,\)"):
        energy_transformer(2, 4, num_heads=1, head_features=2, shift=torch.zeros(3))
    with pytest.raises(ValueError, match=r"shift is \[0\.0, 1\.0\]; give one number per feature, \(2,\), in a tensor"):
        energy_transformer(2, 2, num_heads=1, head_features=2, shift=[0.0, 1.0])

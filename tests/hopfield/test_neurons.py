"""A layer of neurons: its energy, its zero mode, and what it refuses."""

import math

import pytest
import torch

from imixer.hopfield import LAGRANGIANS, Neurons, lagrangian
from imixer.hopfield.lagrangians import FromDensity, LayerNorm, Softmax, Spherical


def _ball(x):
    return x.square().flatten(1).sum(1) / 2


def test_energy_of_linear_neurons_is_quadratic():
    layer = Neurons((2, 3), decay=0.5, field=torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(4, 5, 2, 3)
    energy = 0.25 * x.square().sum((-1, -2)) - (x * torch.tensor([1.0, 2.0, 3.0])).sum((-1, -2))
    torch.testing.assert_close(layer.energy(x, layer.activation(x)), energy)


@pytest.mark.parametrize("kind", [LayerNorm, Spherical])
def test_decay_costs_no_energy_in_a_zero_mode_as_eps_goes_to_zero(kind):
    """Paper (13)."""
    torch.manual_seed(0)
    x = 3 + torch.randn(5, 4, 7, dtype=torch.float64)
    shift = {"shift": torch.randn(7, dtype=torch.float64)} if kind is LayerNorm else {}
    costs = []
    for eps in (1e-2, 1e-4, 1e-6):
        layer = Neurons((4, 7), kind(eps=eps, **shift), decay=10.0)
        costs.append(layer.energy(x, layer.activation(x)).abs().max())
        M_x = layer.lagrangian.hessian_product(x, x - x.mean(-1, keepdim=True) * (kind is LayerNorm))
        assert M_x.abs().max() < 10 * eps
    assert costs[1] < costs[0] / 50 and costs[2] < costs[1] / 50 and costs[2] < 1e-3


@pytest.mark.parametrize("name", LAGRANGIANS)
def test_decay_0_is_allowed_with_a_zero_mode_only(name):
    if lagrangian(name).zero_mode:
        assert Neurons(3, name, decay=0).decay == 0
    else:
        with pytest.raises(ValueError, match="no zero mode"):
            Neurons(3, name, decay=0)


def test_a_field_is_a_parameter_of_its_own():
    b = torch.zeros(3)
    layer = Neurons((2, 3), field=b)
    b += 1
    assert isinstance(layer.field, torch.nn.Parameter) and not layer.field.any()
    assert Neurons(3, field=torch.arange(3)).field.dtype == torch.float32


def test_a_density_of_one_shape_serves_a_layer_that_has_others_in_front():
    layer, x = Neurons((3, 4, 2), FromDensity(_ball, (4, 2))), torch.randn(5, 3, 4, 2)
    torch.testing.assert_close(layer.activation(x), x)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"shape": ()}, "shape"),
        ({"shape": 0}, "shape"),
        ({"shape": (2, -1)}, "shape"),
        ({"tau": 0.0}, "tau"),
        ({"tau": -1.0}, "tau"),
        ({"tau": math.nan}, "tau"),
        ({"tau": math.inf}, "tau"),
        ({"decay": -1.0}, "decay"),
        ({"decay": math.nan}, "decay"),
        ({"decay": math.inf}, "decay"),
        ({"field": torch.zeros(2)}, r"field has shape \(2,\)"),
        ({"field": torch.zeros(5, 3)}, r"field has shape \(5, 3\)"),
        ({"field": [0.0] * 3}, "field is list; give a tensor of real numbers"),
        ({"field": torch.zeros(3, dtype=torch.complex64)}, "field is torch.complex64; give a tensor of real numbers"),
        (
            {"field": torch.tensor([0.0, math.nan, math.inf])},
            "field has 2 values that are not finite; give finite ones",
        ),
        ({"lagrangian": "tahn"}, "tanh"),
        ({"lagrangian": Softmax(axis=-2)}, "Softmax acts on axis -2"),
        ({"lagrangian": LayerNorm((-2, -1))}, "LayerNorm acts on axis -2"),
        ({"lagrangian": FromDensity(_ball, 8)}, r"FromDensity takes neurons of shape \(8,\), and the layer has \(3,\)"),
        ({"lagrangian": FromDensity(_ball, (4, 2)), "shape": (2, 4)}, r"takes neurons of shape \(4, 2\)"),
    ],
)
def test_impossible_values_are_refused_by_name(kwargs, named):
    with pytest.raises(ValueError, match=named):
        Neurons(**{"shape": 3} | kwargs)

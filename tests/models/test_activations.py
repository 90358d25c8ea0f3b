"""Activations have the names of Lagrangians, and their largest slopes are right."""

import pytest
import torch
from timm.layers.activations import GELUTanh
from torch import nn

from imixer.hopfield.lagrangians import lagrangian
from imixer.models.activations import ACTIVATIONS, activation, lipschitz_constant

X = torch.linspace(-12, 12, 4801, dtype=torch.float64)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_that_of_the_lagrangian_of_its_name(name):
    x = X[:4800].reshape(-1, 48)
    torch.testing.assert_close(activation(name)()(x), lagrangian(name).activation(x), rtol=1e-8, atol=1e-8)
    assert lipschitz_constant(activation(name)()) == pytest.approx(lagrangian(name).lipschitz, rel=1e-9)


def test_the_gelu_of_slope_one_is_gelu_over_its_largest_slope():
    act = activation("gelu_1lip")()
    torch.testing.assert_close(act(X) * lipschitz_constant(nn.GELU()), nn.functional.gelu(X))
    assert lipschitz_constant(act) == 1
    x = torch.tensor(2**0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(act(x), x)[0].item() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("act", [activation(name) for name in ACTIVATIONS if name != "softmax"] + [GELUTanh])
def test_the_largest_slope_is_attained_and_never_exceeded(act):
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(act()(x).sum(), x)
    assert slope.abs().max() <= lipschitz_constant(act()) * (1 + 1e-12)
    assert slope.abs().max() > lipschitz_constant(act()) - 1e-5


def test_the_largest_jacobian_of_softmax_is_attained_between_two_neurons():
    x = torch.tensor([0.0, 0.0, -60.0], dtype=torch.float64)
    jacobian = torch.func.jacrev(activation("softmax")())(x)
    assert torch.linalg.matrix_norm(jacobian, ord=2).item() == pytest.approx(lipschitz_constant(nn.Softmax(-1)))


def test_both_kinds_of_gelu_are_told_apart():
    assert lipschitz_constant(nn.GELU("tanh")) == lipschitz_constant(GELUTanh()) > lipschitz_constant(nn.GELU())


def test_names_are_ours_then_timms_and_classes_stay():
    assert activation("GELU") is nn.GELU
    assert activation("leaky_relu") is nn.LeakyReLU
    assert activation(nn.PReLU) is nn.PReLU
    assert activation(None) is nn.Identity
    assert activation("softmax")()(torch.rand(2, 5)).sum(-1).allclose(torch.ones(2))


def test_an_unknown_name_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"act_layer is 'gelo'.*gelu.*softmax"):
        activation("gelo")

"""iMLP is Algorithm 1, and its options mean what the paper means by them."""

import pytest
import torch
import torch.nn.functional as fn
from timm.layers import Mlp
from torch import nn

from imixer.implicit import SpectralLinear
from imixer.models import IMLP


def imlp(**kwargs) -> IMLP:
    torch.manual_seed(0)
    return IMLP(16, 24, **kwargs).double()


def test_forward_is_algorithm_1_written_out():
    m, v = imlp(n_iter=3).eval(), torch.randn(2, 5, 16, dtype=torch.float64)
    F = m.contraction
    W1, W2 = F.fc1.normalized_weight(), F.fc2.normalized_weight()
    z = x = v @ m.fc_in.weight.T + m.fc_in.bias
    for _ in range(3):
        x = z + fn.gelu(fn.gelu(x) @ W1.T + F.fc1.bias) @ W2.T + F.fc2.bias
    torch.testing.assert_close(m(v), fn.gelu(x) @ m.fc_out.weight.T + m.fc_out.bias)


def test_without_iterations_it_is_timms_mlp():
    m, v = imlp(n_iter=0).eval(), torch.randn(2, 16, dtype=torch.float64)
    plain = Mlp(16, 24).double()
    plain.load_state_dict(
        {"fc1.weight": m.fc_in.weight, "fc1.bias": m.fc_in.bias,
         "fc2.weight": m.fc_out.weight, "fc2.bias": m.fc_out.bias}
    )  # fmt: skip
    assert torch.equal(m(v), plain(v))


def test_iterations_converge_to_the_inverse():
    m, v = imlp(coeff=0.6).eval(), torch.randn(8, 16, dtype=torch.float64)
    m.n_iter = 200
    z, F, W = m.fc_in(v), m.contraction, m.contraction.weights()
    x = z
    for _ in range(m.n_iter):
        x = z + F(x, W)
    torch.testing.assert_close(x - F(x, W), z, rtol=1e-12, atol=1e-12)
    deep = m(v)
    m.n_iter = 100
    torch.testing.assert_close(m(v), deep, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_iter", [0, 1, 2, 4])
def test_weights_are_normalised_once_per_forward_however_many_iterations(n_iter, monkeypatch):
    calls = []
    original = SpectralLinear.normalized_weight
    monkeypatch.setattr(SpectralLinear, "normalized_weight", lambda self: (calls.append(self), original(self))[1])
    imlp(n_iter=n_iter)(torch.randn(2, 16, dtype=torch.float64))
    assert len(calls) == 2


def test_legacy_normalises_per_iteration_so_that_its_iterates_use_different_weights():
    ours, legacy = imlp(n_iter=2), imlp(n_iter=2, legacy=True)
    for m in (ours, legacy):
        for fc in (m.contraction.fc1, m.contraction.fc2):
            fc.weight.data.mul_(10)
            fc.v.copy_(torch.linspace(-1, 1, fc.in_features))  # cold
    v = torch.randn(4, 16, dtype=torch.float64)
    assert not torch.allclose(ours(v), legacy(v), rtol=1e-4)
    twice = imlp(n_iter=1, n_power_iterations=16)
    twice.load_state_dict(ours.state_dict())
    for fc in (twice.contraction.fc1, twice.contraction.fc2):
        fc.v.copy_(torch.linspace(-1, 1, fc.in_features))
    twice(v)  # 2 x 8 power iterations
    torch.testing.assert_close(legacy.contraction.fc1.v, twice.contraction.fc1.v)
    ours.load_state_dict(legacy.state_dict())
    assert torch.equal(ours.eval()(v), legacy.eval()(v))  # in evaluation there is no difference


def test_dropout_stands_after_the_last_activation_and_after_the_output():
    m = imlp(drop=(0.5, 0.0)).train()
    v = torch.zeros(1, 16, dtype=torch.float64)
    seen = []
    m.fc_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(0)
    m(v)
    assert 0 < (seen[0] == 0).float().mean() < 1
    assert imlp(drop=(0.0, 1.0)).train()(v).eq(0).all()
    assert all(not isinstance(x, nn.Dropout) for x in m.contraction.modules())


@pytest.mark.parametrize("ratio", [0.25, 1.0, 2.0, 3.1])
def test_hidden_ratio_is_inner_width_over_outer(ratio):
    assert imlp(hidden_ratio=ratio).contraction.fc1.out_features == int(24 * ratio)


@pytest.mark.parametrize("norm", ["spectral", "none", "batch"])
@pytest.mark.parametrize("act", [nn.GELU, nn.ReLU, nn.SiLU, nn.Tanh])
def test_every_norm_and_activation_trains(norm, act):
    m = imlp(norm=norm, act_layer=act)
    m(torch.randn(4, 3, 16, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())


def test_gradient_agrees_with_finite_differences():
    m = imlp(n_iter=2).eval()
    for fc in (m.contraction.fc1, m.contraction.fc2):
        fc.weight.data.mul_(3)
        fc.warm_up()
    v = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(m, (v,))


@pytest.mark.parametrize(("kwargs", "named"), [({"n_iter": -1}, "n_iter"), ({"hidden_ratio": 0.01}, "hidden_ratio")])
def test_impossible_values_are_refused_by_name(kwargs, named):
    with pytest.raises(ValueError, match=named):
        IMLP(16, 24, **kwargs)

"""Soft spectral normalisation keeps its promises."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.checkpoint import checkpoint

from imixer.implicit import Contraction, SpectralConv1d, SpectralLinear, exact_sigma, fold
from imixer.implicit.spectral import _advance_together, advance

C = 0.9


def layer(scale: float = 1.0, dtype: torch.dtype = torch.float32, shape: tuple[int, int] = (24, 48), **kwargs):
    torch.manual_seed(0)
    made = SpectralLinear(*shape, coeff=C, dtype=dtype, **kwargs)
    with torch.no_grad():
        made.weight.mul_(scale)
    made.warm_up()
    return made


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 100.0])
def test_norm_is_at_most_the_ceiling_and_smaller_weights_are_untouched(scale):
    made = layer(scale, torch.float64)
    true = exact_sigma(made.weight)
    effective = made.normalized_weight()
    assert exact_sigma(effective) <= C * (1 + 1e-3)
    if true <= C:
        torch.testing.assert_close(effective, made.weight, rtol=0, atol=0)
    else:
        torch.testing.assert_close(effective, made.weight * (C / made.sigma()), rtol=1e-12, atol=0)


def test_estimate_never_exceeds_the_exact_norm_and_exact_is_the_svd():
    made = layer(2.0, torch.float64)
    for _ in range(20):
        made.v.copy_(torch.randn(24, dtype=torch.float64))
        assert made.sigma() <= made.sigma(exact=True) * (1 + 1e-12)
    torch.testing.assert_close(made.sigma(exact=True), torch.linalg.svdvals(made.weight)[0])


def test_a_fresh_layer_is_normalised_before_any_training_forward():
    torch.manual_seed(0)
    made = SpectralLinear(256, 512, coeff=C).eval()
    with torch.no_grad():
        made.weight.mul_(10)
    assert made.sigma() > 0.99 * made.sigma(exact=True)


def test_gradient_goes_through_sigma():
    made = layer(3.0, torch.float64, shape=(4, 5)).eval()
    made.v.copy_(torch.linalg.svd(made.weight).Vh[0].detach())

    def normalised_exactly(W):
        return W / torch.clamp(exact_sigma(W) / C, min=1)

    cotangent = torch.randn(5, 4, dtype=torch.float64)
    (ours,) = torch.autograd.grad((made.normalized_weight() * cotangent).sum(), made.weight)
    (true,) = torch.autograd.grad((normalised_exactly(made.weight) * cotangent).sum(), made.weight)
    torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-9)


def test_gradient_above_the_ceiling_has_no_radial_component():
    made = layer(3.0, torch.float64)
    made(torch.randn(7, 24, dtype=torch.float64)).square().sum().backward()
    assert abs((made.weight.grad * made.weight).sum()) < 1e-9 * made.weight.grad.norm() * made.weight.norm()


def test_power_iteration_advances_in_training_only():
    made = layer(3.0, n_power_iterations=1)
    made.v.copy_(nn.functional.normalize(torch.randn(24), dim=0))
    x, before = torch.randn(2, 24), made.v.clone()
    made.eval()(x)
    torch.testing.assert_close(made.v, before, rtol=0, atol=0)
    made.train()(x)
    assert not torch.equal(made.v, before)


def test_building_a_layer_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    nn.Linear(8, 8)
    expected = torch.rand(1)
    torch.manual_seed(0)
    SpectralLinear(8, 8)
    assert torch.equal(torch.rand(1), expected)


def test_deepcopy_after_a_training_forward_works_and_copies():
    made = layer(3.0)
    made(torch.randn(2, 24)).sum().backward()
    twin = copy.deepcopy(made)
    twin.v.zero_()
    assert made.v.norm() > 0.99


def test_two_training_forwards_before_one_backward():
    made = layer(3.0)
    (made(torch.randn(2, 24)).sum() + made(torch.randn(2, 24)).sum()).backward()
    assert made.weight.grad.isfinite().all()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_replay_does_not_advance_and_gives_the_exact_gradient(use_reentrant):
    made, x = layer(3.0, torch.float64, n_power_iterations=1), torch.randn(5, 24, dtype=torch.float64)
    made.v.copy_(nn.functional.normalize(torch.randn(24, dtype=torch.float64), dim=0))  # far from converged
    plain = copy.deepcopy(made)
    plain(x).square().sum().backward()
    checkpoint(made, x.requires_grad_(), use_reentrant=use_reentrant).square().sum().backward()
    torch.testing.assert_close(made.v, plain.v, rtol=0, atol=0)
    torch.testing.assert_close(made.weight.grad, plain.weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_moving_average_of_the_buffers_keeps_the_ceiling(decay):
    """EMA averages buffers as well: an estimate that depends on their length would shrink."""
    made = nn.Sequential(layer(3.0))
    ema, optimizer = ModelEmaV3(made, decay=decay), torch.optim.SGD(made.parameters(), lr=0.3)
    for step in range(40):
        made(torch.randn(16, 24)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(made, step=step)
    assert exact_sigma(ema.module[0].normalized_weight()) <= C * 1.01


@pytest.mark.parametrize("use_buffers", [False, True])
def test_checkpoint_averaging_keeps_the_ceiling(use_buffers):
    made = nn.Sequential(layer(3.0))
    averaged = torch.optim.swa_utils.AveragedModel(made, use_buffers=use_buffers)
    for _ in range(5):
        with torch.no_grad():
            made[0].weight.add_(0.1 * torch.randn_like(made[0].weight))
        made(torch.randn(2, 24))
        averaged.update_parameters(made)
    assert exact_sigma(averaged.module[0].eval().normalized_weight()) <= C * 1.02


def test_an_opposed_vector_does_not_switch_the_normalisation_off():
    made = layer(3.0)
    made.v.mul_(-1e-3)
    assert exact_sigma(made.eval().normalized_weight()) <= C * 1.001


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_module_iterates_in_float32(dtype):
    made = layer(3.0).to(dtype)
    made.train()(torch.randn(2, 24, dtype=dtype))
    assert made.normalized_weight().dtype == dtype
    assert made.sigma().dtype == torch.float32
    assert abs(made.sigma() / made.sigma(exact=True) - 1) < 2e-3


def test_autocast_does_not_touch_the_power_iteration():
    made, other, x = layer(3.0), layer(3.0), torch.randn(2, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(x).dtype == torch.bfloat16
    other(x)
    torch.testing.assert_close(made.v, other.v, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(made.sigma(), other.sigma(), rtol=0, atol=0)


def test_state_dict_and_safetensors_round_trips_are_exact(tmp_path):
    made, x = layer(3.0).eval(), torch.randn(2, 24)
    save_file(made.state_dict(), tmp_path / "layer.safetensors")
    for state in (made.state_dict(), load_file(tmp_path / "layer.safetensors")):
        other = SpectralLinear(24, 48, coeff=C).eval()
        other.load_state_dict(state)
        assert torch.equal(other(x), made(x))


def test_weights_loaded_without_a_vector_are_warmed_up():
    source, made = nn.Linear(24, 48), SpectralLinear(24, 48, coeff=C)
    with torch.no_grad():
        source.weight.mul_(20)
    made.load_state_dict(source.state_dict())
    assert made.sigma() > 0.99 * exact_sigma(source.weight)


@pytest.mark.parametrize(
    "made", [lambda: SpectralLinear(24, 48, coeff=C), lambda: SpectralConv1d(2, 3, 3, 8, sigma="power")]
)
def test_weights_that_are_put_into_a_model_without_memory_get_a_vector_with_one(made):
    source = made()
    with torch.no_grad():
        source.weight.mul_(20)
    source.warm_up()
    with torch.device("meta"):
        layer = made()
    layer.load_state_dict({name: value for name, value in source.state_dict().items() if name != "v"}, assign=True)
    torch.testing.assert_close(layer.sigma(), source.sigma(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("training", "backend"),
    [(True, "aot_eager"), (False, "aot_eager"), pytest.param(True, "inductor", marks=pytest.mark.slow)],
)
def test_compiles_to_one_graph_with_the_same_result(training, backend):
    made, x = layer(3.0).train(training), torch.randn(4, 24)
    twin = copy.deepcopy(made)
    torch.compiler.reset()
    assert torch._dynamo.explain(twin)(x).graph_break_count == 0
    twin.load_state_dict(made.state_dict())
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), made(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(twin.v, made.v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("norm", "coeff"), [("spectral", 0.9), ("spectral", 0.5), ("none", 0.9), ("batch", 0.9)])
def test_fold_gives_plain_linears_and_the_same_output(norm, coeff):
    torch.manual_seed(0)
    F, x = Contraction(24, 48, norm=norm, coeff=coeff), torch.randn(32, 3, 24)
    with torch.no_grad():
        for fc in (F.fc1, F.fc2):
            fc.weight.mul_(5)
    for _ in range(3):
        F.train()(x, F.weights())  # moves the batch statistics and the power iteration
    folded = fold(F)
    assert {type(m) for m in folded.modules()} <= {Contraction, nn.Linear, nn.GELU, nn.Identity}
    F.eval()
    torch.testing.assert_close(folded(x, folded.weights()), F(x, F.weights()), rtol=1e-5, atol=1e-5)
    assert isinstance(F.fc1, SpectralLinear) == (norm == "spectral")  # the original is left as it was


def test_fold_takes_a_layer_alone_and_layers_by_each_of_their_names():
    torch.manual_seed(0)
    layer, x = SpectralLinear(4, 4, coeff=0.5), torch.randn(3, 4)
    alone = fold(layer)
    assert type(alone) is nn.Linear and not any(p.requires_grad for p in alone.parameters())
    torch.testing.assert_close(alone(x), layer.eval()(x))
    folded = fold(nn.ModuleDict({"one": layer, "two": layer, "deep": nn.Sequential(nn.Tanh(), layer)}))
    assert type(folded["one"]) is nn.Linear
    assert folded["one"] is folded["two"] is folded["deep"][1]  # it stays shared
    assert isinstance(layer, SpectralLinear) and layer.weight.requires_grad


def test_contraction_with_half_the_ceiling_contracts():
    torch.manual_seed(0)
    F = Contraction(24, 48, coeff=0.5).double().eval()
    with torch.no_grad():
        for fc in (F.fc1, F.fc2):
            fc.weight.mul_(50)
            fc.warm_up()
    x, y = torch.randn(2, 100, 24, dtype=torch.float64)
    W = F.weights()
    ratios = (F(x, W) - F(y, W)).norm(dim=-1) / (x - y).norm(dim=-1)
    assert ratios.max() <= (1.129 * 0.5) ** 2


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [({"coeff": 0.0}, "coeff"), ({"coeff": -1.0}, "coeff"), ({"coeff": float("nan")}, "coeff"),
     ({"n_power_iterations": -1}, "n_power_iterations")],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(kwargs, named):
    with pytest.raises(ValueError, match=named):
        SpectralLinear(4, 4, **kwargs)


def test_unknown_norm_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="spectral, orthogonal, none or batch"):
        Contraction(4, 4, norm="layer")


def test_layers_of_one_shape_advance_together_as_each_by_itself():
    torch.manual_seed(0)
    layers = [SpectralLinear(12, 7, n_power_iterations=3) for _ in range(4)]
    for each in layers:
        torch.nn.init.normal_(each.weight)  # the vectors lag behind
    alone = copy.deepcopy(layers)
    _advance_together(layers)
    for found, expected in zip(layers, alone, strict=True):
        expected.advance()
        torch.testing.assert_close(found.v, expected.v)


def test_layers_of_any_shape_advance():
    layers = [SpectralLinear(5, 5), SpectralLinear(3, 5), SpectralLinear(5, 5, n_power_iterations=0)]
    for each in layers:
        torch.nn.init.normal_(each.weight)
    before = [each.v.clone() for each in layers]
    advance(layers)
    assert [torch.equal(each.v, v) for each, v in zip(layers, before, strict=True)] == [False, False, True]

"""1 - F as an invertible transform, against exact determinants and integrals."""

import copy

import pytest
import timm
import torch
from torch import nn

import imixer  # noqa: F401
from imixer.implicit import (
    Anderson,
    Contraction,
    FixedIterations,
    ResidualFlow,
    SpectralConv2d,
    SpectralLinear,
    exact_log_det,
)


def contraction(width=3, **options):
    torch.manual_seed(0)
    F = Contraction(width, 5, nn.Tanh, coeff=0.7, **options).double().eval()
    with torch.no_grad():
        F.fc1.weight.mul_(4)
        F.fc2.weight.mul_(4)
    F.fc1.warm_up()
    F.fc2.warm_up()
    return F


def jacobians(f, x):
    return torch.stack([torch.autograd.functional.jacobian(lambda s: f(s[None])[0].flatten(), each) for each in x])


TIGHT = Anderson(rtol=1e-12, atol=1e-12)


def test_there_and_back_is_the_identity_and_determinants_are_those_of_the_jacobians():
    flow = ResidualFlow(contraction(), exact=True, solver=TIGHT)
    x = torch.randn(4, 3, dtype=torch.float64)
    z, there = flow(x)
    again, back = flow.inverse(z)
    torch.testing.assert_close(again, x)
    torch.testing.assert_close(back, -there)
    torch.testing.assert_close(there, torch.linalg.slogdet(jacobians(lambda s: flow(s)[0], x)).logabsdet)
    expected = torch.linalg.slogdet(jacobians(lambda s: flow.inverse(s)[0], z.detach())).logabsdet
    torch.testing.assert_close(back, expected)


def test_estimates_are_unbiased():
    F = contraction()
    x = torch.randn(2, 3, dtype=torch.float64)
    exact = exact_log_det(lambda x, *w: F(x, list(w)), x, F.weights()).detach()
    torch.manual_seed(0)
    flow = ResidualFlow(F, terms=3, probes=1)
    draws = torch.stack([flow(x)[1].detach() for _ in range(1500)])
    assert ((draws.mean(0) - exact).abs() < 4 * draws.std(0) / 1500**0.5).all()


def test_a_density_integrates_to_one():
    flow = ResidualFlow(contraction(1), exact=True)
    x = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None]
    assert torch.trapezoid(flow.log_prob(x).exp().detach(), x[:, 0]).item() == pytest.approx(1, abs=1e-6)


def test_a_flow_is_trained_by_its_likelihood_in_both_directions():
    flow = ResidualFlow(contraction(), exact=True)
    x = torch.randn(4, 3, dtype=torch.float64)
    (-flow.log_prob(x).mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    sample, log_det = flow.inverse(z)
    (sample.sum() + log_det.sum()).backward()
    assert z.grad.isfinite().all()


def test_a_block_of_an_imixer_is_a_flow():
    torch.manual_seed(0)
    model = timm.create_model("imixer_n2_8", num_classes=10, embed_dim=8, coeff="auto").eval()
    imlp = model.blocks[0].mlp_tokens
    z = imlp.fc_in(torch.randn(2, 4, imlp.fc_in.in_features)).detach()  # G(v)
    flow = ResidualFlow(imlp.contraction, exact=True)
    x, log_det = flow.inverse(z)
    imlp.n_iter = 60
    torch.testing.assert_close(imlp._inverse(imlp.contraction, z), x, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(flow(x)[0], z, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(flow(x)[1], -log_det, rtol=1e-3, atol=1e-3)


def test_any_module_can_be_a_flow_and_nests_too():
    class Halved(nn.Module):
        def forward(self, x):
            return 0.5 * x

    x = torch.randn(2, 3, dtype=torch.float64)
    log_det = ResidualFlow(Halved(), exact=True)(x)[1]
    torch.testing.assert_close(log_det, torch.full((2,), 3 * torch.tensor(0.5).log().item()).double())
    torch.manual_seed(0)
    nest = Contraction(3, [4, 5], nn.Tanh, coeff=0.5).double().eval()
    flow = ResidualFlow(nest, exact=True, n_iter=40, solver=TIGHT)
    torch.testing.assert_close(flow(flow.inverse(x)[0])[0], x)


@pytest.mark.parametrize("training", [False, True])
def test_a_modules_own_parameters_get_their_gradients_on_the_way_back(training):
    torch.manual_seed(0)
    F = nn.Sequential(SpectralLinear(2, 4, sigma="exact"), nn.Tanh(), SpectralLinear(4, 2, sigma="exact")).double()
    flow = ResidualFlow(F.train(training), exact=True, solver=TIGHT)
    z = torch.randn(3, 2, dtype=torch.float64)

    def loss():
        x, log_det = flow.inverse(z)
        return (x.sin().sum(1) + log_det).sum()

    weight = F[0].weight
    (found,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        for i, j in ((0, 0), (2, 1)):
            weight[i, j] += 1e-6
            above = loss()
            weight[i, j] -= 2e-6
            below = loss()
            weight[i, j] += 1e-6
            assert float(found[i, j]) == pytest.approx(float(above - below) / 2e-6, rel=1e-5, abs=1e-7)


def moving(kind):
    """A map in training, whose power iterations are far from rest."""
    torch.manual_seed(0)
    if kind == "contraction":
        F, x = Contraction(3, 5, nn.Tanh, coeff=0.7, n_power_iterations=1), torch.randn(4, 3)
    elif kind == "linear":
        options = dict(coeff=0.7, n_power_iterations=1)
        F = nn.Sequential(SpectralLinear(3, 5, **options), nn.Tanh(), SpectralLinear(5, 3, **options))
        x = torch.randn(4, 3)
    else:
        F = SpectralConv2d(1, 1, 3, (4, 3), padding_mode="zeros", coeff=0.4, sigma="power", n_power_iterations=1)
        x = torch.randn(2, 1, 4, 3)
    with torch.no_grad():
        for layer in iterated(F):
            layer.weight.mul_(4)
            layer.v.copy_(layer.v + 0.5 * torch.randn(layer.v.shape))
    return F.double(), x.double()


def iterated(F):
    return [module for module in F.modules() if hasattr(module, "v")]


def applied(F, x):
    return F(x, F.weights()) if isinstance(F, Contraction) else F(x)


@pytest.mark.parametrize("kind", ["contraction", "linear", "convolution"])
def test_in_training_a_call_runs_the_power_iterations_once_and_knows_one_map(kind):
    F, x = moving(kind)
    flow, once = ResidualFlow(F, exact=True, solver=TIGHT), copy.deepcopy(F).eval()
    for call in (flow, flow.inverse):
        for layer in iterated(once):
            layer.advance()
        y, log_det = call(x)
        for layer, other in zip(iterated(F), iterated(once), strict=True):
            assert torch.equal(layer.v, other.v) and layer.advances_itself
        point, image = (x, y) if call == flow else (y, x)
        torch.testing.assert_close(point - applied(once, point), image)
        expected = exact_log_det(lambda x: applied(once, x), point)
        torch.testing.assert_close(log_det, expected if call == flow else -expected)


@pytest.mark.parametrize("kind", ["contraction", "linear", "convolution"])
def test_a_backward_pass_after_the_next_call_is_that_of_its_own_map(kind):
    def gradients(between):
        F, z = moving(kind)
        flow = ResidualFlow(F, exact=True, solver=TIGHT)
        x, log_det = flow.inverse(z)
        if between:
            flow(z)
        return torch.autograd.grad((x.sin().flatten(1).sum(1) + log_det).sum(), list(F.parameters()))

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_way_back_has_the_gradient_of_a_small_loss_too():
    F, z = contraction(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    expected, found = (
        torch.autograd.grad(factor * ResidualFlow(F, exact=True).inverse(z)[0].sin().sum(), z)[0] / factor
        for factor in (1.0, 1e-8)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sequence", [False, True])
def test_an_activation_that_is_learned_gets_its_gradient_on_the_way_back(sequence):
    torch.manual_seed(0)
    layers = [nn.PReLU(), SpectralLinear(3, 5, coeff=0.7), nn.PReLU(), SpectralLinear(5, 3, coeff=0.7)]
    F = nn.Sequential(*layers) if sequence else Contraction(3, 5, nn.PReLU, coeff=0.7)
    flow = ResidualFlow(F.double().eval(), exact=True, solver=TIGHT)
    learned = [p for p in F.parameters() if p.numel() == 1]
    z = torch.randn(4, 3, dtype=torch.float64)

    def loss():
        x, log_det = flow.inverse(z)
        return (x.sin().sum(1) + log_det).sum()

    for p, found in zip(learned, torch.autograd.grad(loss(), learned), strict=True):
        values = []
        for shift in (1e-6, -1e-6):
            with torch.no_grad():
                p += shift
                values.append(float(loss()))
                p -= shift
        assert float(found) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", ["contraction", "nest", "module"])
def test_densities_are_the_same_in_inference_mode(exact, kind):
    if kind == "module":
        F = nn.Sequential(SpectralLinear(3, 5, coeff=0.7), nn.Tanh(), SpectralLinear(5, 3, coeff=0.7)).eval()
    else:
        F = Contraction(3, 5 if kind == "contraction" else [5, 4], nn.Tanh, coeff=0.6).eval()
    flow, results = ResidualFlow(F, exact=exact), []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.manual_seed(0)
            x = torch.randn(4, 3)
            results.append([flow.log_prob(x), *flow.inverse(x)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs) and not theirs.requires_grad


def test_the_solver_goes_by_name_too_and_a_base_gives_one_number_a_sample():
    x = torch.randn(3, 3, dtype=torch.float64)
    flow = ResidualFlow(contraction(), exact=True, solver="broyden")
    torch.testing.assert_close(flow.inverse(flow(x)[0])[0], x, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"base gives \(3, 3\); return one log-density a sample, \(3,\)"):
        flow.log_prob(x, base=lambda z: z)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"solver": "andersen"}, "solver is 'andersen'; choose fixed, .* did you mean anderson"),
        ({"solver": "fixed"}, "which has no tolerance; choose Anderson"),
        ({"terms": 0}, "terms, probes and roulette are 0, 1 and 0.5; give"),
        ({"roulette": 1.0}, "terms, probes and roulette are 10, 1 and 1.0; give"),
        ({"solver": FixedIterations(2)}, "which has no tolerance; choose Anderson"),
        ({"F": torch.sin}, "F is builtin_function_or_method; give a module"),
    ],
)
def test_impossible_flows_are_refused_with_the_remedy(options, said):
    with pytest.raises(ValueError, match=said):
        ResidualFlow(**{"F": contraction()} | options)

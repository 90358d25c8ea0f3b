"""On a GPU a model computes what it computes on the CPU."""

import copy

import pytest
import timm
import torch

import imixer  # noqa: F401  # registers the models
from imixer.implicit import Anderson, Broyden, Implicit, Picard, SpectralLinear, fold, solve
from imixer.implicit.spectral import advance

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
OPTIONS = {
    "default": {},
    "n = 4": {"n_iter": 4},
    "legacy": {"legacy": True},
    "deep": {"num_layers": 4},
    "tied": {"tied": True},
    "batch": {"norm": "batch"},
    "solved": {"solver": "anderson", "gradient": "implicit"},
    "recompute": {"gradient": "recompute"},
}


def create(**options):
    torch.manual_seed(0)
    return timm.create_model("imixer_t2_8", num_blocks=2, **options)


def gradients(model, images):
    model.zero_grad()
    model(images).square().mean().backward()
    return {name: p.grad.double().cpu() for name, p in model.named_parameters()}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_forward_and_backward_are_those_of_the_cpu(options, dtype):
    model = create(**options).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    there = copy.deepcopy(model).to("cuda", dtype)
    expected, grads_there = gradients(model, images), gradients(there, images.to("cuda", dtype))
    whole = torch.cat([g.flatten() for g in expected.values()])
    error = torch.cat([(grads_there[name] - g).flatten() for name, g in expected.items()])
    assert error.norm() <= TOLERANCE[dtype] * whole.norm() * (10 if options.get("solver") else 1)


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e10])
def test_power_iterations_together_are_those_one_by_one(scale):
    together = [SpectralLinear(24, 40, device="cuda") for _ in range(3)]
    for layer in together:
        torch.nn.init.normal_(layer.weight, std=scale)
    alone = copy.deepcopy(together)
    for _ in range(40):
        advance(together)
        for layer in alone:
            layer.advance()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.sigma(), b.sigma(), rtol=1e-5, atol=0)
        torch.testing.assert_close(a.sigma(), a.sigma(exact=True), rtol=1e-3, atol=0)


def test_power_iterations_are_not_rounded_to_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True
    layer = SpectralLinear(256, 512, device="cuda")
    for _ in range(30):
        layer.advance()
    here = copy.deepcopy(layer).cpu()
    here.warm_up()
    torch.testing.assert_close(layer.sigma().cpu(), here.sigma(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("check_every", [1, 8])
@pytest.mark.parametrize("solver", [Picard, Anderson, Broyden])
def test_solvers_find_the_cpus_fixed_point_and_gradient(solver, check_every):
    torch.manual_seed(0)
    W = (0.05 * torch.randn(32, 32, dtype=torch.float64)).requires_grad_()
    z = torch.randn(6, 32, dtype=torch.float64)
    there = W.detach().cuda().requires_grad_()
    options = {"rtol": 1e-12, "max_steps": 200}
    F = lambda x, W: torch.tanh(x @ W)  # noqa: E731
    expected = solve(F, z, (W,), solver=solver(**options), gradient=Implicit(solver(**options)))
    solution = solve(
        F, z.cuda(), (there,), solver=solver(**options, check_every=check_every), gradient=Implicit(solver(**options))
    )
    torch.testing.assert_close(solution.value.cpu(), expected.value, rtol=0, atol=1e-10)
    expected.value.square().sum().backward()
    solution.value.square().sum().backward()
    torch.testing.assert_close(there.grad.cpu(), W.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"n_iter": 4}, {"num_layers": 4}])
def test_a_training_forward_compiles_into_one_graph(options):
    torch._dynamo.reset()
    model = create(**options).cuda().train()
    images = torch.randn(4, 3, 8, 8, device="cuda")
    explained = torch._dynamo.explain(model)(images)
    assert explained.graph_break_count == 0, explained.break_reasons


def test_a_compiled_model_computes_what_the_eager_one_does():
    torch._dynamo.reset()
    model = create().cuda().eval()
    images = torch.randn(4, 3, 8, 8, device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(images), model(images), rtol=1e-4, atol=1e-4)


def test_a_folded_model_is_captured_by_a_cuda_graph():
    model = fold(create().cuda().eval())
    images = torch.randn(4, 3, 8, 8, device="cuda")
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            expected = model(images).clone()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(images)
        graph.replay()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

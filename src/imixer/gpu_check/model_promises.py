"""Promise that a model computes on a device what it computes on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

import imixer  # noqa: F401  (registers our models with timm)
from imixer.gpu_check.promise import Place, Promise, at_most, relative_distance
from imixer.implicit import Anderson, Broyden, Implicit, Picard, SpectralLinear, fold, solve
from imixer.implicit.spectral import advance

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "n = 4": {"n_iter": 4},
    "legacy": {"legacy": True},
    "4 layers": {"num_layers": 4},
    "tied": {"tied": True},
    "norm batch": {"norm": "batch"},
    "norm orthogonal": {"norm": "orthogonal"},
    "anderson, implicit": {"solver": "anderson", "gradient": "implicit"},
    "recompute": {"gradient": "recompute"},
}
_CHECKED_EVERY = (1, 8)
_CONV = {"patch_size": 2, "stem": "conv", "num_blocks": 2}


def tiny_model(**options: Any) -> nn.Module:
    """Create a small iMixer of 8x8 images, always the same."""
    torch.manual_seed(0)
    model: Any = timm.create_model("imixer_t2_8", **{"num_blocks": 2} | options)
    nn.init.normal_(model.head.weight, std=0.1)  # timm's zeros would leave nothing to compare
    return model


def _gradients(model: nn.Module, images: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(images).square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def _exact_products() -> None:
    torch.set_float32_matmul_precision("highest")


def _forward_and_backward(place: Place, options: dict[str, Any], dtype: torch.dtype) -> float:
    _exact_products()
    model = tiny_model(**options).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    there = copy.deepcopy(model).to(place.device, dtype)
    computed, expected = _gradients(there, images.to(place.device, dtype)), _gradients(model, images)
    return at_most(relative_distance(computed, expected), TOLERANCE[dtype] * (10 if options.get("solver") else 1))


def _autocast(place: Place, dtype: torch.dtype, options: dict[str, Any]) -> float:
    _exact_products()
    model = tiny_model(**options)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = _gradients(model, images)
    there = copy.deepcopy(model).to(place.device)
    with torch.autocast(place.device.type, dtype=dtype):
        there.zero_grad()
        loss = there(images.to(place.device)).float().square().mean()
    loss.backward()
    computed = [p.grad for p in there.parameters() if p.grad is not None]
    return at_most(relative_distance(computed, expected), 2 * TOLERANCE[dtype])


def _channels_last(place: Place) -> float:
    _exact_products()
    model = tiny_model(**_CONV)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = _gradients(model, images)
    there: Any = copy.deepcopy(model).to(place.device)
    there = there.to(memory_format=torch.channels_last)
    moved: Any = images.to(place.device)
    return at_most(
        relative_distance(_gradients(there, moved.to(memory_format=torch.channels_last)), expected),
        TOLERANCE[torch.float32],
    )


def _power_iterations(place: Place, scale: float) -> float:
    together = [SpectralLinear(24, 40, device=place.device) for _ in range(3)]
    for layer in together:
        nn.init.normal_(layer.weight, std=scale)
    alone = copy.deepcopy(together)
    for _ in range(40):
        advance(together)
        for layer in alone:
            layer.advance()
    computed, one_by_one, exact = (
        torch.stack(each)
        for each in (
            [layer.sigma() for layer in together],
            [layer.sigma() for layer in alone],
            [layer.sigma(exact=True) for layer in together],
        )
    )
    at_most(relative_distance(computed / scale, exact / scale), 1e-3)
    return at_most(relative_distance(computed / scale, one_by_one / scale), 1e-5)


def _no_tf32(place: Place) -> float:
    torch.set_float32_matmul_precision("high")
    try:
        layer = SpectralLinear(256, 512, device=place.device)
        for _ in range(30):
            layer.advance()
        here = copy.deepcopy(layer).cpu()
        here.warm_up()
        return at_most(relative_distance(layer.sigma(), here.sigma()), 1e-5)
    finally:
        _exact_products()


def _solver(place: Place, solver: Callable[..., Any], check_every: int) -> float:
    generator = torch.Generator().manual_seed(0)
    W = (0.05 * torch.randn(32, 32, dtype=torch.float64, generator=generator)).requires_grad_()
    z = torch.randn(6, 32, dtype=torch.float64, generator=generator)
    there = W.detach().to(place.device).requires_grad_()
    options: dict[str, Any] = {"rtol": 1e-12, "max_steps": 200}

    def F(x: Tensor, W: Tensor) -> Tensor:
        return torch.tanh(x @ W)

    gradient = Implicit(solver(**options))
    expected = solve(F, z, (W,), solver=solver(**options), gradient=gradient).value
    computed = solve(
        F, z.to(place.device), (there,), solver=solver(**options, check_every=check_every), gradient=gradient
    ).value
    for value in (expected, computed):
        value.square().sum().backward()
    assert W.grad is not None and there.grad is not None
    at_most(relative_distance(there.grad, W.grad), 1e-9)
    return at_most(relative_distance(computed, expected), 1e-10)


def _one_graph(place: Place, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = tiny_model(**options).to(place.device).train()
    explained: Any = torch._dynamo.explain(model)(torch.randn(4, 3, 8, 8, device=place.device))
    assert explained.graph_break_count == 0, f"{explained.graph_break_count} graph breaks: {explained.break_reasons}"


def _compiled(place: Place) -> float:
    _exact_products()
    torch._dynamo.reset()
    model = tiny_model().to(place.device)
    images = torch.randn(4, 3, 8, 8, device=place.device)
    other: Any = copy.deepcopy(model)
    other.compile()
    return at_most(relative_distance(_gradients(other, images), _gradients(model, images)), 1e-4)


def _graph(place: Place) -> float:
    model = fold(tiny_model().to(place.device).eval())
    images = torch.randn(4, 3, 8, 8, device=place.device)
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
    return at_most(relative_distance(logits, expected), 1e-5)


def _dropout_repeats(place: Place) -> float:
    """Draw the same dropout in the replay of a checkpointed forward as in the forward."""
    torch.manual_seed(0)
    model = tiny_model(drop_rate=0.3, inner_drop_rate=0.2).to(place.device).train()
    images = torch.randn(4, 3, 8, 8, device=place.device)
    other: Any = copy.deepcopy(model)
    other.set_grad_checkpointing()
    grads = []
    for each in (model, other):
        torch.manual_seed(1)
        grads.append(_gradients(each, images))
    return at_most(relative_distance(grads[1], grads[0]), 1e-5)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _promises() -> tuple[Promise, ...]:
    made = [
        Promise(
            f"a forward and backward is the CPU's in float64 ({name}; {_short(dtype)})",
            partial(_forward_and_backward, options=options, dtype=dtype),
        )
        for name, options in OPTIONS.items()
        for dtype in TOLERANCE
    ]
    made += [
        Promise(
            f"autocast to {_short(dtype)} stays near float32 ({name})",
            partial(_autocast, dtype=dtype, options=OPTIONS[name]),
        )
        for name in ("as it is", "anderson, implicit")
        for dtype in (torch.bfloat16, torch.float16)
    ]
    made += [
        Promise(
            f"power iterations together are those one by one (weights of {scale:g})",
            partial(_power_iterations, scale=scale),
        )
        for scale in (1.0, 1e-7, 1e10)
    ]
    made += [
        Promise("power iterations are not rounded to TF32", _no_tf32),
        Promise("channels last changes nothing", _channels_last),
        Promise("a checkpointed forward is replayed with the same dropout", _dropout_repeats),
    ]
    made += [
        Promise(
            f"{solver.__name__} finds the CPU's fixed point and gradient (a look every {every})",
            partial(_solver, solver=solver, check_every=every),
        )
        for solver in (Picard, Anderson, Broyden)
        for every in _CHECKED_EVERY
    ]
    made += [
        Promise(
            f"a training forward compiles into one graph ({name})",
            partial(_one_graph, options=OPTIONS[name]),
            slow=name != "as it is",
        )
        for name in ("as it is", "n = 4", "4 layers")
    ]
    made += [
        Promise("a folded model is captured by a CUDA graph", _graph, only_cuda=True),
        Promise("a compiled model has the eager one's gradients", _compiled, slow=True),
    ]
    return tuple(made)


MODEL_PROMISES = _promises()

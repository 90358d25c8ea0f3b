"""How well inverses converge, watched while training."""

from itertools import pairwise

import pytest
import timm
import torch

import imixer.models  # noqa: F401
from imixer.implicit.certificate import worst_case
from imixer.models.activations import lipschitz_constant
from imixer.models.probe import capture_activations
from imixer.training.monitor import convergence


def model(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("imixer_t2_8", num_blocks=2, embed_dim=16, **kwargs).eval()


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_residual_falls_with_the_iterations_to_nothing():
    residuals = [[b["residual"] for b in convergence(model(n_iter=n), IMAGES)] for n in (0, 1, 2, 4, 30)]
    for fewer, more in pairwise(residuals):
        assert all(a > b for a, b in zip(fewer, more, strict=True))
    assert max(residuals[-1]) < 1e-6


def test_the_residual_is_what_is_left_of_the_equation():
    m = model(n_iter=1)
    inside = capture_activations(m, IMAGES)[1]
    F = inside.F
    expected = (inside.x - inside.z - F(inside.x, F.weights(), 1)).norm() / inside.x.norm()
    assert convergence(m, IMAGES)[1]["residual"] == pytest.approx(expected.item())


@pytest.mark.parametrize(
    "kwargs", [{}, {"num_layers": 4}, {"tied": True}, {"norm": "none"}, {"num_layers": 5, "tied": True}]
)
def test_the_bound_is_the_certificates(kwargs):
    m = model(**kwargs)
    for block, row in zip(m.blocks, convergence(m, IMAGES), strict=True):
        F = block.mlp_tokens.contraction
        slope = lipschitz_constant(F.act)
        bound = worst_case(F, [slope] * (kwargs.get("num_layers", 3) - 1)).bound
        assert row["bound"] == pytest.approx(bound, rel=1e-3)
        assert row["sigma"] > 0


def test_models_without_inverses_have_nothing_to_watch():
    assert convergence(timm.create_model("mixer_t2_8", num_blocks=1).eval(), IMAGES) == []
    assert convergence(model(num_layers=2), IMAGES) == []


def test_a_compiled_model_is_watched_too():
    m = model()
    expected = convergence(m, IMAGES)
    m.compile(backend="eager")
    assert convergence(m, IMAGES) == expected

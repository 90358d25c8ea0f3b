"""The way back is exact from a fixed point, and misses by the truncation after n iterations."""

import json

import pytest
import timm
import torch
from torch import nn

import imixer  # noqa: F401
from imixer.analysis.inverse import inverse_along_depth, recover_G, recover_v, visible_part
from imixer.analysis.inverse_study import FEATURES, untrained
from imixer.analysis.statistics import relative_error
from imixer.cli import main
from imixer.errors import InputError
from imixer.implicit.nest import fixed_point

Z = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("depth", "coeff"), [(3, 0.9), (3, 0.95), (4, 0.6), (5, 0.5)])
def test_from_a_fixed_point_the_way_back_is_exact(depth, coeff):
    F = untrained(coeff, depth, seed=0)
    x = fixed_point(F, Z).states[0]
    assert relative_error(recover_G(F, x), Z).max() < 1e-12


@pytest.mark.parametrize("depth", [3, 4])
def test_after_n_iterations_the_way_back_misses_by_the_step_that_would_follow(depth):
    F, n = untrained(0.6, depth, seed=0), 3
    xs, weights = [Z], F.weights()
    for _ in range(n + 1):
        xs.append(Z + F(xs[-1], weights, n))
    torch.testing.assert_close(Z - recover_G(F, xs[n], n), xs[n + 1] - xs[n], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wide", [4, 16, 40])
def test_what_comes_back_of_v_is_its_projection(wide):
    torch.manual_seed(0)
    fc_in = nn.Linear(16, wide, dtype=torch.float64)
    v = torch.randn(3, 7, 16, dtype=torch.float64)
    seen = visible_part(fc_in, v)
    torch.testing.assert_close(recover_v(fc_in, fc_in(v)), seen)
    torch.testing.assert_close(visible_part(fc_in, seen), seen)
    torch.testing.assert_close(fc_in(seen), fc_in(v))
    assert ((v - seen) * seen).sum(-1).abs().max() < 1e-9
    if wide >= 16:
        torch.testing.assert_close(seen, v)
    else:
        assert (seen.norm(dim=-1) < v.norm(dim=-1)).all()


def test_blocks_of_a_model():
    torch.manual_seed(0)
    model = timm.create_model("imixer_t2_8", num_blocks=2, embed_dim=16).eval()
    for block in inverse_along_depth(model, torch.randn(3, 3, 8, 8)):
        assert block.error_solved.max() < 1e-12 and block.error_v_solved.max() < 1e-10
        assert (1e-9 < block.error_run).all() and (block.error_run < 0.1).all()
        assert block.rank == 8 and block.tokens == 16 and ((0 < block.visible) & (block.visible < 1)).all()
    with pytest.raises(InputError, match="nothing to invert"):
        inverse_along_depth(timm.create_model("mixer_t2_8"), torch.randn(3, 3, 8, 8))


def test_where_no_fixed_point_is_found_the_image_is_counted():
    torch.manual_seed(0)
    model = timm.create_model("imixer_t2_8", num_blocks=2, embed_dim=16, norm="none").eval()
    F = model.blocks[1].mlp_tokens.contraction
    F.fc1.weight.data *= 100
    F.fc2.weight.data *= 100
    first, second = inverse_along_depth(model, torch.randn(3, 3, 8, 8))
    assert first.converged.tolist() == [True] * 3 and second.converged.tolist() == [False] * 3


def test_analyze_inverse_writes_a_table_and_a_figure(run, capsys):
    assert main(["analyze", "inverse", str(run), "--images", "5"]) == 0
    written = json.loads((run / "analysis" / "inverse.json").read_text())
    assert written["images"] == 5 and written["blocks"][0]["error_of_G_from_the_fixed_point"]["mean"] < 1e-12
    assert (run / "analysis" / "inverse.png").exists()
    assert "truncation" in capsys.readouterr().out


def test_bad_input_is_refused_in_one_line(run, capsys):
    assert main(["analyze", "inverse", str(run), "--images", "-1"]) == 2
    assert "images" in capsys.readouterr().err

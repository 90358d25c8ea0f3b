"""The bounds of nested inverses are those of docs/theory.md, section 5, and a ceiling is as high as they allow."""

import math

import pytest
import torch

from imixer.implicit import ceiling, contraction_bound

GELU = 1.128904145185155


@pytest.mark.parametrize(("coeff", "slope"), [(0.9, 1.0), (0.9, GELU), (0.5, 0.25)])
def test_bounds_written_out(coeff, slope):
    a = (coeff * slope) ** 2
    assert contraction_bound(coeff, [slope]) == 0  # L = 2 has no F
    assert contraction_bound(coeff, [slope] * 2) == pytest.approx(a)
    four = a / (1 - a) if a < 1 else math.inf
    assert contraction_bound(coeff, [slope] * 3) == pytest.approx(four)
    assert contraction_bound(coeff, [slope] * 4) == pytest.approx(a / (1 - four) if four < 1 else math.inf)


def test_each_coupling_has_the_slopes_of_the_two_layers_that_it_joins():
    inner = 0.5**2 * 3.0 * 0.2
    assert contraction_bound(0.5, [2.0, 3.0, 0.2]) == pytest.approx(0.5**2 * 2.0 * 3.0 / (1 - inner))


def test_the_papers_choice_with_gelu_is_no_guarantee():
    assert contraction_bound(0.9, [GELU] * 2) == pytest.approx(1.0323, abs=1e-4)
    assert contraction_bound(0.885, [GELU] * 2) < 1


@pytest.mark.parametrize("layers", [3, 4, 10, 1000])
def test_a_quarter_is_safe_at_any_depth_and_no_more_is(layers):
    assert contraction_bound(0.5, [1.0] * (layers - 1)) <= 0.5
    assert contraction_bound(0.51, [1.0] * 1000) == math.inf or contraction_bound(0.51, [1.0] * 1000) > 1


def test_ceilings_of_the_papers_depth():
    assert ceiling([1.0, 1.0]) == 0.9
    assert ceiling([GELU, GELU]) == pytest.approx(0.9 / GELU, rel=1e-15)
    assert ceiling([GELU]) == math.inf
    assert ceiling([1.0, 1.0], bound=0.25) == 0.5


@pytest.mark.parametrize("layers", [3, 4, 5, 8])
def test_ceiling_is_the_inverse_of_an_eigenvalue(layers):
    """The nested bounds are a continued fraction: F^2 reaches b where a tridiagonal matrix is singular."""
    slopes = torch.rand(layers - 1, generator=torch.Generator().manual_seed(layers), dtype=torch.float64) + 0.5
    off = (slopes[:-1] * slopes[1:]).sqrt()
    found = []
    for start in range(len(off)):
        chain = off[start:].clone()
        chain[0] /= math.sqrt(0.81)
        found.append(1 / torch.linalg.eigvalsh(torch.diag(chain, 1) + torch.diag(chain, -1)).max().item())
    assert ceiling(slopes.tolist()) == pytest.approx(min(found), rel=1e-12)


def test_an_inner_map_may_be_what_decides():
    """A flat outer activation would let the inner maps come close to 1."""
    slopes = [0.25, 1.0, 1.0, 1.0]
    assert contraction_bound(ceiling(slopes), slopes) < 0.8
    assert contraction_bound(ceiling(slopes), slopes[1:]) == pytest.approx(0.81)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(([1.0, 0.0],), "lipschitz"), (([1.0, -1.0],), "lipschitz"), (([1.0, math.nan],), "lipschitz"),
     (([math.inf, 1.0],), r"lipschitz is \[inf, 1.0\]; each constant must be above 0 and finite"),
     (([1.0, 1.0], 1.0), "bound"), (([1.0, 1.0], 0.0), "bound")],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        ceiling(*arguments)

"""A contraction may hold another: F = H . (1 - F')^-1 . G, of any depth, its couplings symmetric or not."""

import pytest
import torch
from torch import Tensor, nn

from imixer.implicit import Contraction, SpectralLinear, TransposedLinear, contraction_bound, exact_sigma, fold
from imixer.implicit.gradients import Implicit
from imixer.implicit.solve import solve
from imixer.implicit.solvers import Picard


def contraction(hidden=(12, 10, 9), scale: float = 5.0, **kwargs) -> Contraction:
    torch.manual_seed(0)
    F = Contraction(8, hidden, **kwargs).double().eval()
    with torch.no_grad():
        for module in F.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(scale)
            if isinstance(module, SpectralLinear):
                for _ in range(20):
                    module.warm_up()
    return F


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_nested_result_written_out():
    F, x = contraction((12, 10), act_layer=[nn.GELU, nn.Tanh, nn.SiLU]), points(3)
    W1, W2, b1, b2, V1, V2, c1, c2 = F.weights()
    z = h = nn.functional.gelu(x) @ W1.T + b1
    for _ in range(3):
        h = z + nn.functional.silu(h.tanh() @ V1.T + c1) @ V2.T + c2
    torch.testing.assert_close(F(x, F.weights(), 3), h.tanh() @ W2.T + b2)
    assert b1 is F.fc1.bias and c2 is F.inner.fc2.bias


def test_weights_are_listed_from_the_outside_in():
    F = contraction()
    shapes = [tuple(W.shape) for W in F.weights()]
    assert shapes[::4] + shapes[1::4] == [(12, 8), (10, 12), (9, 10), (8, 12), (12, 10), (10, 9)]
    assert shapes[2::4] + shapes[3::4] == [(12,), (10,), (9,), (8,), (12,), (10,)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", ["spectral", "none"])
def test_the_weights_are_all_that_it_depends_on(norm, tied):
    """Hence a gradient for each, through the equation, that agrees with finite differences."""
    F, z = contraction((6, 5), 1.0, norm=norm, tied=tied, coeff=0.6), points(2)
    weights = [W.detach().clone().requires_grad_() for W in F.weights()]
    with torch.no_grad():
        expected = F(z, F.weights(), 3)
        for parameter in F.parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(F(z, weights, 3), expected)
    goal = Picard(rtol=1e-13, atol=0.0, max_steps=200)

    def solved(z, *W):
        return solve(lambda x, *W: F(x, list(W), 3), z, W, solver=goal, gradient=Implicit(goal)).value

    assert torch.autograd.gradcheck(solved, (z.requires_grad_(), *weights), fast_mode=True)


def test_iterations_converge_to_the_inner_inverses():
    F, x = contraction(coeff=0.5), points(3)
    W = F.weights()
    torch.testing.assert_close(F(x, W, 60), F(x, W, 70), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(F(x, W, 1), F(x, W, 2))


def test_a_nested_contraction_wants_to_know_how_often():
    F = contraction()
    with pytest.raises(ValueError, match="n_iter is missing"):
        F(points(1), F.weights())
    flat = contraction(12)
    assert torch.equal(flat(points(1), flat.weights()), flat(points(1), flat.weights(), 5))


@pytest.mark.parametrize(
    ("acts", "slopes"),
    [
        ([nn.ReLU] * 4, [1.0] * 4),
        ([nn.GELU] * 4, [1.1289041452] * 4),
        ([nn.SiLU] * 4, [1.0998393202] * 4),
        ([nn.Tanh, nn.ReLU, nn.Sigmoid, nn.Softplus], [1.0, 1.0, 0.25, 1.0]),
        ([lambda: nn.Softmax(-1), nn.GELU, nn.Identity, nn.Tanh], [0.5, 1.1289041452, 1.0, 1.0]),
    ],
    ids=["relu", "gelu", "silu", "mixed", "softmax"],
)
@pytest.mark.parametrize("coeff", [0.4, 0.55])
@pytest.mark.parametrize("layers", [3, 4, 5])
def test_no_jacobian_is_larger_than_the_bound(layers, acts, slopes, coeff):
    F = contraction((12, 10, 9)[: layers - 2], 20.0, act_layer=acts[: layers - 1], coeff=coeff)
    W, bound = F.weights(), contraction_bound(coeff, slopes[: layers - 1])
    assert all(abs(exact_sigma(w) - coeff) < 1e-9 for w in W if w.dim() == 2)  # the ceilings bind
    for n_iter in (2, 12):
        jacobian = torch.func.vmap(torch.func.jacrev(lambda x, n=n_iter: F(x, W, n)))
        largest = max(torch.linalg.matrix_norm(jacobian(r * points(300)), ord=2).max() for r in (0.1, 1.0, 10.0))
        assert largest <= bound


def test_a_linear_chain_attains_the_bound():
    """So that it is the best there is: aligned rank-one couplings, identities, the whole inverse."""
    F = contraction(act_layer=nn.Identity, coeff=0.5, norm="none")
    with torch.no_grad():
        for module in F.modules():
            if isinstance(module, nn.Linear):
                module.weight.zero_()[0, 0] = 0.5
    jacobian = torch.func.jacrev(lambda x: F(x, F.weights(), 60))(points(1)[0])
    assert exact_sigma(jacobian).item() == pytest.approx(contraction_bound(0.5, [1.0] * 4))


# --- symmetric couplings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["spectral", "none", "batch"])
def test_tied_couplings_are_transposes_and_one_parameter_each(norm):
    F = contraction(tied=True, norm=norm)
    W = F.weights()
    for way, back in zip(W[::4], W[1::4], strict=True):
        assert torch.equal(back, way.t())
    assert [n for n, _ in F.named_parameters() if n.endswith("fc2.weight")] == []
    assert isinstance(F.inner.fc2, TransposedLinear)
    assert F.fc2.bias.shape == (8,)


def test_tied_couplings_share_one_normalisation(monkeypatch):
    calls = []
    original = SpectralLinear.normalized_weight
    monkeypatch.setattr(SpectralLinear, "normalized_weight", lambda self: (calls.append(self), original(self))[1])
    F = contraction(tied=True, coeff=0.7)
    assert all(exact_sigma(W).item() == pytest.approx(0.7) for W in F.weights() if W.dim() == 2)
    assert len(calls) == 3


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", ["spectral", "none", "batch"])
def test_a_nest_folds(norm, tied):
    F, x = contraction(norm=norm, tied=tied, coeff=0.5, scale=1.0), points(32)
    for _ in range(3):
        F.train()(x, F.weights(), 2)  # moves the batch statistics
    folded = fold(F)
    assert {type(m) for m in folded.modules()} <= {Contraction, nn.Linear, nn.GELU, nn.Identity}
    F.eval()
    torch.testing.assert_close(folded(x, folded.weights(), 2), F(x, F.weights(), 2), rtol=1e-10, atol=1e-10)


def test_activations_must_be_one_more_than_the_inner_widths():
    with pytest.raises(ValueError, match="act_layer has 2 entries; 2 inner widths"):
        Contraction(8, (8, 8), [nn.GELU] * 2)

"""The transforms of torch.func over `solve` give what they give of many unrolled steps."""

import pytest
import torch
from problems import TIGHT, randn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from imixer.implicit import Anderson, CheckpointedUnroll, FixedIterations, Implicit, NotConvergedError, Unroll, solve
from imixer.implicit.solvers import Picard
from imixer.models.imlp import IMLP

MANY = FixedIterations(40)
WAYS = {
    "unroll": (Anderson(**TIGHT), Unroll()),
    "fixed": (MANY, Unroll()),
    "recompute": (MANY, CheckpointedUnroll()),
    "implicit": (Anderson(**TIGHT), Implicit(Anderson(**TIGHT))),
}
z, W = randn(2, 3), 0.15 * randn(3, 3, seed=1)
two_z, two_W = torch.stack([z, 2 * z]), torch.stack([W, 0.5 * W])
TRANSFORMS = {
    "grad": lambda f, L: grad(L, argnums=(0, 1))(z, W),
    "jacrev": lambda f, L: jacrev(f, argnums=(0, 1))(z, W),
    "jacfwd": lambda f, L: jacfwd(f, argnums=(0, 1))(z, W),
    "jvp": lambda f, L: jvp(f, (z, W), (2 * z, W.T)),
    "hessian": lambda f, L: hessian(L, argnums=1)(z, W),
    "reverse twice": lambda f, L: jacrev(jacrev(L, argnums=1), argnums=0)(z, W),
    "vmap": lambda f, L: vmap(f, in_dims=(1, None))(two_z.transpose(0, 1), W),
    "vmap over weights": lambda f, L: vmap(f, in_dims=(None, 0))(z, two_W),
    "gradients per sample": lambda f, L: vmap(grad(L, argnums=1), in_dims=(0, None))(z[:, None], W),
    "vmap of vmap": lambda f, L: vmap(vmap(f, in_dims=(None, 0)), in_dims=(0, None))(two_z, two_W),
}


def F(x, W):
    return (x @ W).tanh()


def steps(z, W):
    """Written out, without `solve`."""
    x = z
    for _ in range(40):
        x = z + F(x, W)
    return x


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_of_every_gradient(way, name):
    solver, gradient = WAYS[way]

    def value(z, W):
        return solve(F, z, W, solver=solver, gradient=gradient).value

    found = TRANSFORMS[name](value, lambda z, W: value(z, W).sin().sum())
    expected = TRANSFORMS[name](steps, lambda z, W: steps(z, W).sin().sum())
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_where_no_gradient_is_recorded(way, name, mode):
    """With two steps, whose own derivative is another than the equation's."""
    _, gradient = WAYS[way]
    solver = FixedIterations(2)

    def value(z, W):
        return solve(F, z, W, solver=solver, gradient=gradient).value

    expected = TRANSFORMS[name](value, lambda z, W: value(z, W).sin().sum())
    with mode():
        found = TRANSFORMS[name](value, lambda z, W: value(z, W).sin().sum())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gradient", ["unroll", "recompute", "implicit"])
def test_no_grad_inside_a_jvp_changes_no_derivative(gradient):
    def value(z):
        return solve(F, z, W, gradient=gradient).value

    expected = jvp(value, (z,), (z,))
    torch.testing.assert_close(jvp(torch.no_grad()(value), (z,), (z,)), expected)


@torch.no_grad()
def test_early_exit_is_refused_where_derivatives_are_taken():
    """What it remembers of samples that rest would have the derivatives of an earlier step."""

    def value(z, W):
        return solve(F, z, W, solver=Picard(), early_exit=True).value

    for name in ("jvp", "jacfwd"):
        with pytest.raises(ValueError, match=r"early_exit is for inference, .* leave early_exit out"):
            TRANSFORMS[name](value, None)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ValueError, match="leave early_exit out"):
        value(z, torch.autograd.forward_ad.make_dual(W, W))


def as_dict(z):
    return {"v": z, "h": 2 * z}


def as_complex(z):
    return (torch.complex(z, z.flip(1)),)


def apart(x, W):
    """F of either structure."""
    if isinstance(x, dict):
        return {"v": (x["h"] @ W).sin(), "h": (x["v"] @ W.T).tanh()}
    return (torch.complex((x[0].real @ W).tanh(), x[0].imag.sin() / 2),)


def parts(x):
    return torch.cat([x["v"], x["h"]], 1) if isinstance(x, dict) else torch.view_as_real(x[0]).flatten(-2)


@pytest.mark.parametrize("structure", [as_dict, as_complex])
@pytest.mark.parametrize("way", ["fixed", "recompute", "implicit"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_of_structured_states(way, name, structure):
    solver, gradient = WAYS[way]

    def value(z, W):
        return parts(solve(apart, structure(z), W, solver=solver, gradient=gradient).value)

    def written_out(z, W):
        first = x = structure(z)
        for _ in range(40):
            y = apart(x, W)
            x = {key: first[key] + y[key] for key in x} if isinstance(x, dict) else (first[0] + y[0],)
        return parts(x)

    found = TRANSFORMS[name](value, lambda z, W: value(z, W).sin().sum())
    expected = TRANSFORMS[name](written_out, lambda z, W: written_out(z, W).sin().sum())
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("terms", [1, 3])
def test_the_series_of_the_gradient_is_cut_off_there_too_and_is_the_last(terms):
    def loss(W):
        solver = Anderson(**TIGHT)
        return solve(F, z, W, solver=solver, gradient=Implicit(FixedIterations(terms - 1))).value.sin().sum()

    leaf = W.clone().requires_grad_()
    torch.testing.assert_close(grad(loss)(W), torch.autograd.grad(loss(leaf), leaf)[0])
    with pytest.raises(RuntimeError, match="no second derivative"):
        hessian(loss)(W)


@pytest.mark.parametrize("adjoint", [FixedIterations(0), FixedIterations(2), Anderson(**TIGHT)], ids=repr)
@pytest.mark.parametrize("name", ["grad", "jvp", "reverse twice", "gradients per sample"])
def test_what_f_draws_is_drawn_again_in_every_derivative(name, adjoint):
    if name == "reverse twice" and isinstance(adjoint, FixedIterations):
        pytest.skip("which has no second derivative")

    def masked(x, W, *masks):
        return (masks[0] if masks else torch.rand_like(x) < 0.5) * (x @ W)

    def loss(*tensors):
        return (
            solve(masked, tensors[0], tensors[1:], solver=FixedIterations(1), gradient=Implicit(adjoint))
            .value.sin()
            .sum()
        )

    transforms = {
        "grad": lambda f, z, W, *masks: grad(f, argnums=(0, 1))(z, W, *masks),
        "jvp": lambda f, z, W, *masks: jvp(lambda z, W: f(z, W, *masks), (z, W), (2 * z, W.T)),
        "reverse twice": lambda f, z, W, *masks: grad(lambda z: grad(f, argnums=1)(z, W, *masks).sin().sum())(z),
        "gradients per sample": lambda f, z, W, *masks: vmap(
            grad(f, argnums=1), in_dims=(0, None, *[0 for _ in masks]), randomness="different"
        )(z[:, None], W, *(mask[:, None] for mask in masks)),
    }
    torch.manual_seed(4)
    mask = torch.rand_like(z) < 0.5
    assert mask.any() and not mask.all()
    expected = transforms[name](loss, z, W, mask)
    after = torch.get_rng_state()
    torch.manual_seed(4)
    torch.testing.assert_close(transforms[name](loss, z, W), expected)
    assert torch.equal(torch.get_rng_state(), after)  # drawn once, as far as anybody sees


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("gradient", [Implicit(), CheckpointedUnroll()], ids=repr)
def test_dual_numbers_outside_torch_func_are_refused_with_the_remedy(gradient, mode):
    said = "dual numbers do not go through"
    with mode(), torch.autograd.forward_ad.dual_level():
        solve(F, z, W, gradient=gradient)  # which is none
        with pytest.raises(RuntimeError, match=said):
            solve(F, z, torch.autograd.forward_ad.make_dual(W, W), gradient=gradient)


def test_what_f_depends_on_must_be_handed_over():
    with pytest.raises(ValueError, match="not among its arguments; let F take it"):
        grad(lambda W: solve(lambda x: F(x, W), z, solver="anderson", gradient="implicit").value.sum())(W)


def test_failures_among_all_that_is_mapped_over_are_counted():
    with pytest.raises(NotConvergedError, match="2 of 4 samples are not finite from step 1"):
        vmap(lambda z: solve(lambda x: 0.5 * x, z, solver=Picard()).value)(torch.stack([z, z / 0]))
    with pytest.raises(NotConvergedError, match="2 of 4 samples did not converge in 3 steps"):
        vmap(lambda a: solve(lambda x: a * x, z, solver=Picard(max_steps=3)).value)(torch.tensor([0.0, 0.9]).double())


@pytest.mark.parametrize("options", [{}, dict(solver="anderson", gradient="implicit", tolerance=1e-12)], ids=str)
def test_gradients_per_sample_of_a_model(options):
    model = IMLP(4, 6, **options).double().eval()
    weights, x = dict(model.named_parameters()), randn(3, 2, 4)

    def loss(weights, x):
        return functional_call(model, weights, (x[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for i in range(3):
        expected = torch.autograd.grad(loss(weights, x[i]), list(weights.values()))
        for name, each in zip(weights, expected, strict=True):
            torch.testing.assert_close(found[name][i], each, rtol=1e-7, atol=1e-9)

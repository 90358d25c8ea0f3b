"""Convolutions keep their ceiling, and monotone layers their fixed point, against dense matrices."""

import pytest
import torch
from problems import TIGHT, leaf, randn
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from imixer.implicit import (
    Anderson,
    Implicit,
    MonotoneContraction,
    SpectralConv1d,
    SpectralConv2d,
    SpectralConv3d,
    convolution_sigma,
    solve,
)


def dense(f, *shape):
    """The matrix of a linear map of images."""
    unit = torch.eye(int(torch.tensor(shape).prod()), dtype=torch.float64).view(-1, *shape)
    return f(unit).flatten(1).T


@pytest.mark.parametrize("size", [(3, 3), (4, 5), (6, 3)])
@pytest.mark.parametrize(("out", "into"), [(2, 3), (3, 1)])
def test_the_norm_of_a_convolution_is_that_of_its_matrix(size, out, into):
    kernel = randn(out, into, 3, 3)

    def convolved(mode):
        return lambda x: torch.nn.functional.conv2d(torch.nn.functional.pad(x, [1] * 4, mode=mode), kernel)

    exact = torch.linalg.matrix_norm(dense(convolved("circular"), into, *size), 2)
    torch.testing.assert_close(convolution_sigma(kernel, size), exact)
    zeros = torch.linalg.matrix_norm(dense(convolved("constant"), into, *size), 2)
    bound = convolution_sigma(kernel, size, "zeros")
    assert zeros <= bound < 2 * zeros


SHAPES = {
    "1d": (SpectralConv1d, 3, (6,), {}),
    "1d, groups and dilation": (SpectralConv1d, 3, (7,), dict(groups=2, dilation=3)),
    "2d, groups": (SpectralConv2d, 3, (4, 5), dict(groups=2)),
    "2d, depthwise": (SpectralConv2d, 3, (4, 5), dict(groups=4)),
    "2d, dilation": (SpectralConv2d, 3, (5, 6), dict(dilation=2)),
    "2d, two kernel sizes": (SpectralConv2d, (1, 3), (3, 5), {}),
    "3d": (SpectralConv3d, 3, (3, 3, 4), dict(groups=4)),
}


@pytest.mark.parametrize("mode", ["circular", "zeros", "reflect", "replicate"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_of_every_kind_of_convolution_is_that_of_its_matrix(shape, mode):
    kind, kernel, size, options = SHAPES[shape]
    torch.manual_seed(0)
    layer = kind(4, 4, kernel, size, padding_mode=mode, coeff=1e9, dtype=torch.float64, **options)
    twin = getattr(torch.nn, kind.__name__.removeprefix("Spectral"))(
        4, 4, kernel, padding="same", padding_mode=mode, dtype=torch.float64, **options
    )
    twin.load_state_dict(layer.state_dict())
    x = randn(2, 4, *size)
    torch.testing.assert_close(layer(x), twin(x))
    exact = torch.linalg.matrix_norm(dense(lambda x: layer(x, bias=torch.zeros(4).double()), 4, *size), 2)
    if mode == "circular":
        torch.testing.assert_close(float(exact.detach()), layer.lipschitz_bound())
    assert exact <= layer.lipschitz_bound() * (1 + 1e-12)
    held = kind(4, 4, kernel, size, padding_mode=mode, coeff=0.1, sigma="power", dtype=torch.float64, **options).eval()
    held.load_state_dict(layer.state_dict() | {"v": held.v})
    held.warm_up()
    held.warm_up()
    norm = torch.linalg.matrix_norm(dense(lambda x: held(x, bias=torch.zeros(4).double()), 4, *size), 2)
    assert 0.1 * (1 - 1e-9) <= float(norm.detach()) < 0.11  # from below, and groups have norms like each other


@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize("scale", [0.01, 10])
def test_a_convolution_stays_below_its_ceiling(mode, scale):
    layer = SpectralConv2d(2, 2, 3, (4, 5), padding_mode=mode, coeff=0.8).double()
    with torch.no_grad():
        layer.weight.mul_(scale)
    norm = torch.linalg.matrix_norm(dense(lambda x: layer(x, bias=torch.zeros(2).double()), 2, 4, 5), 2)
    assert norm <= layer.lipschitz_bound() + 1e-12 <= 0.8 + 2e-12
    if mode == "circular":
        torch.testing.assert_close(float(norm), layer.lipschitz_bound())


def test_a_detached_ceiling_lets_a_kernel_come_down_and_the_papers_does_not():
    radial = {}
    for detach in (True, False):
        torch.manual_seed(0)
        layer = SpectralConv2d(2, 2, 3, (4, 4), coeff=0.1, detach_sigma=detach).double()
        layer(randn(3, 2, 4, 4)).square().sum().backward()
        radial[detach] = float((layer.weight.grad * layer.weight).sum())
    assert radial[True] > 1e-3 and abs(radial[False]) < 1e-12


def test_the_gradient_of_the_norm_is_finite_differences():
    assert gradcheck(lambda kernel: convolution_sigma(kernel, (4, 4)), leaf(randn(2, 2, 3, 3)))


def by_power(sigma="power"):
    torch.manual_seed(0)
    return SpectralConv2d(2, 2, 3, (4, 4), sigma=sigma, coeff=0.2, n_power_iterations=1, dtype=torch.float64)


def test_the_replay_of_a_checkpointed_convolution_leaves_the_power_iteration_alone():
    plain, replayed, x = by_power().train(), by_power().train(), randn(3, 2, 4, 4)
    with torch.no_grad():
        for layer in (plain, replayed):
            layer.weight.add_(randn(2, 2, 3, 3))  # so that the iteration is not at rest
    plain(x).square().sum().backward()
    checkpoint(replayed, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(plain.v, replayed.v) and torch.equal(plain.weight.grad, replayed.weight.grad)


def test_a_convolution_is_built_and_run_in_training_mode_under_inference_mode():
    here, x = by_power().train(), randn(3, 2, 4, 4)
    with torch.inference_mode():
        there = by_power().train()
        assert torch.equal(there(x), here(x))
    assert torch.equal(there.v, here.v)
    here(x).sum().backward()


@pytest.mark.parametrize("strict", [True, False])
def test_a_kernel_loaded_without_a_vector_is_warmed_up_and_a_vector_that_nothing_needs_is_dropped(strict):
    other, held = by_power("fourier"), by_power()
    with torch.no_grad():
        other.weight.copy_(8 * randn(2, 2, 3, 3, seed=1))
    held.load_state_dict(other.state_dict(), strict=strict)
    torch.testing.assert_close(held.sigma(), other.sigma(), rtol=1e-3, atol=0)
    other.load_state_dict(held.state_dict(), strict=strict)
    assert other.v is None
    twin = by_power()
    twin.load_state_dict(held.state_dict(), strict=strict)
    assert torch.equal(twin.v, held.v)  # one that comes with its kernel stays as it is


def test_a_monotone_layer_of_any_norm_has_the_fixed_point_of_its_equation():
    torch.manual_seed(0)
    layer = MonotoneContraction(4, 3).double()
    with torch.no_grad():
        layer.B.weight.mul_(3)
    A, B = layer.A.weight.detach(), layer.B.weight.detach()
    W = 0.5 * torch.eye(4) - A.T @ A - B + B.T
    assert torch.linalg.matrix_norm(W, 2) > 1 > layer.lipschitz_bound()
    u, z = randn(5, 3), torch.zeros(5, 4).double()
    weights = tuple(layer.weights())
    for start in (z, 9 * randn(5, 4, seed=3)):
        x = solve(layer, z, (u, *weights), solver=Anderson(**TIGHT), start=start).value.detach()
        torch.testing.assert_close(x, torch.relu(x @ W.T + u @ layer.U.weight.T + layer.U.bias).detach())
    J = torch.func.vmap(torch.func.jacrev(lambda x, u: layer(x, u, *weights)))(x + 1, u)
    assert float(torch.linalg.matrix_norm(J, 2).max()) <= layer.lipschitz_bound() + 1e-12


def test_gradients_of_a_monotone_layer_are_finite_differences():
    torch.manual_seed(0)
    layer, u = MonotoneContraction(3, 2).double(), leaf(randn(2, 2))

    def value(u, A, B):
        weights = torch.func.functional_call(_Weights(layer), {"layer.A.weight": A, "layer.B.weight": B}, ())
        z = torch.zeros(2, 3).double()
        gradient = Implicit(Anderson(**TIGHT))
        return solve(layer, z, (u, *weights), solver=Anderson(**TIGHT), gradient=gradient).value

    assert gradcheck(value, (u, leaf(layer.A.weight), leaf(layer.B.weight)), fast_mode=True)


class _Weights(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.weights()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: SpectralConv2d(2, 2, 4, (8, 8)), "kernel_size is 4, which has no middle; give an odd one"),
        (lambda: SpectralConv2d(2, 2, 5, (4, 8)), r"size is \(4, 8\), less than the kernel's \(5, 5\); give a larger"),
        (lambda: SpectralConv2d(2, 2, 3, (8, 8), padding_mode="mirror"), "padding_mode is 'mirror'; choose circular"),
        (lambda: SpectralConv2d(2, 2, 3, (8, 8), coeff=0), "coeff is 0; the spectral norm ceiling must be above 0"),
        (
            lambda: SpectralConv2d(2, 2, 3, (8, 8))(torch.ones(1, 2, 4, 8)),
            r"images are \(4, 8\), and the norm is known",
        ),
        (
            lambda: SpectralConv2d(2, 2, (3, 4), (8, 8)),
            r"kernel_size is \(3, 4\), which has no middle; give an odd one",
        ),
        (lambda: SpectralConv2d(2, 2, 3.5, (8, 8)), "kernel_size is 3.5; give one odd number, or 2"),
        (lambda: SpectralConv2d(2, 2, 3, (8, 8), dilation=4), r"less than the kernel's \(9, 9\); give a larger"),
        (lambda: SpectralConv2d(2, 2, 3, (8, 8), dilation=0), "dilation and groups are 0 and 1, .*; give 1 or more"),
        (lambda: SpectralConv2d(2, 4, 3, (8, 8), groups=4), "groups is 4, for 2 channels in and 4 out; give a divisor"),
        (lambda: SpectralConv1d(2, 2, 3, (8, 8)), r"size is \(8, 8\); give the length of the sequences"),
        (lambda: SpectralConv3d(2, 2, 3, (8, 8)), r"size is \(8, 8\); give 3 sizes, such as \(8, 8, 8\)"),
        (lambda: convolution_sigma(torch.ones(2, 2), (8, 8)), r"the kernel is \(2, 2\); give \(O, I, \*k\)"),
        (lambda: SpectralConv1d(2, 2, 3, 8)(torch.ones(2, 8)), "images are .*, and the norm is known for"),
        (lambda: MonotoneContraction(3, 2, margin=0), "margin is 0; give a strong monotonicity above 0"),
    ],
)
def test_bad_layers_are_refused_with_the_remedy(call, said):
    with pytest.raises(ValueError, match=said):
        call()

"""States of any structure are solved as one, and what cannot be solved for is refused in a sentence."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from problems import TIGHT, TO_TOLERANCE, leaf, randn
from torch.autograd import gradcheck

from imixer.implicit import CheckpointedUnroll, FixedIterations, Implicit, Unroll, solve
from imixer.implicit.solvers import Anderson, Broyden, Picard

A, B = 0.3 * randn(3, 2, seed=5), 0.3 * randn(2, 3, seed=6)
Pair = namedtuple("Pair", ["h", "c"])


def coupled(x, A, B):
    """Two neurons that see each other, of different widths."""
    return {"h": x["c"].tanh() @ B.T, "c": x["h"].tanh() @ A.T}


def joined(z):
    return torch.cat([z["h"], z["c"]], 1)


def newton(z, A, B):
    """By Newton's method on both at once, in numpy."""
    A, B, h, c = (t.detach().numpy() for t in (A, B, z["h"], z["c"]))
    found = []
    for z_h, z_c in zip(h, c, strict=True):
        x = np.concatenate([z_h, z_c])
        for _ in range(50):
            gap = x - np.concatenate([z_h + B @ np.tanh(x[2:]), z_c + A @ np.tanh(x[:2])])
            J = np.eye(5)
            J[:2, 2:] = -B * (1 - np.tanh(x[2:]) ** 2)
            J[2:, :2] = -A * (1 - np.tanh(x[:2]) ** 2)
            x = x - np.linalg.solve(J, gap)
        found.append(x)
    return torch.tensor(np.array(found))


@pytest.mark.parametrize("name", TO_TOLERANCE)
def test_a_dict_is_solved_as_by_newtons_method(name):
    z = {"h": randn(4, 2), "c": randn(4, 3, seed=1)}
    solution = solve(coupled, z, (A, B), solver=TO_TOLERANCE[name])
    torch.testing.assert_close(joined(solution.value), newton(z, A, B), rtol=1e-10, atol=1e-11)
    assert solution.value.keys() == z.keys() and solution.converged.shape == (4,)


def test_a_solution_is_of_the_class_of_its_state():
    z = OrderedDict(h=randn(4, 2), c=randn(4, 3))
    assert type(solve(coupled, z, (A, B)).value) is OrderedDict


@pytest.mark.parametrize("gradient", [Unroll(), Implicit(Anderson(**TIGHT)), CheckpointedUnroll()], ids=repr)
def test_gradients_of_a_dict_are_finite_differences(gradient):
    fixed = isinstance(gradient, CheckpointedUnroll)

    def value(h, c, A, B):
        solver = FixedIterations(5) if fixed else Anderson(**TIGHT)
        x = solve(coupled, {"h": h, "c": c}, (A, B), solver=solver, gradient=gradient).value
        return x["h"], x["c"]

    assert gradcheck(value, (leaf(randn(2, 2)), leaf(randn(2, 3, seed=1)), leaf(A), leaf(B)), fast_mode=True)


@pytest.mark.parametrize("solver", [FixedIterations(7), Anderson(**TIGHT)], ids=["fixed", "anderson"])
def test_every_nesting_gives_the_same(solver):
    h, c = randn(4, 2), randn(4, 3, seed=1)
    expected = joined(solve(coupled, {"h": h, "c": c}, (A, B), solver=solver).value)

    def F(x, A, B):
        return x[1].tanh() @ B.T, x[0].tanh() @ A.T

    def nested(x, A, B):
        h, c = F((x["both"][0], x["both"][1]["c"]), A, B)
        return {"both": [h, {"c": c}]}

    def named(x, A, B):
        return Pair(*F((x.h, x.c), A, B))

    for G, z, unpack in (
        (F, (h, c), tuple),
        (nested, {"both": [h, {"c": c}]}, lambda x: (x["both"][0], x["both"][1]["c"])),
        (named, Pair(h, c), lambda x: (x.h, x.c)),
    ):
        value = solve(G, z, (A, B), solver=solver).value
        assert type(value) is type(z)
        torch.testing.assert_close(torch.cat(unpack(value), 1), expected, rtol=1e-12, atol=1e-12)


def test_keys_are_matched_by_name():
    z = {"h": randn(4, 2), "c": randn(4, 3, seed=1)}
    turned = solve(lambda x, A, B: dict(reversed(coupled(x, A, B).items())), z, (A, B), solver="anderson").value
    torch.testing.assert_close(turned, solve(coupled, z, (A, B), solver="anderson").value)


def test_dtypes_are_kept_and_shapes_may_differ_in_rank():
    z = {
        "image": torch.randn(3, 2, 4, 4),
        "phase": torch.randn(3, dtype=torch.complex128),
        "scale": torch.ones(3).half(),
    }
    value = solve(lambda x: {key: 0.5 * each for key, each in x.items()}, z, solver=Picard(**TIGHT)).value
    for key, each in z.items():
        assert value[key].dtype == each.dtype and value[key].shape == each.shape
        torch.testing.assert_close(value[key], 2 * each)


@pytest.mark.parametrize("name", TO_TOLERANCE)
def test_complex_states_are_those_of_the_linear_system(name):
    W = 0.2 * torch.complex(randn(4, 4), randn(4, 4, seed=1))
    z = torch.complex(randn(3, 4, seed=2), randn(3, 4, seed=3))
    expected = torch.linalg.solve(torch.eye(4) - W, z.T).T
    torch.testing.assert_close(solve(lambda x, W: x @ W.T, z, W, solver=TO_TOLERANCE[name]).value, expected)
    # Not holomorphic: x = z + a conj(x) is x = (z + a conj(z)) / (1 - |a|^2).
    x = solve(lambda x: 0.4j * x.conj(), z, solver=TO_TOLERANCE[name]).value
    torch.testing.assert_close(x, (z + 0.4j * z.conj()) / (1 - 0.16))


@pytest.mark.parametrize("gradient", [Unroll(), Implicit(Broyden(**TIGHT))], ids=["unroll", "implicit"])
def test_gradients_of_complex_states_are_finite_differences(gradient):
    W = leaf(0.2 * torch.complex(randn(3, 3), randn(3, 3, seed=1)))
    z = leaf(torch.complex(randn(2, 3, seed=2), randn(2, 3, seed=3)))

    def value(z, W):
        return solve(lambda x, W: (x @ W.T).sin(), 0.1 * z, W, solver=Broyden(**TIGHT), gradient=gradient).value

    assert gradcheck(value, (z, W))


@torch.no_grad()
def test_early_exit_cuts_inputs_per_sample_and_states_of_any_structure():
    """F(x, u) with u per sample."""
    z, u = {"h": randn(4, 2), "c": randn(4, 3, seed=1)}, torch.tensor([0.0, 0.5, 0.8, 0.99]).double()[:, None]
    seen = []

    def F(x, u, A, B):
        seen.append(len(u))
        return {key: u * each for key, each in coupled(x, A, B).items()}

    solver = Picard(**TIGHT)
    plain = solve(F, z, (u, A, B), solver=solver)
    seen.clear()
    early = solve(F, z, (u, A, B), solver=solver, early_exit=True)
    torch.testing.assert_close(early.value, plain.value, rtol=1e-12, atol=1e-13)
    assert sum(seen) < 4 * plain.n_evaluations and min(seen) == 1
    each = [solve(F, {k: v[i, None] for k, v in z.items()}, (u[i, None], A, B), solver=solver).value for i in range(4)]
    torch.testing.assert_close(joined(plain.value), torch.cat([joined(x) for x in each]), rtol=1e-12, atol=1e-13)


h, c = randn(4, 2), randn(4, 3)


@pytest.mark.parametrize(
    ("F", "z", "said"),
    [
        (lambda x: x, torch.ones(3, dtype=torch.int64), r"blocks\.3: z is of int64; convert it, z\.float\(\)"),
        (lambda x: x, {"n": torch.ones(3).bool()}, r"z\['n'\] is of bool; convert it, z\['n'\]\.float\(\)"),
        (lambda x: x, (h, torch.tensor(1.0)), r"z\[1\] has no axis of samples; give it one, z\[1\]\[None\]"),
        (lambda x: x, (h, 3.0), r"z\[1\] is float; give a tensor, or drop it from z"),
        (lambda x: x, (), r"z is \(\); give it a tensor"),
        (lambda x: x, None, r"z is NoneType; give a tensor"),
        (lambda x: x, (h, c[:2]), r"z\[0\] holds 4 samples and z\[1\] 2; give"),
        (lambda x: x[0], (h, c), r"F leads to Tensor, and z is \(Tensor, Tensor\); let it give back what z is"),
        (
            lambda x: {"h": x["h"]},
            {"h": h, "c": c},
            r"F leads to \{'h': Tensor\}, and z is \{'h': Tensor, 'c': Tensor\}",
        ),
        (lambda x: (x[0], (x[1],)), (h, c), r"F leads to \(Tensor, \(Tensor\)\), and z is"),
        (lambda x: (x[1], x[0]), (h, c), r"F leads to \(4, 3\) at \[0\], and z is of shape \(4, 2\); let"),
        (lambda x: (x[0].sum(), x[1]), (h, c), r"F leads to \(\) at \[0\], and z is of shape \(4, 2\); let"),
        (lambda x: (x[0][:2], x[1][:2]), (h, c), r"F leads from shape \(4, 5\) to \(2, 5\)"),
        (lambda x: (x[0] + 0j, x[1]), (h, c), r"F leads to complex128 at \[0\], and z is float64; convert one of them"),
    ],
)
@pytest.mark.parametrize("gradient", ["unroll", "implicit"])
def test_what_cannot_be_a_state_is_said_in_a_sentence(F, z, said, gradient):
    with pytest.raises(ValueError, match=said):
        solve(F, z, gradient=gradient, name="blocks.3")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda x: (0.1 * x,), r"solve: F leads from Tensor to \(Tensor\); let it give back what z is"),
        (lambda x: None, "solve: F leads from Tensor to NoneType; let it give back what z is"),
        (lambda x: {"x": x}, r"solve: F leads from Tensor to {'x': Tensor}; let it"),
        (lambda x: x[:2], r"solve: F leads from shape \(3, 4\) to \(2, 4\); let it give back what z is"),
        (3, "solve: F is int; give a function"),
    ],
)
def test_an_f_that_leads_elsewhere_is_refused_in_a_sentence(given, said):
    with pytest.raises(ValueError, match=said):
        solve(given, torch.ones(3, 4))


@pytest.mark.parametrize(
    ("given", "said"),
    [(0.1, "tensors is float; give a tensor"), (None, "tensors is NoneType"), ((0.1,), r"tensors\[0\] is float; give")],
)
def test_what_f_depends_on_is_tensors(given, said):
    with pytest.raises(ValueError, match=said):
        solve(lambda x, a: a * x, torch.ones(3, 4), given)

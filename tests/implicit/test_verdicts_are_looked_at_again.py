"""That a sample has converged is looked at again; what is computed twice is the same twice; one failure stays one."""

import pytest
import torch
from problems import TO_TOLERANCE, leaf, randn
from torch import nn

from imixer.implicit.gradients import CheckpointedUnroll, Implicit, Unroll
from imixer.implicit.solution import NotConvergedError
from imixer.implicit.solve import solve
from imixer.implicit.solvers import Anderson, Broyden, FixedIterations, Picard

GRADIENTS = {"steps": Unroll(), "implicit": Implicit(), "implicit by broyden": Implicit(Broyden(rtol=1e-8))}


def path(nodes: int = 6) -> torch.Tensor:
    """A graph's normalised adjacency: each node sees its neighbours."""
    A = torch.zeros(nodes, nodes, dtype=torch.float64)
    for i in range(nodes - 1):
        A[i, i + 1] = A[i + 1, i] = 0.45
    return A


def impulse() -> torch.Tensor:
    """Only the first node has an input: the others are at rest until it reaches them."""
    z = torch.zeros(6, 2, dtype=torch.float64)
    z[0] = 1.0
    return z


# Samples that are none


@pytest.mark.parametrize("name", TO_TOLERANCE)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_f_that_couples_the_first_axis_is_named_or_solved(name, gradient):
    A, W = path(), leaf(0.9 * torch.eye(2, dtype=torch.float64))
    with pytest.raises(NotConvergedError, match=r"blocks\.3: \d of 6 samples .* z\[None\]"):
        solve(
            lambda x, W: A @ x @ W,
            impulse(),
            (W,),
            solver=TO_TOLERANCE[name],
            gradient=GRADIENTS[gradient],
            name="blocks.3",
        )
    found = solve(
        lambda x, W: A @ x @ W,
        impulse(),
        (W,),
        solver=TO_TOLERANCE[name],
        gradient=GRADIENTS[gradient],
        on_failure="ignore",
    )
    assert not found.converged.all() and found.relapsed.any()
    as_said = solve(
        lambda x, W: A @ x @ W, impulse()[None], (W,), solver=TO_TOLERANCE[name], gradient=GRADIENTS[gradient]
    )
    truth = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - 0.9 * A, impulse())
    torch.testing.assert_close(as_said.value[0], truth, rtol=1e-9, atol=1e-10)
    assert as_said.converged.all() and not as_said.relapsed.any()


@pytest.mark.parametrize(
    "adjoint", [Picard(rtol=1e-9, atol=0.0), Anderson(rtol=1e-9), Broyden(rtol=1e-9)], ids=lambda s: type(s).__name__
)
def test_an_adjoint_that_couples_the_first_axis_is_named(adjoint):
    """The solution of fixed iterations is right, only its gradient would come by parts."""
    A, z = path(), leaf(randn(6, 2))
    x = solve(lambda x: A @ x, z, solver=FixedIterations(200), gradient=Implicit(adjoint)).value
    with pytest.raises(NotConvergedError, match=r"solve, gradient: .* z\[None\]"):
        x[5].sum().backward()
    whole = solve(lambda x: A @ x, z[None], solver=FixedIterations(200), gradient=Implicit(adjoint)).value
    g = torch.autograd.grad(whole[0, 5].sum(), z)[0]
    torch.testing.assert_close(
        g[:, 0], torch.linalg.inv(torch.eye(6, dtype=torch.float64) - A)[5], rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    "F",
    [
        lambda x: 0.9 * x.mean(0, keepdim=True).expand_as(x),
        lambda x: 0.9 * x.roll(1, 0),
        lambda x: 0.9 * x.flip(0),
        lambda x: 0.9 * x.cumsum(0) / torch.arange(1, 7, dtype=x.dtype)[:, None],
        lambda x: 0.9 * torch.softmax(x @ x.T, 1) @ x,
    ],
    ids=["mean", "roll", "flip", "cumsum", "attention"],
)
@pytest.mark.parametrize("name", TO_TOLERANCE)
def test_no_coupling_gives_a_wrong_value_in_silence(F, name):
    for z in (impulse(), randn(6, 2)):
        try:
            x = solve(F, z, solver=TO_TOLERANCE[name]).value
        except NotConvergedError:
            continue
        assert (z + F(x) - x).norm() <= 1e-10 * x.norm()


@pytest.mark.parametrize("made", [Picard(rtol=1e-6), Anderson(rtol=1e-6), Broyden(rtol=1e-6)], ids=str)
def test_batch_norm_in_training_couples_the_batch(made):
    torch.manual_seed(0)
    bn, z = nn.BatchNorm1d(3).double(), randn(8, 3)
    z[0] *= 100
    for F in (lambda x: 0.3 * bn(x), lambda x: 0.3 * bn.eval()(x)):
        bn.train()
        try:
            x = solve(F, z, solver=made).value
        except NotConvergedError:
            continue
        bn.momentum = 0.0
        assert (z + F(x) - x).norm() <= 1e-5 * x.norm()


def test_f_that_draws_at_random_does_not_converge_by_luck():
    torch.manual_seed(0)
    with pytest.raises(NotConvergedError):
        solve(lambda x: 0.5 * nn.functional.dropout(x.sin(), 0.5), randn(4, 5), solver=Picard())


@pytest.mark.parametrize("check_every", [1, 3, 8])
def test_it_is_noticed_however_rarely_it_is_looked(check_every):
    with pytest.raises(NotConvergedError, match=r"z\[None\]"):
        solve(lambda x: path() @ x, impulse(), solver=Picard(check_every=check_every))


# What F draws


class Drawn(nn.Module):
    """F with dropout, which remembers its masks."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x, W):
        mask = (torch.rand(x.shape, dtype=x.dtype) > 0.3).to(x)
        self.seen.append(mask)
        return 0.5 * (mask * x).tanh() @ W


@pytest.mark.parametrize(("n_iter", "checkpoints"), [(1, 0), (2, 1), (7, 0), (7, 3), (20, 1), (20, 3)])
def test_recompute_draws_at_every_step_what_was_drawn_there(n_iter, checkpoints):
    z, W = leaf(randn(3, 4)), leaf(0.4 * randn(4, 4, seed=1))

    def run(gradient, create_graph=False):
        torch.manual_seed(5)
        x = solve(Drawn([]), z, (W,), solver=FixedIterations(n_iter), gradient=gradient).value
        torch.rand(3)  # what comes between forward and backward
        after = torch.get_rng_state()
        found = torch.autograd.grad((x * randn(3, 4, seed=7)).sum(), (z, W), create_graph=create_graph)
        assert torch.equal(torch.get_rng_state(), after)  # backward does not disturb what follows
        return [x, *found]

    expected = run(Unroll())
    for a, b in zip(run(CheckpointedUnroll(checkpoints)), expected, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(run(CheckpointedUnroll(checkpoints), create_graph=True), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("adjoint", [FixedIterations(0), FixedIterations(3), Picard(rtol=1e-10)], ids=str)
@pytest.mark.parametrize("create_graph", [False, True])
def test_implicit_draws_what_was_drawn_in_the_last_evaluation(adjoint, create_graph):
    if create_graph and isinstance(adjoint, FixedIterations):
        pytest.skip("has no graph to create")
    z, W, seen = leaf(randn(3, 4)), leaf(0.4 * randn(4, 4, seed=1)), []
    torch.manual_seed(5)
    x = solve(Drawn(seen), z, (W,), solver=FixedIterations(4), gradient=Implicit(adjoint)).value
    last = seen[-1]
    assert not torch.equal(last, seen[-2])
    after = torch.get_rng_state()
    gW = torch.autograd.grad(x.sum(), W, create_graph=create_graph)[0]
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(mask, last) for mask in seen[4:]) and len(seen) > 4
    at = x.detach().requires_grad_()
    y = torch.ones_like(x)
    for _ in range(adjoint.n_iter if isinstance(adjoint, FixedIterations) else 200):
        y = 1 + torch.autograd.grad(0.5 * (last * at).tanh() @ W.detach(), at, y)[0]
    expected = torch.autograd.grad(0.5 * (last * at).tanh() @ W, W, y)[0]
    torch.testing.assert_close(gW, expected)


@pytest.mark.parametrize(
    "gradient", [Unroll(), Implicit(), CheckpointedUnroll()], ids=["steps", "implicit", "recompute"]
)
def test_the_gradient_does_not_change_what_is_drawn(gradient):
    values = []
    for made, W in (
        (Unroll(), 0.4 * randn(4, 4)),
        (gradient, 0.4 * randn(4, 4)),
        (gradient, leaf(0.4 * randn(4, 4))),
    ):
        torch.manual_seed(5)
        values.append(solve(Drawn([]), randn(3, 4), (W,), solver=FixedIterations(4), gradient=made).value.detach())
        values.append(torch.rand(2))
    assert torch.equal(values[0], values[2]) and torch.equal(values[2], values[4])
    assert torch.equal(values[1], values[3]) and torch.equal(values[3], values[5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    "gradient", [CheckpointedUnroll(), Implicit(FixedIterations(0))], ids=["recompute", "implicit"]
)
def test_cuda_draws_the_same_again(gradient):
    z, W = leaf(randn(3, 4).cuda()), leaf(0.4 * randn(4, 4).cuda())
    seen = []

    def F(x, W):
        seen.append(torch.rand_like(x) > 0.3)
        return 0.5 * (seen[-1] * x).tanh() @ W

    x = solve(F, z, (W,), solver=FixedIterations(3), gradient=gradient).value
    forward = list(seen)
    x.sum().backward()
    again = seen[3:]
    assert all(any(torch.equal(mask, known) for known in forward) for mask in again) and torch.equal(
        again[0], forward[2 if isinstance(gradient, Implicit) else 0]
    )


# Leaving early


@pytest.mark.parametrize("name", TO_TOLERANCE)
@torch.no_grad()
def test_leaving_early_with_inputs_per_sample(name):
    rates = torch.tensor([0.0, 0.1, 0.5, 0.9], dtype=torch.float64)
    z, W, scale = randn(4, 4), 0.5 * torch.linalg.qr(randn(4, 4, seed=1))[0], randn(4, 1).cos()

    def F(x, a, W, scale):  # W has as many rows as there are samples, and is not one per sample
        return scale * a[:, None] * (x @ W).sin()

    plain = solve(F, z, (rates, W, scale), solver=TO_TOLERANCE[name])
    early = solve(F, z, (rates, W, scale), solver=TO_TOLERANCE[name], early_exit=True)
    torch.testing.assert_close(early.value, plain.value, rtol=1e-12, atol=1e-13)
    assert early.converged.all()


@pytest.mark.parametrize(
    ("F", "said"),
    [
        (lambda x: path() @ x, "raises RuntimeError"),
        (lambda x: 0.9 * x.mean(0, keepdim=True).expand_as(x), "gives another value"),
        (lambda x: torch.tensor([0.0, 0.1, 0.2, 0.3, 0.5, 0.9])[:, None] * x.sin(), "gives the shape"),
        (lambda x: 0.9 * x * (len(x) == 6), "gives another value"),
    ],
    ids=["graph", "mean", "captured inputs per sample", "counts its samples"],
)
@torch.no_grad()
def test_leaving_early_is_refused_in_a_sentence_where_samples_are_not_apart(F, said):
    z = randn(6, 2)
    z[:3] *= 1e-4  # converges before the others
    with pytest.raises(ValueError, match=rf"blocks\.3: early_exit .* {said}.* leave early_exit out"):
        solve(F, z, solver=Picard(rtol=1e-3, atol=1e-3), early_exit=True, name="blocks.3")


# One sample that fails

FAILING = {
    "fixed": FixedIterations(60),
    "picard": Picard(max_steps=4000),
    "damped": Picard(damping=0.6, max_steps=4000),
    "anderson": Anderson(),
    "broyden": Broyden(),
}


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("gradient", ["steps", "implicit", "recompute"])
@pytest.mark.parametrize("failure", ["nan", "inf", "overflow", "exp"])
@pytest.mark.parametrize("policy", ["warn", "ignore"])
@pytest.mark.filterwarnings("ignore:solve")
def test_a_sample_that_failed_and_is_left_out_of_the_loss_spoils_no_shared_gradient(name, gradient, failure, policy):
    if (gradient == "recompute" and name != "fixed") or (gradient, name, policy) == ("steps", "fixed", "ignore"):
        pytest.skip("no such combination, or nothing is looked at")
    made = {"steps": Unroll(), "implicit": Implicit(), "recompute": CheckpointedUnroll()}[gradient]
    z, a, W = randn(3, 4), torch.tensor([0.5, 0.5, 0.5]).double(), leaf(0.9 * torch.eye(4, dtype=torch.float64))
    if failure == "overflow":
        a[1] = 1e40  # a step multiplies by as much
    elif failure == "exp":
        z[1] = 2000  # finite, and what F makes of it is not, nor its derivative
    else:
        z[1, 2] = float(failure)
    z = leaf(z)

    def run(z, a):
        def F(x, W):
            return 0.01 * (x @ W).exp() if failure == "exp" else a[:, None] * (x @ W)

        return solve(F, z, (W,), solver=FAILING[name], gradient=made, on_failure=policy).value

    x = run(z, a)
    x[[0, 2]].sin().sum().backward()
    found, W.grad = (z.grad[[0, 2]], W.grad), None
    y = leaf(z[[0, 2]].detach())
    run(y, a[[0, 2]]).sin().sum().backward()
    torch.testing.assert_close(found, (y.grad, W.grad))
    if failure != "overflow":  # which may stop at a number, or be solved by a secant
        assert not x[1].isfinite().all()
        W.grad = None
        run(z, a).sum().backward()
        assert not W.grad.isfinite().all()  # what is asked for and does not exist is not made up


@pytest.mark.parametrize("gradient", ["recompute", "unroll"])
@pytest.mark.filterwarnings("ignore:solve")
def test_a_sample_whose_derivative_overflows_is_left_out_of_second_derivatives_too(gradient):
    z, W = randn(3, 4), leaf(0.9 * torch.eye(4, dtype=torch.float64))

    def second(z, taken):
        x = solve(lambda x, W: 0.01 * (x @ W).exp(), z, W, gradient=gradient, on_failure="warn").value
        first = torch.autograd.grad(x[taken].sin().sum(), W, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), W)[0]

    expected = second(z[[0, 2]], [0, 1])
    z[1] = 2000
    torch.testing.assert_close(second(z, [0, 2]), expected)


@pytest.mark.filterwarnings("ignore:solve")
def test_an_input_per_sample_that_is_not_finite_does_spoil_the_shared_gradient():
    z, u, W = randn(3, 4), randn(3, 4, seed=1), leaf(0.3 * torch.eye(4, dtype=torch.float64))
    u[1] = torch.nan
    x = solve(lambda x, W, u: (x @ W + u).tanh(), z, (W, u), solver=Picard(), on_failure="warn").value
    x[[0, 2]].sum().backward()
    assert not W.grad.isfinite().all()  # as the documentation says


def test_a_sample_without_a_solution_leaves_the_adjoint_of_the_others_alone():
    """It is finite and has not converged; its own adjoint would diverge."""
    rates = torch.tensor([0.5, 3.0, 0.2], dtype=torch.float64)[:, None]
    z, W = leaf(randn(3, 4)), leaf(torch.eye(4, dtype=torch.float64))
    with pytest.warns(UserWarning, match="1 of 3"):
        x = solve(
            lambda x, W: rates * (x @ W), z, (W,), solver=Picard(max_steps=30), gradient=Implicit(), on_failure="warn"
        )
    assert x.converged.tolist() == [True, False, True]
    x.value[[0, 2]].sum().backward()
    assert W.grad.isfinite().all() and z.grad.isfinite().all()


# F that is not what it must be, and z of any kind


@pytest.mark.parametrize(
    "gradient", [Unroll(), Implicit(), CheckpointedUnroll()], ids=["steps", "implicit", "recompute"]
)
@pytest.mark.parametrize(
    ("F", "said"),
    [
        (lambda x: 0.5 * x.double(), "z is float32 and F.x. float64"),
        (lambda x: torch.complex(x, x), "z is float32 and F.x. complex64"),
        (lambda x: torch.empty_like(x, device="meta"), "from cpu to meta"),
        (lambda x: x.mul_(0.5), "in place"),
        (lambda x: torch.sin_(x) * 0.5, "in place"),
        (lambda x: x[:1] * 0.5, "from shape"),
    ],
    ids=["dtype", "complex", "device", "mul_", "sin_", "shape"],
)
def test_f_that_changes_its_argument_or_its_kind_is_refused(gradient, F, said):
    made = FixedIterations(3) if isinstance(gradient, CheckpointedUnroll) else Picard()
    z = torch.ones(2, 3)
    with pytest.raises(ValueError, match=rf"blocks\.3: .*{said}"):
        solve(F, z, solver=made, gradient=gradient, name="blocks.3")


@pytest.mark.parametrize("z", [torch.ones(3, 2, dtype=torch.long), torch.ones(3, dtype=torch.bool)], ids=str)
def test_z_of_integers_is_refused(z):
    with pytest.raises(ValueError, match=r"z\.float"):
        solve(torch.sin, z, solver=Picard())


BASE = leaf(randn(4, 6))
VIEWS = {
    "transposed": lambda base: base.T,
    "strided": lambda base: base[:, ::2],
    "expanded": lambda base: base[:1].expand(3, 6),
    "narrowed": lambda base: base[1:3],
    "one number each": lambda base: base[:, 0],
    "no samples": lambda base: base[:0],
    "no features": lambda base: base[:, :0],
    "one sample": lambda base: base[None, 0],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["fixed", "picard", "anderson", "broyden"])
@pytest.mark.parametrize("gradient", ["steps", "implicit", "recompute"])
def test_z_may_be_any_view_of_what_needs_a_gradient(view, name, gradient):
    if gradient == "recompute" and name != "fixed":
        pytest.skip("no such combination")
    made = {"steps": Unroll(), "implicit": Implicit(TO_TOLERANCE["picard"]), "recompute": CheckpointedUnroll()}[
        gradient
    ]
    solver = FixedIterations(60) if name == "fixed" else TO_TOLERANCE[name]
    z = VIEWS[view](BASE)
    before = z.detach().clone()
    x = solve(lambda x: 0.5 * x.sin(), z, solver=solver, gradient=made).value
    gz = torch.autograd.grad(x.sum(), BASE)[0]
    flat = leaf(z.contiguous())
    expected = solve(lambda x: 0.5 * x.sin(), flat, solver=FixedIterations(60)).value
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(gz, torch.autograd.grad(z, BASE, torch.autograd.grad(expected.sum(), flat)[0])[0])
    assert torch.equal(z, before) and x.shape == z.shape


def test_f_may_give_the_same_buffer_again_and_again():
    buffer = torch.empty(3, 4, dtype=torch.float64)
    z = randn(3, 4)
    for made in TO_TOLERANCE.values():
        x = solve(lambda x: torch.sin(0.5 * x, out=buffer), z, solver=made).value
        torch.testing.assert_close(z + (0.5 * x).sin(), x)

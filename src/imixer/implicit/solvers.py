"""Solvers of x = f(x), all samples at once, each judged on its own.

B: samples, the first axis; N: all others, flattened; m: steps remembered.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imixer.errors import check_n_iter, check_whole
from imixer.implicit.func_transforms import every
from imixer.implicit.solution import Solution, choose, finite_samples, spoil_gradient_of

Map = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Tensor], Tensor]

# A relative gap of a few units in the last place is as good as none.
RESOLVED = 4
# Products of fewer rows may round otherwise: a gap that is looked at again may have grown by as much.
LOOSENED = 2
GPU_STEPS = 8  # between looks, which make the host wait


@dataclass(frozen=True)
class FixedIterations:
    """x <- f(x), n times. No tolerance, no synchronisation with the device, one graph when compiled.

    Choose it, the paper's, where every forward is to cost the same.

    Args:
        n_iter: Steps n.
        measure: Whether to take the residuals, which costs two norms a step.

    Raises:
        ValueError: If n_iter is negative or not whole.

    Source: paper (29).
    """

    n_iter: int = 2
    measure: bool = False

    def __post_init__(self) -> None:
        check_n_iter(self.n_iter)

    def __call__(self, f: Map, x: Tensor) -> Solution[Tensor]:
        """Take n steps from x (B, ...)."""
        residuals: list[Tensor] = []
        for _ in range(self.n_iter):
            fx = f(x)
            if self.measure:
                residuals.append(_relative(*_gap(x, fx)))
            x = fx
        return Solution(x, torch.stack(residuals) if residuals else None, self.n_iter, None)


@dataclass(frozen=True)
class ToTolerance:
    """Base of the solvers with a tolerance: a sample that has converged stays as it is while others go on.

    The value of a sample is f(x) of the first x that meets the tolerance. For a contraction with Lipschitz constant L
    it is within L / (1 - L) gaps of the solution. That x is looked at in every later step, the last included: if it
    meets the tolerance no more, f looked at other samples or is not deterministic, and the sample has not converged.
    One that runs out of steps gets the x whose gap was the least, relative to f(x).

    A sample that is not finite stays where it last was. Its last step has derivatives that need not be finite: `solve`
    takes the steps again without it where they are differentiated.

    Args:
        rtol: Relative tolerance: a sample has converged when ||f(x) - x|| <= atol + rtol ||f(x)||. Below 4 epsilon, of
            x or of what autocast computes in, it counts as that.
        atol: Absolute tolerance. One of the two must be positive.
        max_steps: Steps, each one evaluation of f, after which to give up.
        check_every: Steps between looks at whether all samples have converged: each makes the host wait for the device.
            Default: 1 on the CPU, which waits anyway, and 8 on a GPU.

    Raises:
        ValueError: If no tolerance is positive, one is negative or infinite, or a number of steps is not a whole one
            from 1.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    max_steps: int = 100
    check_every: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.rtol < math.inf and 0 <= self.atol < math.inf and max(self.rtol, self.atol) > 0):
            raise ValueError(
                f"rtol and atol are {self.rtol} and {self.atol}; give finite numbers of 0 or more, and one above 0"
            )
        check_whole(max_steps=self.max_steps, check_every=1 if self.check_every is None else self.check_every)
        if self.max_steps < 1 or (self.check_every is not None and self.check_every < 1):
            raise ValueError(
                f"max_steps and check_every are {self.max_steps} and {self.check_every}; give 1 or more of each"
            )

    def __call__(self, f: Map, x: Tensor) -> Solution[Tensor]:
        """Solve from x (B, ...)."""
        propose, look_every = self._stepper(), self._look_every(x.device)
        rtol = max(self.rtol, RESOLVED * epsilon(x))
        done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        relapsed = torch.zeros_like(done)
        residuals: list[Tensor] = []
        least: Tensor | float = math.inf
        if shielded := torch.is_grad_enabled():
            start_broken = ~finite_samples(x.detach())
            x = choose(start_broken, torch.zeros_like(x), x)
        best = x
        for step in range(1, self.max_steps + 1):
            fx = f(x)
            gap, size = _gap(x, fx)
            residuals.append(_relative(gap, size))
            near = self.atol + rtol * size
            finite = gap.isfinite() & size.isfinite()  # nor is a state whose square overflows
            relapsed = relapsed | (done & ~(gap <= LOOSENED * near))
            done = done | (finite & (gap <= near))
            # Who has converged or is broken sees no gap, and without a gap no method moves.
            stays = done | ~finite
            better = residuals[-1] < least
            least = torch.where(better, residuals[-1], least)
            # Where the host looks at every step anyway, it saves itself the choice as long as all come nearer.
            best = x if look_every == 1 and every(stays | better) else choose(better, x, best)
            seen = choose(stays, x, fx)
            with torch.autocast(x.device.type, enabled=False):
                proposed = propose(x, seen)
            x = seen if proposed is seen else choose(stays, x, proposed)
            if step % look_every == 0 and every(stays):
                break
        value = choose(stays, fx, best)
        if shielded:
            spoil_gradient_of(value, start_broken)
        return Solution(value, torch.stack(residuals), len(residuals), done & ~relapsed, relapsed)

    def _look_every(self, device: torch.device) -> int:
        return self.check_every or (1 if device.type == "cpu" else GPU_STEPS)

    def _stepper(self) -> Step:
        """Return what proposes the next x from x and f(x), remembering what it saw."""
        raise NotImplementedError


@dataclass(frozen=True)
class Picard(ToTolerance):
    """x <- (1 - damping) x + damping f(x), until it stays.

    Choose it to study the iteration itself, or, damped, where f overshoots.

    Args:
        damping: Length of the step, in (0, 1]. Below 1 it tames an f that overshoots.

    Raises:
        ValueError: If damping is not in (0, 1].
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_damping(self.damping)

    def _stepper(self) -> Step:
        return lambda x, fx: fx if self.damping == 1 else torch.lerp(x, fx, self.damping)


@dataclass(frozen=True)
class Anderson(ToTolerance):
    """Anderson's mixing: the step whose gap would be least if f were linear in the span of the last m steps.

    Choose it to converge: it needs the fewest steps, also where plain ones hardly contract. Where the mixing is not
    finite, the step is the damped one of `Picard`.

    Args:
        memory: Steps m to combine, the present one included.
        ridge: Weight of the mixing's own size against the gap, relative to the size of each remembered difference.
        damping: Share of the combined f(x) against the combined x, in (0, 1].

    Raises:
        ValueError: If memory is below 1 or not whole, ridge not positive and finite, or damping not in (0, 1].

    Source: Walker & Ni, SIAM J. Numer. Anal. 49 (2011), (2.3).
    """

    memory: int = 6
    ridge: float = 1e-6
    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_memory(self.memory)
        _check_damping(self.damping)
        if not 0 < self.ridge < math.inf:
            raise ValueError(f"ridge is {self.ridge}; give a finite number above 0")

    def _stepper(self) -> Step:
        last: list[Tensor] = []  # x and g = f(x) - x of the step before, (B, N)
        dG: list[Tensor] = []  # what g changed by in each step
        moves: list[Tensor] = []  # what x + damping g changed by
        dots: list[list[Tensor]] = []  # dots[i][j] = <dG_i, dG_j> for j <= i, (B,)

        def propose(x: Tensor, fx: Tensor) -> Tensor:
            rows = _rows(x)
            g = _rows(fx) - rows
            if last and self.memory > 1:
                dG.append(g - last[1])
                moves.append(torch.add(rows - last[0], dG[-1], alpha=self.damping))
                dots.append([_dot(dG[-1], d) for d in dG])
                if len(dG) == self.memory:
                    del dG[0], moves[0], dots[0]
                    for row in dots:
                        del row[0]
            last[:] = [rows, g]
            following = torch.add(rows, g, alpha=self.damping)
            if dG:
                share = self._mix(dots, torch.stack([_dot(d, g) for d in dG], 1))
                for i, move in enumerate(moves):
                    following = torch.addcmul(following, share[:, i : i + 1], move, value=-1)
            return following.to(fx.dtype).view_as(fx)

        return propose

    def _mix(self, dots: list[list[Tensor]], target: Tensor) -> Tensor:
        """Solve for the shares (B, m) that make ||g - sum of share_i dG_i||^2 least, from the scalar products."""
        m = len(dots)
        gram = torch.stack([dots[max(i, j)][min(i, j)] for i in range(m) for j in range(m)], 1).view(-1, m, m)
        square = gram.diagonal(dim1=1, dim2=2)
        scale = torch.where(square > 0, square, 1).rsqrt()  # makes every dG_i a unit vector, but for those that are 0
        gram = gram * scale[:, :, None] * scale[:, None]
        gram = gram + self.ridge * torch.eye(m, dtype=gram.dtype, device=gram.device)
        share = scale * torch.linalg.solve_ex(gram, scale * target)[0]
        return torch.where(share.isfinite().all(1, keepdim=True), share, 0)


@dataclass(frozen=True)
class Broyden(ToTolerance):
    """Broyden's good method on g(x) = f(x) - x, from the Jacobian -1.

    Choose it where f is no contraction and has a fixed point all the same.

    The inverse Jacobian is a product of 1 + s_(j+1) s_j^T / |s_j|^2 over the steps s_j, so that these are all it needs.
    After m of them, and for a sample whose step is not finite, it begins anew with f(x).

    Args:
        memory: Steps m to keep; 1 makes it `Picard`.

    Raises:
        ValueError: If memory is below 1 or not whole.

    Source: Kelley, Iterative Methods for Linear and Nonlinear Equations (1995), section 7.3.
    """

    memory: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_memory(self.memory)

    def _stepper(self) -> Step:
        S: list[Tensor] = []  # s_j, (B, N)
        per_square: list[Tensor] = []  # 1 / |s_j|^2, or 0 to forget, (B,)

        def propose(x: Tensor, fx: Tensor) -> Tensor:
            rows = _rows(x)
            g = _rows(fx) - rows
            s = g
            if len(S) == self.memory:
                S.clear()
                per_square.clear()
            for j in range(len(S) - 1):
                s = torch.addcmul(s, (per_square[j] * _dot(S[j], s))[:, None], S[j + 1])
            if S:  # the last factor holds the unknown step itself
                divisor = 1 - per_square[-1] * _dot(S[-1], s)
                s = s / torch.where(divisor == 0, 1, divisor)[:, None]
            square = _dot(s, s)
            fine = square.detach().isfinite()
            s = choose(fine, s, g)
            per_square[:] = [torch.where(fine, p, 0) for p in per_square]
            square = torch.where(fine, square, _dot(g, g))
            S.append(s)
            per_square.append(torch.where(square > 0, 1 / torch.where(square > 0, square, 1), 0))
            return (rows + s).to(fx.dtype).view_as(fx)

        return propose


Solver = FixedIterations | ToTolerance


def _gap(x: Tensor, fx: Tensor) -> tuple[Tensor, Tensor]:
    """Measure ||f(x) - x|| and ||f(x)|| per sample, (B,)."""
    with torch.no_grad():
        return torch.linalg.vector_norm(_rows(fx - x), dim=1), torch.linalg.vector_norm(_rows(fx), dim=1)


def _relative(gap: Tensor, size: Tensor) -> Tensor:
    return torch.where(size.isfinite(), gap / torch.where(size == 0, 1, size), torch.nan)


def _rows(x: Tensor) -> Tensor:
    """Flatten (B, ...) -> (B, N), in at least float32."""
    x = x.flatten(1) if x.dim() > 1 else x[:, None]
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Multiply sample by sample, (B, N), (B, N) -> (B,)."""
    return torch.linalg.vecdot(x, y)


def epsilon(x: Tensor) -> float:
    """Get the machine epsilon of what f is computed in: x's dtype, or that of autocast."""
    kind = x.device.type
    narrow: torch.dtype | None = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return max(torch.finfo(dtype).eps for dtype in (x.dtype, narrow) if dtype is not None)


def _check_memory(memory: int) -> None:
    check_whole(memory=memory)
    if memory < 1:
        raise ValueError(f"memory is {memory}; give 1 or more steps to remember")


def _check_damping(damping: float) -> None:
    if not 0 < damping <= 1:
        raise ValueError(f"damping is {damping}; give a step length above 0 and at most 1")

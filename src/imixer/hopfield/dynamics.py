"""Integrating a network in time: with torchdiffeq, or with scipy where the flow is stiff."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from imixer.errors import check_whole
from imixer.extras import require_extra
from imixer.hopfield.network import HopfieldNetwork, State
from imixer.hopfield.pictures import plot_states

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.progress import Progress

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
MOST_STEPS = 20_000  # that torchdiffeq takes at a fixed step in search of a steady state
FIXED_STEP = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
STIFF = ("bdf", "radau")
MOST_ADAPTIVE_STEPS = 100_000
ADVICE = "take a smaller step or look at the couplings"

Event = Callable[[float, State], Tensor]


@dataclass(frozen=True, repr=False)
class Trajectory:
    """A network's way through its states.

    Attributes:
        times: (T,), in the time unit of the network.
        states: Layer name -> x (T, ..., *shape).
        residual: Largest |tau dx/dt| of any neuron that may move, at the last time.
        steady: Whether the residual came down to the tolerance asked for; None if none was.
        n_evaluations: Evaluations of the velocity.
        held: Layer name -> mask of the neurons that were clamped.
        rtol: Relative tolerance of the integration; without meaning for fixed steps.
        atol: Absolute tolerance, likewise.
        event_time: When the event asked for came; None if it did not.
        n_steps: Steps of the solver.
        batch: Shape of the batch, the axes of the states between that of time and those of the layer.
    """

    times: Tensor
    states: State
    residual: float
    steady: bool | None
    n_evaluations: int
    held: dict[str, Tensor]
    rtol: float
    atol: float
    event_time: float | None = None
    n_steps: int = 0
    batch: tuple[int, ...] = ()

    def __repr__(self) -> str:
        """Say in a line how it went."""
        parts = [f"{len(self.times)} frames to time {float(self.times[-1]):.4g}", f"residual {self.residual:.3g}"]
        if self.steady is not None:
            parts.append("steady" if self.steady else "not steady")
        if self.event_time is not None:
            parts.append("stopped by the event")
        parts.append(f"{self.n_evaluations} evaluations")
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in self.states.items())
        return f"Trajectory({', '.join(parts)}, {shapes})"

    @property
    def final(self) -> State:
        """The last state, layer name -> x (..., *shape). Gradients flow through it."""
        return {name: x[-1] for name, x in self.states.items()}

    def plot(self, sample: int = 0) -> Figure:
        """Draw the neurons of a sample in time, a panel per layer; clamped ones are dashed, of many a dozen is shown.

        Args:
            sample: Which sample of the batch, flattened if it has several axes.

        Raises:
            ValueError: If there is no such sample.
        """
        return plot_states(self.times, self.states, self.held, self.batch, sample)


def integrate(
    network: HopfieldNetwork,
    start: State,
    t_end: float | None = None,
    *,
    frames: int = 101,
    times: Sequence[float] | Tensor | None = None,
    until_steady: float | None = None,
    method: str = "dopri5",
    step_size: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    held: Mapping[str, Tensor] | None = None,
    event: Event | None = None,
    max_steps: int = MOST_ADAPTIVE_STEPS,
    adjoint: bool = False,
    progress: bool = False,
) -> Trajectory:
    """Integrate the velocities of all layers, tau_A dx^A/dt = ..., from time 0.

    Args:
        network: What moves.
        start: Layer name -> x (..., *shape), see `HopfieldNetwork.initial_state`.
        t_end: Time to stop at. Default: the last of `times`.
        frames: States to keep, evenly spaced in time. With `until_steady`: at most so many of the solver's own steps,
            all but the last without gradient.
        times: When to keep a state, increasing, 0 or more, in place of `frames`. Together with `until_steady` or
            `event` only for stiff methods.
        until_steady: Stop as soon as every |tau dx/dt| is at or below this. An adaptive method's own error keeps the
            residual up, so its tolerances must be smaller.
        method: One of torchdiffeq's, adaptive (`dopri5`, ...) or of fixed step (`euler`, `rk4`, ...), or one of
            scipy's for stiff flows, `bdf` and `radau`. Choose `bdf` where time constants lie far apart: an explicit
            step is never much longer than the shortest of them. It has no gradients; for those, and for a limit of
            separated time constants, there is `AdiabaticUpdate`.
        step_size: Step of a fixed step method, shortened if it does not divide t_end. Default: t_end / (frames - 1).
        rtol: Relative tolerance of adaptive steps. Default: 1e-6 in float64, 1e-4 otherwise; with `until_steady` at
            most 1/100 of it.
        atol: Absolute tolerance. Default: 1e-8 in float64, 1e-5 otherwise; with `until_steady` at most 1/1000 of it.
        held: Layer name -> mask (broadcast to the state), true where neurons are clamped to their start.
        event: From time and state (in their batch) to numbers; the integration stops when one of them is 0.
        max_steps: Largest number of steps.
        adjoint: Gradients by integrating backwards, with memory that does not grow with the steps. For mild flows
            only: backwards a decay grows, so gradients are wrong or fail over many time constants or very unequal ones.
        progress: Show a bar.

    Raises:
        ValueError: If an argument is impossible, the start does not fit the network or the event is not finite; with
            the name.
        MissingExtraError: If `progress` is asked for, and the package that draws it is not installed.
        FloatingPointError: If a state or a velocity stops being finite or a step becomes too small; with the layer and
            the time.
        RuntimeError: If `max_steps` do not lead to the end; with the time that was reached and what to do.

    Source: paper (32).
    """
    network.check(start)
    kept_times = None if times is None else _as_list(times)
    t_end = _end(t_end, kept_times)
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if tolerance is not None and not 0 < tolerance < math.inf:
            raise ValueError(f"{name} is {tolerance}; give a tolerance above 0, such as 1e-6, or leave it out")
    if event is not None and not callable(event):
        raise ValueError(
            f"event is {type(event).__name__}; give a function of time and state, such as one that returns "
            "state['v'].amax() - 1"
        )
    _check(network, start, t_end, frames, until_steady, event is not None, method, step_size, held)
    _check_stops(kept_times, until_steady, event, method, max_steps, adjoint)
    dtype = next(iter(start.values())).dtype
    usual = (1e-6, 1e-8) if dtype == torch.float64 else (1e-4, 1e-5)
    limit, rounding = until_steady or math.inf, torch.finfo(dtype).eps
    rtol = rtol if rtol is not None else max(min(usual[0], limit / 100), 10 * rounding)
    atol = atol if atol is not None else max(min(usual[1], limit / 1000), rounding)
    masks = {name: mask.expand_as(start[name]) for name, mask in (held or {}).items()}

    bar_shown = _progress_bar() if progress else nullcontext()
    flow = _Flow(network, start, masks, t_end, max_steps, method)
    x0 = flow.pack(start)
    stop = _Stop(flow, start, event, until_steady, t_end)
    if kept_times is None:
        kept_times = torch.linspace(0, t_end, frames, dtype=torch.float64).tolist()
    with bar_shown as bar:
        if bar is not None:
            task = bar.add_task("integrating", total=t_end)
            flow.report = lambda t: bar.update(task, completed=t)
        if method in STIFF:
            grid, path = _stiff(flow, x0, kept_times, stop, method, rtol, atol)
        else:
            settings = _settings(method, step_size, rtol, atol, kept_times, frames, stop.asked, max_steps)
            grid, path = _explicit(flow, x0, kept_times, stop, frames, settings, odeint_adjoint if adjoint else odeint)
    states = flow.unpack(path)
    _require_finite(states, grid)
    residual = float(flow.residual(path[-1].detach()))
    if not math.isfinite(residual):
        raise FloatingPointError(f"{flow.last_seen()}; {ADVICE}")
    # The search for the moment of a stop ends on either side of it.
    early = t_end - float(grid[-1]) > 2 * atol + 4 * rounding * t_end
    happened = early and event is not None and (until_steady is None or residual > 1.01 * until_steady)
    return Trajectory(
        times=grid,
        states=states,
        residual=residual,
        steady=None if until_steady is None else (early and not happened) or residual <= until_steady,
        n_evaluations=flow.n_evaluations,
        held=masks,
        rtol=rtol,
        atol=atol,
        event_time=float(grid[-1]) if happened else None,
        n_steps=flow.n_steps,
        batch=flow.batch,
    )


def _settings(
    method: str,
    step_size: float | None,
    rtol: float,
    atol: float,
    times: Sequence[float],
    frames: int,
    searches: bool,
    max_steps: int,
) -> dict[str, Any]:
    """Return torchdiffeq's arguments."""
    options: dict[str, Any] = {}
    if method in FIXED_STEP:
        t_end = times[-1]
        count = _count(t_end, step_size or t_end / (frames - 1))
        if count > max_steps:
            raise ValueError(
                f"step_size is {step_size}: {count} steps to t_end, above max_steps, {max_steps}; raise one"
            )
        options = _steps(count, t_end, times, searches)
    if method in ("explicit_adams", "implicit_adams"):
        options["max_order"] = 5  # of order 4: torchdiffeq's own choice, 12, is unstable at all but tiny steps
    return dict(method=method, rtol=rtol, atol=atol, options=options)


def _explicit(
    flow: _Flow,
    x0: Tensor,
    times: Sequence[float],
    stop: _Stop,
    frames: int,
    settings: dict[str, Any],
    solve: Callable[..., Any],
) -> tuple[Tensor, Tensor]:
    """Return times (T,) and packed states (T, B, N), by torchdiffeq."""
    try:
        if stop.asked:
            return _until(flow, solve, x0, times[-1], frames, stop, settings)
        grid = torch.tensor(times, dtype=x0.dtype, device=x0.device)
        if times[0] == 0:
            return grid, solve(flow, x0, grid, **settings)
        return grid, solve(flow, x0, torch.cat([grid.new_zeros(1), grid]), **settings)[1:]
    except AssertionError as error:
        if not any(words in str(error) for words in ("underflow in dt", "non-finite")):
            raise
        raise FloatingPointError(f"{flow.last_seen()}: {str(error).split(':')[0]}; {ADVICE}") from error


def _stiff(
    flow: _Flow, x0: Tensor, times: Sequence[float], stop: _Stop, method: str, rtol: float, atol: float
) -> tuple[Tensor, Tensor]:
    """Return times (T,) and packed states (T, B, N), by scipy."""
    from imixer.hopfield.stiff import integrate_stiff  # scipy's solvers take a while to import

    whole = x0.reshape(-1, x0.shape[-1])
    batch = x0.shape

    def on_step(t: float, x: Tensor) -> None:
        flow.callback_step(torch.tensor(t), x.view(batch), torch.tensor(t))

    if stop.asked and float(stop(0.0, x0)) <= 0:
        return x0.new_zeros(1), x0[None]
    try:
        reached, path = integrate_stiff(
            lambda x: flow(torch.zeros(()), x.reshape(batch)).reshape(x.shape),
            whole,
            times,
            method=cast(Any, method),
            rtol=rtol,
            atol=atol,
            on_step=on_step,
            stop=(lambda t, x: float(stop(t, x.view(batch)))) if stop.asked else None,
        )
    except _EventError:
        raise
    except (FloatingPointError, ValueError) as error:  # scipy's linear algebra refuses what is not finite
        raise FloatingPointError(f"{flow.last_seen()}: {str(error).rstrip('.')}; {ADVICE}") from error
    return torch.tensor(reached, dtype=x0.dtype, device=x0.device), path.view(len(reached), *batch)


def _progress_bar() -> Progress:
    require_extra("train", "progress=True")
    from rich.progress import Progress  # of an extra

    return Progress(transient=True)


def _until(
    flow: _Flow,
    solve: Callable[..., Any],
    x0: Tensor,
    t_end: float,
    frames: int,
    stop: _Stop,
    settings: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Return times (T,) and packed states (T, B, N) until the stop or t_end, at the solver's own steps."""
    kept = _Thinned(frames - 1)
    kept.add(0.0, x0.detach())

    def event(t: Tensor, x: Tensor) -> Tensor:
        if float(t.detach()) > kept.latest:  # a new step; the search for the event itself looks back
            kept.add(float(t.detach()), x.detach())
            flow.saw(float(t.detach()), x)
        return torch.minimum(stop(float(t.detach()), x), (t_end - t).to(x.dtype))

    start = torch.zeros(2, dtype=x0.dtype, device=x0.device)
    start[1] = t_end
    if float(stop(0.0, x0)) <= 0:
        return start[:1], x0[None]
    reached, path = solve(flow, x0, start, event_fn=event, **settings)
    end = float(reached.detach())
    steps = [(t, x) for t, x in kept.steps if t < end]
    times = torch.tensor([*(t for t, _ in steps), end], dtype=x0.dtype, device=x0.device)
    return times, torch.stack([*(x for _, x in steps), path[-1]])


class _EventError(ValueError):
    """What the user's event gives cannot be followed."""


class _Stop:
    """A number that is positive until the integration should stop: at rest, or at the user's event."""

    def __init__(
        self, flow: _Flow, start: State, event: Event | None, until_steady: float | None, t_end: float
    ) -> None:
        self.asked = event is not None or until_steady is not None
        self._flow, self._event, self._until_steady = flow, event, until_steady
        if event is not None:
            with torch.no_grad():
                first = event(0.0, start)
            if not isinstance(first, Tensor) or not first.is_floating_point() or not first.numel():
                raise ValueError("event gives no tensor of floats; return one such as state['v'].amax() - 1")
            if not first.isfinite().all() or (first == 0).any():
                raise ValueError("event is 0 or not finite at the start; give one that begins on one side of 0")
            self._sign = first.sign()

    def __call__(self, t: float, x: Tensor) -> Tensor:
        with torch.no_grad():
            left = x.new_full((), math.inf)
            if self._until_steady is not None:
                left = self._flow.residual(x) - self._until_steady
            if self._event is not None:
                happening = self._event(t, self._flow.unpack(x))
                if not happening.isfinite().all():
                    raise _EventError(f"event is not finite at time {t:.4g}; give one that is finite everywhere")
                left = torch.minimum(left, (self._sign * happening).amin().to(x.dtype))
        return left


class _Thinned:
    """At most so many of the steps it is given, evenly spread, the first among them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.stride = 1
        self.count = 0
        self.latest = 0.0
        self.steps: list[tuple[float, Tensor]] = []

    def add(self, t: float, x: Tensor) -> None:
        self.latest = t
        if self.count % self.stride == 0:
            self.steps.append((t, x))
        self.count += 1
        if len(self.steps) > self.limit:
            self.steps = self.steps[::2]
            self.stride *= 2


class _Flow(nn.Module):
    """The velocity of all layers as one vector (B, N), as torchdiffeq wants it."""

    def __init__(
        self,
        network: HopfieldNetwork,
        start: State,
        held: Mapping[str, Tensor],
        t_end: float,
        max_steps: int,
        method: str,
    ) -> None:
        super().__init__()
        self.network = network
        self.n_evaluations = 0
        self.n_steps = 0
        self._t_end, self._max_steps, self._method = t_end, max_steps, method
        self.report: Callable[[float], None] = lambda t: None
        self._shapes = {name: network.layer(name).shape for name in start}
        name, x = next(iter(start.items()))
        self.batch = tuple(x.shape[: x.dim() - len(self._shapes[name])])
        self._free = None
        if held:
            every = {n: ~held[n] if n in held else torch.ones_like(x, dtype=torch.bool) for n, x in start.items()}
            self._free = self.pack(every)
        # What one unit of tau dx/dt is, for every component of the vector.
        self._tau = self.pack({n: torch.full_like(x, network.layer(n).tau) for n, x in start.items()})
        self._seen: tuple[float, Tensor] = (0.0, self.pack(start).detach())

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.n_evaluations += 1
        velocity = self.pack(self.network.velocity(self.unpack(x)))
        return velocity if self._free is None else velocity * self._free

    def callback_step(self, t: Tensor, x: Tensor, dt: Tensor) -> None:
        self.saw(float(t.detach()), x)
        self.n_steps += 1
        if self.n_steps > self._max_steps:
            taus = [self.network.layer(name).tau for name in self._shapes]
            stiff = f"; time constants reach from {min(taus):g} to {max(taus):g}" if max(taus) > 10 * min(taus) else ""
            other = "" if self._method in STIFF else "method='bdf', which stiff flows need, "
            raise RuntimeError(
                f"{self._max_steps} steps lead to time {self._seen[0]:.4g} of {self._t_end:g}{stiff}: give {other}"
                "a larger max_steps, or looser tolerances"
            )

    def saw(self, t: float, x: Tensor) -> None:
        """Remember the last step, and show it."""
        self._seen = (t, x.detach())
        self.report(t)

    def residual(self, x: Tensor) -> Tensor:
        """Return the largest |tau dx/dt|."""
        with torch.no_grad():
            return (self._tau * self(torch.zeros(()), x)).abs().amax()

    def pack(self, state: State) -> Tensor:
        """Pack layer name -> (..., *shape) into (..., N)."""
        return torch.cat([state[n].flatten(len(self.batch)) for n in self._shapes], -1)

    def unpack(self, x: Tensor) -> State:
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        parts = x.split(sizes, -1)
        return {n: part.unflatten(-1, shape) for (n, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def last_seen(self) -> str:
        """Say where the integration was before it failed, and which layer changed fastest there."""
        t, x = self._seen
        with torch.no_grad():
            velocity = self.unpack(self(torch.zeros(()), x))
        fastest = {n: float(v.nan_to_num(math.inf, math.inf, math.inf).abs().amax()) for n, v in velocity.items()}
        name = max(fastest, key=fastest.__getitem__)
        return f"at time {t:.4g} layer {name} changes at a rate of {fastest[name]:.3g}"


def _check(
    network: HopfieldNetwork,
    start: State,
    t_end: float,
    frames: int,
    until_steady: float | None,
    has_event: bool,
    method: str,
    step_size: float | None,
    held: Mapping[str, Tensor] | None,
) -> None:
    if any(x.numel() == 0 for x in start.values()):
        raise ValueError("the start has no samples; give one or more")
    if not (t_end > 0 and math.isfinite(t_end)):
        raise ValueError(f"t_end is {t_end}; give a positive time")
    check_whole(frames=frames)
    if frames < 2:
        raise ValueError(f"frames is {frames}; give 2 or more")
    if until_steady is not None and not until_steady > 0:
        raise ValueError(f"until_steady is {until_steady}; the tolerance must be above 0")
    if method not in ADAPTIVE + FIXED_STEP + STIFF:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(ADAPTIVE + FIXED_STEP + STIFF)}")
    if step_size is not None and (method not in FIXED_STEP or not step_size > 0):
        raise ValueError(f"step_size is {step_size} with {method}; give a positive step to a method of fixed step")
    steps = 0 if step_size is None else _count(t_end, step_size)
    if (until_steady is not None or has_event) and steps > MOST_STEPS:
        what = "until_steady" if until_steady is not None else "event"
        raise ValueError(
            f"step_size is {step_size}: {steps} steps to t_end, and {what} takes {MOST_STEPS} at most; give a larger "
            "step, an earlier t_end, or a method that finds its own, such as dopri5"
        )
    if held is not None and not isinstance(held, Mapping):
        raise ValueError(f"held is {held!r}; give a mapping from layers to masks")
    for name, mask in (held or {}).items():
        if name not in network.neurons:
            raise ValueError(f"held names the layer {name!r}; the layers are {', '.join(network.neurons)}")
        if not isinstance(mask, Tensor):
            raise ValueError(f"layer {name}: the mask of held neurons is {mask!r}; give a tensor of booleans")
        try:
            torch.broadcast_to(mask, start[name].shape)
        except RuntimeError as error:
            raise ValueError(
                f"layer {name}: the mask of held neurons has shape {tuple(mask.shape)}, "
                f"which does not broadcast to {tuple(start[name].shape)}"
            ) from error
        if mask.dtype != torch.bool:
            raise ValueError(f"layer {name}: the mask of held neurons is of {mask.dtype}; give booleans")


def _as_list(times: Sequence[float] | Tensor) -> list[float]:
    if isinstance(times, (int, float)) or (isinstance(times, Tensor) and times.dim() != 1):
        raise ValueError(f"times is {times}; give a list of increasing ones, such as [0.0, 0.5, 1.0]")
    return [float(t) for t in times]


def _end(t_end: float | None, times: Sequence[float] | None) -> float:
    """Return the time to stop at, of which the last time to keep is the default."""
    if times is None:
        if t_end is None:
            raise ValueError("give t_end, the time to stop at, or times, when to keep a state")
        return t_end
    ordered = all(a < b for a, b in pairwise(times))
    if not times or not (ordered and times[0] >= 0 and math.isfinite(times[-1])):
        raise ValueError(f"times are {times}; give increasing ones from 0 on")
    if t_end is not None and t_end != times[-1]:
        raise ValueError(f"t_end is {t_end}, but the last of times is {times[-1]}; leave t_end out")
    return times[-1]


def _check_stops(
    times: Sequence[float] | None,
    until_steady: float | None,
    event: Event | None,
    method: str,
    max_steps: int,
    adjoint: bool,
) -> None:
    check_whole(max_steps=max_steps)
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; give 1 or more")
    if times is not None and (until_steady is not None or event is not None) and method not in STIFF:
        raise ValueError(
            f"{method} cannot keep states at given times and stop early; give frames in place of times, or method='bdf'"
        )
    if adjoint and method in STIFF:
        raise ValueError(
            f"{method} has no gradients; give dopri5 for mild flows, or take AdiabaticUpdate for the limit"
        )


def _count(t_end: float, step_size: float) -> int:
    """Count the steps, as long as step_size or shorter, that make t_end."""
    return max(1, math.ceil(t_end / step_size * (1 - 1e-9)))


def _steps(count: int, t_end: float, times: Sequence[float], event: bool) -> dict[str, Any]:
    """Return torchdiffeq's options for that many equal steps, which methods of Adams rely on."""
    if event:
        return {"step_size": t_end / count}

    def grid(_: Any, __: Any, t: Tensor) -> Tensor:  # of the whole time, or for the adjoint from frame to frame
        first, last = float(t[0]), float(t[-1])
        n = _count(abs(last - first), t_end / count)
        return torch.linspace(first, last, n + 1, dtype=t.dtype, device=t.device)

    places = [t / t_end * count for t in times]
    on_steps = all(abs(place - round(place)) < 1e-9 * count for place in places)
    return {"grid_constructor": grid, "interp": "linear" if on_steps else "cubic"}


def _require_finite(states: State, times: Tensor) -> None:
    for name, x in states.items():
        finite = x.detach().isfinite().flatten(1).all(1)
        if not finite.all():
            first = float(times[int((~finite).to(torch.int).argmax())])
            raise FloatingPointError(f"layer {name} is not finite from time {first:.4g} on; {ADVICE}")

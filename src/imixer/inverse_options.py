"""The options of the token mixing's inverse: each one's name, type, default, documentation and check, once.

Free of torch, so that the command line and `--help` can have them too.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from imixer.errors import check_n_iter, check_whole

SolverName = Literal["fixed", "picard", "damped", "anderson", "broyden"]
GradientName = Literal["unroll", "implicit", "neumann", "jacobian_free", "recompute"]

if TYPE_CHECKING:
    from imixer.implicit.gradients import Gradient
    from imixer.implicit.solvers import Solver
else:  # a command line and a file know names only
    Solver, Gradient = SolverName, GradientName

PENALTIES = ("jacobian_penalty", "trajectory_penalty", "correction_penalty")
FunctionT = TypeVar("FunctionT", bound=Callable[..., None])


@dataclass(frozen=True)
class SolverOptions:
    """How x = G(v) + F(x) is solved and differentiated, and what restricts the choice.

    Choose it to hold these alone. `Inversion` also checks that they go together, and `InverseOptions` has those of F.

    From Python, solver and gradient may also be objects of `imixer.implicit`, such as `Anderson(memory=8)`, with
    tolerances of their own.

    Args:
        solver: How the token mixing's inverse is found: `fixed`, by n iterations (paper). The others go to a tolerance:
            `picard`, by plain iteration; `damped`, by half steps; `anderson`; `broyden`.
        gradient: How the inverse is differentiated: `unroll`, through the solver's steps (paper); `recompute`, the same
            with little memory; `implicit`, through the equation; `neumann` and `jacobian_free`, cheaper and
            approximate.
        tolerance: Relative residual ||G + F(x) - x|| / ||G + F(x)|| at which the inverse is found. The gradient
            `implicit` is solved to the same. Not for the solver `fixed`.
        max_steps: Steps after which a solver with a tolerance gives up.
        gradient_terms: Terms of the gradient `neumann`.
        on_failure: What to do about an inverse that is not found or not finite, in either direction: `raise`, `warn` or
            `ignore`. Default: `raise` if something has a tolerance, else `ignore`, since looking makes a GPU wait.
        norm: How F is kept contractive: `spectral`, `orthogonal`, `none` or `batch`.
        legacy: Normalise once per fixed point iteration, as the published code does, instead of once per forward.

    Raises:
        ValueError: If a name is unknown or a number impossible.
    """

    solver: SolverName | Solver = "fixed"
    gradient: GradientName | Gradient = "unroll"
    tolerance: float = 1e-4
    max_steps: int = 100
    gradient_terms: int = 5
    on_failure: Literal["raise", "warn", "ignore"] | None = None
    norm: Literal["spectral", "orthogonal", "none", "batch"] = "spectral"
    legacy: bool = False

    def __post_init__(self) -> None:
        for option in fields(self):
            check_number(option.name, getattr(self, option.name), option.type)
        check_choice("solver", self.solver, get_args(SolverName))
        check_choice("gradient", self.gradient, get_args(GradientName))
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}; give a relative residual between 0 and 1")
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; give 1 or more")
        if self.gradient_terms < 1:
            raise ValueError(f"gradient_terms is {self.gradient_terms}; give 1 or more")
        if self.on_failure not in (None, "raise", "warn", "ignore"):
            raise ValueError(f"on_failure is {self.on_failure!r}; choose raise, warn, ignore")


@dataclass(frozen=True)
class InverseOptions(SolverOptions):
    """Everything that may be chosen about the token mixing's inverse. `IMLP`, `IMixer` and the command line take these.

    Choose it to hold or check options together; models take them one by one, by name.

    Args:
        num_layers: Layers L of the token mixing's network, the visible one included: 2 is MLP-Mixer, 3 the paper's
            iMixer, more nest inverses. One evaluation of F costs n^(L-3) evaluations of the innermost map.
        n_iter: Fixed point iterations n of every inverse; 0 is the plain MLP. With a solver that goes to a tolerance,
            those of the inverses inside F.
        hidden_ratio: Inner width over outer width of the token mixing, h_r = N_h / D_S, or a list for layers 3 to L.
        tied: Symmetric couplings: each matrix back is the transpose of the one there.
        coeff: Ceiling c of the spectral norms inside F. `auto` takes the largest that guarantees a contraction at every
            level, whatever the weights and the dropout.
        n_power_iterations: Power iterations n_p per training forward.
        sigma: How the norm `spectral` is found: `power` iteration, `exact` by SVD, or `row_norm`, a cheap bound.
        scaling: `soft` leaves matrices below the ceiling as they are; `hard` scales all of them to it.
        detach_sigma: Keep the gradient from going through the norm, so that a matrix can come below its ceiling again.
        inner_drop_rate: Dropout inside F, after both activations of every iteration, as in Algorithm 2. One mask is
            drawn per forward, so that all iterations apply one map.
        jacobian_penalty: Weight of the squared norm of dF/dx at the solution in the training loss, which makes F
            flatter there.
        trajectory_penalty: Weight of the squared steps of the iteration in the training loss, which makes it shorter.
        correction_penalty: Weight of the squared distances of early iterates from the solution in the training loss.

    Raises:
        ValueError: If num_layers is below 2, n_iter is negative, inner_drop_rate is not from 0, below 1, a penalty is
            negative or not finite, or asked of norm=batch or legacy, legacy is asked of a depth or a dropout that was
            never published, or `SolverOptions` refuses the others.

    Source: paper section 4.1, Algorithms 1 and 2; the published code for `legacy` and what is the default.
    """

    num_layers: int = 3
    n_iter: int = 2
    hidden_ratio: float | list[float] = 2.0
    tied: bool = False
    coeff: float | Literal["auto"] = 0.9
    n_power_iterations: int = 8
    sigma: Literal["power", "exact", "row_norm"] = "power"
    scaling: Literal["soft", "hard"] = "soft"
    detach_sigma: bool = False
    inner_drop_rate: float = 0.0
    jacobian_penalty: float = 0.0
    trajectory_penalty: float = 0.0
    correction_penalty: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_layers < 2:
            raise ValueError(f"num_layers is {self.num_layers}; give 2, which is the plain MLP, or more")
        check_n_iter(self.n_iter)
        if self.legacy and self.num_layers > 3:
            raise ValueError(f"legacy is the published code, which has 3 layers, and num_layers is {self.num_layers}")
        if self.legacy and self.inner_drop_rate:
            raise ValueError(
                f"legacy is the published code, without dropout inside F, and inner_drop_rate is {self.inner_drop_rate}"
            )
        if not 0 <= self.inner_drop_rate < 1:
            raise ValueError(f"inner_drop_rate is {self.inner_drop_rate}; give a probability from 0, below 1")
        for name in PENALTIES:
            weight = getattr(self, name)
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} is {weight}; give a weight in the loss, 0 or more")
            if weight and (self.legacy or self.norm == "batch"):
                other = "legacy is set" if self.legacy else "norm is batch"
                raise ValueError(f"{name} is {weight}, which applies F more often, and {other}; leave one out")


OPTIONS = tuple(name for cls in (InverseOptions, SolverOptions) for name in cls.__annotations__)


def documentation() -> dict[str, str]:
    """Return what the docstrings above say of each option, in the order of `OPTIONS`."""
    text = "\n".join(inspect.getdoc(cls) or "" for cls in (InverseOptions, SolverOptions))
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    known = {name: " ".join(entry.split()) for name, entry in entries}
    return {name: known.get(name, "") for name in OPTIONS}  # python -OO leaves no docstrings


def split_options(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide keyword arguments into options of the inverse and all others."""
    options = {name: value for name, value in kwargs.items() if name in OPTIONS}
    return options, {name: value for name, value in kwargs.items() if name not in OPTIONS}


def shows_options(init: FunctionT) -> FunctionT:
    """Decorate an `__init__` whose last `**` takes the options, so that its signature shows each of them.

    `help`, notebooks and jsonargparse then see names, types and defaults. Other keyword arguments stay possible.
    """
    signature = inspect.signature(init)
    keyword_only, rest = inspect.Parameter.KEYWORD_ONLY, list(signature.parameters.values())
    by_name = {option.name: option for option in fields(InverseOptions)}
    shown = [
        inspect.Parameter(name, keyword_only, default=by_name[name].default, annotation=by_name[name].type)
        for name in OPTIONS
    ]
    variable = [p for p in rest if p.kind is inspect.Parameter.VAR_KEYWORD and p.name != "options"]
    before = [p for p in rest if p.kind is not inspect.Parameter.VAR_KEYWORD]
    vars(init)["__signature__"] = signature.replace(parameters=[*before, *shown, *variable])
    return init


def optional_options() -> type:
    """Make a dataclass of the same options for a configuration, each None unless it was chosen."""
    hints: dict[str, Any] = {option.name: option.type for option in fields(InverseOptions)}
    return make_dataclass(
        "OptionalInverseOptions",
        [(name, hints[name] | None, field(default=None)) for name in OPTIONS],
        namespace={"__doc__": _optional_docstring()},
    )


def _optional_docstring() -> str:
    lines = [f"    {name}: {text}" for name, text in documentation().items()]
    return "\n".join(["The options of the inverse, each None unless it was chosen.", "", "Args:", *lines])


def check_number(option: str, value: object, kind: object) -> None:
    """Raise ValueError unless a value is a number, and a whole one where that is what is asked for.

    Args:
        option: Its name.
        value: What was given.
        kind: The type in the signature; only `int`, `float`, and a number or a list of them are looked at.
    """
    several = kind == float | list[float]
    for each in value if several and isinstance(value, (list, tuple)) else [value]:
        if kind is int:
            check_whole(**{option: each})
        if (kind is float or several) and not hasattr(each, "__float__"):
            raise ValueError(f"{option} is {each!r}; give a number")


def check_choice(option: str, value: object, names: tuple[str, ...], kinds: tuple[type, ...] = (object,)) -> None:
    """Raise ValueError unless a value is one of some names, or an object of one of some kinds other than text."""
    if value not in names if isinstance(value, str) else not isinstance(value, kinds):
        known = f"{', '.join(names[:-1])} or {names[-1]}"
        raise ValueError(f"{option} is {value!r}; choose {known}, or give one of imixer.implicit")

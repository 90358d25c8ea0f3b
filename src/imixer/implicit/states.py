"""States of any structure as one real matrix, which is all that solvers and gradients see of them.

B: samples, the first axis of every tensor in a state; N: all other entries of all its tensors.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = "Tensor | Sequence[State] | Mapping[Any, State]"


@dataclass(frozen=True)
class _Part:
    """What is known of one tensor of a state.

    No tensor is kept: inside transforms of `torch.func`, one of an outer transform cannot be touched once that is done.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def width(self) -> int:
        """Count the real numbers in a sample."""
        return math.prod(self.shape[1:]) * (2 if self.dtype.is_complex else 1)


@dataclass(frozen=True)
class StateLayout:
    """The structure of a state, and the way between states and matrices (B, N). `layout_of` makes one.

    Attributes:
        like: The state z, a `_Part` in the place of each tensor.
        name: What to call the problem in messages.
    """

    like: Any
    name: str

    @property
    def trivial(self) -> bool:
        """Whether a state is one real tensor, which needs no packing."""
        return isinstance(self.like, _Part) and not self.like.dtype.is_complex

    def pack(self, state: Any) -> Tensor:
        """Put a state of this structure side by side, (B, N), complex numbers as pairs; a trivial one stays."""
        if self.trivial:
            return state
        rows = [_rows(leaf) for _, leaf in _leaves(state, "")]
        dtype = reduce(torch.promote_types, (row.dtype for row in rows))
        return torch.cat([row.to(dtype) for row in rows], 1) if len(rows) > 1 else rows[0]

    def unpack(self, x: Tensor) -> Any:
        """Make a state of what `pack` makes of one."""
        if self.trivial:
            return x
        pieces = iter(x.split([part.width for _, part in _leaves(self.like, "")], 1))
        return _map(lambda part: _restore(next(pieces), part), self.like)

    def matched(self, state: Any, what: str, remedy: str, samples_too: bool = False) -> Any:
        """Bring a state into the order and the dtypes of z.

        Args:
            state: The state.
            what: What to call it in messages: `F leads from _ to`, or `start is`.
            remedy: What to do about another structure or shape.
            samples_too: Whether the number of samples must be that of z.

        Raises:
            ValueError: If its structure, a shape, a device or a dtype is another.
        """
        if not _alike(self.like, state):
            raise ValueError(f"{self.name}: {what} {outline(state)}, and z is {outline(self.like)}; {remedy}")
        given = _pairs(self.like, state)
        for path, wanted, leaf in given:
            part = slice(0 if samples_too else 1, None)
            if leaf.dim() != len(wanted.shape) or tuple(leaf.shape)[part] != wanted.shape[part]:
                raise ValueError(
                    f"{self.name}: {what} {tuple(leaf.shape)}{_at(path)}, and z is of shape {wanted.shape}; {remedy}"
                )
            if leaf.device != wanted.device:
                raise ValueError(f"{self.name}: {what} {leaf.device}{_at(path)}, and z is on {wanted.device}; move it")
            if torch.promote_types(leaf.dtype, wanted.dtype) != wanted.dtype:
                raise ValueError(
                    f"{self.name}: {what} {_name(leaf.dtype)}{_at(path)}, and z is {_name(wanted.dtype)}; convert one "
                    "of them"
                )
        pieces = iter(given)

        def convert(wanted: _Part) -> Tensor:
            return next(pieces)[2].to(wanted.dtype)

        return _map(convert, self.like)

    def wrap(self, F: Callable[..., Any]) -> Callable[..., Tensor]:
        """Make F, from states to states, a map of what `pack` makes of them."""
        if self.trivial:
            return F

        def packed(x: Tensor, *tensors: Tensor) -> Tensor:
            fx = F(self.unpack(x), *tensors)
            return self.pack(self.matched(fx, "F leads to", "let it give back what z is"))

        return packed


def layout_of(z: Any, name: str) -> StateLayout:
    """Look at a state that is to be solved for.

    Args:
        z: The state.
        name: What to call the problem in messages.

    Raises:
        ValueError: If z holds no tensor or something else, one is of integers or has no axis of samples, or two have
            different numbers of samples.
    """
    leaves = list(_leaves(z, "z"))
    if not leaves:
        raise ValueError(f"{name}: z is {outline(z)}; give it a tensor")
    for path, leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise ValueError(f"{name}: {path} is {type(leaf).__name__}; give a tensor, or drop it from z")
        if leaf.dim() == 0:
            raise ValueError(f"{name}: {path} has no axis of samples; give it one, {path}[None]")
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise ValueError(f"{name}: {path} is of {_name(leaf.dtype)}; convert it, {path}.float()")
        first, leader = leaves[0]
        if leaf.shape[0] != leader.shape[0]:  # not by len, which an export would take for a constant
            raise ValueError(
                f"{name}: {first} holds {leader.shape[0]} samples and {path} {leaf.shape[0]}; give the first axis of "
                "every tensor one entry per sample"
            )
        if leaf.device != leader.device:
            raise ValueError(
                f"{name}: {first} is on {leader.device} and {path} on {leaf.device}; move them to one device"
            )
    return StateLayout(_map(lambda leaf: _Part(tuple(leaf.shape), leaf.dtype, leaf.device), z), name)


def as_tuple(tensors: Any, name: str = "tensors") -> tuple[Tensor, ...]:
    """Return what F depends on besides x, one tensor or several, as a tuple.

    Raises:
        ValueError: If something is no tensor.
    """
    given = (tensors,) if isinstance(tensors, Tensor) else tensors
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ValueError(f"{name} is {type(given).__name__}; give a tensor or a tuple of tensors")
    for i, tensor in enumerate(given):
        if not isinstance(tensor, (Tensor, torch.fx.Proxy)):
            raise ValueError(
                f"{name}[{i}] is {type(tensor).__name__}; give a tensor, and let F close over what is none"
            )
    return tuple(given)


def per_sample(x: Tensor) -> Tensor:
    """Flatten real states (B, ...) or (B,) to (B, N)."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def outline(state: Any) -> str:
    """Write down a structure, such as `{'h': Tensor, 'c': (Tensor, Tensor)}`."""
    if isinstance(state, Mapping):
        return "{" + ", ".join(f"{key!r}: {outline(value)}" for key, value in state.items()) + "}"
    if isinstance(state, (tuple, list)):
        inside = ", ".join(outline(value) for value in state)
        return f"[{inside}]" if isinstance(state, list) else f"({inside})"
    return "Tensor" if isinstance(state, _Part) else type(state).__name__


def tensors_of(state: Any) -> list[Tensor]:
    """List the tensors of a state."""
    return [leaf for _, leaf in _leaves(state, "")]


def _leaves(state: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from _leaves(value, f"{path}[{key!r}]")
    elif isinstance(state, (tuple, list)):
        for i, value in enumerate(state):
            yield from _leaves(value, f"{path}[{i}]")
    else:
        yield path, state


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return isinstance(b, (tuple, list)) and len(a) == len(b) and all(map(_alike, a, b))
    return isinstance(b, Tensor)


def _pairs(a: Any, b: Any, path: str = "") -> list[tuple[str, _Part, Tensor]]:
    """List what is known of a state's tensors beside those of another of its structure, in the order of the first."""
    if isinstance(a, Mapping):
        return [pair for key in a for pair in _pairs(a[key], b[key], f"{path}[{key!r}]")]
    if isinstance(a, (tuple, list)):
        return [pair for i in range(len(a)) for pair in _pairs(a[i], b[i], f"{path}[{i}]")]
    return [(path, a, b)]


def _map(f: Callable[[Any], Any], state: Any) -> Any:
    if isinstance(state, Mapping):
        made: Any = copy.copy(state) if isinstance(state, MutableMapping) else dict(state)  # of the same class
        for key, value in state.items():
            made[key] = _map(f, value)
        return made
    if isinstance(state, (tuple, list)):
        values = [_map(f, value) for value in state]
        return type(state)(*values) if hasattr(state, "_fields") else type(state)(values)  # a named tuple, or a plain
    return f(state)


def _rows(leaf: Tensor) -> Tensor:
    return per_sample(torch.view_as_real(leaf) if leaf.is_complex() else leaf)


def _restore(rows: Tensor, part: _Part) -> Tensor:
    """Undo `_rows`, for any number of samples."""
    shape = (rows.shape[0], *part.shape[1:])
    if not part.dtype.is_complex:
        return rows.to(part.dtype).reshape(shape)
    return torch.view_as_complex(rows.to(part.dtype.to_real()).reshape(*shape, 2).contiguous())


def _at(path: str) -> str:
    return f" at {path}" if path else ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

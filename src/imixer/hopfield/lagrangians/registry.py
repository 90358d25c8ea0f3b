"""Lagrangians by name."""

from collections.abc import Callable
from typing import Any, TypeVar

from imixer.errors import did_you_mean
from imixer.hopfield.lagrangian import Lagrangian

LAGRANGIANS: dict[str, type[Lagrangian]] = {}

_Class = TypeVar("_Class", bound=type[Lagrangian])


def register(name: str) -> Callable[[_Class], _Class]:
    """Make a Lagrangian known to `lagrangian` by a name: a class decorator.

    Args:
        name: The name.

    Raises:
        ValueError: If the name is taken by another class.
    """

    def add(cls: _Class) -> _Class:
        if name in LAGRANGIANS:
            raise ValueError(f"Lagrangian {name!r} is already {LAGRANGIANS[name].__name__}; choose another name")
        LAGRANGIANS[name] = cls
        return cls

    return add


def lagrangian(which: str | Lagrangian, **options: Any) -> Lagrangian:
    """Return the Lagrangian of a name, built with `options`, or one already built as it is.

    Args:
        which: A name, or a Lagrangian.
        options: Those of the class, such as `beta` of `softmax`.

    Raises:
        ValueError: If the name is unknown, or if options come with a Lagrangian already built.
        TypeError: If `which` is neither, or if the Lagrangian has no such option.
    """
    if isinstance(which, Lagrangian):
        if options:
            raise ValueError(f"{', '.join(options)}: no effect on a {type(which).__name__} already built")
        return which
    if not isinstance(which, str):
        raise TypeError(f"a Lagrangian is its name or an instance, not {which!r}")
    if which not in LAGRANGIANS:
        hint = did_you_mean(which, LAGRANGIANS, 1)
        raise ValueError(f"unknown Lagrangian {which!r}; known: {', '.join(LAGRANGIANS)}{hint}")
    return LAGRANGIANS[which](**options)

"""JSON that every reader reads: numbers that are not finite, which it lacks, are refused or null."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Literal

NonFinite = Literal["refuse", "null"]


def json_text(
    value: Any, *, non_finite: NonFinite = "refuse", indent: int | None = 2, default: Callable[[Any], Any] | None = None
) -> str:
    """Write as JSON.

    Args:
        value: Dictionaries, lists, tuples, texts, numbers, truth values and None.
        non_finite: `refuse` numbers that are not finite; or write `null`, where they mean that there is none, such as a
            bound that does not exist.
        indent: Blanks per level; None for one line.
        default: Makes one of these of anything else.

    Raises:
        ValueError: If a number is not finite and is to be refused; the message says where it stands.
    """
    if non_finite == "null":
        value = _nulled(value)
    elif (place := _first_non_finite(value, "")) is not None:
        raise ValueError(f"{place} is not a finite number, which JSON cannot hold")
    return json.dumps(value, indent=indent, allow_nan=False, default=default)


def _nulled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nulled(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nulled(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _first_non_finite(value: Any, place: str) -> str | None:
    """Where the first number that is not finite stands, such as `blocks[3].bound`."""
    if isinstance(value, dict):
        inside = [(item, f"{place}.{key}" if place else str(key)) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        inside = [(item, f"{place}[{i}]") for i, item in enumerate(value)]
    else:
        return (place or "the value") if isinstance(value, float) and not math.isfinite(value) else None
    return next((found for item, where in inside if (found := _first_non_finite(item, where)) is not None), None)

"""Turn the signature and the docstring of a measurement into options of a command. Free of torch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from imixer.analysis.analyze import Analysis


@dataclass(frozen=True)
class Option:
    """Describe one option of one analysis.

    Args:
        name: Its name.
        type: Its type; None stands for not given.
        help: Its help, with the default of the analysis.
    """

    name: str
    type: Any
    help: str


def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """Return the options that a function takes: its keyword-only parameters.

    Args:
        function: A function with a docstring that has a section Args. Types of its other parameters need not exist.
    """
    parameters = inspect.signature(function).parameters.values()
    wanted = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    hints = get_type_hints(
        SimpleNamespace(__annotations__={name: p.annotation for name, p in wanted.items()}),
        inspect.unwrap(function).__globals__,
    )
    texts = _descriptions(function)
    return {name: Option(name, hints[name] | None, _with_default(texts[name], p.default)) for name, p in wanted.items()}


def _descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """Read the section Args of a docstring."""
    section = (inspect.getdoc(function) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = re.split(r"\n?^    (?=\w+: )", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, _, text in (entry.partition(": ") for entry in entries if entry)}


def _with_default(text: str, default: object) -> str:
    if default is None:
        return text
    values = default if isinstance(default, tuple) else (default,)
    return f"{text} Default: {' '.join(f'{value:g}' if isinstance(value, float) else str(value) for value in values)}."


def options_of_analysis(analysis: Analysis[Any]) -> dict[str, Option]:
    """Return all options of an analysis, those of its `judge` included."""
    return options_of(analysis.measure) | judge_options(analysis)


def judge_options(analysis: Analysis[Any]) -> dict[str, Option]:
    """Return the options of an analysis that are passed to its `judge`."""
    return options_of(analysis.judge) if analysis.judge is not None else {}


def add_options(parser: ArgumentParser, analyses: Iterable[Analysis[Any]], named: str = "`{}`") -> None:
    """Add the options of some analyses to a parser that has `--data` already.

    An option that several of them take is added once, with the help of each.

    Args:
        parser: The parser.
        analyses: The analyses.
        named: How the help names an analysis.
    """
    analyses = list(analyses)
    options: dict[str, dict[str, Option]] = {}
    for analysis in analyses:
        for option in options_of_analysis(analysis).values():
            if option.name != "data":
                options.setdefault(option.name, {})[named.format(analysis.name)] = option
    for name, by_analysis in options.items():
        (kind,) = {option.type for option in by_analysis.values()}
        parser.add_argument(f"--{name}", help=_help(by_analysis), **_argument(kind))


def _help(by_analysis: dict[str, Option]) -> str:
    texts: dict[str, list[str]] = {}
    for name, option in by_analysis.items():
        texts.setdefault(option.help, []).append(name)
    return " ".join(f"For {', '.join(names)}: {text[0].lower()}{text[1:]}" for text, names in texts.items())


def _argument(hint: Any) -> dict[str, Any]:
    """Return what argparse needs for a type. An option that is not given is None: its analysis knows the default."""
    for each in get_args(hint):
        if get_origin(each) is Literal:
            return {"choices": list(get_args(each))}
        if get_origin(each) is Sequence:
            return {"nargs": "+", "type": get_args(each)[0]}
    return {"type": hint}

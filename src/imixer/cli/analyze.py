"""Measure a trained model: `imixer analyze`."""

from __future__ import annotations

import sys
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from imixer.analysis.analyze import Analysis, analyze, compare_runs
from imixer.analysis.registry import ANALYSES
from imixer.cli.analysis_options import add_options, judge_options, options_of_analysis
from imixer.cli.command import Command, add_run, chosen_runs, new_parser
from imixer.cli.terminal import announce_loading, new_console
from imixer.errors import InputError


def build() -> ArgumentParser:
    """Build the parser, with the options of all analyses."""
    comparing = ", ".join(f"`{name}`" for name, analysis in ANALYSES.items() if analysis.compare)
    parser = new_parser(
        f"Measure a run, print a table, and write it and a figure into RUN/analysis. {comparing} compares several."
    )
    parser.add_argument(
        "what",
        metavar="WHAT",
        choices=list(ANALYSES),
        help="; ".join(f"`{name}`: {analysis.summary}" for name, analysis in ANALYSES.items()) + ".",
    )
    add_run(parser, several=True)
    add_options(parser, ANALYSES.values())
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=str | None,
        help=f"For {comparing} of several runs: folder to write into. Default: the folder analysis of the first.",
    )
    return parser


def run(args: Namespace) -> int:
    """Measure, write and print; return the exit code."""
    given = {name: value for name, value in args.as_dict().items() if value is not None}
    what, runs, models = given.pop("what"), given.pop("run", []), given.pop("model", [])
    weights = {name: given.pop(name) for name in ("device", "checkpoint")}
    analysis = ANALYSES[what]
    _check_options(analysis, [*runs, *models], given)
    paths = chosen_runs(runs, models)
    requirements = {name: given.pop(name) for name in judge_options(analysis) if name in given}
    announce_loading("the run" if len(paths) == 1 else "the runs")
    measured: Analysis[Any] = analysis
    if len(paths) > 1 and analysis.compare is not None:
        measured = analysis.compare
        measurement, files = compare_runs(measured, paths, **weights, **given)
    else:
        measurement, files = analyze(measured, paths[0], **weights, **given)
    console = new_console()
    measured.show(measurement, console)
    console.print(f"written: {', '.join(map(str, files))}", soft_wrap=True)
    problem = analysis.judge(measurement, **requirements) if analysis.judge and requirements else None
    if problem:
        print(f"imixer: {problem}", file=sys.stderr)
    return 1 if problem else 0


def _check_options(analysis: Analysis[Any], paths: list[str], given: dict[str, Any]) -> None:
    """Raise InputError if an analysis does not take so many runs, or an option that is given."""
    known = {*options_of_analysis(analysis), *(["out"] if analysis.compare else [])}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"{name} is {value}, of which analyze {analysis.name} has no use; leave it out")
    if len(paths) > 1 and analysis.compare is None:
        raise InputError(
            f"analyze {analysis.name} measures one run, and {len(paths)} are given, from {paths[0]} to {paths[-1]}; "
            "give one"
        )
    if len(paths) == 1 and "out" in given:
        raise InputError(f"out is {given['out']}, and what is found of a single run goes into it; leave it out")


COMMAND = Command("Measure a trained model.", build, run)

"""Replay a training step that was not finite: `imixer replay`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, new_parser
from imixer.cli.terminal import announce_loading


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = new_parser("Compute a training step that was not finite once more, and say where it first is not.")
    parser.add_argument("dump", metavar="FILE", type=str, help="File in RUN/nonfinite that training named.")
    return parser


def run(args: Namespace) -> None:
    """Run the command."""
    announce_loading("the step")
    from imixer.training.step_dump import replay

    step, place = replay(args.dump)
    print(f"step {step.step + 1} of {step.name}, learning rate {step.lr:.3g}, precision {step.precision}")
    print(f"first that is not finite: {place}")


COMMAND = Command("Look into a training step that was not finite.", build, run)

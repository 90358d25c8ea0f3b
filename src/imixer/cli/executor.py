"""Choose by options what runs the trials of a sweep or an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from imixer.errors import InputError

if TYPE_CHECKING:
    from imixer.sweep.sweep import Executor


def add_executor(parser: ArgumentParser) -> None:
    """Add --executor and the options of Ray to a parser."""
    parser.add_argument(
        "--executor",
        choices=["local", "ray"],
        default="local",
        help="`local`: one trial after the other, in this process. `ray`: side by side, on this machine or a cluster.",
    )
    parser.add_argument(
        "--address",
        metavar="ADDR",
        type=str | None,
        help="Ray cluster to use, such as HOST:6379, or `auto` on one of its machines. Default: start one here.",
    )
    parser.add_argument(
        "--cpus", metavar="N", type=int | None, help="CPUs of a trial on Ray. Default: 1 + data.workers, per device."
    )
    parser.add_argument(
        "--gpus",
        metavar="N",
        type=float | None,
        help="GPUs of a trial on Ray; 0.5 lets two share one. Default: its devices if the cluster has GPUs, else 0.",
    )
    parser.add_argument(
        "--retries",
        metavar="N",
        type=int | None,
        help="How often a trial whose process or machine is lost goes on elsewhere, on Ray. Default: 3.",
    )


def build_executor(args: Namespace) -> Executor:
    """Build the executor that the options ask for.

    Args:
        args: Parsed options of `add_executor`.

    Raises:
        InputError: If an option of Ray is given without it, or is impossible.
    """
    given = {name: getattr(args, name) for name in ("address", "cpus", "gpus", "retries")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and args.executor != "ray":
        raise InputError(f"{next(iter(given))} is given, which needs --executor ray")
    from imixer.sweep.local_executor import LocalExecutor
    from imixer.sweep.ray_executor import RayExecutor

    return RayExecutor(**given) if args.executor == "ray" else LocalExecutor()

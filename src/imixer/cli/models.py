"""List models with what they cost, measured: `imixer models`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, add_device, new_parser
from imixer.cli.terminal import announce_loading, new_console
from imixer.errors import InputError


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = new_parser("List models with input size, parameters, multiply-adds, and time per image, measured here.")
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="Names of timm models, or patterns such as `imixer_s*`. Default: those of this package.",
    )
    add_device(parser)
    parser.add_argument("--batch_size", type=int, default=1, help="Images of one forward pass.")
    parser.add_argument("--measure", type=bool, default=True, help="`false` leaves out the time, and is instant.")
    return parser


def run(args: Namespace) -> None:
    """Run the command."""
    if args.batch_size < 1:
        raise InputError(f"batch_size is {args.batch_size}; give 1 or more")
    announce_loading("the models")
    from imixer.training.model_costs import model_costs, show_model_costs

    costs = model_costs(args.names, device=args.device, batch_size=args.batch_size, timed=args.measure)
    show_model_costs(costs, new_console())


COMMAND = Command("List models with what they cost.", build, run)

"""Store images in an associative memory and retrieve them: `imixer recall`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, new_parser
from imixer.cli.terminal import announce_loading, new_console
from imixer.errors import InputError


def build() -> ArgumentParser:
    """Build the parser."""
    parser = new_parser(
        "Store images in an associative memory, corrupt some, retrieve them, and write a picture and the numbers."
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="Image files or folders to store. Default: handwritten digits."
    )
    parser.add_argument(
        "--memory",
        type=str | None,
        help="`classical`, `polynomial`, `exponential` (of +-1), `modern` or `hierarchical` (gray). Default: modern.",
    )
    parser.add_argument("--patterns", type=int | None, help="Images to store. Default: 20 digits, or all images.")
    parser.add_argument(
        "--noise",
        type=float | None,
        help="Share of pixels flipped (+-1), or standard deviation of Gaussian noise, black to white being 1 (gray). "
        "Default: 0.3, or 0 with a mask.",
    )
    parser.add_argument(
        "--mask",
        type=str | None,
        help="Half to hide: `none`, `top`, `bottom`, `left` or `right`. The other is held if without noise. "
        "Default: none.",
    )
    parser.add_argument("--queries", type=int | None, help="Images to corrupt and retrieve. Default: 6.")
    parser.add_argument("--steps", type=int | None, help="Largest number of steps. Default: 50.")
    parser.add_argument(
        "--beta", type=float | None, help="Inverse temperature of exponential, modern and hierarchical memories."
    )
    parser.add_argument("--order", type=float | None, help="Order of the energy of a polynomial memory. Default: 4.")
    parser.add_argument(
        "--similarity", type=str | None, help="What a modern memory compares by: `dot` or `distance`. Default: dot."
    )
    parser.add_argument("--size", type=int | None, help="Side in pixels that given images get. Default: 32.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the choice of images and of the noise.")
    parser.add_argument("--out", metavar="DIR", type=str | None, help="Folder to make. Default: next free in runs/.")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="Measure all kinds instead, against load and noise (about half a minute). Takes --seed and --out only.",
    )
    parser.add_argument(
        "--capacity",
        action="store_true",
        help="Measure instead how many random patterns memories of order 2, 3, 4 and exponential ones hold, against "
        "theory (a few minutes). Takes --seed and --out only.",
    )
    return parser


def run(args: Namespace) -> None:
    """Recall, write and print."""
    given = {name: value for name, value in args.as_dict().items() if value not in (None, [])}
    studies = [name for name in ("compare", "capacity") if given.pop(name)]
    superfluous = [*studies[1:], *(name for name in given if name not in ("seed", "out"))]
    if studies and superfluous:
        raise InputError(f"{studies[0]} has a protocol of its own; leave out {', '.join(superfluous)}")
    announce_loading("the patterns" if studies == ["capacity"] else "the images")
    if studies == ["capacity"]:
        from imixer.analysis.recall.run import recall_capacity
        from imixer.analysis.recall.tables import show_capacity

        show_capacity(*recall_capacity(**given), new_console())
    elif studies:
        from imixer.analysis.recall.run import compare_memories
        from imixer.analysis.recall.tables import show_memory_study

        show_memory_study(*compare_memories(**given), new_console())
    else:
        from imixer.analysis.recall.run import recall
        from imixer.analysis.recall.tables import show_recall

        show_recall(*recall(**given), new_console())


COMMAND = Command("Store images in an associative memory and retrieve them.", build, run)

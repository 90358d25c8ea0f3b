"""Compare runs image by image: `imixer compare`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, add_run, chosen_runs, new_parser
from imixer.cli.terminal import announce_loading, new_console
from imixer.writing import check_output_file


def build() -> ArgumentParser:
    """Build the parser of the command."""
    from imixer.experiments.comparison import MARGIN

    parser = new_parser(
        "Compare runs with the first of them, image by image on the same images: on how many one alone is right, and "
        "whether that is more than chance. A run that is not evaluated yet is evaluated."
    )
    add_run(parser, several=True)
    parser.add_argument(
        "--test",
        metavar="FOLDER",
        type=str | None,
        help="Compare on the images of this folder of class folders, of segmentations of images and masks. Default: "
        "the held-out images.",
    )
    parser.add_argument(
        "--margin",
        metavar="POINTS",
        type=float,
        default=MARGIN,
        help="Points within which a difference counts as none; choose it before you look.",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=str | None,
        help="Write the score of every model on every image, as CSV. It must not exist.",
    )
    return parser


def run(args: Namespace) -> None:
    """Compare, write and print."""
    from imixer.experiments.comparison import check_margin

    check_margin(args.margin)
    if args.out is not None:
        check_output_file(Path(args.out), "out")
    announce_loading("the runs")
    from imixer.experiments.image_comparison import compare_on_images, show_image_comparison

    compared = compare_on_images(
        chosen_runs(args.run, args.model),
        data=args.data,
        test=args.test,
        device=args.device,
        checkpoint=args.checkpoint,
        margin=args.margin,
    )
    console = new_console()
    show_image_comparison(compared, console)
    if args.out is not None:
        compared.write(Path(args.out))
        console.print(f"written: {args.out}", markup=False, soft_wrap=True)


COMMAND = Command("Compare runs image by image, on the same images.", build, run)

"""Export a model for inference elsewhere: `imixer export`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, add_checkpoint, new_parser
from imixer.cli.terminal import announce_loading
from imixer.errors import InputError
from imixer.escaping import one_line


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = new_parser("Write a run's model for inference elsewhere, and check that it computes the same.")
    parser.add_argument("run", metavar="RUN", type=str, help="Run directory that `imixer train` made.")
    parser.add_argument(
        "--format",
        choices=["onnx", "torch", "hub"],
        default="onnx",
        help="`onnx`; `torch`: a program of torch.export; or `hub`: a folder with a model card, as `push` uploads it.",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=str | None,
        help="File to write. Default: RUN/model.onnx, model.pt2 or hub/.",
    )
    parser.add_argument("--batch_size", type=int | None, help="Batch size to fix. Default: any.")
    add_checkpoint(parser)
    return parser


def run(args: Namespace) -> None:
    """Run the command."""
    if args.format == "hub" and args.batch_size is not None:
        raise InputError(f"batch_size is {args.batch_size}, of which the format hub has no use; leave it out")
    announce_loading("the run")
    if args.format == "hub":
        from imixer.training.hub import export_hub

        folder = export_hub(args.run, args.out, args.checkpoint)
        files = ", ".join(sorted(file.name for file in folder.iterdir()))
        print(one_line(f"written: {folder}: {files}"))
        return
    from imixer.training.export_run import export

    path, checked = export(args.run, args.format, args.out, args.batch_size, args.checkpoint)
    print(f"written: {one_line(path)} ({path.stat().st_size / 1e6:.1f} MB)")
    print("checked: " + ", ".join(f"{name} {value:.3g}" for name, value in checked.items()))


COMMAND = Command("Write a model for inference elsewhere.", build, run)

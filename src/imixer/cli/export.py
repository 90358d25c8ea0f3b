"""Export a model for inference elsewhere, as a package or for the hub: `imixer export`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, add_run, chosen_run, new_parser
from imixer.cli.terminal import announce_loading
from imixer.escaping import one_line
from imixer.weights import size_of


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = new_parser("Write a run's model for inference elsewhere, and check that it computes the same.")
    add_run(parser, device=False)
    parser.add_argument(
        "--format",
        choices=["onnx", "torch", "package", "hub"],
        default="onnx",
        help="`onnx`; `torch`: a program of torch.export; `package`: a folder that is a small run, in float16 and with "
        "a model card, evaluated anew; or `hub`: a folder with a model card, as `push` uploads it.",
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=str | None,
        help="File to write; for a package a folder, whose name is that of the model in timm, and for the hub any "
        "folder. Default: RUN/model.onnx, RUN/model.int8.onnx, RUN/model.pt2, RUN/ARCHITECTURE.DATA or RUN/hub.",
    )
    parser.add_argument("--batch_size", type=int | None, help="Batch size to fix. Default: any.")
    parser.add_argument(
        "--quantize",
        choices=["int8"],
        help="Give an ONNX file matrices of 8 bits, and say how often it agrees on held-out images. Default: none.",
    )
    return parser


def run(args: Namespace) -> None:
    """Run the command."""
    path = chosen_run(args.run, args.model)
    announce_loading("the run")
    from imixer.training.export_run import export

    file, checked = export(path, args.format, args.out, args.batch_size, args.data, args.quantize, args.checkpoint)
    files = f": {', '.join(sorted(each.name for each in file.iterdir()))}" if file.is_dir() else ""
    print(f"written: {one_line(f'{file}{files}')} ({size_of(file) / 1e6:.1f} MB)")
    if checked:
        print("checked: " + ", ".join(f"{name} {value:.3g}" for name, value in checked.items()))


COMMAND = Command("Write a model for inference elsewhere.", build, run)

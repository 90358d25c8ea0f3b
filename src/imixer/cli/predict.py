"""Predict and draw images: `imixer predict`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, run_parser
from imixer.cli.terminal import announce_loading, new_console


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = run_parser("Predict images, print the most probable classes and draw RUN/prediction.png.")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="Image files or folders. Default: 8 of the run's held-out images."
    )
    parser.add_argument("--top", type=int, default=5, help="Classes per image.")
    parser.add_argument("--n_iter", type=int | None, help="Fixed point iterations, for iMixers. Default: as trained.")
    parser.add_argument("--csv", metavar="FILE", type=str | None, help="Write all predictions here too.")
    return parser


def run(args: Namespace) -> None:
    """Run the command."""
    announce_loading("the run")
    from imixer.training.predict import predict
    from imixer.training.result_tables import report_predictions

    predictions, picture = predict(
        args.run,
        args.images or (),
        top=args.top,
        n_iter=args.n_iter,
        data=args.data,
        device=args.device,
        checkpoint=args.checkpoint,
        csv_file=args.csv,
    )
    report_predictions(predictions, picture, new_console())


COMMAND = Command("Predict and draw images.", build, run)

"""Predict and draw images: `imixer predict`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, chosen_run, run_parser
from imixer.cli.terminal import announce_loading, new_console
from imixer.errors import InputError
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import task_of


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = run_parser("Predict images, print the most probable classes and draw RUN/prediction.png.")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="Image files or folders. Default: 8 of the run's held-out images."
    )
    parser.add_argument("--top", type=int | None, help="Classes per image. Default: 5.")
    parser.add_argument("--n_iter", type=int | None, help="Fixed point iterations, for iMixers. Default: as trained.")
    parser.add_argument("--csv", metavar="FILE", type=str | None, help="Write all predictions here too.")
    return parser


def run(args: Namespace) -> None:
    """Run the command."""
    path, images = _chosen(args)
    announce_loading("the run")
    from imixer.training.predict import predict
    from imixer.training.result_tables import report_predictions

    task = task_of(path)
    if task == "anomaly":
        _judge_files(args, path, images)
        return
    if task == "segment":
        _predict_masks(args, path, images)
        return
    predictions, picture = predict(
        path,
        images,
        **({} if args.top is None else {"top": args.top}),
        n_iter=args.n_iter,
        data=args.data,
        device=args.device,
        checkpoint=args.checkpoint,
        csv_file=args.csv,
    )
    report_predictions(predictions, picture, new_console())


def _judge_files(args: Namespace, path: str, images: list[str]) -> None:
    """Judge images by a detector of anomalies, write and print."""
    from imixer.analysis.anomaly.detector_run import judge_files
    from imixer.analysis.anomaly.heat_maps import show_judged
    from imixer.training.finished_run import load_run

    for name in ("top", "n_iter", "data"):
        if getattr(args, name) is not None:
            raise InputError(f"{name} is given, and {path} is a detector of anomalies, which has none; leave it out")
    judged, picture = judge_files(load_run(path, args.device, args.checkpoint), images, args.csv)
    show_judged([(each.image, each.score, each.anomalous) for each in judged], picture, new_console())


def _predict_masks(args: Namespace, path: str, images: list[str]) -> None:
    """Predict masks, write and print."""
    from imixer.training.finished_run import load_run
    from imixer.training.mask_tables import report_mask_predictions
    from imixer.training.predict_masks import predict_masks

    for name in ("top", "n_iter", "csv"):
        if getattr(args, name) is not None:
            raise InputError(f"{name} is given, and {path} is a segmentation, which has none; leave it out")
    if images and args.data is not None:
        raise InputError(f"data is {args.data}, which is not looked at where images are given; leave one out")
    run = load_run(path, args.device, args.checkpoint)
    report_mask_predictions(*predict_masks(run, images, args.data), new_console())


def _chosen(args: Namespace) -> tuple[str, list[str]]:
    """Return the run and the images. With --model, the first image stands where RUN would."""
    images = list(args.images or ())
    if args.model is None or args.run is None or RunDirectory(Path(args.run)).config.is_file():
        return chosen_run(args.run, args.model), images
    return chosen_run(None, args.model), [args.run, *images]


COMMAND = Command("Predict and draw images.", build, run)

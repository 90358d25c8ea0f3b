"""Evaluate a run on its held-out images, or a test set: `imixer evaluate`."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from imixer.analysis.analyze import Analysis, analyze
from imixer.analysis.registry import ROBUSTNESS_EVALUATIONS
from imixer.cli.analysis_options import add_options, options_of_analysis
from imixer.cli.command import Command, chosen_run, run_parser
from imixer.cli.terminal import announce_loading, new_console
from imixer.errors import InputError
from imixer.training.run.parsing import task_of


def build() -> ArgumentParser:
    """Build the parser, with the options of all evaluations on harder images."""
    parser = run_parser("Evaluate a run on its held-out images, and write RUN/evaluation.json.")
    parser.add_argument(
        "--test",
        metavar="FOLDER",
        type=str | None,
        help="Evaluate on all images of this folder of class folders instead, of a segmentation of images and masks, "
        "and write RUN/test_evaluation.json.",
    )
    parser.add_argument("--batch_size", type=int | None, help="Images per step. Default: that of training.")
    parser.add_argument(
        "--anomaly",
        action="store_true",
        help="Find anomalies instead, and write RUN/anomaly.json and heat maps: in --data FOLDER with test/good and "
        "test/DEFECT, or among digits. A run of task anomaly does so in any case; of another its features are judged, "
        "which learn from train/good first.",
    )
    for name, analysis in ROBUSTNESS_EVALUATIONS.items():
        summary = f"Also measure {analysis.summary}, and write RUN/{name}.json."
        parser.add_argument(f"--{name}", action="store_true", help=summary)
    add_options(parser, ROBUSTNESS_EVALUATIONS.values(), named="--{}")
    return parser


def run(args: Namespace) -> None:
    """Evaluate, write and print."""
    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"batch_size is {args.batch_size}; give 1 or more")
    if args.test is not None:
        for name in ("data", *ROBUSTNESS_EVALUATIONS):
            if getattr(args, name):
                raise InputError(
                    f"{name} is given, which is about the run's own images; leave out one of it and --test"
                )
    wanted = {name: _options(args, analysis) for name, analysis in ROBUSTNESS_EVALUATIONS.items()}
    _check_use(args, wanted)
    path = chosen_run(args.run, args.model)
    announce_loading("the run")
    from imixer.training.evaluate import evaluate
    from imixer.training.result_tables import report_evaluation

    task = task_of(path)
    if args.anomaly or task == "anomaly":
        _evaluate_detector(args, path)
        return
    if task == "segment":
        _evaluate_masks(args, path)
        return
    chosen = [(analysis, wanted[name]) for name, analysis in ROBUSTNESS_EVALUATIONS.items() if getattr(args, name)]
    for analysis, options in chosen:  # before anything is computed
        if analysis.check is not None:
            analysis.check(**options)
    console = new_console()
    weights = {"device": args.device, "checkpoint": args.checkpoint}
    scores = evaluate(path, data=args.data, test=args.test, batch_size=args.batch_size or 0, **weights)
    report_evaluation(*scores, console)
    for analysis, options in chosen:
        measurement, files = analyze(analysis, path, **weights, **options)
        analysis.show(measurement, console)
        console.print(f"written: {', '.join(map(str, files))}")


def _evaluate_detector(args: Namespace, path: str) -> None:
    """Find anomalies, write and print."""
    from imixer.analysis.anomaly.detector_run import evaluate_detector
    from imixer.analysis.anomaly.heat_maps import show_anomalies
    from imixer.training.finished_run import load_run

    for name in ("test", *ROBUSTNESS_EVALUATIONS):
        if getattr(args, name):
            raise InputError(f"{name} is given, which is about classes and not about anomalies; leave it out")
    run = load_run(path, args.device, args.checkpoint)
    outcome = evaluate_detector(run, args.data, args.batch_size)
    show_anomalies(outcome.scores, outcome.score, outcome.files, new_console())


def _evaluate_masks(args: Namespace, path: str) -> None:
    """Evaluate a segmentation, write and print."""
    from imixer.training.evaluate_masks import evaluate_masks
    from imixer.training.finished_run import load_run
    from imixer.training.mask_tables import report_mask_evaluation

    for name in ROBUSTNESS_EVALUATIONS:
        if getattr(args, name):
            raise InputError(f"{name} is given, and {path} is a segmentation, which has none; leave it out")
    run = load_run(path, args.device, args.checkpoint)
    report_mask_evaluation(*evaluate_masks(run, args.data, args.batch_size or 0, args.test), new_console())


def _options(args: Namespace, analysis: Analysis[Any]) -> dict[str, Any]:
    """Collect what is given of the options of an evaluation."""
    values = {name: getattr(args, name) for name in options_of_analysis(analysis)}
    return {name: value for name, value in values.items() if value is not None}


def _check_use(args: Namespace, wanted: dict[str, dict[str, Any]]) -> None:
    """Raise InputError if an option is given without any of the evaluations that take it."""
    for name in dict.fromkeys(name for options in wanted.values() for name in options if name != "data"):
        takers = [taker for taker, options in wanted.items() if name in options]
        if not any(getattr(args, taker) for taker in takers):
            raise InputError(f"{name} is given, which needs {' or '.join(f'--{taker}' for taker in takers)}")


COMMAND = Command("Evaluate a run on its held-out images, or a test set.", build, run)

"""The `imixer` command. Thin: parses, calls, prints. Free of torch until a command needs it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

import imixer
from imixer.errors import InputError
from imixer.recipes import recipes
from imixer.training.parsing import hoist, parse, to_config, train_parser
from imixer.training.suggest import nearest

_DEVICES = "`cpu`, `cuda`, or `auto`: CUDA where there is any."


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command.

    Args:
        argv: Words after `imixer`. Default: those of the process.

    Returns:
        0 if all went well, 1 if a run does not meet what `--require` asks or a trial failed, 2 if the user can mend
        what is wrong, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print(f"imixer: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "NotConvergedError":  # of imixer.implicit, which nobody may have needed yet
            raise
        print(f"imixer: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"imixer: interrupted {error}".rstrip(), file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except SystemExit as error:  # --help and the like
        return error.code if isinstance(error.code, int) else 0


def _run(argv: List[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "--version"):
        print(f"imixer {imixer.__version__}") if argv[:1] == ["--version"] else _help()
        return 0
    name, *rest = argv
    if name not in _COMMANDS:
        raise InputError(f"no command {name!r}{nearest(name, _COMMANDS)}; `imixer --help` lists them")
    _, build, run = _COMMANDS[name]
    parser = build()
    parser.prog = f"imixer {name}"
    words = hoist(rest) if name == "train" else rest
    return run(parse(parser, words)) or 0


def _help() -> None:
    parser = ArgumentParser(prog="imixer", description="Train, evaluate and use iMixers and other timm models.")
    parser.add_argument("--version", action="store_true", help="Print the version.")
    commands = parser.add_subcommands(metavar="COMMAND", title="`imixer COMMAND --help` tells more")
    for name, (summary, build, _) in _COMMANDS.items():
        commands.add_subcommand(name, build(), help=summary)
    parser.print_help()


def _loading(what: str) -> None:
    """Say that torch, which takes seconds to import, is on its way."""
    # OpenMP threads that spin for long while idle slow small models tenfold on a machine that does something else too.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    print(f"loading PyTorch and {what} ...", file=sys.stderr, flush=True)


def _parser(description: str) -> ArgumentParser:
    return ArgumentParser(exit_on_error=False, allow_abbrev=False, description=description)


def _console() -> Console:
    # A pipe has no width: lines stay whole. Names of files and classes are no markup or numbers to colour.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def _train(args: Namespace) -> None:
    began = time.perf_counter()
    config = to_config(args)
    _loading("the data")
    from imixer.training.devices import is_first_process
    from imixer.training.report import report_training
    from imixer.training.train import resume, train

    trained = train(config) if args.resume is None else resume(args.resume, config)
    if is_first_process():
        report_training(trained, time.perf_counter() - began, _console())


def _replay_parser() -> ArgumentParser:
    parser = _parser("Compute a training step that was not finite once more, and say where it first is not.")
    parser.add_argument("dump", metavar="FILE", type=str, help="File in RUN/nonfinite that training named.")
    return parser


def _replay(args: Namespace) -> None:
    _loading("the step")
    from imixer.training.non_finite import replay

    step, place = replay(args.dump)
    print(f"step {step.step + 1} of {step.name}, learning rate {step.lr:.3g}, precision {step.precision}")
    print(f"first that is not finite: {place}")


def _sweep_parser() -> ArgumentParser:
    parser = _parser("Train a grid of configurations with several seeds each: what is not yet finished of it.")
    parser.add_argument(
        "spec",
        metavar="SPEC",
        type=str,
        help="YAML file with any of: name; recipe and config, to start from; set, settings; grid, lists of values by "
        "setting; cases, settings by name of the case; seeds, a number or a list.",
    )
    parser.add_argument("--out", metavar="DIR", type=Optional[str], help="Folder of the sweep. Default: sweeps/<name>.")
    parser.add_argument(
        "--executor",
        choices=["local", "ray"],
        default="local",
        help="`local`: one trial after the other, in this process. `ray`: side by side, on this machine or a cluster.",
    )
    parser.add_argument(
        "--address",
        metavar="ADDR",
        type=Optional[str],
        help="Ray cluster to use, such as HOST:6379, or `auto` on one of its machines. Default: start one here.",
    )
    parser.add_argument(
        "--cpus", metavar="N", type=Optional[int], help="CPUs of a trial on Ray. Default: 1 + data.workers, per device."
    )
    parser.add_argument(
        "--gpus",
        metavar="N",
        type=Optional[float],
        help="GPUs of a trial on Ray; 0.5 lets two share one. Default: its devices if the cluster has GPUs, else 0.",
    )
    parser.add_argument(
        "--retries",
        metavar="N",
        type=Optional[int],
        help="How often a trial whose process or machine is lost goes on elsewhere, on Ray. Default: 3.",
    )
    parser.add_argument(
        "--share",
        metavar="I/N",
        type=Optional[str],
        help="Do only the I-th of N shares of the trials, from 0: for job arrays. Default: all.",
    )
    return parser


def _sweep(args: Namespace) -> int:
    from imixer.sweep.spec import read_sweep, share

    sweep = read_sweep(args.spec)
    trials = share(sweep, args.share or "0/1")
    given = {name: getattr(args, name) for name in ("address", "cpus", "gpus", "retries")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and args.executor != "ray":
        raise InputError(f"{next(iter(given))} is given, which needs --executor ray")
    from imixer.sweep.cluster import Cluster
    from imixer.sweep.local import Local
    from imixer.sweep.sweep import run_sweep
    from imixer.sweep.table import report_sweep

    executor = Cluster(**given) if args.executor == "ray" else Local()
    _loading("the trials")
    results = run_sweep(sweep, args.out, executor, trials)
    report_sweep(results, _console())
    return int(any(results[trial].status == "failed" for trial in trials))


def _recipes_parser() -> ArgumentParser:
    return _parser("List the recipes that ship with the package, for `imixer train --recipe`.")


def _recipes(args: Namespace) -> None:
    known = recipes()
    width = max(map(len, known))
    for name, description in known.items():
        print(f"{name:{width}}  {description}")


def _evaluate_parser() -> ArgumentParser:
    parser = _run_parser("Evaluate a run on its validation data, and write RUN/evaluation.json.")
    parser.add_argument("--batch_size", type=Optional[int], help="Images per step. Default: that of training.")
    return parser


def _evaluate(args: Namespace) -> None:
    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"batch_size is {args.batch_size}; give 1 or more")
    _loading("the run")
    from imixer.training.evaluate import evaluate
    from imixer.training.report import report_evaluation

    result = evaluate(args.run, data=args.data, device=args.device, batch_size=args.batch_size or 0)
    report_evaluation(result, Path(args.run) / "evaluation.json", _console())


def _predict_parser() -> ArgumentParser:
    parser = _run_parser("Predict images, print the most probable classes and draw RUN/prediction.png.")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="Image files or folders. Default: 8 of the run's held-out images."
    )
    parser.add_argument("--top", type=int, default=5, help="Classes per image.")
    parser.add_argument(
        "--n_iter", type=Optional[int], help="Fixed point iterations, for iMixers. Default: as trained."
    )
    parser.add_argument("--csv", metavar="FILE", type=Optional[str], help="Write all predictions here too.")
    return parser


def _predict(args: Namespace) -> None:
    _loading("the run")
    from imixer.training.predict import predict
    from imixer.training.report import report_predictions

    predictions, picture = predict(
        args.run,
        args.images or (),
        top=args.top,
        n_iter=args.n_iter,
        data=args.data,
        device=args.device,
        csv_file=args.csv,
    )
    report_predictions(predictions, picture, _console())


def _run_parser(description: str) -> ArgumentParser:
    parser = _parser(description)
    _add_run(parser)
    return parser


def _add_run(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=str, help="Run directory that `imixer train` made.")
    parser.add_argument(
        "--data", metavar="PATH", type=Optional[str], help="Where the run's data lie now. Default: where they lay."
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help=_DEVICES)


def _export_parser() -> ArgumentParser:
    parser = _parser("Write a run's model for inference elsewhere, and check that it computes the same.")
    parser.add_argument("run", metavar="RUN", type=str, help="Run directory that `imixer train` made.")
    parser.add_argument(
        "--format",
        choices=["onnx", "torch"],
        default="onnx",
        help="`onnx`, or `torch`: a program of torch.export.",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Optional[str], help="File to write. Default: RUN/model.onnx or RUN/model.pt2."
    )
    parser.add_argument("--batch_size", type=Optional[int], help="Batch size to fix. Default: any.")
    return parser


def _export(args: Namespace) -> None:
    _loading("the run")
    from imixer.training.export import export

    path, checked = export(args.run, args.format, args.out, args.batch_size)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    print("checked: " + ", ".join(f"{name} {value:.3g}" for name, value in checked.items()))


_MEASUREMENTS = {
    "energy": "of every mixing step as a Hopfield network, and how symmetric its couplings are",
    "contraction": "whether each inverse exists, in theory and on images, and the error that the iterations leave",
    "inverse": "what of each iMLP's input can be recovered from its inner state",
    "iterations": "accuracy and latency against the number of iterations, and against a tolerance",
}


def _analyze_parser() -> ArgumentParser:
    parser = _parser("Measure a run, print a table, and write it and a figure into RUN/analysis.")
    parser.add_argument(
        "what",
        metavar="WHAT",
        choices=list(_MEASUREMENTS),
        help="; ".join(f"`{name}`: {what}" for name, what in _MEASUREMENTS.items()) + ".",
    )
    _add_run(parser)
    parser.add_argument(
        "--images",
        type=Optional[int],
        help="Held-out images to measure on, evenly spread. Default: 64; for `iterations` all.",
    )
    parser.add_argument(
        "--require",
        choices=["guaranteed", "observed"],
        help="For `contraction`: exit with 1 unless every block is a contraction, for any input (`guaranteed`) or at "
        "least on the images (`observed`).",
    )
    return parser


def _analyze(args: Namespace) -> int:
    if args.require is not None and args.what != "contraction":
        raise InputError(f"require is {args.require}, and {args.what} has nothing to require; leave it out")
    _loading("the run")
    given = {} if args.images is None else {"images": args.images}
    given |= {"data": args.data, "device": args.device}
    return _ANALYSES[args.what](args, given)


def _analyze_energy(args: Namespace, given: Dict[str, Any]) -> int:
    from imixer.analysis.energy import analyze_energy
    from imixer.analysis.energy_report import report_energy

    report_energy(*analyze_energy(args.run, **given), _console())
    return 0


def _analyze_contraction(args: Namespace, given: Dict[str, Any]) -> int:
    from imixer.analysis.contraction import analyze_contraction, unmet
    from imixer.analysis.contraction_report import report_contraction

    found, folder = analyze_contraction(args.run, **given)
    report_contraction(found, folder, _console())
    problem = unmet(found, args.require) if args.require else None
    if problem:
        print(f"imixer: {problem}", file=sys.stderr)
    return 1 if problem else 0


def _analyze_inverse(args: Namespace, given: Dict[str, Any]) -> int:
    from imixer.analysis.inverse import analyze_inverse
    from imixer.analysis.inverse_report import report_inverse

    report_inverse(*analyze_inverse(args.run, **given), _console())
    return 0


def _analyze_iterations(args: Namespace, given: Dict[str, Any]) -> int:
    from imixer.analysis.iterations import analyze_iterations
    from imixer.analysis.iterations_report import report_iterations

    report_iterations(*analyze_iterations(args.run, **given), _console())
    return 0


_ANALYSES: Dict[str, Callable[[Namespace, Dict[str, Any]], int]] = {
    "energy": _analyze_energy,
    "contraction": _analyze_contraction,
    "inverse": _analyze_inverse,
    "iterations": _analyze_iterations,
}


def _recall_parser() -> ArgumentParser:
    parser = _parser(
        "Store images in an associative memory, corrupt some, retrieve them, and write a picture and the numbers."
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="Image files or folders to store. Default: handwritten digits."
    )
    parser.add_argument(
        "--memory",
        type=Optional[str],
        help="`classical`, `polynomial`, `exponential` (of +-1), `modern` or `hierarchical` (gray). Default: modern.",
    )
    parser.add_argument("--patterns", type=Optional[int], help="Images to store. Default: 20 digits, or all images.")
    parser.add_argument(
        "--noise",
        type=Optional[float],
        help="Share of pixels flipped (+-1), or standard deviation of Gaussian noise, black to white being 1 (gray). "
        "Default: 0.3, or 0 with a mask.",
    )
    parser.add_argument(
        "--mask",
        type=Optional[str],
        help="Half to hide: `none`, `top`, `bottom`, `left` or `right`. The other is held if without noise. "
        "Default: none.",
    )
    parser.add_argument("--queries", type=Optional[int], help="Images to corrupt and retrieve. Default: 6.")
    parser.add_argument("--steps", type=Optional[int], help="Largest number of steps. Default: 50.")
    parser.add_argument(
        "--beta", type=Optional[float], help="Inverse temperature of exponential, modern and hierarchical memories."
    )
    parser.add_argument("--order", type=Optional[float], help="Order of the energy of a polynomial memory. Default: 4.")
    parser.add_argument(
        "--similarity", type=Optional[str], help="What a modern memory compares by: `dot` or `distance`. Default: dot."
    )
    parser.add_argument("--size", type=Optional[int], help="Side in pixels that given images get. Default: 32.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the choice of images and of the noise.")
    parser.add_argument("--out", metavar="DIR", type=Optional[str], help="Folder to make. Default: next free in runs/.")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="Measure all kinds instead, against load and noise (about half a minute). Takes --seed and --out only.",
    )
    return parser


def _recall(args: Namespace) -> None:
    given = {name: value for name, value in args.as_dict().items() if value not in (None, [])}
    compare = given.pop("compare")
    superfluous = [name for name in given if name not in ("seed", "out")]
    if compare and superfluous:
        raise InputError(f"compare has a protocol of its own; leave out {', '.join(superfluous)}")
    _loading("the images")
    if compare:
        from imixer.analysis.recall_report import report_study
        from imixer.analysis.recall_study import study

        report_study(*study(**given), _console())
    else:
        from imixer.analysis.recall import recall
        from imixer.analysis.recall_report import report_recall

        report_recall(*recall(**given), _console())


# A command returns its exit code, or nothing for 0.
_Command = Tuple[str, Callable[[], ArgumentParser], Callable[[Namespace], Optional[int]]]
_COMMANDS: Dict[str, _Command] = {
    "train": ("Train a model.", train_parser, _train),
    "sweep": ("Train a grid of configurations and seeds, here or on Ray.", _sweep_parser, _sweep),
    "replay": ("Look into a training step that was not finite.", _replay_parser, _replay),
    "recipes": ("List the recipes.", _recipes_parser, _recipes),
    "evaluate": ("Evaluate a run on its validation data.", _evaluate_parser, _evaluate),
    "predict": ("Predict and draw images.", _predict_parser, _predict),
    "analyze": ("Measure a trained model.", _analyze_parser, _analyze),
    "recall": ("Store images in an associative memory and retrieve them.", _recall_parser, _recall),
    "export": ("Write a model for inference elsewhere.", _export_parser, _export),
}

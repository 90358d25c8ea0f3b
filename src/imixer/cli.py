"""The `imixer` command. Thin: parses, calls, prints. Free of torch until a command needs it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

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
    _add_executor(parser)
    parser.add_argument(
        "--share",
        metavar="I/N",
        type=Optional[str],
        help="Do only the I-th of N shares of the trials, from 0: for job arrays. Default: all.",
    )
    return parser


def _add_executor(parser: ArgumentParser) -> None:
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


def _executor(args: Namespace) -> Any:
    given = {name: getattr(args, name) for name in ("address", "cpus", "gpus", "retries")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and args.executor != "ray":
        raise InputError(f"{next(iter(given))} is given, which needs --executor ray")
    from imixer.sweep.cluster import Cluster
    from imixer.sweep.local import Local

    return Cluster(**given) if args.executor == "ray" else Local()


def _sweep(args: Namespace) -> int:
    from imixer.sweep.spec import read_sweep, share

    sweep = read_sweep(args.spec)
    trials = share(sweep, args.share or "0/1")
    executor = _executor(args)
    from imixer.sweep.sweep import run_sweep
    from imixer.sweep.table import report_sweep

    _loading("the trials")
    results = run_sweep(sweep, args.out, executor, trials)
    report_sweep(results, _console())
    return int(any(results[trial].status == "failed" for trial in trials))


def _reproduce_parser() -> ArgumentParser:
    from imixer.experiments.registry import EXPERIMENTS
    from imixer.experiments.scales import SCALES

    parser = _parser(
        "Train what is not yet finished of an experiment, and set what came out beside the paper's numbers."
    )
    titles = "; ".join(f"`{name}`: {each.title}" for name, each in EXPERIMENTS.items())
    parser.add_argument("what", metavar="WHAT", choices=[*EXPERIMENTS, "all"], help=f"{titles}; or `all`.")
    summaries = "; ".join(f"`{name}`: {scale.data}, {scale.summary}" for name, scale in SCALES.items())
    parser.add_argument("--scale", choices=list(SCALES), default="smoke", help=f"How large. {summaries}.")
    parser.add_argument(
        "--out", metavar="DIR", type=Optional[str], help="Folder for what comes out. Default: reproduced/<scale>."
    )
    parser.add_argument(
        "--trials", metavar="N", type=Optional[int], help="Trials per row. Default: 3; at the scale paper 10."
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        type=Optional[str],
        help="Folder with the data sets as torchvision lays them out, or in folders called cifar10, cifar100, "
        "stanford_cars, food101, imagenet of parquet shards or class folders; or CIFAR-10's parquet shards. "
        "Default: data.",
    )
    _add_executor(parser)
    return parser


def _reproduce(args: Namespace) -> int:
    from imixer.experiments.registry import EXPERIMENTS
    from imixer.experiments.scales import SCALES

    executor = _executor(args)
    _loading("the data")
    from imixer.experiments.reproduce import reproduce

    experiments = list(EXPERIMENTS.values()) if args.what == "all" else [EXPERIMENTS[args.what]]
    found = reproduce(
        experiments,
        SCALES[args.scale],
        _console(),
        out=args.out,
        trials=args.trials,
        data=args.data,
        executor=executor,
    )
    return int(any(each.failed for each in found))


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
    parser.add_argument(
        "--corruptions",
        action="store_true",
        help="Also with common corruptions at five severities, to RUN/corruptions.json. Needs imixer[robust].",
    )
    parser.add_argument(
        "--adversarial", action="store_true", help="Also under attack by PGD (L-infinity), to RUN/adversarial.json."
    )
    parser.add_argument(
        "--images",
        type=Optional[int],
        help="Held-out images for --corruptions and --adversarial, evenly spread. Default: all.",
    )
    parser.add_argument(
        "--epsilon",
        nargs="+",
        type=float,
        metavar="E",
        help="Largest changes of a pixel in an attack, of 255. Default: 1 2 4 8.",
    )
    parser.add_argument("--steps", type=Optional[int], help="Steps of an attack. Default: 20.")
    parser.add_argument("--step_size", type=Optional[float], help="Of 255. Default: 2.5 epsilon / steps.")
    return parser


def _evaluate(args: Namespace) -> None:
    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"batch_size is {args.batch_size}; give 1 or more")
    attack = {"epsilon": args.epsilon, "steps": args.steps, "step_size": args.step_size}
    attack = {name: value for name, value in attack.items() if value is not None}
    if attack and not args.adversarial:
        raise InputError(f"{next(iter(attack))} is given, which needs --adversarial")
    if args.images is not None and not (args.corruptions or args.adversarial):
        raise InputError("images is given, which needs --corruptions or --adversarial")
    _loading("the run")
    from imixer.training.evaluate import evaluate
    from imixer.training.report import report_evaluation

    harder = _harder(args, attack)  # finds fault with its options before anything is computed
    result = evaluate(args.run, data=args.data, device=args.device, batch_size=args.batch_size or 0)
    report_evaluation(result, Path(args.run) / "evaluation.json", _console())
    for each in harder:
        each()


def _harder(args: Namespace, attack: Dict[str, Any]) -> List[Callable[[], None]]:
    """The evaluations on harder images that are asked for."""
    given = {"images": args.images, "data": args.data, "device": args.device}
    wanted: List[Callable[[], None]] = []
    if args.corruptions:
        from imixer.analysis.corruptions import evaluate_corruptions, require_corruptions
        from imixer.analysis.robustness_report import report_corruptions

        require_corruptions()
        wanted.append(lambda: report_corruptions(*evaluate_corruptions(args.run, **given), _console()))
    if args.adversarial:
        from imixer.analysis.adversarial import Attack, evaluate_adversarial
        from imixer.analysis.robustness_report import report_adversarial

        pgd = Attack(**{"epsilons" if name == "epsilon" else name: value for name, value in attack.items()})
        wanted.append(lambda: report_adversarial(*evaluate_adversarial(args.run, pgd, **given), _console()))
    return wanted


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


# What each looks at, and the options it takes.
_ANALYSES = {
    "energy": ("of every mixing step as a Hopfield network, and how symmetric its couplings are", ("images", "data")),
    "contraction": (
        "whether each inverse exists, in theory and on images, and the error that the iterations leave",
        ("images", "data", "require"),
    ),
    "inverse": ("what of each iMLP's input can be recovered from its inner state", ("images", "data")),
    "iterations": (
        "accuracy and latency against the number of iterations, and against a tolerance",
        ("images", "data"),
    ),
    "convergence": (
        "how far and in which direction each iteration moves the inner state",
        ("images", "data", "n_iter", "seed"),
    ),
    "features": (
        "what each iteration of one block makes of one image, as feature maps",
        ("image", "data", "n_iter", "block"),
    ),
    "weights": ("token mixing matrices as pictures over the token grid", ()),
    "ood": (
        "whether energies, residuals and logits tell images of another kind from the run's own",
        ("images", "data", "against"),
    ),
}


def _analyze_parser() -> ArgumentParser:
    parser = _parser("Measure a run, print a table, and write it and a figure into RUN/analysis.")
    parser.add_argument(
        "what",
        metavar="WHAT",
        choices=list(_ANALYSES),
        help="; ".join(f"`{name}`: {what}" for name, (what, _) in _ANALYSES.items()) + ".",
    )
    _add_run(parser)
    parser.add_argument(
        "--images",
        type=Optional[int],
        help="Held-out images to measure on, evenly spread. Default: 64; for `iterations` and `ood` all. For "
        "`convergence` drawn at random, 16.",
    )
    parser.add_argument(
        "--require",
        choices=["guaranteed", "observed"],
        help="For `contraction`: exit with 1 unless every block is a contraction, for any input (`guaranteed`) or at "
        "least on the images (`observed`).",
    )
    parser.add_argument(
        "--n_iter",
        type=Optional[int],
        help="For `convergence` and `features`: iterations to look at. Default: as trained.",
    )
    parser.add_argument("--seed", type=Optional[int], help="For `convergence`: of the draw of images. Default: 0.")
    parser.add_argument(
        "--image",
        type=Optional[Union[int, str]],
        help="For `features`: number of a held-out image, or an image file. Default: 0.",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="DATA",
        type=str,
        help="For `ood`: images of another kind, as `noise`, `shuffled`, `rotated` or `inverted`, made from the run's "
        "own, or a data set, as for --data.name. Default: those four.",
    )
    parser.add_argument("--block", type=Optional[int], help="For `features`: which, from 0. Default: the last.")
    return parser


def _analyze(args: Namespace) -> int:
    given = {name: value for name, value in args.as_dict().items() if value is not None}
    what, run, device = (given.pop(name) for name in ("what", "run", "device"))
    for name, value in given.items():
        if name not in _ANALYSES[what][1]:
            raise InputError(f"{name} is {value}, of which analyze {what} has no use; leave it out")
    require = given.pop("require", None)
    _loading("the run")
    analysis, report = import_module(f"imixer.analysis.{what}"), import_module(f"imixer.analysis.{what}_report")
    found, folder = getattr(analysis, f"analyze_{what}")(run, device=device, **given)
    console = _console()
    getattr(report, f"report_{what}")(found, console)
    files = (folder / f"{what}.{kind}" for kind in ("json", "png", "pdf"))
    console.print(f"written: {', '.join(str(file) for file in files if file.exists())}", soft_wrap=True)
    problem = analysis.unmet(found, require) if require else None
    if problem:
        print(f"imixer: {problem}", file=sys.stderr)
    return 1 if problem else 0


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


def _report_parser() -> ArgumentParser:
    parser = _parser("Write one HTML file about runs, with tables, charts and pictures. It needs no server or network.")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="Run directories, or folders that hold some, such as those of `sweep`.",
    )
    parser.add_argument("--out", metavar="FILE", type=Optional[str], help="Default: report.html in the first path.")
    return parser


def _report(args: Namespace) -> None:
    from imixer.experiments.report.report import write_report

    print(f"written: {write_report(args.paths, args.out)}")


# A command returns its exit code, or nothing for 0.
_Command = Tuple[str, Callable[[], ArgumentParser], Callable[[Namespace], Optional[int]]]
_COMMANDS: Dict[str, _Command] = {
    "train": ("Train a model.", train_parser, _train),
    "sweep": ("Train a grid of configurations and seeds, here or on Ray.", _sweep_parser, _sweep),
    "reproduce": ("Do the paper's experiments again, at any scale.", _reproduce_parser, _reproduce),
    "replay": ("Look into a training step that was not finite.", _replay_parser, _replay),
    "recipes": ("List the recipes.", _recipes_parser, _recipes),
    "evaluate": ("Evaluate a run on its validation data.", _evaluate_parser, _evaluate),
    "predict": ("Predict and draw images.", _predict_parser, _predict),
    "analyze": ("Measure a trained model.", _analyze_parser, _analyze),
    "recall": ("Store images in an associative memory and retrieve them.", _recall_parser, _recall),
    "report": ("Write an HTML report about runs.", _report_parser, _report),
    "export": ("Write a model for inference elsewhere.", _export_parser, _export),
}

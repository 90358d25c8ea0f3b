"""Reproduce the paper's experiments: `imixer reproduce`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, new_parser
from imixer.cli.executor import add_executor, build_executor
from imixer.cli.terminal import announce_loading, new_console
from imixer.errors import InputError, did_you_mean

# what a list has no use for, and the values that ask for nothing
_OF_EXECUTION = dict.fromkeys(("address", "cpus", "gpus", "retries")) | {"executor": "local"}
_OF_TRAINING = dict.fromkeys(("image", "margin", "rows")) | _OF_EXECUTION | {"train": True}


def build() -> ArgumentParser:
    """Build the parser of the command."""
    from imixer.experiments.comparison import MARGIN
    from imixer.experiments.registry import EXPERIMENTS
    from imixer.experiments.scales import DATA_SETS, SCALES

    own_margins = [f"of {name} {each.margin:g}" for name, each in EXPERIMENTS.items() if each.margin != MARGIN]
    defaults = ", ".join([f"{MARGIN:g}", *own_margins])
    parser = new_parser(
        "Train what is not yet finished of an experiment, and set what came out beside the paper's numbers."
    )
    counts = ", ".join(f"{scale.trials} at {name}" for name, scale in SCALES.items())
    titles = "; ".join(f"`{name}`: {each.title}" for name, each in EXPERIMENTS.items())
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="*",
        type=str,
        help=f"One or several. {titles}; or `all`. Without: list them with what they cost.",
    )
    summaries = "; ".join(f"`{name}`: {scale.data}, {scale.summary}" for name, scale in SCALES.items())
    parser.add_argument(
        "--scale",
        choices=list(SCALES),
        help=f"How large. {summaries}. Default: the only one that the experiments have, otherwise smoke.",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=str | None, help="Folder for what comes out. Default: reproduced/<scale>."
    )
    parser.add_argument(
        "--trials",
        metavar="N",
        type=int | None,
        help=f"Trials per row. Default: {counts}; of ImageNet in Table 4 one.",
    )
    parser.add_argument(
        "--data",
        metavar="NAME",
        type=str | None,
        help=f"Data set of all experiments but table4: {', '.join(DATA_SETS)}. Default: that of the scale.",
    )
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        type=str | None,
        help="Folder with the data sets as torchvision lays them out, or in folders called cifar10, cifar100, "
        "stanford_cars, food101, imagenet of parquet shards or class folders; or CIFAR-10's parquet shards. "
        "Default: data.",
    )
    parser.add_argument(
        "--image",
        metavar="FILE",
        type=str | None,
        help="For `fig7`: image whose feature maps are drawn. Default: the first held-out image.",
    )
    parser.add_argument(
        "--margin",
        metavar="POINTS",
        type=float | None,
        help="Points of accuracy within which a difference counts as none; choose it before you look. "
        f"Default: {defaults}.",
    )
    parser.add_argument(
        "--rows",
        metavar="NAME",
        nargs="+",
        type=str,
        help="Rows to train now. Pages have all rows, as far as they have come. Default: all.",
    )
    parser.add_argument(
        "--train", type=bool, default=True, help="`false` trains nothing, and makes pages of what is finished."
    )
    add_executor(parser)
    return parser


def run(args: Namespace) -> int:
    """Run the command and return its exit code."""
    from imixer.experiments.registry import EXPERIMENTS, experiments_at
    from imixer.experiments.scales import SCALES

    if not args.what:
        _list(args)
        return 0
    known = [*EXPERIMENTS, "all"]
    for name in args.what:
        if name not in known:
            raise InputError(f"no experiment {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    own = {"smoke" if name == "all" else EXPERIMENTS[name].scale or "smoke" for name in args.what}
    scale: str = args.scale or (own.pop() if len(own) == 1 else "smoke")
    for name in args.what:
        if name != "all" and EXPERIMENTS[name] not in experiments_at(scale):
            others = [other for other in SCALES if EXPERIMENTS[name] in experiments_at(other)]
            raise InputError(f"{name} has no scale {scale}; give --scale {' or '.join(others)}")
    if not args.train:
        _refuse_given(args, _OF_EXECUTION, "train is false, which trains nothing; leave one of them out")
    asked = [EXPERIMENTS[name] for name in dict.fromkeys(args.what) if name != "all"]
    experiments = experiments_at(scale) if "all" in args.what else asked
    if all(each.measured == "anomalies" for each in experiments):
        names = " and ".join(each.name for each in experiments)
        _refuse_given(args, _OF_EXECUTION | {"data_dir": None}, f"{names} trains nothing; leave it out")
    executor = build_executor(args)
    announce_loading("the data")
    from imixer.experiments.reproduce import reproduce

    results = reproduce(
        experiments,
        SCALES[scale],
        new_console(),
        out=args.out,
        trials=args.trials,
        data=args.data,
        data_dir=args.data_dir,
        margin=args.margin,
        executor=executor,
        image=args.image,
        rows=args.rows,
        train=args.train,
    )
    return int(any(each.failed for each in results))


def _refuse_given(args: Namespace, options: Mapping[str, Any], reason: str) -> None:
    """Refuse options that ask for something of which there will be none.

    Args:
        args: The parsed options.
        options: Names of options, with the values that ask for nothing.
        reason: Why they have no effect, and what to do.

    Raises:
        InputError: If one is given.
    """
    for option, nothing in options.items():
        if (value := getattr(args, option)) != nothing:
            raise InputError(f"{option} is {value}, and {reason}")


def _list(args: Namespace) -> None:
    """List the experiments of a scale."""
    from imixer.experiments.scales import SCALES

    _refuse_given(args, _OF_TRAINING, "no experiment is named; give WHAT, or leave it out")
    announce_loading("the data")
    from imixer.experiments.reproduce import list_experiments

    list_experiments(
        SCALES[args.scale or "smoke"],
        new_console(),
        out=args.out,
        trials=args.trials,
        data=args.data,
        data_dir=args.data_dir,
    )


COMMAND = Command("Do the paper's experiments again, at any scale.", build, run)

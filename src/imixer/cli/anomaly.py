"""Learn from normal images and find anomalies in others: `imixer anomaly`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, add_checkpoint, add_device, chosen_run, new_parser
from imixer.cli.terminal import announce_loading, new_console
from imixer.errors import InputError
from imixer.weights import packaged_models

_DEFAULT_MODEL = "imixer_laptop_32.cifar10"
_OF_THE_STUDY = ("model", "run", "memory", "neighbours", "out", "device", "checkpoint")


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = new_parser(
        "Learn from normal images alone, find anomalies in others, and write scores and heat maps. Without FOLDER: one "
        "class of handwritten digits is normal; other digits, and cut, blotted and shifted ones, are anomalies."
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=str,
        help="Folder with train/good, test/good, test/DEFECT and, for pixels, ground_truth/DEFECT.",
    )
    parser.add_argument("--run", metavar="RUN", type=str | None, help="Run directory whose model gives the features.")
    parser.add_argument(
        "--model",
        metavar="NAME",
        type=str | None,
        help=f"Packaged model that gives the features: {', '.join(packaged_models()) or 'there is none'}. Default: "
        f"{_DEFAULT_MODEL}.",
    )
    parser.add_argument("--normal", type=int | None, help="Digit that is normal. Default: 3.")
    parser.add_argument(
        "--features", type=str | None, help="`model`, or `pixels` to compare squares of pixels. Default: model."
    )
    parser.add_argument(
        "--levels",
        type=int,
        nargs="+",
        help="Levels of the model to take features from: blocks, or stages. Default: at 1/3 and 2/3 of the depth.",
    )
    parser.add_argument("--memory", type=int | None, help="Most feature vectors to store. Default: 1000.")
    parser.add_argument("--neighbours", type=int | None, help="Number of nearest neighbours. Default: 3.")
    parser.add_argument("--size", type=int | None, help="Side in pixels that images get. Default: the model's.")
    parser.add_argument("--batch_size", type=int | None, help="Images at once. Default: 64.")
    parser.add_argument("--seed", type=int | None, help="Seed of what is stored, and of the digits. Default: 0.")
    parser.add_argument("--skip_bad", action="store_true", help="Leave out images that cannot be read, and count them.")
    parser.add_argument("--out", metavar="DIR", type=str | None, help="Folder to make. Default: next free in runs/.")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="Compare all scores instead, each even digit being normal in turn, over five seeds (several minutes).",
    )
    add_checkpoint(parser)
    add_device(parser)
    return parser


def run(args: Namespace) -> None:
    """Find, write and print."""
    given = {name: value for name, value in args.as_dict().items() if value is not None and value is not False}
    comparing = given.pop("compare", False)
    path, model = given.pop("run", None), given.pop("model", None)
    if comparing and (superfluous := [name for name in given if name not in _OF_THE_STUDY]):
        raise InputError(f"compare has a protocol of its own; leave out {', '.join(superfluous)}")
    chosen = chosen_run(path, model if path is not None or model is not None else _DEFAULT_MODEL)
    announce_loading("the model")
    if comparing:
        from imixer.experiments.anomaly_study import compare_detectors, show_detectors

        show_detectors(*compare_detectors(chosen, **given), new_console())
        return
    from imixer.analysis.anomaly.find import find_anomalies
    from imixer.analysis.anomaly.heat_maps import show_anomalies

    if "levels" in given:
        given["levels"] = tuple(given["levels"])
    show_anomalies(*find_anomalies(chosen, **given), new_console())


COMMAND = Command("Learn from normal images and find anomalies in others.", build, run)

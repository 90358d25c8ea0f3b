"""`imixer evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, run_parser
from imixer.cli.terminal import announce_loading, new_console
from imixer.errors import InputError


def build() -> ArgumentParser:
    """Its parser."""
    parser = run_parser("Evaluate a run on its held-out images, and write RUN/evaluation.json.")
    parser.add_argument(
        "--test",
        metavar="FOLDER",
        type=str | None,
        help="Evaluate on all images of this folder of class folders instead, and write RUN/test_evaluation.json.",
    )
    parser.add_argument("--batch_size", type=int | None, help="Images per step. Default: that of training.")
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
        type=int | None,
        help="Held-out images for --corruptions and --adversarial, evenly spread. Default: all.",
    )
    parser.add_argument(
        "--epsilon",
        nargs="+",
        type=float,
        metavar="E",
        help="Largest changes of a pixel in an attack, of 255. Default: 1 2 4 8.",
    )
    parser.add_argument("--steps", type=int | None, help="Steps of an attack. Default: 20.")
    parser.add_argument("--step_size", type=float | None, help="Of 255. Default: 2.5 epsilon / steps.")
    return parser


def run(args: Namespace) -> None:
    """Run it."""
    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"batch_size is {args.batch_size}; give 1 or more")
    if args.test is not None:
        for name in ("data", "corruptions", "adversarial"):
            if getattr(args, name):
                raise InputError(
                    f"{name} is given, which is about the run's own images; leave out one of it and --test"
                )
    attack = {"epsilon": args.epsilon, "steps": args.steps, "step_size": args.step_size}
    attack = {name: value for name, value in attack.items() if value is not None}
    if attack and not args.adversarial:
        raise InputError(f"{next(iter(attack))} is given, which needs --adversarial")
    if args.images is not None and not (args.corruptions or args.adversarial):
        raise InputError("images is given, which needs --corruptions or --adversarial")
    announce_loading("the run")
    from imixer.training.evaluate import evaluate
    from imixer.training.result_tables import report_evaluation

    harder = _harder(args, attack)  # finds fault with its options before anything is computed
    given = {"data": args.data, "test": args.test, "device": args.device, "batch_size": args.batch_size or 0}
    report_evaluation(*evaluate(args.run, **given), new_console())
    for each in harder:
        each()


def _harder(args: Namespace, attack: dict[str, Any]) -> list[Callable[[], None]]:
    """The evaluations on harder images that are asked for."""
    given = {"images": args.images, "data": args.data, "device": args.device}
    wanted: list[Callable[[], None]] = []
    if args.corruptions:
        from imixer.analysis.robustness.corruptions import evaluate_corruptions, require_corruptions
        from imixer.analysis.views.robustness import report_corruptions

        require_corruptions()
        wanted.append(lambda: report_corruptions(*evaluate_corruptions(args.run, **given), new_console()))
    if args.adversarial:
        from imixer.analysis.robustness.adversarial import Attack, evaluate_adversarial
        from imixer.analysis.views.robustness import report_adversarial

        pgd = Attack(**{"epsilons" if name == "epsilon" else name: value for name, value in attack.items()})
        wanted.append(lambda: report_adversarial(*evaluate_adversarial(args.run, pgd, **given), new_console()))
    return wanted


COMMAND = Command("Evaluate a run on its held-out images, or a test set.", build, run)

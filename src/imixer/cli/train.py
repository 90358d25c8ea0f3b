"""Train a model: `imixer train`."""

from __future__ import annotations

import time

from jsonargparse import Namespace

from imixer.cli.command import Command
from imixer.cli.terminal import announce_loading, new_console
from imixer.training.run.parsing import build_config, train_parser


def run(args: Namespace) -> None:
    """Run the command."""
    began = time.perf_counter()
    config = build_config(args)
    announce_loading("the data")
    from imixer.training.devices import is_first_process
    from imixer.training.result_tables import report_training
    from imixer.training.train import resume, train

    trained = train(config) if args.resume is None else resume(args.resume, config)
    if is_first_process():
        report_training(trained, time.perf_counter() - began, new_console())


COMMAND = Command("Train a model.", train_parser, run)

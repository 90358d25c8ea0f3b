"""Train a model: `imixer train`."""

from __future__ import annotations

import time

from jsonargparse import Namespace

from imixer.cli.command import Command
from imixer.cli.terminal import announce_loading, new_console
from imixer.escaping import shell_word
from imixer.training.run.config import TrainConfig
from imixer.training.run.parsing import build_config, train_parser


def run(args: Namespace) -> None:
    """Run the command."""
    began = time.perf_counter()
    config = build_config(args)
    announce_loading("the data")
    if config.task == "anomaly":
        _train_detector(config, args.resume)
        return
    from imixer.training.devices import is_first_process
    from imixer.training.result_tables import report_training
    from imixer.training.train import resume, train

    trained = train(config) if args.resume is None else resume(args.resume, config)
    if is_first_process():
        report_training(trained, time.perf_counter() - began, new_console())


def _train_detector(config: TrainConfig, resumed: str | None) -> None:
    """Learn what is normal, write and print."""
    from imixer.analysis.anomaly.detector_run import DetectorOutcome, resume_detector, train_detector
    from imixer.analysis.anomaly.heat_maps import show_anomalies

    console = new_console()
    outcome = train_detector(config) if resumed is None else resume_detector(resumed, config)
    if not isinstance(outcome, DetectorOutcome):
        console.print(
            f"{resumed} is finished; `imixer evaluate {shell_word(resumed)}` judges its images again", soft_wrap=True
        )
        return
    show_anomalies(outcome.scores, outcome.score, outcome.files, console)
    if outcome.unused:
        console.print(f"no effect on how anomalies are learned here: {', '.join(outcome.unused)}", soft_wrap=True)
    console.print(f"next: imixer evaluate {shell_word(outcome.files[0].parent)} --data FOLDER", soft_wrap=True)


COMMAND = Command("Train a model.", train_parser, run)

"""Loggers, which show the metrics of each epoch elsewhere than in the run's CSV files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger, TensorBoardLogger

from imixer.extras import require_extra
from imixer.reading import read_json
from imixer.training.run.directory import RunDirectory

_EXTRAS = ("wandb", "mlflow")  # called like their packages


def check_logger(name: str) -> None:
    """Check that the package of a logger is installed.

    Args:
        name: One of `TrainConfig.logger`.

    Raises:
        MissingExtraError: If the package is missing.
    """
    if name in _EXTRAS:
        require_extra(name, f"--logger {name}")


def build_logger(name: str, run: RunDirectory, config: dict[str, Any], step: int) -> Logger | None:
    """Build one of Lightning's loggers.

    Args:
        name: `csv`, `tensorboard`, `wandb` or `mlflow`.
        run: The run, whose directory holds the logger's files and whose name it takes.
        config: The run's settings, for the loggers that show them.
        step: Optimizer steps done. What was logged after them is dropped from the curves of TensorBoard.

    Returns:
        The logger; None for `csv`, since the run's own files are written anyhow.
    """
    if name == "csv":
        return None
    if name == "tensorboard":
        return _TensorBoard(run.tensorboard, step)
    logger = _online_logger(name, run)
    logger.log_hyperparams(config)
    return logger


class _TensorBoard(TensorBoardLogger):
    """Fabric's logger, which here writes to a folder as it is called: no variable in its name is replaced."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__("", purge_step=step + 1 if step else None)
        self._folder = folder

    @property
    def log_dir(self) -> str:
        """The folder of the event files."""
        return str(self._folder)


def _online_logger(name: str, run: RunDirectory) -> Logger:
    from lightning.pytorch import loggers

    title = run.path.absolute().name
    if name == "wandb":  # a resumed run continues its page
        identity = read_json(run.environment, ["run"])["run"]
        return loggers.WandbLogger(name=title, save_dir=str(run.path), project="imixer", id=identity, resume="allow")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run.path.absolute() / 'mlflow.db'}")
    return loggers.MLFlowLogger(experiment_name="imixer", run_name=title, tracking_uri=server)

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
_PROJECT = "imixer"
_SERVER = "MLFLOW_TRACKING_URI"


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
    identity = read_json(run.environment, ["run"])["run"]  # by which a resumed run finds its page
    title = run.path.absolute().name
    if name == "mlflow":
        return _mlflow(title, identity, run, config)
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(name=title, save_dir=str(run.path), project=_PROJECT, id=identity, resume="allow")
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


def _mlflow(title: str, identity: str, run: RunDirectory, config: dict[str, Any]) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    given = os.environ.get(_SERVER)
    server = given or f"sqlite:///{run.path.absolute() / 'mlflow.db'}"
    client, tags = MlflowClient(server), {"imixer_run": identity}
    project = client.get_experiment_by_name(_PROJECT)
    wanted = f"tags.imixer_run = '{identity}'"
    earlier = client.search_runs([project.experiment_id], wanted, max_results=1) if project else []
    run_id = earlier[0].info.run_id if earlier else None
    logger = MLFlowLogger(_PROJECT, run_name=title, tracking_uri=server, tags=tags, run_id=run_id)
    _ = logger.experiment  # connects
    if given is None:
        os.environ.pop(_SERVER, None)  # where MLflow leaves the address, for the next run of this process
    if not earlier:  # otherwise the settings stand there, which MLflow does not change
        logger.log_hyperparams(config)
    return logger

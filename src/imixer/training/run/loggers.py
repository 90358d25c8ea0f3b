"""Where the numbers of an epoch go besides the run's CSV files."""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any, Protocol

from imixer.errors import InputError
from imixer.reading import read_json
from imixer.training.run.directory import RunDirectory

_EXTRAS = ("wandb", "mlflow")  # called like their packages


class Logger(Protocol):
    """Takes scalars by name."""

    def log(self, scalars: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def check_logger(name: str) -> None:
    """See that a logger can be had.

    Raises:
        InputError: If its package is missing.
    """
    if name in _EXTRAS and importlib.util.find_spec(name) is None:
        raise InputError(f"logger is {name}, which needs a package: pip install 'imixer[{name}]'")


def build_logger(name: str, run: RunDirectory, config: dict[str, Any], step: int) -> Logger:
    """The logger of that name.

    Args:
        name: `csv`, which is nothing besides the files, `tensorboard`, `wandb` or `mlflow`.
        run: The run, whose directory holds the logger's files and whose name it takes.
        config: The run's settings, for the loggers that show them.
        step: Steps done: what was logged after them is void.
    """
    if name == "tensorboard":
        return _TensorBoard(run, step)
    if name == "csv":
        return _Nothing()
    return _Lightning(_lightning(name, run), config)


class _Nothing:
    def log(self, scalars: dict[str, float], step: int) -> None:
        pass

    def close(self) -> None:
        pass


class _TensorBoard:
    def __init__(self, run: RunDirectory, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.tensorboard), purge_step=step + 1 if step else None)

    def log(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Lightning:
    """One of Lightning's loggers."""

    def __init__(self, logger: Any, config: dict[str, Any]) -> None:
        self._logger = logger
        self._logger.log_hyperparams(config)

    def log(self, scalars: dict[str, float], step: int) -> None:
        self._logger.log_metrics(scalars, step)

    def close(self) -> None:
        self._logger.finalize("success")


def _lightning(name: str, run: RunDirectory) -> Any:
    from lightning.pytorch import loggers

    title = run.path.absolute().name
    if name == "wandb":  # a resumed run continues its page
        identity = read_json(run.environment, ["run"])["run"]
        return loggers.WandbLogger(name=title, save_dir=str(run.path), project="imixer", id=identity, resume="allow")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    server = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run.path.absolute() / 'mlflow.db'}")
    return loggers.MLFlowLogger(experiment_name="imixer", run_name=title, tracking_uri=server)

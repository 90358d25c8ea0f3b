"""Load the weights of a run's best epoch, which its checkpoints hold."""

from __future__ import annotations

import logging
from typing import Literal

from torch import nn

from imixer.errors import InputError, in_short
from imixer.training.run.checkpoints import Checkpoints
from imixer.training.run.directory import RunDirectory
from imixer.training.run.result import best_by

WhichWeights = Literal["last", "best"]
_log = logging.getLogger(__name__)


def load_best_weights(model: nn.Module, run: RunDirectory) -> None:
    """Load the weights of the best epoch into the model of a run: the averaged ones, if there was an average.

    Training keeps the checkpoint of its best epoch until a better one comes, so that nothing more lies on the disk than
    `--resume` needs anyhow.

    Args:
        model: The model, with the weights of the last epoch.
        run: The directory of the run.

    Raises:
        InputError: If the checkpoint is not there, is damaged, or is not of this model.
    """
    state = Checkpoints(run.checkpoints).best()
    try:
        weights = state["model"] if state["ema"] is None else state["ema"]
        model.load_state_dict(weights)
        row = state["rows"][-1]
        metric = best_by(row)
        epoch, score = int(row["epoch"]), float(row[metric])
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"the checkpoint of the best epoch in {run.checkpoints} does not fit the model "
            f"({in_short(error, 120)}); take the weights of the last epoch with `--checkpoint last`"
        ) from error
    _log.info(
        "the weights are those of epoch %d, the best: %.2f%% %s the held-out images, on which it was chosen",
        epoch,
        100 * score,
        "mIoU on" if metric == "val_miou" else "of",
    )

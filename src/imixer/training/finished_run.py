"""A finished run, back in memory: its configuration, its model, its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from imixer.data.image_data import ImageData, check_channels, few_names
from imixer.data.sources.open import open_data
from imixer.data.transforms import eval_transform
from imixer.errors import InputError
from imixer.training.finite import require_finite_weights
from imixer.training.model_directory import load_model
from imixer.training.run.config import TrainConfig
from imixer.training.run.damage import model_damage
from imixer.training.run.directory import RunDirectory, open_run
from imixer.training.run.parsing import load_config
from imixer.training.third_party_warnings import silence


@dataclass(frozen=True)
class FinishedRun:
    """A run's model, ready to look at images.

    Args:
        run: Its directory.
        config: Its configuration.
        model: The model, in eval mode.
        device: Where the model is.
    """

    run: RunDirectory
    config: TrainConfig
    model: Any
    device: torch.device

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the logits."""
        return tuple(self.model.pretrained_cfg["label_names"])

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the input."""
        channels, height, width = self.model.pretrained_cfg["input_size"]
        return channels, height, width

    @cached_property
    def transform(self) -> Callable[[Image], torch.Tensor]:
        """From an image to what the model takes."""
        cfg = self.model.pretrained_cfg
        return eval_transform(
            self.input_size, tuple(cfg["mean"]), tuple(cfg["std"]), cfg["crop_pct"], cfg["interpolation"]
        )

    def data(self, data_path: str | None = None) -> ImageData:
        """The run's data, to be normalised as the model was trained.

        Args:
            moved_to: Where the data lie now. Default: where they lay.

        Raises:
            InputError: If they are not there or have other classes or channels.
        """
        config = self.config.data
        if data_path is not None:
            named = config.name != "digits" and not Path(config.name).is_absolute()  # then it lies in a root
            config = replace(config, root=data_path) if named else replace(config, name=data_path)
        data = open_data(config)
        if tuple(data.class_names) != self.class_names:
            raise InputError(
                f"the data have the classes {few_names(data.class_names)}, but {self.run.path} was trained on "
                f"{few_names(self.class_names)}; give the data it was trained on with --data"
            )
        check_channels(data, self.input_size)
        cfg = self.model.pretrained_cfg
        return replace(data, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]))


def load_run(path: str, device: str = "auto") -> FinishedRun:
    """Load a run.

    Args:
        path: Its directory.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is any.

    Raises:
        InputError: If there is no finished run, no such device, or the model is not finite.
    """
    silence()
    run = open_run(path)
    config = load_config(run.config)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is 'cuda', but torch sees no CUDA device here; use auto or cpu")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if (problem := model_damage(run)) is not None:
        raise InputError(f"{problem}; `imixer train --resume {path}` writes it again from the checkpoints")
    model = load_model(run.model)
    require_finite_weights(model, run.path)
    return FinishedRun(run, config, model.to(chosen), chosen)

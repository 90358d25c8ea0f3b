"""Dump a step that is not finite to a file, and replay it from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from imixer.data.randomness import seed_globally
from imixer.errors import InputError, in_short
from imixer.training.finetune import freeze, frozen_batch_norms
from imixer.training.model import BuiltModel
from imixer.training.precision import autocast
from imixer.training.run.config import FinetunePart, TrainConfig
from imixer.training.running_statistics import untouched_buffers
from imixer.training.tasks.losses import Loss, build_loss, loss_settings
from imixer.training.train_state import STEP_STREAM, MicroBatch
from imixer.writing import replacing


@dataclass(frozen=True)
class StepDump:
    """A training step, with everything but weights and images that is needed to compute it again.

    Args:
        step: The number of the step, from 0.
        lr: The learning rate.
        rank: The process that computed it.
        seed: The run's seed.
        precision: The arithmetic, as in `TrainConfig`.
        loss: The task and the numbers of its loss, see `loss_settings`.
        name: The name of the model in timm.
        args: The keyword arguments of `timm.create_model`.
        finetune: The part of the model that is fine-tuned. None for a training of the whole model.
    """

    step: int
    lr: float
    rank: int
    seed: int
    precision: str
    loss: dict[str, Any]
    name: str
    args: dict[str, Any]
    finetune: FinetunePart | None = None

    def locate(self, model: nn.Module, micro_batches: Sequence[MicroBatch]) -> str | None:
        """Locate the first number in the step that is not finite. The model stays as it was, buffers included.

        Args:
            model: The model with the weights before the step.
            micro_batches: The images and targets of each forward pass.

        Returns:
            The place in words, see `first_non_finite`; None if everything is finite.
        """
        seed_globally(STEP_STREAM, self.seed, self.step, self.rank)
        with untouched_buffers(model):
            model.train()
            for norm in frozen_batch_norms(model):
                norm.eval()
            for images, targets in micro_batches:
                with autocast(self.precision, images.device):
                    place = first_non_finite(model, images, partial(self._loss, targets))
                if place is not None:
                    return place
        return None

    def _loss(self, targets: Tensor, logits: Tensor) -> Tensor:
        return build_loss(self.loss)(logits.float(), targets)

    def write(self, path: Path, model: nn.Module, micro_batches: Sequence[MicroBatch]) -> None:
        """Write the step to a file, with weights and images.

        Args:
            path: The file. Its folder is made if need be.
            model: The model with the weights before the step.
            micro_batches: The images and targets of each forward pass.

        Raises:
            OSError: If it cannot be written, because the disk is full, say.
        """
        path.parent.mkdir(exist_ok=True)
        data = {"weights": model.state_dict(), "micro_batches": [list(each) for each in micro_batches]}
        with replacing(path) as temporary:
            try:
                with temporary.open("wb") as opened:
                    torch.save(asdict(self) | data, opened)
            except RuntimeError as error:  # torch may wrap what the system says
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def dump_step(built: BuiltModel, config: TrainConfig, loss: Loss, step: int, lr: float, rank: int) -> StepDump:
    """Describe a step of a run.

    Args:
        built: The model.
        config: The run's configuration.
        loss: The training loss.
        step: The number of the step, from 0.
        lr: The learning rate.
        rank: This process.
    """
    return StepDump(
        step,
        lr,
        rank,
        config.seed,
        config.precision,
        loss_settings(loss),
        built.name,
        built.args,
        config.finetune,
    )


def replay(path: str) -> tuple[StepDump, str]:
    """Compute a dumped step once more, on the CPU.

    Args:
        path: A file in a run's `nonfinite` folder.

    Returns:
        The step; and in words, where the first number that is not finite appears.

    Raises:
        InputError: If the file cannot be read.
    """
    if not Path(path).is_file():
        raise InputError(f"no file {path}; a run that met a step that is not finite names it")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        weights = content.pop("weights")
        micro_batches: list[MicroBatch] = [(images, targets) for images, targets in content.pop("micro_batches")]
        step = StepDump(**content)
        model = timm.create_model(step.name, **step.args)
        model.load_state_dict(weights)
        if step.finetune is not None:
            freeze(model, step.finetune, step.name)
    except Exception as error:  # torch and timm raise many kinds on a damaged or foreign file
        said = f"{type(error).__name__}: {in_short(error, 120)}"
        raise InputError(
            f"{path} is no recorded step, or a damaged one; give a file in RUN/nonfinite that training named ({said})"
        ) from error
    return step, step.locate(model, micro_batches) or "nothing: all is finite here"


def first_non_finite(model: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor]) -> str | None:
    """Compute forward and backward once more, and locate the first number that is not finite.

    It looks at weights, images, outputs of modules, the loss, and gradients, in this order. The gradients that are
    stored in the weights stay as they were.

    Args:
        model: The model, from images to logits.
        images: (B, in_chans, H, W).
        loss: A function from logits to a scalar.

    Returns:
        The place in words, naming the module as the model does; None if everything is finite.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weight {name}"
    if not torch.isfinite(images).all():
        return "the images"
    forward: list[str] = []
    backward: list[str] = []

    def look_back(name: str, gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():
            backward.append(name)

    def look(name: str, module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            if not torch.isfinite(output).all():
                forward.append(name)
            if output.requires_grad:
                output.register_hook(partial(look_back, name))

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules() if name]
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        value = loss(model.forward(images))
        if forward:
            return f"the output of {forward[0]}"
        if not torch.isfinite(value):
            return "the loss"
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    if backward:
        return f"the gradient of the output of {backward[0]}"
    for name, gradient in reversed(list(zip(parameters, gradients, strict=True))):
        if gradient is not None and not torch.isfinite(gradient).all():
            return f"the gradient of {name}"
    return None

"""A step that is not finite: found, written down, and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from imixer.data.randomness import seed_globally
from imixer.errors import InputError
from imixer.training.model import BuiltModel
from imixer.training.train_state import STEP_STREAM, Part, training_loss
from imixer.writing import replacing

_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class StepDump:
    """A step, with all that is needed to compute it again.

    Args:
        step: Its number, from 0.
        lr: Its learning rate.
        rank: The process.
        seed: The run's seed.
        precision: Arithmetic, as in `TrainConfig`.
        smoothing: Label smoothing.
        name: Name of the model.
        args: Its arguments.
    """

    step: int
    lr: float
    rank: int
    seed: int
    precision: str
    smoothing: float
    name: str
    args: dict[str, Any]

    def place(self, model: nn.Module, parts: Sequence[Part]) -> str | None:
        """Where in the step the first number that is not finite appears; None if everything is finite.

        Args:
            model: With the weights before the step.
            parts: Images and targets.
        """
        seed_globally(STEP_STREAM, self.seed, self.step, self.rank)
        model.train()
        for images, targets in parts:
            with self._autocast(images.device):
                place = first_non_finite(model, images, partial(self._loss, targets))
            if place is not None:
                return place
        return None

    def _loss(self, targets: Tensor, logits: Tensor) -> Tensor:
        return training_loss(logits.float(), targets, self.smoothing)

    def _autocast(self, device: torch.device) -> Any:
        dtype = _DTYPES.get(self.precision)
        return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()

    def write(self, path: Path, model: nn.Module, parts: Sequence[Part]) -> None:
        """Write the step down."""
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            torch.save(
                asdict(self) | {"weights": model.state_dict(), "parts": [list(part) for part in parts]}, temporary
            )


def dump_step(built: BuiltModel, config: Any, step: int, lr: float, rank: int) -> StepDump:
    """What is known of a step of a run."""
    return StepDump(step, lr, rank, config.seed, config.precision, config.smoothing, built.name, built.args)


def replay(path: str) -> tuple[StepDump, str]:
    """Compute a step that was written down once more, on the CPU.

    Args:
        path: File in a run's `nonfinite` folder.

    Returns:
        The step, and where the first number that is not finite appears.

    Raises:
        InputError: If the file cannot be read.
    """
    if not Path(path).is_file():
        raise InputError(f"no file {path}; a run that met a step that is not finite names it")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        weights = found.pop("weights")
        parts: list[Part] = [(images, targets) for images, targets in found.pop("parts")]
        step = StepDump(**found)
        model = timm.create_model(step.name, **step.args)
        model.load_state_dict(weights)
    except Exception as error:  # torch and timm raise many kinds on a damaged or foreign file
        raise InputError(f"{path} is no recorded step: {' '.join(str(error).split())[:200]}") from error
    return step, step.place(model, parts) or "nothing: all is finite here"


def first_non_finite(model: nn.Module, images: Tensor, loss: Any) -> str | None:
    """Compute forward and backward once more and say where the first number that is not finite appears.

    Weights' gradients are left as they were.

    Args:
        model: Images -> logits.
        images: (B, C, H, W).
        loss: From logits to a scalar.

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

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            if not torch.isfinite(output).all():
                forward.append(name)
            if output.requires_grad:
                output.register_hook(partial(look_back, name))

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules() if name]
    parameters = dict(model.named_parameters())
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

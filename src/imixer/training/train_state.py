"""A model with all that moves it: optimizer, schedule, loss scale, running average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from imixer.data.randomness import seed_globally
from imixer.implicit import SpectralLinear
from imixer.training.guard import Guard, gradient_norm
from imixer.training.optimizing import build_optimizer, build_scheduler, move_schedule
from imixer.training.run.config import TrainConfig

Part = tuple[Tensor, Tensor]
STEP_STREAM = 1  # keeps the randomness of steps apart from that of orders and images, which mix two or three numbers


def training_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross entropy in nats; labels are smoothed, mixed targets are already."""
    return F.cross_entropy(logits, targets, label_smoothing=0.0 if targets.is_floating_point() else smoothing)


class TrainState:
    """Takes optimizer steps. What is random in one depends on the seed, its number and the process only.

    Args:
        fabric: Launched.
        config: The run.
        model: Image (B, in_chans, H, W) -> logits (B, classes).
        steps_per_epoch: Optimizer steps per epoch.
        steps: Optimizer steps of the whole run, if the last epoch is not a whole one.

    Attributes:
        plain: The model, not wrapped.
        guard: Decides on steps that are not finite.
    """

    def __init__(
        self,
        fabric: Fabric,
        config: TrainConfig,
        model: nn.Module,
        steps_per_epoch: int,
        steps: int | None = None,
    ) -> None:
        self.fabric, self.config = fabric, config
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        if config.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        self.plain = model.to(fabric.device)
        self.average = Average(model, config.ema) if config.ema else None
        if config.compile:
            model.compile()  # in place: names of the weights stay
        self.model: Any = fabric.setup_module(model)
        scaled = config.precision == "16"
        fused = fabric.device.type == "cuda" and not scaled  # a fused optimizer would unscale gradients by itself
        self._optimizer = build_optimizer(model, config.optim, config.peak_lr, fused=fused)
        self._steps_per_epoch = steps_per_epoch
        self._scheduler, _ = build_scheduler(self._optimizer, config.schedule, config.epochs, steps_per_epoch, steps)
        self.optimizer: Any = fabric.setup_optimizers(self._optimizer)
        self.guard = Guard(self._optimizer, scaled)
        self._sharded = isinstance(fabric.strategy, ModelParallelStrategy)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self._optimizer.param_groups[0]["lr"]

    def gradient(self, parts: Sequence[Part], step: int) -> tuple[Tensor, bool]:
        """Compute the gradient of a step.

        Args:
            parts: The parts of this process's share of the batch.
            step: Number of the step, from 0.

        Returns:
            This process's mean loss, a scalar, and whether the step must not be taken: the gradient is not finite.
        """
        seed_globally(STEP_STREAM, self.config.seed, step, self.fabric.global_rank)
        self.model.train()
        total = torch.zeros((), device=self.fabric.device)
        for number, (images, targets) in enumerate(parts, 1):
            with self.fabric.no_backward_sync(self.model, enabled=number < len(parts)):
                loss = self.loss(self.model(images), targets) / len(parts)
                self.fabric.backward(loss)
            total += loss.detach()
        precision: Any = self.fabric.strategy.precision
        precision.unscale_gradients(self._optimizer)
        parameters = [p for p in self.plain.parameters() if p.grad is not None]
        norm = gradient_norm(parameters)
        if limit := self.config.optim.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return total, self.guard.should_skip(norm)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The training loss, a scalar in nats."""
        return training_loss(logits, targets, self.config.smoothing)

    def move(self, step: int) -> None:
        """Take step number `step`, from 0, along the gradient computed."""
        self.optimizer.step()
        self.skip(step)
        if self.average is not None:
            self.average.update(self.plain, step + 1)

    def skip(self, step: int) -> None:
        """Leave step number `step` out."""
        self.optimizer.zero_grad(set_to_none=True)
        move_schedule(self._scheduler, step + 1, self._steps_per_epoch)

    def ready(self) -> Callable[[Tensor], Tensor]:
        """The model as it is to be judged, from images to logits: averaged, if there is an average."""
        if self._sharded:
            self.model.eval()
            return self.model
        # Not wrapped: a process with more batches than another would wait for it.
        model = self.judged

        def run(images: Tensor) -> Tensor:
            with self.fabric.autocast():
                return model(images)

        model.eval()
        return run

    @property
    def judged(self) -> nn.Module:
        """The model that is validated and kept: the average, if there is one."""
        return self.plain if self.average is None else self.average.model()

    def weights(self) -> dict[str, Tensor]:
        """The state dictionary of the model that is kept. All processes must call it."""
        if self._sharded:
            return gathered(self.plain, self._optimizer)["model"]
        return self.judged.state_dict()

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint. All processes must call it."""
        precision: Any = self.fabric.strategy.precision
        return gathered(self.plain, self._optimizer) | {
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": precision.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Become what `state` gave."""
        scatter(self.plain, self._optimizer, state)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        precision: Any = self.fabric.strategy.precision
        precision.load_state_dict(state["scaler"])


class Average:
    """Exponential moving average of a model's weights and buffers, with a decay that starts small (timm).

    The power iterations' vectors of the averaged weights are found anew before the average is used: an average of
    vectors belongs to no matrix.

    Args:
        model: The model that is trained.
        decay: Share of the old average that stays at each step, at its highest.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._ema = ModelEmaV3(model, decay=decay, use_warmup=True)

    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights after an optimizer step, the number of which counts from 1."""
        self._ema.update(model, step)

    def model(self) -> nn.Module:
        """The model with averaged weights, in evaluation mode."""
        for layer in self._ema.module.modules():
            if isinstance(layer, SpectralLinear):
                layer.warm_up()
        return self._ema.module

    def state_dict(self) -> dict[str, Any]:
        return self._ema.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ema.module.load_state_dict(state)


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def gathered(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The whole `model` and `optimizer` state, on the first process. All processes must call it."""
    weights, moments = get_state_dict(model, optimizer, options=_WHOLE)
    return {"model": weights, "optimizer": moments}


def scatter(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Give each process its shard of what `gathered` gave. All processes must call it, each with the whole state."""
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )

"""A model with all that moves it: optimizer, schedule, loss scale, exponential moving average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from imixer.data.randomness import seed_globally
from imixer.implicit.spectral import PowerIterated
from imixer.models.penalties import take_penalty
from imixer.training.finetune import frozen_batch_norms
from imixer.training.guard import Guard, gradient_norm
from imixer.training.optimizer import build_optimizer, build_scheduler, step_scheduler
from imixer.training.run.config import TrainConfig
from imixer.training.running_statistics import RunningStatistics
from imixer.training.tasks.losses import ClassificationLoss, Loss

MicroBatch = tuple[Tensor, Tensor]  # images and targets of one forward pass
STEP_STREAM = 1  # keeps the randomness of steps apart from that of orders and images, which mix two or three numbers


class TrainState:
    """A model, its optimizer and its schedule, which take optimizer steps together.

    Choose `Loop` to train a run; this class is for single steps. What is random in a step depends on the seed, the
    number of the step and the process, and on nothing else.

    Args:
        fabric: Lightning's Fabric, launched.
        config: The run's configuration.
        model: The model, from images (B, in_chans, H, W) to logits.
        steps_per_epoch: Optimizer steps per epoch.
        steps: Optimizer steps of the whole run. Default: those of whole epochs.
        loss: The training loss. Default: that of classes of images, with the configuration's smoothing.

    Attributes:
        model: The model as Fabric wrapped it, for forward and backward.
        module: The same model, not wrapped.
        ema: The exponential moving average of its weights; None without `config.ema`.
        optimizer: The optimizer as Fabric wrapped it.
        criterion: The training loss.
        guard: The guard that finds steps whose gradient is not finite.
    """

    def __init__(
        self,
        fabric: Fabric,
        config: TrainConfig,
        model: nn.Module,
        steps_per_epoch: int,
        steps: int | None = None,
        loss: Loss | None = None,
    ) -> None:
        self.fabric, self.config = fabric, config
        self.criterion: Loss = loss or ClassificationLoss(config.smoothing)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        if config.grad_checkpointing:
            timm_model: Any = model
            timm_model.set_grad_checkpointing()
        self.module = model.to(fabric.device)
        self._frozen_norms = frozen_batch_norms(model)
        self._statistics = RunningStatistics(model)
        self.ema = WeightEMA(model, config.ema) if config.ema else None
        if config.compile:
            model.compile()  # in place: names of the weights stay
        self.model = fabric.setup_module(model)
        scaled = config.precision == "16"
        fused = fabric.device.type == "cuda" and not scaled  # a fused optimizer would unscale gradients by itself
        self._optimizer = build_optimizer(model, config.optim, config.peak_lr, fused=fused)
        self._steps_per_epoch = steps_per_epoch
        self._scheduler, _ = build_scheduler(self._optimizer, config.schedule, config.epochs, steps_per_epoch, steps)
        self.optimizer: Any = fabric.setup_optimizers(self._optimizer)
        self.guard = Guard(self._optimizer, scaled)
        self.sharded = isinstance(fabric.strategy, ModelParallelStrategy)

    @property
    def lr(self) -> float:
        """The learning rate of the next step, before it is scaled for a group of parameters."""
        group = self._optimizer.param_groups[0]
        return group["lr"] / group.get("lr_scale", 1.0)

    def gradient(self, micro_batches: Sequence[MicroBatch], step: int) -> tuple[Tensor, bool]:
        """Compute the gradient of an optimizer step, clipped as configured.

        Of a step that must be skipped, batch norms keep nothing.

        Args:
            micro_batches: This process's share of the batch, in as many parts as gradients are accumulated over.
            step: The number of the step, from 0.

        Returns:
            This process's mean loss, a scalar, without penalties; and whether the step must be skipped because the
            gradient is not finite.
        """
        seed_globally(STEP_STREAM, self.config.seed, step, self.fabric.global_rank)
        self.model.train()
        for module in self._frozen_norms:
            module.eval()
        self._statistics.remember()
        total = torch.zeros((), device=self.fabric.device)
        for number, (images, targets) in enumerate(micro_batches, 1):
            with self.fabric.no_backward_sync(self.model, enabled=number < len(micro_batches)):
                loss = self.loss(self.model(images), targets) / len(micro_batches)
                penalty = take_penalty(self.module)
                self.fabric.backward(loss if penalty is None else loss + penalty / len(micro_batches))
            total += loss.detach()
        self.fabric.strategy.precision.unscale_gradients(self._optimizer)
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = gradient_norm(parameters)
        if limit := self.config.optim.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        must_skip = self.guard.should_skip(norm)
        if must_skip:
            self._statistics.restore()
        return total, must_skip

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the training loss, a scalar in nats, by `criterion`."""
        return self.criterion(logits, targets)

    def optimizer_step(self, step: int) -> None:
        """Take an optimizer step along the gradient computed, and update schedule and average.

        Args:
            step: The number of the step, from 0.
        """
        self.optimizer.step()
        if self.fabric.device.type != "cpu":  # where the optimizer may have left the step out by itself
            self._statistics.restore(self.guard.left_out)
        self._move_on(step)
        if self.ema is not None:
            self.ema.update(self.module, step + 1)

    def skip(self, step: int) -> None:
        """Leave out an optimizer step: drop the gradient and move the schedule on.

        Args:
            step: The number of the step, from 0.
        """
        if self.guard.patience:  # a loss scaler leaves it out by itself, and must hear of it to go on
            self.optimizer.step()
        self._move_on(step)

    def _move_on(self, step: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        step_scheduler(self._scheduler, step + 1, self._steps_per_epoch)

    def eval_forward(self) -> Callable[[Tensor], Tensor]:
        """Return the forward pass used for validation, with the model in evaluation mode.

        It uses the averaged weights with `config.ema`, the trained weights otherwise, under the run's precision. The
        DDP wrapper is bypassed, so that a process with more batches than another does not wait for it.

        Returns:
            A function from images (B, in_chans, H, W) to logits.
        """
        if self.sharded:
            self.model.eval()
            return self.model
        model = self.eval_model

        def run(images: Tensor) -> Tensor:
            with self.fabric.autocast():
                return model(images)

        model.eval()
        return run

    @property
    def eval_model(self) -> nn.Module:
        """The model that is validated and saved: with averaged weights, if there is an average."""
        return self.module if self.ema is None else self.ema.model()

    def eval_state_dict(self) -> dict[str, Tensor]:
        """Return the state dict of `eval_model`. All processes must call it."""
        if self.sharded:
            return gather_state(self.module, self._optimizer)["model"]
        return self.eval_model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint needs to go on from here. All processes must call it."""
        return gather_state(self.module, self._optimizer) | {
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. All processes must call it, each with the whole state."""
        scatter_state(self.module, self._optimizer, state)
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])


class WeightEMA:
    """An exponential moving average of a model's weights and buffers, with timm's decay, which starts small.

    Choose it, through `config.ema`, where the last steps of training are noisy. Before the average is used, the power
    iterations of its spectral norms are run anew: an average of their vectors belongs to no matrix.

    Args:
        model: The model that is trained.
        decay: The share of the old average that stays at each step, at its highest.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._ema = ModelEmaV3(model, decay=decay, use_warmup=True)

    def update(self, model: nn.Module, step: int) -> None:
        """Average in the weights after an optimizer step.

        Args:
            model: The model that is trained.
            step: Optimizer steps done, from 1.
        """
        self._ema.update(model, step)

    def model(self) -> nn.Module:
        """Return the model with averaged weights, in evaluation mode."""
        for layer in self._ema.module.modules():
            if isinstance(layer, PowerIterated):
                layer.warm_up()
        return self._ema.module

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict of the averaged model."""
        return self._ema.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._ema.module.load_state_dict(state)


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def gather_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Gather the whole `model` and `optimizer` state on the first process. All processes must call it."""
    weights, moments = get_state_dict(model, optimizer, options=_WHOLE)
    return {"model": weights, "optimizer": moments}


def scatter_state(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give each process its shard of what `gather_state` returned. All processes must call it with the whole state."""
    # What never had a gradient has no moments. Under plain gradient descent nothing has; then torch knows no device.
    options = StateDictOptions(full_state_dict=bool(state["optimizer"].get("state")), strict=False)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    # last, since the one before takes a step of nothing, which moves weights under some optimizers
    set_model_state_dict(model, state["model"], options=StateDictOptions(full_state_dict=True))

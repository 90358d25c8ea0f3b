"""The training loop. Where a run stands is the number of steps done; everything random depends on that and the seed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor

from imixer.errors import InputError
from imixer.training.devices import largest_over_processes
from imixer.training.model import BuiltModel
from imixer.training.monitor import convergence
from imixer.training.non_finite import dump_step
from imixer.training.progress_bar import ShowProgress
from imixer.training.run.checkpoints import Checkpoints, State
from imixer.training.run.config import TrainConfig
from imixer.training.run.directory import RunDirectory
from imixer.training.run.metrics import MetricsWriter, Row
from imixer.training.scores import Scores
from imixer.training.stopping import Interrupted, StopRequest, on_request
from imixer.training.train_state import Part, TrainState

_MONITORED = 64  # images on which convergence is watched
_UNSAVED_S = 60


class Batches(Protocol):
    """Parts of this process's share of the batches; an optimizer step takes `accumulate` of them."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Part]: ...


class HeldOut(Protocol):
    """This process's share of the held-out data."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Part]: ...


class Loop:
    """Trains for the epochs that are left, and saves.

    Args:
        fabric: Launched.
        config: The run.
        run: Its directory.
        built: Its model.
        training: What to train on.
        held_out: What to validate on.
        scores: How to validate.
        record: Writes down each epoch.
        progress: Shows each step.
        facts: What a checkpoint is to say of the data.
        steps: Optimizer steps of the whole run. Default: those of all its epochs.

    Attributes:
        trainee: The model with its optimizer.
        step: Optimizer steps done.
        rows: The numbers of each epoch that is done.
        seconds: Spent so far, over all sessions.
    """

    def __init__(
        self,
        fabric: Fabric,
        config: TrainConfig,
        run: RunDirectory,
        built: BuiltModel,
        training: Batches,
        held_out: HeldOut,
        scores: Scores,
        record: MetricsWriter,
        progress: ShowProgress,
        facts: dict[str, Any],
        steps: int | None = None,
    ) -> None:
        self.fabric, self.config, self.run, self.built = fabric, config, run, built
        self.training, self.held_out, self.scores = training, held_out, scores.to(fabric.device)
        self.record, self.progress, self.facts = record, progress, facts
        self.checkpoints = Checkpoints(run.checkpoints, config.checkpoints.keep)
        self.epochs = config.epochs + config.schedule.cooldown_epochs
        self.steps_per_epoch = len(training) // config.accumulate
        self.steps = steps or self.epochs * self.steps_per_epoch
        self.train_state = TrainState(fabric, config, built.model, self.steps_per_epoch, steps)
        self.step = 0
        self.rows: list[Row] = []
        self._losses = torch.zeros(2, device=fabric.device)  # sum and number, in this epoch so far, of finite ones
        self._earlier_s = 0.0
        self._began = self._saved_at = time.monotonic()
        self._parts: list[Part] = []  # of the last step

    @property
    def seconds(self) -> float:
        return self._earlier_s + time.monotonic() - self._began

    def fit(self) -> None:
        """Train for all epochs that are not done.

        Raises:
            Interrupted: On SIGTERM or Ctrl-C, after the step at hand is finished and saved.
            InputError: If a step is not finite and `non_finite` is `stop`, or a checkpoint cannot be written.
        """
        self._began = self._saved_at = time.monotonic()
        with on_request(loud=self.fabric.is_global_zero) as request:
            self.progress.start(self.epochs, self.steps_per_epoch, self.config.data.batch_size, self.step, self.steps)
            try:
                while len(self.rows) < self.epochs:
                    self._train_epoch(request)
                    self._end_epoch(request)
            finally:
                self.progress.stop()

    def _train_epoch(self, request: StopRequest) -> None:
        epoch, accumulate = len(self.rows), self.config.accumulate
        first = self.step - epoch * self.steps_per_epoch
        parts = self.training.epoch(epoch, first * accumulate)
        self.record.begin_epoch()
        for _ in range(first, min(self.steps_per_epoch, self.steps - epoch * self.steps_per_epoch)):
            self._take_step(list(islice(parts, accumulate)))
            self._save_if_due(request)

    def _take_step(self, parts: list[Part]) -> None:
        self._check_previous_step()
        loss, refused = self.train_state.gradient(parts, self.step)
        self._parts = parts
        if refused:
            self._not_finite(self.step)
            self.train_state.skip(self.step)
        else:
            self.train_state.move(self.step)
        finite = torch.isfinite(loss)
        self._losses += torch.stack([torch.where(finite, loss, torch.zeros_like(loss)), finite.to(loss.dtype)])
        self.step += 1
        self.record.count(self.config.data.batch_size)
        self.progress.step(self.step, loss)

    def _check_previous_step(self) -> None:
        """Deal with the last step if, on an accelerator, it turns out only now not to be finite."""
        if self.train_state.guard.refused():
            self._not_finite(self.step - 1)

    def _end_epoch(self, request: StopRequest) -> None:
        self._check_previous_step()
        self.record.end_training(self.fabric.device)
        if largest_over_processes(self.fabric, time.monotonic() - self._saved_at > _UNSAVED_S)[0]:
            self._save()  # validation may take longer than whoever sends SIGTERM will wait
        losses: Any = self.fabric.all_reduce(self._losses, reduce_op="sum")
        total, number = losses.tolist()
        self.progress.validate(len(self.held_out))
        rounds = largest_over_processes(self.fabric, len(self.held_out))[0]
        scores = self.scores.score(self.train_state.ready(), self.held_out, rounds)
        row: Row = {
            "epoch": len(self.rows) + 1,
            "step": self.step,
            "train_loss": total / number if number else float("nan"),
            **scores,
            "lr": self.train_state.lr,
            "images_per_s": self.record.images_per_s,
            "seconds": round(self.seconds, 2),
        }
        best = all(scores["val_acc"] > before["val_acc"] for before in self.rows)
        self.rows.append(row)
        self._losses.zero_()
        if self.fabric.is_global_zero:
            self.record.write(row, self._convergence())
            self.progress.epoch(row)
        self._save(best=best)
        if not number:
            raise InputError(
                f"training diverged: no step of epoch {row['epoch']} was finite; lower optim.lr, warm up longer or set "
                "optim.clip_grad"
            )
        self._stop_if_asked(self._asked(request))

    def _convergence(self) -> list[dict[str, float]]:
        if self.config.strategy == "fsdp":  # the blocks are in pieces
            return []
        with self.fabric.autocast():
            return convergence(self.train_state.judged, self._monitor_images)

    @cached_property
    def _monitor_images(self) -> Tensor:
        """The held-out images on which convergence is watched, the same after every epoch."""
        images, _ = next(iter(self.held_out))
        return images[:_MONITORED].clone()

    def _asked(self, request: StopRequest) -> int:
        """The signal by which any process was asked to stop, 0 for none."""
        return largest_over_processes(self.fabric, request.signal_number or 0)[0]

    def _save_if_due(self, request: StopRequest) -> None:
        config = self.config.checkpoints
        old = time.monotonic() - self._saved_at > config.every_minutes * 60
        unrolled = config.every_steps is not None and self.step % config.every_steps == 0
        signal_number, due = largest_over_processes(self.fabric, request.signal_number or 0, old or unrolled)
        if signal_number or due:
            self._save()
        self._stop_if_asked(signal_number)

    def _stop_if_asked(self, signal_number: int) -> None:
        if signal_number:
            self.progress.stop()
            raise Interrupted(
                f"after step {self.step} (epoch {self.step / self.steps_per_epoch:.2f} of {self.epochs}), which is "
                f"saved; `imixer train --resume {self.run.path}` continues",
                signal_number,
            )

    def _save(self, *, best: bool = False) -> None:
        state = self.state()
        if self.fabric.is_global_zero:
            self.checkpoints.save(state, self.step, best=best)
        self._saved_at = time.monotonic()

    def state(self) -> State:
        """Everything that a checkpoint holds: tensors, numbers and text. All processes must call it."""
        return self.train_state.state() | {
            "step": self.step,
            "rows": self.rows,
            "losses": self._gathered_losses(),
            "confusion": self.scores.confusion,
            "seconds": self.seconds,
            "facts": self.facts,
        }

    def load(self, state: State) -> None:
        """Stand where `state` was taken.

        Raises:
            ValueError: If it cannot be of this run; and what PyTorch raises of tensors that do not fit.
        """
        rows, numbers = state["rows"], (int, float)
        epochs = all(isinstance(row, dict) and {"epoch", "step", "val_acc", "val_loss"} <= row.keys() for row in rows)
        if not epochs or not all(isinstance(value, numbers) for row in rows for value in row.values()):
            raise ValueError("rows are no epochs")
        if not isinstance(state["seconds"], numbers):
            raise ValueError("seconds is no number")
        behind = state["step"] - len(state["rows"]) * self.steps_per_epoch
        if not 0 <= behind <= self.steps_per_epoch or len(state["rows"]) > self.epochs:
            raise ValueError(f"step {state['step']} and {len(state['rows'])} epochs do not go together")
        classes, confusion, losses = self.built.args["num_classes"], state["confusion"], state["losses"]
        if rows and not (isinstance(confusion, Tensor) and confusion.shape == (classes, classes)):
            raise ValueError("confusion is no matrix of these classes")
        if not isinstance(losses, Tensor) or losses.shape[1:] != (2,):
            raise ValueError("losses are no sums and numbers")
        self.train_state.load(state)
        self.step, self.rows, self._earlier_s = state["step"], state["rows"], state["seconds"]
        self.scores.confusion = state["confusion"]
        losses = state["losses"]
        same = len(losses) == self.fabric.world_size  # otherwise there is only their mean to go on with
        self._losses = (losses[self.fabric.global_rank] if same else losses.mean(0)).to(self.fabric.device)

    def _gathered_losses(self) -> Tensor:
        """Of all processes (processes, 2)."""
        if self.fabric.world_size == 1:
            return self._losses[None].cpu()
        gathered: Any = self.fabric.all_gather(self._losses)
        return gathered.cpu()

    def _not_finite(self, step: int) -> None:
        recorded = dump_step(self.built, self.config, step, self.train_state.lr, self.fabric.global_rank)
        place = recorded.place(self.train_state.plain, self._parts)
        found = self._all_gather([self.fabric.global_rank, place])
        rank, place = next((pair for pair in found if pair[1]), found[0])
        dump = self.run.nonfinite / f"step-{step + 1:08d}.pt"
        if rank == self.fabric.global_rank:
            recorded.write(dump, self.train_state.plain, self._parts)
        what = (
            f"step {step + 1} (epoch {len(self.rows) + 1}) is not finite: {place or 'its gradient'} is the first that "
            f"is not, at learning rate {recorded.lr:.3g}; `imixer replay {dump}` shows it again"
        )
        if self.config.non_finite == "skip":
            if self.fabric.is_global_zero:
                print(f"{what}; skipped", file=sys.stderr, flush=True)
            return
        self._save()
        raise InputError(
            f"training diverged: {what}; lower optim.lr, warm up longer or set optim.clip_grad, or continue without "
            f"the step: imixer train --resume {self.run.path} --non_finite skip"
        )

    def _all_gather(self, mine: list[Any]) -> list[list[Any]]:
        """What each process has to say."""
        if self.fabric.world_size == 1:
            return [mine]
        found: list[Any] = [None] * self.fabric.world_size
        dist.all_gather_object(found, mine)
        return found

"""The training loop.

The state of a run is the number of optimizer steps done, and what `TrainState` and the metrics hold. Everything random
depends on that number and the seed, so that a run that is resumed repeats one that never stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor

from imixer.errors import InputError, user_line
from imixer.escaping import one_line, shell_word
from imixer.implicit import NotConvergedError
from imixer.training.devices import all_reduce_max
from imixer.training.model import BuiltModel
from imixer.training.monitor import convergence
from imixer.training.progress_bar import TrainingProgress
from imixer.training.run.checkpoints import Checkpoints, State
from imixer.training.run.config import TrainConfig
from imixer.training.run.directory import RunDirectory
from imixer.training.run.metrics import MetricsWriter, Row
from imixer.training.run.result import best_by, has_finite_loss
from imixer.training.step_dump import dump_step
from imixer.training.stop_signals import Interrupted, StopRequest, stop_on_signals
from imixer.training.tasks.losses import Loss
from imixer.training.tasks.task import Validation
from imixer.training.train_state import MicroBatch, TrainState

_MONITORED = 64  # images on which convergence is watched
_UNSAVED_S = 60
_MOST_DUMPS = 10  # steps that are kept of a run that leaves them out: each holds all weights
_log = logging.getLogger(__name__)


class Batches(Protocol):
    """This process's share of the training batches, in micro-batches of which a step takes `config.accumulate`."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[MicroBatch]:
        """Iterate over the micro-batches of an epoch, from number `start` on."""
        ...


class HeldOut(Protocol):
    """This process's share of the held-out data, in batches."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[MicroBatch]: ...


class Loop:
    """The training loop of a run: it trains for the epochs that are left, validates after each, and saves checkpoints.

    Choose `imixer.training.train.train` for a run with its directory and all checks; it builds this loop.

    Args:
        fabric: Lightning's Fabric, launched.
        config: The run's configuration.
        run: The run's directory.
        built: The model.
        training: The training data.
        held_out: The data to validate on.
        loss: The training loss.
        scores: The metrics to validate by.
        metrics: The writer of each epoch's metrics.
        progress: The display of each step.
        data_fingerprint: A description of the data that each checkpoint keeps, and a resumed run must meet.
        steps: Optimizer steps of the whole run. Default: those of all its epochs.

    Attributes:
        train_state: The model with its optimizer.
        step: Optimizer steps done.
        rows: The metrics of each epoch that is done.
        seconds: Seconds spent so far, over all sessions.
    """

    def __init__(
        self,
        fabric: Fabric,
        config: TrainConfig,
        run: RunDirectory,
        built: BuiltModel,
        training: Batches,
        held_out: HeldOut,
        loss: Loss,
        scores: Validation,
        metrics: MetricsWriter,
        progress: TrainingProgress,
        data_fingerprint: dict[str, Any],
        steps: int | None = None,
    ) -> None:
        self.fabric, self.config, self.run, self.built = fabric, config, run, built
        self.training, self.held_out, self.scores = training, held_out, scores.to(fabric.device)
        self.metrics, self.progress, self.data_fingerprint = metrics, progress, data_fingerprint
        self.checkpoints = Checkpoints(run.checkpoints, config.checkpoints.keep)
        self.epochs = config.all_epochs
        self.steps_per_epoch = len(training) // config.accumulate
        self.steps = steps or self.epochs * self.steps_per_epoch
        self.train_state = TrainState(fabric, config, built.model, self.steps_per_epoch, steps, loss)
        self.step = 0
        self.rows: list[Row] = []
        self._losses = torch.zeros(2, device=fabric.device)  # sum and number, in this epoch so far, of finite ones
        self._earlier_s = 0.0
        self._began = self._saved_at = time.monotonic()
        self._micro_batches: list[MicroBatch] = []  # of the last step
        self._lr = self.train_state.lr  # likewise

    @property
    def seconds(self) -> float:
        """The seconds spent so far, over all sessions."""
        return self._earlier_s + time.monotonic() - self._began

    def fit(self) -> None:
        """Train for all epochs that are not done.

        Raises:
            Interrupted: On SIGTERM or Ctrl-C, after the step at hand is finished and saved.
            InputError: If a step is not finite and `non_finite` is `stop`, an inverse is not found, or a checkpoint
                cannot be written.
        """
        self._began = self._saved_at = time.monotonic()
        with stop_on_signals(loud=self.fabric.is_global_zero) as request:
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
        micro_batches = self.training.epoch(epoch, first * accumulate)
        self.metrics.begin_epoch()
        for _ in range(first, min(self.steps_per_epoch, self.steps - epoch * self.steps_per_epoch)):
            self._take_step(list(islice(micro_batches, accumulate)))
            self._save_if_due(request)

    def _take_step(self, micro_batches: list[MicroBatch]) -> None:
        self._check_previous_step()
        self._lr = self.train_state.lr
        with self._saved_if_unsolved():
            loss, must_skip = self.train_state.gradient(micro_batches, self.step)
        self._micro_batches = micro_batches
        if must_skip:
            self._handle_non_finite(self.step)
            self.train_state.skip(self.step)
        else:
            self.train_state.optimizer_step(self.step)
        finite = torch.isfinite(loss)
        self._losses += torch.stack([torch.where(finite, loss, torch.zeros_like(loss)), finite.to(loss.dtype)])
        self.step += 1
        self.metrics.count(self.config.data.batch_size)
        self.progress.step(self.step, loss)

    def _check_previous_step(self) -> None:
        """Handle the last step if, on an accelerator, it turns out only now not to be finite."""
        if self.train_state.guard.skipped():
            self._handle_non_finite(self.step - 1)

    def _end_epoch(self, request: StopRequest) -> None:
        self._check_previous_step()
        self.metrics.measure_speed(self.fabric.device)
        if all_reduce_max(self.fabric, time.monotonic() - self._saved_at > _UNSAVED_S)[0]:
            self._save()  # validation may take longer than whoever sends SIGTERM will wait
        total, number = cast(Tensor, self.fabric.all_reduce(self._losses, reduce_op="sum")).tolist()
        self.progress.validate(len(self.held_out))
        rounds = all_reduce_max(self.fabric, len(self.held_out))[0]
        with self._saved_if_unsolved():
            scores = self.scores.score(self.train_state.eval_forward(), self.held_out, rounds)
        row: Row = {
            "epoch": len(self.rows) + 1,
            "step": self.step,
            "train_loss": total / number if number else float("nan"),
            **scores,
            "lr": self.train_state.lr,
            "images_per_s": self.metrics.images_per_s,
            "seconds": round(self.seconds, 2),
        }
        metric = best_by(row)
        best = has_finite_loss(row) and all(row[metric] > each[metric] for each in self.rows if has_finite_loss(each))
        self.rows.append(row)
        self._losses.zero_()
        if self.fabric.is_global_zero:
            self.metrics.write(row, self._convergence())
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
            return convergence(self.train_state.eval_model, self._monitor_images)

    @cached_property
    def _monitor_images(self) -> Tensor:
        """The held-out images on which convergence is measured, the same after every epoch."""
        images, _ = next(iter(self.held_out))
        images, size = images[:_MONITORED].clone(), self.built.input_size[1:]
        # of images that are larger and seen by windows, all at once
        return images if images.shape[-2:] == size else F.interpolate(images, size=size, mode="bilinear")

    def _asked(self, request: StopRequest) -> int:
        """Return the signal by which any process was asked to stop, 0 for none."""
        return all_reduce_max(self.fabric, request.signal_number or 0)[0]

    def _save_if_due(self, request: StopRequest) -> None:
        config = self.config.checkpoints
        by_time = time.monotonic() - self._saved_at > config.every_minutes * 60
        by_steps = config.every_steps is not None and self.step % config.every_steps == 0
        signal_number, due = all_reduce_max(self.fabric, request.signal_number or 0, by_time or by_steps)
        if signal_number or due:
            self.metrics.measure_speed(self.fabric.device)  # for a run that goes on from the end of an epoch
            self._save()
        self._stop_if_asked(signal_number)

    def _stop_if_asked(self, signal_number: int) -> None:
        if signal_number:
            self.progress.stop()
            raise Interrupted(
                f"after step {self.step} (epoch {self.step / self.steps_per_epoch:.2f} of {self.epochs}), which is "
                f"saved; `imixer train --resume {shell_word(self.run.path)}` continues",
                signal_number,
            )

    def _save(self, *, best: bool = False) -> None:
        state = self.state()
        if self.fabric.is_global_zero:
            self.checkpoints.save(state, self.step, best=best)
        self._saved_at = time.monotonic()

    def state(self) -> State:
        """Return everything that a checkpoint holds: tensors, numbers and text. All processes must call it."""
        return self.train_state.state_dict() | {
            "step": self.step,
            "steps": self.steps,
            "rows": self.rows,
            "losses": self._gathered_losses(),
            "confusion": self.scores.confusion,
            "seconds": self.seconds,
            "images_per_s": self.metrics.images_per_s,
            "data_fingerprint": self.data_fingerprint,
            "built": self.built.identity,
        }

    def load(self, state: State) -> None:
        """Go back to where a checkpoint was saved. All processes must call it, each with the whole state.

        Args:
            state: The content of the checkpoint.

        Raises:
            ValueError: If it cannot be a checkpoint of this run. PyTorch raises further kinds for tensors that do not
                fit.
        """
        rows, numbers = state["rows"], (int, float)
        needed = {"epoch", "step", "val_loss", self.scores.best_by}
        epochs = all(isinstance(row, dict) and needed <= row.keys() for row in rows)
        if not epochs or not all(isinstance(value, numbers) for row in rows for value in row.values()):
            raise ValueError("rows are no epochs")
        if not isinstance(state["seconds"], numbers):
            raise ValueError("seconds is no number")
        begun = min(len(rows) * self.steps_per_epoch, self.steps)  # the last epoch may be a part of one
        if not begun <= state["step"] <= min(begun + self.steps_per_epoch, self.steps) or len(rows) > self.epochs:
            raise ValueError(f"step {state['step']} and {len(state['rows'])} epochs do not go together")
        classes, confusion, losses = self.built.args["num_classes"], state["confusion"], state["losses"]
        if rows and not (isinstance(confusion, Tensor) and confusion.shape == (classes, classes)):
            raise ValueError("confusion is no matrix of these classes")
        if not isinstance(losses, Tensor) or losses.shape[1:] != (2,):
            raise ValueError("losses are no sums and numbers")
        self.train_state.load_state_dict(state)
        self.step, self.rows, self._earlier_s = state["step"], state["rows"], state["seconds"]
        self.scores.confusion = state["confusion"]
        self.metrics.images_per_s = float(state.get("images_per_s", 0.0))  # which earlier checkpoints do not say
        losses = state["losses"]
        same = len(losses) == self.fabric.world_size  # otherwise there is only their mean to go on with
        self._losses = (losses[self.fabric.global_rank] if same else losses.mean(0)).to(self.fabric.device)

    def _gathered_losses(self) -> Tensor:
        """Return the sums and numbers of losses of all processes, (processes, 2)."""
        if self.fabric.world_size == 1:
            return self._losses[None].cpu()
        return cast(Tensor, self.fabric.all_gather(self._losses)).cpu()

    @contextmanager
    def _saved_if_unsolved(self) -> Iterator[None]:
        """Save before an inverse that is not found ends the run, and say how it can go on."""
        try:
            yield
        except NotConvergedError as error:
            command = f"imixer train --resume {shell_word(self.run.path)}"
            if self.fabric.world_size == 1:
                self._save()
                begin = f"continue: {command}"
            elif saved := self.checkpoints.files:  # other processes may have found theirs: a save would wait for them
                begin = f"continue from {saved[-1].name}: {command}"
            else:
                begin = "nothing is saved yet, begin again"
            raise InputError(
                f"step {self.step + 1} (epoch {len(self.rows) + 1}): {one_line(error)}; for more steps, or for what "
                f"they give, {begin} --model.max_steps N, or --model.on_failure warn"
            ) from error

    def _handle_non_finite(self, step: int) -> None:
        """Dump a step that is not finite, then stop or go on as `config.non_finite` says."""
        dump = dump_step(self.built, self.config, self.train_state.criterion, step, self._lr, self.fabric.global_rank)
        sharded = self.train_state.sharded  # no process has the weights to look at the step again
        here = None if sharded else dump.locate(self.train_state.module, self._micro_batches)
        by_rank = self._all_gather((self.fabric.global_rank, here))
        rank, place = next((pair for pair in by_rank if pair[1]), by_rank[0])
        file = self.run.nonfinite / f"step-{step + 1:08d}.pt"
        shows = f"`imixer replay {shell_word(file)}` shows it again"
        if self.config.non_finite == "skip" and len(list(self.run.nonfinite.glob("step-*.pt"))) >= _MOST_DUMPS:
            shows = f"{_MOST_DUMPS} such steps are kept in {self.run.nonfinite}, and no more"
        elif sharded:
            shows = "a step of weights in shards is not kept"
        elif rank == self.fabric.global_rank:
            try:
                dump.write(file, self.train_state.module, self._micro_batches)
            except OSError as error:  # of what only explains: the run goes on, or is saved
                shows = f"it could not be kept ({user_line(error)})"
        what = (
            f"step {step + 1} (epoch {len(self.rows) + 1}) is not finite: {place or 'its gradient'} is the first that "
            f"is not, at learning rate {dump.lr:.3g}; {shows}"
        )
        if self.config.non_finite == "skip":
            if self.fabric.is_global_zero:
                _log.warning(f"{what}; skipped")
            return
        self._save()
        raise InputError(
            f"training diverged: {what}; lower optim.lr, warm up longer or set optim.clip_grad, or continue without "
            f"the step: imixer train --resume {shell_word(self.run.path)} --non_finite skip"
        )

    def _all_gather(self, mine: tuple[int, str | None]) -> list[tuple[int, str | None]]:
        """Gather an object of each process, by rank."""
        if self.fabric.world_size == 1:
            return [mine]
        gathered: list[Any] = [None] * self.fabric.world_size
        dist.all_gather_object(gathered, mine)
        return gathered

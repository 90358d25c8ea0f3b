"""Show what is about to be trained, before it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from imixer.console import PlainConsole, width_for
from imixer.data.image_data import ImageSet
from imixer.data.sampler import steps_per_epoch
from imixer.escaping import few_names, middle_cut, printable
from imixer.implicit import Contraction
from imixer.progress import clock
from imixer.tables import with_unit
from imixer.training.finetune import describe_parameters
from imixer.training.model import FORWARDS_PER_STEP, BuiltModel, forward_cost
from imixer.training.run.config import Choosable, TrainConfig
from imixer.training.time_estimate import TimeEstimate
from imixer.training.unused_settings import unused_settings

_MOST_LEFT_OUT = 6


def show_preview(
    data: ImageSet,
    config: TrainConfig,
    built: BuiltModel,
    console: Console | None = None,
    steps: int | None = None,
    estimate: TimeEstimate | None = None,
    choices: Sequence[str] = (),
    chosen: Sequence[Choosable] = (),
) -> None:
    """Show where the images come from, what was decided on them, what is left out, and what training will cost.

    Args:
        data: The data set.
        config: The run's configuration.
        built: The model.
        console: The console to print on. Default: stderr.
        steps: Optimizer steps of the run, if the last epoch is not a whole one.
        estimate: The time that training will take, if it was measured.
        choices: The settings that were chosen for these data and this device, a sentence each.
        chosen: What they are settings of, as `config.choose` named it.
    """
    grid = Table.grid(padding=(0, 2))
    lines = _lines(data, config, built, steps, estimate, choices)
    trained = any(p.requires_grad for m in built.model.modules() if isinstance(m, Contraction) for p in m.parameters())
    unused = unused_settings(
        config,
        chosen,
        args=built.model_args,
        trains_inverses=trained,
        own_split=data.split is not None,
        streamed=data.windows is not None,
    )
    for title, text in [*lines, *(("no effect", middle_cut(each, 160)) for each in unused)]:
        grid.add_row(title, Text(printable(text)))  # no markup: names come from outside
    console = console or PlainConsole(file=sys.stderr, width=width_for(sys.stderr))
    console.print(Panel(grid, title="about to train", title_align="left", expand=False))


def _lines(
    data: ImageSet,
    config: TrainConfig,
    built: BuiltModel,
    steps: int | None,
    estimate: TimeEstimate | None,
    choices: Sequence[str],
) -> list[tuple[str, str]]:
    classes, (channels, height, width) = len(data.class_names), built.input_size
    lines = [("data", f"{middle_cut(data.name, 80)}, {classes} classes: {few_names(data.class_names)}")]
    for title, items, source in zip(("training", "held out"), (data.train, data.val), data.sources, strict=True):
        lines.append((title, f"{_count(items, classes)}{f', {source}' if source else ''}"))
    if data.skipped:
        lines.append(("skipped", f"{_images(len(data.skipped))} that cannot be read, the first {data.skipped[0]}"))
    shown = [middle_cut(each, 120) for each in data.left_out[:_MOST_LEFT_OUT]]
    more = len(data.left_out) - len(shown)
    if shown:
        lines.append(("not used", "; ".join(shown) + (f"; and {more} more" if more else "")))
    stored = f"{data.native_size[0]}x{data.native_size[1]}" if data.native_size else "of several sizes"
    colours = "gray" if channels == 1 else "RGB"
    lines.append(("images", f"{stored}, seen by the model as {height}x{width} {colours}"))
    lines += [("", middle_cut(note, 160)) for note in data.notes]
    lines += [("chosen" if number == 0 else "", each) for number, each in enumerate(choices)]
    lines.append(("batches", _batches(len(data.train), config)))
    lines.append(("model", f"{built.title}{_head(built)}, {describe_parameters(built.model, config.finetune)}"))
    lines.append(("cost", _cost(data, config, built, steps)))
    if estimate is not None:
        step = f"{_step_time(estimate.step)} a step, measured just now"
        lines.append(("time", f"about {clock(estimate.total)} for the training, at {step}"))
    return lines


def _head(built: BuiltModel) -> str:
    return f" with a {built.args['head']} head" if "backbone" in built.args else ""


def _count(items: Any, classes: int) -> str:
    """Describe how many images there are, of how many classes, and how evenly."""
    images = _images(len(items))
    labels = getattr(items, "labels", None)
    if labels is None:
        return images
    counts = np.bincount(labels, minlength=classes)
    present = counts[counts > 0]
    of = f"all {classes}" if len(present) == classes else f"only {len(present)} of the {classes}"
    each = f"{present.min():,}" if present.min() == present.max() else f"{present.min():,} to {present.max():,}"
    return f"{images} of {of} classes, {each} each"


def _batches(images: int, config: TrainConfig) -> str:
    batch_size, fill = config.data.batch_size, config.data.last_batch == "fill"
    left = images % batch_size
    text = f"{steps_per_epoch(images, batch_size, fill):,} of {batch_size:,} images per epoch"
    if config.data.balance == "sampling":
        return text
    if left and fill:
        text += f"; the last one takes {batch_size - left:,} images of the one before again"
    elif left and not fill:
        text += f"; the other {left:,} of the {images:,} fill no batch and sit the epoch out, other ones each time"
    return text


def _cost(data: ImageSet, config: TrainConfig, built: BuiltModel, steps: int | None) -> str:
    cost = forward_cost(built)
    if cost is None:
        open_ended = getattr(built.model, "solver", "fixed") != "fixed"
        return "not known beforehand: iterations depend on the images" if open_ended else "cannot be counted"
    one, passes = cost.total, FORWARDS_PER_STEP
    if steps is not None:
        images = steps * config.data.batch_size
        return (
            f"{with_unit(one)} multiply-adds per image forward; {with_unit(one * passes * images)} for the training "
            f"(x {passes} x {images:,} images)"
        )
    batch_size = config.data.batch_size
    seen = steps_per_epoch(len(data.train), batch_size, config.data.last_batch == "fill") * batch_size
    epochs = config.all_epochs
    total = one * passes * seen * epochs
    return (
        f"{with_unit(one)} multiply-adds per image forward; {with_unit(total)} for the training "
        f"(x {passes} x {seen:,} images x {epochs} {'epoch' if epochs == 1 else 'epochs'})"
    )


def _step_time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"


def _images(count: int) -> str:
    return f"{count:,} {'image' if count == 1 else 'images'}"

"""Accuracy on images that are changed a little, in whatever way harms the model most."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imixer.analysis.images import Pixels, count_held_out, held_out_batches, pixels_of
from imixer.data.randomness import mixed_seed
from imixer.errors import InputError
from imixer.progress import with_progress
from imixer.training.finished_run import load_run
from imixer.writing import json_text, write_text

_MOST_STEPS = 10_000
_REACH = 2.5  # all steps together, in epsilons: from one side of the ball to the other, and some more
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Attack:
    """PGD within several epsilons.

    Args:
        epsilons: Largest changes of a pixel, of 255. They are put in rising order.
        steps: Steps of the attack.
        step_size: Of 255. Default: 2.5 epsilon / steps.

    Raises:
        InputError: If a number is impossible.
    """

    epsilons: Sequence[float] = (1.0, 2.0, 4.0, 8.0)
    steps: int = 20
    step_size: float | None = None

    def __post_init__(self) -> None:
        if not self.epsilons or not all(0 < epsilon <= 255 for epsilon in self.epsilons):
            raise InputError(f"epsilon is {list(self.epsilons)}; give numbers above 0, up to 255")
        if not 1 <= self.steps <= _MOST_STEPS:
            raise InputError(f"steps is {self.steps}; give 1 or more, at most {_MOST_STEPS:,}")
        if self.step_size is not None and not 0 < self.step_size <= 255:
            raise InputError(f"step_size is {self.step_size}; give a number above 0, up to 255")
        object.__setattr__(self, "epsilons", tuple(sorted(set(self.epsilons))))

    def step(self, epsilon: float) -> float:
        """Size of a step within an epsilon, both of 255."""
        return _REACH * epsilon / self.steps if self.step_size is None else self.step_size


@dataclass(frozen=True)
class AttackScores:
    """What a model recognises under attack.

    Attributes:
        attack: The attack.
        survives: Whether each image is recognised as it is, and whatever the attack did within each epsilon,
            (1 + epsilons, images).
    """

    attack: Attack
    survives: Tensor

    @property
    def epsilons(self) -> tuple[float, ...]:
        """0 and those of the attack."""
        return (0.0, *self.attack.epsilons)

    @property
    def accuracy(self) -> Tensor:
        """Share that survives, (1 + epsilons,): an upper bound of what any attack would leave."""
        return self.survives.double().mean(-1)

    @property
    def accuracy_error(self) -> Tensor:
        """Standard error of it, by the number of images, (1 + epsilons,)."""
        return (self.accuracy * (1 - self.accuracy) / self.survives.shape[-1]).sqrt()


def pgd(
    model: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int,
    step_size: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Projected gradient ascent on the cross entropy, from a random start, until an image is not recognised.

    Args:
        model: Pixels (B, C, H, W) -> logits (B, classes).
        pixels: In [0, 1].
        labels: True classes (B,).
        epsilon: Largest change of a pixel.
        steps: How many.
        step_size: Change of every pixel in a step, before it is brought back into the ball and [0, 1].
        generator: On the CPU, for the start.

    Returns:
        For each image the first that is not recognised, or else the last, (B, C, H, W); and whether that one is still
        recognised, (B,).

    Source: Madry et al., Towards deep learning models resistant to adversarial attacks, 2018, section 2.
    """
    low, high = (pixels - epsilon).clamp_min(0), (pixels + epsilon).clamp_max(1)
    aside = epsilon * (2 * torch.rand(pixels.shape, generator=generator) - 1)
    x = (pixels + aside.to(pixels)).clamp(low, high)
    reached, survives = x.clone(), torch.ones_like(labels, dtype=torch.bool)
    left = torch.arange(len(pixels), device=pixels.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            x.requires_grad_()
            logits = model(x)
            loss = F.cross_entropy(logits.float(), labels[left], reduction="sum")
        kept = logits.argmax(1) == labels[left]
        reached[left], survives[left] = x.detach(), kept
        if step == steps or not kept.any():
            break
        (gradient,) = torch.autograd.grad(loss, x)
        x, left = (x.detach() + step_size * gradient.sign())[kept], left[kept]
        x = x.clamp(low[left], high[left])
    return reached, survives


def score_attack(
    model: Any,
    batches: Iterable[tuple[Tensor, Tensor]],
    pixels: Pixels,
    attack: Attack,
    *,
    total: int,
    seed: int = 0,
) -> AttackScores:
    """Attack a model's images within one epsilon after the other.

    An image that fell to a smaller epsilon has fallen to a larger, whose ball holds the same changes.

    Args:
        model: Images -> logits, in evaluation mode. It is differentiated as it is, whatever its solver and gradient.
        batches: Images (B, in_chans, H, W), normalised as the model expects, and labels (B,).
        pixels: The normalisation.
        attack: The attack.
        total: How many images there are at most, for the progress bar.
        seed: Of the starts.
    """

    def on_pixels(x: Tensor) -> Tensor:
        return model(pixels.normalised(x))

    def chunks() -> Iterator[list[Tensor]]:
        for number, (images, labels) in enumerate(batches):
            stored = pixels.of(images)
            with torch.no_grad():
                survives = [on_pixels(stored).argmax(1) == labels]
            for place, epsilon in enumerate(attack.epsilons):
                left, after = survives[-1], survives[-1].clone()
                if left.any():
                    _, after[left] = pgd(
                        on_pixels,
                        stored[left],
                        labels[left],
                        epsilon / 255,
                        steps=attack.steps,
                        step_size=attack.step(epsilon) / 255,
                        generator=torch.Generator().manual_seed(mixed_seed(seed, number, place)),
                    )
                survives.append(after)
            yield list(torch.stack(survives, 1).cpu())

    return AttackScores(attack, torch.stack(list(with_progress(chunks(), total, "attacking")), 1))


def evaluate_adversarial(
    path: str,
    attack: Attack = Attack(),
    *,
    images: int | None = None,
    data: str | None = None,
    device: str = "auto",
) -> tuple[AttackScores, Path]:
    """Attack a run on its held-out images, at the size of the model's input, and write `adversarial.json`.

    Args:
        path: The run's directory.
        attack: The attack.
        images: Held-out images, evenly spread. Default: all.
        data: Where its data lie now. Default: where they lay.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        The scores and the file.

    Raises:
        InputError: If run or data are not there.
    """
    finished = load_run(path, device)
    found = score_attack(
        finished.model,
        held_out_batches(finished, images, _BATCH_SIZE, data),
        pixels_of(finished),
        attack,
        total=count_held_out(finished, images),
    )
    file = finished.directory.adversarial
    write_text(file, json_text(_row(found)))
    return found, file


def _row(found: AttackScores) -> dict[str, Any]:
    return {
        "images": found.survives.shape[1],
        "attack": "PGD, L-infinity, on the cross entropy, one random start",
        "steps": found.attack.steps,
        "accuracy": [
            {
                "epsilon": epsilon,
                "step_size": found.attack.step(epsilon) if epsilon else None,
                "accuracy": float(accuracy),
                "standard_error": float(error),
            }
            for epsilon, accuracy, error in zip(found.epsilons, found.accuracy, found.accuracy_error, strict=True)
        ],
    }

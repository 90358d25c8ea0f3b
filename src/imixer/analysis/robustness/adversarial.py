"""Measure accuracy on images that are changed a little, in whatever way harms the model most."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imixer.analysis.images import Pixels
from imixer.analysis.robustness.attack import Attack
from imixer.data.randomness import mixed_seed
from imixer.progress import with_progress


@dataclass(frozen=True)
class AttackScores:
    """Hold what a model recognises under attack.

    Attributes:
        attack: The attack.
        survives: Whether each image is recognised as it is (first row), and within each epsilon whatever the attack
            did, (1 + epsilons, images).
    """

    attack: Attack
    survives: Tensor

    @property
    def epsilons(self) -> tuple[float, ...]:
        """0, for the images as they are, and the epsilons of the attack, of 255."""
        return (0.0, *self.attack.epsilons)

    @property
    def accuracy(self) -> Tensor:
        """Accuracy, (1 + epsilons,): an upper bound of what any attack would leave."""
        return self.survives.double().mean(-1)

    @property
    def accuracy_error(self) -> Tensor:
        """Standard error of the accuracy, by the number of images, (1 + epsilons,)."""
        return (self.accuracy * (1 - self.accuracy) / self.survives.shape[-1]).sqrt()


def pgd(
    model: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    epsilon: float,
    *,
    steps: int,
    step_size: float,
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attack images by projected gradient ascent on the cross entropy, each until it is not recognised.

    Use it for one epsilon; `score_attack` goes through several, and starts at random in the ball.

    Args:
        model: From pixels (B, C, H, W) to logits (B, classes).
        pixels: Images (B, C, H, W) in [0, 1].
        labels: True classes (B,).
        epsilon: Largest change of a pixel.
        steps: Steps of the ascent.
        step_size: Change of every pixel in a step, before it is brought back into the ball and [0, 1].
        start: Change of each pixel that the ascent begins with, (B, C, H, W), from -1 to 1 in units of epsilon.

    Returns:
        For each image the first that is not recognised, or else the last, (B, C, H, W); and whether that one is still
        recognised, (B,).

    Source: Madry et al., Towards deep learning models resistant to adversarial attacks, 2018, section 2.
    """
    low, high = (pixels - epsilon).clamp_min(0), (pixels + epsilon).clamp_max(1)
    x = (pixels + epsilon * start.to(pixels)).clamp(low, high)
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
    model: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    pixels: Pixels,
    attack: Attack,
    *,
    total: int,
    seed: int = 0,
) -> AttackScores:
    """Measure accuracy under attack, within one epsilon after the other.

    An image that fell to a smaller epsilon counts as fallen to a larger one, whose ball holds the same changes. The
    start of an image depends on the seed, the epsilon and its place among all images alone: attacks on two models begin
    alike, whatever either recognises and however many images a batch holds.

    Args:
        model: From images to logits, in evaluation mode. It is differentiated as it is, whatever its solver and
            gradient.
        batches: Images (B, in_chans, H, W), normalised as the model expects, and labels (B,).
        pixels: Normalisation of the model.
        attack: The attack.
        total: Number of images at most, for the progress bar.
        seed: Seed of the starts.
    """

    def on_pixels(x: Tensor) -> Tensor:
        return model(pixels.normalised(x))

    generators = [torch.Generator().manual_seed(mixed_seed(seed, place)) for place in range(len(attack.epsilons))]

    def chunks() -> Iterator[list[Tensor]]:
        for images, labels in batches:
            stored = pixels.of(images)
            with torch.no_grad():
                survives = [on_pixels(stored).argmax(1) == labels]
            for generator, epsilon in zip(generators, attack.epsilons, strict=True):
                left, after = survives[-1], survives[-1].clone()
                start = 2 * torch.rand(stored.shape, generator=generator) - 1
                if left.any():
                    _, after[left] = pgd(
                        on_pixels,
                        stored[left],
                        labels[left],
                        epsilon / 255,
                        steps=attack.steps,
                        step_size=attack.step(epsilon) / 255,
                        start=start[left.cpu()],
                    )
                survives.append(after)
            yield list(torch.stack(survives, 1).cpu())

    return AttackScores(attack, torch.stack(list(with_progress(chunks(), total, "attacking")), 1))

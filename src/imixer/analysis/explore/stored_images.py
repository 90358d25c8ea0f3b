"""Store a run's own images in a Hopfield memory, and find those that a model takes for the nearest to another image.

K: images. D: width of a feature vector, what the model's classifier sees of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from imixer.data.image_data import ImageData
from imixer.errors import InputError
from imixer.hopfield.memory import AssociativeMemory, overlaps
from imixer.training.finished_run import FinishedRun
from imixer.training.finite_checks import require_finite_outputs

BETA = 25.0  # a cosine lower by 0.1 weighs e^-2.5
_BATCH = 32


@dataclass(frozen=True)
class NearPattern:
    """One stored image that is near another one.

    Args:
        place: Its number among the training images.
        class_name: Its class.
        cosine: Cosine of the two feature vectors, less the mean of the stored ones.
        share: Its share in the memory's answer: softmax(beta cosine), which sums to 1 over all that is stored.
    """

    place: int
    class_name: str
    cosine: float
    share: float


@dataclass(frozen=True)
class StoredImages:
    """A memory of training images, as the model's classifier sees them. `store_images` makes it.

    Choose it to ask which of the images a model has seen resemble another one most in the model's own eyes; patterns
    of pixels are what `AssociativeMemory` stores by itself.

    Args:
        memory: The modern Hopfield memory of K feature vectors of norm 1.
        mean: Mean of the K feature vectors, (D,), which is taken off any other.
        places: Number of each among the training images.
        class_names: Class of each.
    """

    memory: AssociativeMemory
    mean: Tensor
    places: tuple[int, ...]
    class_names: tuple[str, ...]

    @torch.no_grad()
    def nearest(self, model: nn.Module, image: Tensor, count: int = 5) -> list[NearPattern]:
        """Find the stored images that are nearest to an image, the nearest first.

        Args:
            model: The model whose features are stored, in evaluation mode.
            image: (in_chans, H, W), normalised as the model expects.
            count: Number of images; all if there are fewer.
        """
        query = _direction(_features(model, image[None]) - self.mean)
        shares = self.memory.weights(query)[0]
        cosines = overlaps(query, self.memory.patterns)[0]
        best = cosines.topk(min(count, len(cosines))).indices.tolist()
        return [NearPattern(self.places[i], self.class_names[i], float(cosines[i]), float(shares[i])) for i in best]


@torch.no_grad()
def store_images(run: FinishedRun, data: ImageData, count: int) -> StoredImages:
    """Store training images of a run, evenly spread; of streamed ones the first, which lie together.

    Args:
        run: The run.
        data: Its data.
        count: Number of images; all if there are fewer.

    Raises:
        InputError: If count is below 2, there are fewer than 2 training images, or what the model makes of them is not
            finite.

    Source: Ramsauer et al., arXiv 2008.02217, for the memory; features instead of pixels are ours.
    """
    total = len(data.train)
    if count < 2 or total < 2:
        raise InputError(f"patterns is {count}, of {total} training images; give 2 or more")
    count = min(count, total)
    places = tuple(range(count)) if data.windows is not None else tuple(i * total // count for i in range(count))
    features, names = [], []
    for start in range(0, count, _BATCH):
        items = [data.train[place] for place in places[start : start + _BATCH]]
        batch = torch.stack([run.transform(image) for image, _ in items]).to(run.device)
        require_finite_outputs(run.model, batch, run.name)
        features.append(_features(run.model, batch))
        names += [data.class_names[label] for _, label in items]
    rows = torch.cat(features)
    mean = rows.mean(0)
    memory = AssociativeMemory(_direction(rows - mean), "modern", beta=BETA).requires_grad_(False)
    return StoredImages(memory, mean, places, tuple(names))


def _features(model: nn.Module, images: Tensor) -> Tensor:
    timm_model = cast(Any, model)
    return timm_model.forward_head(timm_model.forward_features(images), pre_logits=True).float()


def _direction(features: Tensor) -> Tensor:
    return nn.functional.normalize(features, dim=1)

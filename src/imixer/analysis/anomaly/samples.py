"""Open or make images to find anomalies in: normal ones to learn from, and normal and defective ones to judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imixer.data.sources.decoding import PixelFormat
from imixer.data.sources.image_files import expand_user, images_under, load_image, subfolders
from imixer.errors import InputError

GOOD = "good"
OTHER_CLASS = "other digit"
_MASK = PixelFormat(value_range=(0.0, 255.0), background=0)  # 1 of 65,535 is not black, and what is transparent is
_ENOUGH = 0.01  # share of an image that a made defect changes
_VISIBLE = 0.1  # change of a pixel, black to white being 1, that counts as changed
_TRIES = 100


@dataclass(frozen=True)
class AnomalySamples:
    """Hold normal images to learn from, and images to judge.

    Attributes:
        name: Name of the data.
        normal: Normal images (N, in_chans, H, W), pixels from 0 to 1.
        test: Images to judge (M, in_chans, H, W).
        kinds: Kind of each image to judge: `good`, or the name of its defect.
        names: Name of each image to judge.
        masks: Pixels of the defect (M, H, W), nowhere true in good images; None if no pixels are known.
        masked: Whether the pixels of an image are known, (M,): all of a good one.
        skipped: Number of unreadable images left out.
    """

    name: str
    normal: Tensor
    test: Tensor
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    masks: Tensor | None
    masked: Tensor
    skipped: int = 0

    @property
    def defective(self) -> Tensor:
        """Whether each image to judge has a defect, (M,)."""
        return torch.tensor([kind != GOOD for kind in self.kinds])


# Folders, as industrial benchmarks have them


def open_defect_folder(
    path: str | Path, in_chans: int, size: tuple[int, int], *, smallest: int = 1, skip_bad: bool = False
) -> AnomalySamples:
    """Open `train/good`, `test/good`, `test/DEFECT`, and if it is there `ground_truth/DEFECT` with its masks.

    The mask of `test/DEFECT/NAME.EXT` is `ground_truth/DEFECT/NAME_mask.png`, or an image called NAME. Whatever is not
    black is defect. Images and masks are scaled to one size, without a crop.

    Args:
        path: The folder.
        in_chans: Channels that images get, 1 or 3.
        size: Height and width in pixels that images get.
        smallest: Smallest side in pixels that an image may have: that of a patch.
        skip_bad: Leave out images that cannot be read, or whose mask cannot, and count them.

    Raises:
        InputError: If a folder is missing or empty, an image cannot be read or is smaller than a patch, or a mask is
            missing, of another size than its image, or marks nothing.
    """
    root = expand_user(path)
    good = root / "train" / GOOD
    if not good.is_dir():
        there = "is no folder" if not root.is_dir() else "has no folder train/good"
        raise InputError(f"{root} {there}; put normal images to learn from into {good}")
    learn = images_under(good)
    if not learn:
        raise InputError(f"{good} holds no images; put normal images to learn from there")
    test = root / "test"
    if not test.is_dir():
        raise InputError(f"{root} has no folder test; put images to judge into test/good and test/DEFECT")
    kinds = [folder.name for folder in subfolders(test) if images_under(folder)]
    if GOOD not in kinds:
        raise InputError(f"{test / GOOD} holds no images; scores need normal images to compare defects with")
    if len(kinds) == 1:
        raise InputError(f"{test} has no defects, only {GOOD}; put images of each defect into a folder of its name")
    truth = root / "ground_truth"
    skipped: list[Path] = []
    common = (in_chans, size, smallest, skip_bad, skipped)
    normal = [image for _, image, _ in _read([(file, None) for file in learn], *common)]
    if not normal:
        raise InputError(f"{good} holds no image that can be read; mend them")
    images, masks, labels, names = [], [], [], []
    for kind in kinds:
        files = images_under(test / kind)
        with_masks = kind != GOOD and truth.is_dir()
        pairs = [(file, _mask_of(file, test, truth) if with_masks else None) for file in files]
        for file, image, mask in _read(pairs, *common):
            images.append(image)
            masks.append(mask)
            labels.append(kind)
            names.append(file.relative_to(test).as_posix())
    if not {GOOD} < set(labels):
        raise InputError(f"{test} has no {GOOD} image or no defect that can be read; mend them")
    masked = torch.tensor([kind == GOOD or truth.is_dir() for kind in labels])
    blank = torch.zeros(size, dtype=torch.bool)
    stacked = torch.stack([blank if mask is None else mask for mask in masks]) if truth.is_dir() else None
    return AnomalySamples(
        root.name, torch.stack(normal), torch.stack(images), tuple(labels), tuple(names), stacked, masked, len(skipped)
    )


def _mask_of(file: Path, test: Path, truth: Path) -> Path:
    """Find the mask of an image."""
    folder = truth / file.relative_to(test).parent
    for stem in (f"{file.stem}_mask", file.stem):
        beside = sorted(folder.glob(f"{_literal(stem)}.*")) if folder.is_dir() else []
        if beside:
            return beside[0]
    raise InputError(f"{file} has no mask; put {file.stem}_mask.png into {folder}, or remove {truth}")


def _literal(text: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _read(
    pairs: Iterable[tuple[Path, Path | None]],
    in_chans: int,
    size: tuple[int, int],
    smallest: int,
    skip_bad: bool,
    skipped: list[Path],
) -> Iterator[tuple[Path, Tensor, Tensor | None]]:
    """Read images and their masks. Those that cannot be read are added to `skipped`, if that is allowed."""
    for file, mask_file in pairs:
        try:
            image = load_image(file, in_chans)
            stored = None if mask_file is None else load_image(mask_file, 1, _MASK)
        except InputError as error:
            if not skip_bad:
                raise InputError(f"{error}, or pass --skip_bad") from None
            skipped.append(file)
            continue
        if min(image.size) < smallest:
            raise InputError(
                f"{file} has {image.width} x {image.height} pixels, less than a patch of {smallest} x {smallest}; "
                "remove it, or take a model with smaller patches"
            )
        mask = None
        if stored is not None and mask_file is not None:
            if stored.size != image.size:
                raise InputError(
                    f"{mask_file} has {stored.width} x {stored.height} pixels, and its image {file.name} has "
                    f"{image.width} x {image.height}; give a mask of that size"
                )
            mask = _to_mask(stored, size, mask_file)
        yield file, _to_tensor(image, size), mask


def _to_tensor(image: Image.Image, size: tuple[int, int]) -> Tensor:
    height, width = size
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(scaled.copy()).float().div(255)
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def _to_mask(stored: Image.Image, size: tuple[int, int], name: Path) -> Tensor:
    marked = np.asarray(stored) > 0
    if not marked.any():
        raise InputError(f"{name} marks no pixel of a defect; move its image to test/{GOOD}, or mend the mask")
    height, width = size
    share = np.asarray(Image.fromarray(marked.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
    covered = share >= 0.5
    return torch.from_numpy(covered if covered.any() else share > 0)  # a speck does not vanish


# Digits, of which one class is normal


def digit_samples(
    in_chans: int, size: tuple[int, int], *, normal: int = 3, seed: int = 0, learn: float = 0.6
) -> AnomalySamples:
    """Take one class of scikit-learn's handwritten digits as normal, and other classes and made defects as anomalies.

    A share of the class is learned from. The rest is dealt out in turn to `good`, `cut` (a stroke is missing), `blot`
    (ink where none belongs) and `shift` (a part of the digit stands beside the rest), half of it to `good`. As many
    digits of other classes as good ones follow. The mask of a defect is where a pixel changed by a tenth of the range
    or more; of other classes no pixels are known.

    Args:
        in_chans: Channels that images get, 1 or 3.
        size: Height and width in pixels that images get.
        normal: The class that is normal, 0 to 9.
        seed: Seed of the split and of the defects.
        learn: Share of the class to learn from.

    Raises:
        InputError: If there is no such class, or the seed is negative.
    """
    if not 0 <= normal <= 9:
        raise InputError(f"normal is {normal}; give the digit that is normal, 0 to 9")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}; give 0 or more, below 2**63")
    # deferred: scikit-learn takes a second to import
    from sklearn.datasets import load_digits

    rng = np.random.default_rng([seed, normal])
    bunch = load_digits()
    own = rng.permutation(np.flatnonzero(bunch.target == normal))
    other = rng.permutation(np.flatnonzero(bunch.target != normal))
    split = round(learn * len(own))
    held = own[split:]
    picture = _picture_of(bunch.images, size)
    order = (GOOD, "cut", GOOD, "blot", GOOD, "shift")
    kinds = [order[i % len(order)] for i in range(len(held))]
    images, masks = [], []
    for place, kind in zip(held, kinds, strict=True):
        image = picture(place)
        changed = image if kind == GOOD else _damage(image, kind, rng)
        images.append(changed)
        masks.append(np.abs(changed - image) >= _VISIBLE)
    other = other[: kinds.count(GOOD)]
    images += [picture(place) for place in other]
    masks += [np.zeros(size, dtype=bool)] * len(other)
    names = [f"digit {place}" for place in (*held, *other)]
    masked = [True] * len(held) + [False] * len(other)
    return AnomalySamples(
        name=f"digit-{normal}",
        normal=_stacked([picture(place) for place in own[:split]], in_chans),
        test=_stacked(images, in_chans),
        kinds=(*kinds, *[OTHER_CLASS] * len(other)),
        names=tuple(names),
        masks=torch.from_numpy(np.stack(masks)),
        masked=torch.tensor(masked),
    )


_Picture = NDArray[np.float32]


def _picture_of(digits: NDArray[np.float64], size: tuple[int, int]) -> Callable[[int], _Picture]:
    height, width = size

    def picture(place: int) -> _Picture:
        stored = Image.fromarray(digits[place].astype(np.float32) / 16)
        scaled = stored.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(scaled).clip(0, 1).astype(np.float32)

    return picture


def _stacked(pictures: Sequence[_Picture], in_chans: int) -> Tensor:
    gray = torch.from_numpy(np.stack(pictures))[:, None]
    return gray.expand(-1, in_chans, -1, -1).contiguous()


def _damage(image: _Picture, kind: str, rng: np.random.Generator) -> _Picture:
    """Damage an image, so that enough of it changes."""
    for _ in range(_TRIES):
        changed = _DEFECTS[kind](image, rng)
        if (np.abs(changed - image) >= _VISIBLE).mean() >= _ENOUGH:
            return changed
    return 1 - image  # an image that nothing changes, such as an empty one


def _distances(image: _Picture, point: NDArray[np.float64]) -> tuple[_Picture, _Picture]:
    """Return the rows and columns of pixels relative to a point, in units of the image's smaller side."""
    rows, columns = np.indices(image.shape)
    unit = min(image.shape)
    return (rows - point[0]) / unit, (columns - point[1]) / unit


def _inked(image: _Picture, rng: np.random.Generator) -> NDArray[np.float64]:
    """Choose a pixel with ink."""
    inked = np.argwhere(image > 0.5 * image.max())
    return inked[rng.integers(len(inked))].astype(np.float64)


def _cut(image: _Picture, rng: np.random.Generator) -> _Picture:
    """Remove the ink of a straight band through a pixel with ink, as long as wide three times."""
    rows, columns = _distances(image, _inked(image, rng))
    angle = rng.uniform(0, np.pi)
    along = rows * np.cos(angle) + columns * np.sin(angle)
    across = columns * np.cos(angle) - rows * np.sin(angle)
    band = (np.abs(across) < 0.08) & (np.abs(along) < 0.24)
    return np.where(band, 0, image).astype(np.float32)


def _blot(image: _Picture, rng: np.random.Generator) -> _Picture:
    """Put ink into an ellipse in the middle half of the image's width and height, or near it."""
    centre = np.array(image.shape) * rng.uniform(0.2, 0.8, 2)
    rows, columns = _distances(image, centre)
    tall, wide = rng.uniform(0.07, 0.16, 2)
    return np.where((rows / tall) ** 2 + (columns / wide) ** 2 < 1, image.max(), image).astype(np.float32)


def _shift(image: _Picture, rng: np.random.Generator) -> _Picture:
    """Move all that lies below a row sideways by an eighth to a quarter of the width."""
    height, width = image.shape
    row = round(height * rng.uniform(0.35, 0.65))
    by = round(width * rng.uniform(0.125, 0.25)) * int(rng.choice([-1, 1]))
    moved = np.zeros_like(image[row:])
    moved[:, max(0, by) : width + min(0, by)] = image[row:, max(0, -by) : width + min(0, -by)]
    return np.concatenate([image[:row], moved])


_DEFECTS: dict[str, Callable[[_Picture, np.random.Generator], _Picture]] = {"cut": _cut, "blot": _blot, "shift": _shift}

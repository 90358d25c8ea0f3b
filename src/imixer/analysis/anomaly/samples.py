"""Open or make images to find anomalies in: normal ones to learn from, and normal and defective ones to judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imixer.data.sources.decoding import EIGHT_BITS, PixelFormat
from imixer.data.sources.image_files import (
    FolderListing,
    count_by_extension,
    expand_user,
    images_under,
    is_image_file,
    list_folder,
    list_loose_files,
    load_image,
    require_disjoint,
    subfolders,
)
from imixer.data.sources.layout import left_out_beside, with_image_count
from imixer.data.sources.statistics import depth_notes, measured_format
from imixer.errors import InputError
from imixer.escaping import printable
from imixer.progress import with_progress

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
        skipped: Images that were left out, each by its name.
        value_range: Stored values that became black and white. None: all images have 8 bits, or nothing says it.
        notes: What was decided, a sentence each.
    """

    name: str
    normal: Tensor
    test: Tensor
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    masks: Tensor | None
    masked: Tensor
    skipped: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def defective(self) -> Tensor:
        """Whether each image to judge has a defect, (M,)."""
        return torch.tensor([kind != GOOD for kind in self.kinds])


# Folders, as industrial benchmarks have them


def open_defect_folder(
    path: str | Path,
    in_chans: int,
    size: tuple[int, int],
    *,
    smallest: int = 1,
    skip_bad: bool = False,
    learn: bool = True,
    pixels: PixelFormat = EIGHT_BITS,
) -> AnomalySamples:
    """Open `train/good`, `test/good`, `test/DEFECT`, and if it is there `ground_truth/DEFECT` with its masks.

    The mask of `test/DEFECT/NAME.EXT` is `ground_truth/DEFECT/NAME_mask.png`, or an image called NAME. Whatever is not
    black is defect. Images and masks are scaled to one size, without a crop. What is not used is named in the notes.

    Args:
        path: The folder.
        in_chans: Channels that images get, 1 or 3.
        size: Height and width in pixels that images get.
        smallest: Smallest side in pixels that an image may have: that of a patch.
        skip_bad: Leave out what is wrong with single images and masks, and name it.
        learn: Whether to open `train/good`. Otherwise there are no images to learn from.
        pixels: How stored pixel values become bytes. Where it has no range and there is something to learn, the range
            of images of more than 8 bits is measured. Without, notes tell of such images.

    Raises:
        InputError: If a folder is missing or empty, two share an image by a link, an image cannot be read or is smaller
            than a patch, or a mask is missing, of another size than its image, of no image, or marks nothing; a mask
            marks a defect in a good image; the range of the images cannot be told; or all have colours of 16 bits and
            are nearly black.
    """
    root = expand_user(path)
    test, truth, bad = root / "test", root / "ground_truth", _BadFiles(skip_bad)
    learned = {f"train/{GOOD}": _normal_files(root)} if learn else {}
    listings = _kinds(test)
    used = learned | {f"test/{kind}": listing for kind, listing in listings.items()}
    require_disjoint(used, root)
    normal_files = [file for listing in learned.values() for file in listing.images]
    kinds = {kind: listing.images for kind, listing in listings.items()}
    files = [file for listing in used.values() for file in listing.images]
    if learn:
        pixels, notes = measured_format(files, pixels, f"the images of {root}")
    else:
        notes = depth_notes(files, pixels, f"the images of {root}")
    if left_out := _left_out(root, used, learn=learn):
        notes += (f"not used of {root}: {'; '.join(map(printable, left_out))}",)
    reading = (in_chans, size, smallest, pixels, bad)
    normal = _normal_images(root, normal_files, *reading) if learn else []
    images, masks, labels, names = [], [], [], []
    masks_by_image = _masks_by_image(kinds, test, truth, bad) if truth.is_dir() else {}
    judged = [(kind, file) for kind, files in kinds.items() for file in files]
    for kind, file in with_progress(([each] for each in judged), len(judged), "reading images to judge"):
        if truth.is_dir() and kind != GOOD and file not in masks_by_image:
            continue  # it has been left out
        pair = _read(file, masks_by_image.get(file), *reading)
        if pair is not None:
            images.append(pair[0])
            masks.append(pair[1])
            labels.append(kind)
            names.append(file.relative_to(test).as_posix())
    if not {GOOD} < set(labels):
        raise InputError(f"{test} has no {GOOD} image or no defect that can be used; mend them")
    masked = torch.tensor([kind == GOOD or truth.is_dir() for kind in labels])
    blank = torch.zeros(size, dtype=torch.bool)
    stacked = torch.stack([blank if mask is None else mask for mask in masks]) if truth.is_dir() else None
    return AnomalySamples(
        root.name,
        torch.stack(normal) if normal else torch.zeros(0, in_chans, *size),
        torch.stack(images),
        tuple(labels),
        tuple(names),
        stacked,
        masked,
        tuple(file.relative_to(root).as_posix() for file in bad.skipped),
        pixels.value_range,
        notes,
    )


class _BadFiles:
    """Refuse a bad file, or leave it out and note it."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.skipped: list[Path] = []

    def leave_out(self, file: Path, problem: str) -> None:
        """Note a file that is left out.

        Raises:
            InputError: If no file may be.
        """
        if not self.skip:
            raise InputError(f"{problem}, or train with --data.skip_bad true")
        self.skipped.append(file)


def _left_out(root: Path, used: Mapping[str, FolderListing], *, learn: bool) -> tuple[str, ...]:
    """List the folders and files that are not used, in words."""
    train, test = root / "train", root / "test"
    parts = {root: (train, test, root / "ground_truth"), test: tuple(subfolders(test))}
    if learn:
        parts[train] = (train / GOOD,)
    left_out: list[str] = []
    for folder, own in parts.items():
        left_out += (with_image_count(each, root) for each in subfolders(folder) if each not in own)
        left_out += left_out_beside(folder, " and ".join(f"{each.name}/" for each in own))
    left_out += (
        f"{count_by_extension(listing.other_files)} in {name}/" for name, listing in used.items() if listing.other_files
    )
    return tuple(left_out)


def _normal_files(root: Path) -> FolderListing:
    """List the images to learn from."""
    good = root / "train" / GOOD
    if not good.is_dir():
        there = "is no folder" if not root.is_dir() else f"has no folder train/{GOOD}"
        raise InputError(f"{root} {there}; put normal images to learn from into {good}")
    listing = list_folder(good)
    if not listing.images:
        raise InputError(f"{good} holds no images; put normal images to learn from there")
    return listing


def _normal_images(
    root: Path,
    files: Sequence[Path],
    in_chans: int,
    size: tuple[int, int],
    smallest: int,
    pixels: PixelFormat,
    bad: _BadFiles,
) -> list[Tensor]:
    """Read the images to learn from."""
    chunks = ([_read(file, None, in_chans, size, smallest, pixels, bad)] for file in files)
    read = list(with_progress(chunks, len(files), "reading images to learn from"))
    normal = [pair[0] for pair in read if pair is not None]
    if not normal:
        raise InputError(f"{root / 'train' / GOOD} holds no image that can be used; mend them")
    return normal


def _kinds(test: Path) -> dict[str, FolderListing]:
    """List the images to judge by their kind."""
    if not test.is_dir():
        raise InputError(f"{test.parent} has no folder test; put images to judge into test/{GOOD} and test/DEFECT")
    if loose := list_loose_files(test).images:
        raise InputError(f"{loose[0]} lies in no folder that says what it is; put it into test/{GOOD} or test/DEFECT")
    kinds = {folder.name: list_folder(folder) for folder in subfolders(test)}
    if empty := [kind for kind, listing in kinds.items() if not listing.images and kind != GOOD]:
        raise InputError(f"{test / empty[0]} holds no images; put images of that defect there, or remove it")
    if twins := [kind for kind in kinds if kind != GOOD and kind.strip().lower() == GOOD]:
        raise InputError(f"{test / twins[0]} would be a defect called {twins[0]}; call it {GOOD}, or like its defect")
    if GOOD not in kinds or not kinds[GOOD].images:
        raise InputError(f"{test / GOOD} holds no images; scores need normal images to compare defects with")
    if len(kinds) == 1:
        raise InputError(f"{test} has no defects, only {GOOD}; put images of each defect into a folder of its name")
    return kinds


def _masks_by_image(kinds: dict[str, list[Path]], test: Path, truth: Path, bad: _BadFiles) -> dict[Path, Path]:
    """Find the mask of each image with a defect."""
    masks: dict[Path, Path] = {}
    for file in (file for kind, files in kinds.items() if kind != GOOD for file in files):
        mask = _mask_of(file, truth / file.relative_to(test).parent)
        if mask is None:
            folder = truth / file.relative_to(test).parent
            bad.leave_out(file, f"{file} has no mask; put {file.stem}_mask.png into {folder}, or remove {truth}")
        else:
            masks[file] = mask
    for mask in sorted(set(images_under(truth)) - set(masks.values())):
        kind = mask.relative_to(truth).parts[0]
        if kind != GOOD:
            bad.leave_out(mask, f"{mask} is the mask of no image in {test / kind}; remove it, or add its image")
        elif _marks_something(mask):
            bad.leave_out(mask, f"{mask} marks a defect in a {GOOD} image; move both to a folder of the defect's name")
    return masks


def _mask_of(file: Path, folder: Path) -> Path | None:
    """Find the mask of an image in a folder."""
    for stem in (f"{file.stem}_mask", file.stem):
        beside = sorted(folder.glob(f"{_literal(stem)}.*")) if folder.is_dir() else []
        for mask in beside:
            if mask.stem == stem and is_image_file(mask.name):
                return mask
    return None


def _literal(text: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _marks_something(file: Path) -> bool:
    try:
        return bool((np.asarray(load_image(file, 1, _MASK)) > 0).any())
    except InputError:
        return False  # of an image that needs no mask


def _read(
    file: Path,
    mask_file: Path | None,
    in_chans: int,
    size: tuple[int, int],
    smallest: int,
    pixels: PixelFormat,
    bad: _BadFiles,
) -> tuple[Tensor, Tensor | None] | None:
    """Read an image and its mask. None if it is left out."""
    try:
        image = load_image(file, in_chans, pixels)
        if min(image.size) < smallest:
            raise InputError(
                f"{file} has {image.width} x {image.height} pixels, less than a patch of {smallest} x {smallest}; "
                "remove it, or take a model with smaller patches"
            )
        if mask_file is None:
            return to_tensor(image, size), None
        stored = load_image(mask_file, 1, _MASK)
        if stored.size != image.size:
            raise InputError(
                f"{mask_file} has {stored.width} x {stored.height} pixels, and its image {file.name} has "
                f"{image.width} x {image.height}; give a mask of that size"
            )
        return to_tensor(image, size), _to_mask(stored, size, mask_file)
    except InputError as error:
        bad.leave_out(file, str(error))
        return None


def to_tensor(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Scale an image of mode `L` or `RGB` to a height and width in pixels, without a crop, as (C, H, W) from 0 to 1."""
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

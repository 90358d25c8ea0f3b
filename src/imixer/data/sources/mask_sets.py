"""Images with masks that torchvision knows by name, in the folders as it leaves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import MaskedData
from imixer.data.names import OXFORD_PETS, VOC_YEARS
from imixer.data.sources.image_files import data_root
from imixer.data.sources.masked_pairs import FilePair, Incomplete, Pairs, PatchSide, open_pairs
from imixer.data.sources.masks import given_classes
from imixer.errors import InputError
from imixer.reading import read_text

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
PET_CLASSES = ("pet", "background", "border")
_PET_VALUES = (1, 2, 3)  # of a trimap

_Files = Callable[[str], tuple[Path, Path]]


def open_mask_set(
    name: str, config: DataConfig, masks: MaskConfig, patch_side: PatchSide | None = None, *, whole: bool = False
) -> MaskedData:
    """Open a data set with masks that torchvision knows, with its own held-out split. Nothing is downloaded.

    Args:
        name: A name in `MASKED`, but scenes.
        config: Gives `root`, the folder that torchvision was given.
        masks: What masks mean; classes and values are the data set's own.
        patch_side: See `open_pairs`.
        whole: See `open_pairs`.

    Raises:
        InputError: If it is not in `config.root`, a file that its lists name is missing, a setting contradicts it, or
            `open_pairs` refuses a pair.
    """
    for option in ("palette", "values", "classes"):
        if getattr(masks, option) is not None:
            raise InputError(f"masks.{option} is given, and {name} has classes of its own; leave it out")
    root = data_root(config.root)
    if config.download:
        raise InputError(
            f"data.download is true, and {name} is not downloaded here; put torchvision's files into {root}"
        )
    masks, opened = own_masks(name, masks), (config, patch_side, whole)
    if name == OXFORD_PETS:
        return _open(name, root, _pets(root), ("trainval", "test"), masks, *opened)
    return _open(name, root, _voc(root, VOC_YEARS[name]), ("train", "val"), masks, *opened)


def own_masks(name: str, masks: MaskConfig) -> MaskConfig:
    """Return the settings of masks with the classes and values of a data set.

    Args:
        name: A name in `MASKED`. Of one without classes of its own, the settings are returned as they are.
        masks: The settings.
    """
    if name == OXFORD_PETS:
        return replace(masks, classes=list(PET_CLASSES), values=list(_PET_VALUES))
    return replace(masks, classes=list(VOC_CLASSES)) if name in VOC_YEARS else masks


def _open(
    name: str,
    root: Path,
    where: tuple[Path, Path, _Files],
    splits: tuple[str, str],
    masks: MaskConfig,
    config: DataConfig,
    patch_side: PatchSide | None,
    whole: bool,
) -> MaskedData:
    folder, lists, files = where
    if not folder.is_dir():
        raise InputError(
            f"{name} is not in {root}: there is no folder {folder.relative_to(root)}; put torchvision's files there, "
            "or name its folder by --data.root, or --data where a run is used"
        )
    parts: list[list[FilePair]] = []
    incomplete: list[Incomplete] = []
    for split in splits:
        pairs = []
        for item in _listed(lists / f"{split}.txt", name):
            image, mask = files(item)
            if absent := next((path for path in (image, mask) if not path.exists()), None):
                what = "image" if absent is image else f"mask {absent.relative_to(folder)}"
                name_below = str(image.relative_to(root))
                incomplete.append(Incomplete(name_below, str(image), f"of {split}.txt has no {what}"))
            else:
                pairs.append(FilePair(image, mask, root))
        parts.append(pairs)
    return open_pairs(
        Pairs(
            name=name,
            place=str(folder),
            train=parts[0],
            val=parts[1],
            sources=(f"its {splits[0]} part, in {root}", f"its {splits[1]} part"),
            split=splits[1],
            class_names=given_classes(masks),
            incomplete=incomplete,
        ),
        config,
        masks,
        patch_side,
        whole=whole,
    )


def _voc(root: Path, year: str) -> tuple[Path, Path, _Files]:
    """Return the folder of a year of VOC, that of its lists, and where an item's files lie."""
    inside = Path("TrainVal", "VOCdevkit") if year == "2011" else Path("VOCdevkit")  # as its archives unpack
    folder = root / inside / f"VOC{year}"
    return (
        folder,
        folder / "ImageSets" / "Segmentation",
        lambda item: (folder / "JPEGImages" / f"{item}.jpg", folder / "SegmentationClass" / f"{item}.png"),
    )


def _pets(root: Path) -> tuple[Path, Path, _Files]:
    """Return the folder of the pets, that of its lists, and where an item's files lie."""
    folder = root / "oxford-iiit-pet"
    masks = folder / "annotations"
    return folder, masks, lambda item: (folder / "images" / f"{item}.jpg", masks / "trimaps" / f"{item}.png")


def _listed(file: Path, name: str) -> Sequence[str]:
    """Read the items of a list: the first word of each line."""
    if not file.is_file():
        raise InputError(f"{name} is incomplete: there is no {file}; unpack its files again")
    items = [words[0] for line in read_text(file).splitlines() if (words := line.split())]
    if not items:
        raise InputError(f"{file} lists nothing; unpack the files of {name} again")
    return items

"""Settings of data set, split, loading and augmentation. Free of torch, so that `--help` is instant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from imixer.errors import InputError

LARGEST_SIDE = 8_192  # pixels
SMALLEST_CROP = 0.1  # share of the side; images are resized to the input size over this
_MOST_WORKERS = 256  # processes, more than any one machine feeds a device with

ImageSize = int | tuple[int, int]
_MOST_CLASSES = 255  # of pixels: masks are bytes, one of which is what is ignored
_LARGEST_INDEX = 65_535  # that masks store


@dataclass
class DataConfig:
    """Data set, split, loading and augmentation.

    Args:
        name: `digits` (built in), a folder of class folders, a folder of parquet shards with an image column or of
            tar shards with `KEY.jpg` beside `KEY.cls` or `KEY.json`, the URL of such shards (`s3://`, `gs://`,
            `hf://datasets/...`, `https://`), `cifar10`, `cifar100`, `stanford_cars`, `food101`, `imagenet`
            (torchvision), or any other name that timm's `create_dataset` knows, such as `torch/mnist` or `hfds/mnist`.
            With `task: segment`: `scenes` (built in), a folder of images and masks, a folder or URL of parquet shards
            with a column of each, `voc`, `voc2007` to `voc2012` or `oxford_pets` (torchvision's, in `root`).
        root: Folder where a named data set lies or is downloaded to. Default: `data`.
        download: Download a named data set that is not in `root`. Those called `hfds/...` always are.
        val_fraction: Share held out for validation when the data have no split of their own.
        split_seed: Seed of that split. It does not depend on the training seed.
        streaming: Whether the images of shards are fetched a part at a time instead of being held in memory: `always`,
            `never`, or `auto` for URLs, and for shards of 4 GB together or more. It decides the order of images.
        cache_gb: Size of the cache for streamed images in 1e9 bytes, on the local disk. It decides the order of
            streamed images: they are shuffled within parts of half this size.
        cache_dir: Folder of that cache, for all runs that name it. Default: `imixer` in the user's cache folder.
        image_size: Size of the model's input in pixels, one side or [height, width]. Default: the model's own.
        batch_size: Images per optimizer step, over all devices.
        pipeline: `timm` decodes and augments image by image, in loader processes; `device` keeps all images as bytes in
            the memory of the device that trains and augments whole batches there, for images of one size.
        last_batch: What becomes of the images that fill no whole batch at the end of an epoch: `drop` leaves them out,
            other ones in each epoch; `fill` takes the last batch from the epoch's last images, so that some of the
            batch before are in it again and none is left out.
        balance: What is done about classes of unequal size: `sampling` draws each class equally often, `loss` weights
            each image's loss by the inverse of its class's size, `none` leaves them as they are.
        workers: Loader processes per device. 0 loads in the training process.
        keep_decoded: Decode the images once and keep them in memory, no larger than the crops can use: for photos,
            whose decoding takes longer than a training step. Pipeline `timm` only.
        skip_bad: Count and skip unreadable images instead of stopping at the first.
        check: Which image files of a folder to test before training: `full` decodes each, `header` reads the header of
            each, `off` none, `auto` is `full` up to 20,000 files and `header` above. Images of shards: only by `full`.
        value_range: Stored values that become black and white, [low, high], in images of more than 8 bits, such as
            16-bit and float ones. Default: measured, as the customary range that holds them all; a run's `config.yaml`
            has it.
        background: What shows through transparent pixels: `white`, `gray` or `black`.
        crop: Training crop: `pad` shifts, black where the image ends, `reflect` shifts, mirrored where it ends,
            `resized` takes a random area and ratio, `center` takes none at random.
        shift: Largest shift of `pad` and `reflect` in pixels. Default: an eighth of the side.
        scale: Range of the area of a `resized` crop, as a share of the image.
        ratio: Range of the aspect ratio of a `resized` crop.
        crop_pct: Share of the resized image that the validation crop keeps.
        interpolation: Resampling filter: `bilinear`, `bicubic`, or `random` (training only).
        hflip: Probability of a horizontal flip.
        flip: `random` draws that anew in every epoch; `alternating` draws it for the first one and turns every image
            round from each epoch to the next, so that any two in a row show both sides.
        auto_augment: Policy in timm's notation, such as `rand-m9-mstd0.5-inc1`. Default: none.
        random_erasing: Probability of erasing a random box.
        mixup: Mixup alpha; 0 is off.
        cutmix: CutMix alpha; 0 is off.
        erase: Whether boxes are erased `before_mixing`, so that they are mixed too, or `after_mixing`, from the mixed
            image, as timm's prefetching loader does. The same where nothing is erased or nothing mixed.
    """

    name: str = "digits"
    root: str | None = None
    download: bool = False
    val_fraction: float = 0.2
    split_seed: int = 0
    streaming: Literal["auto", "always", "never"] = "auto"
    cache_gb: float = 10.0
    cache_dir: str | None = None
    image_size: ImageSize | None = None
    batch_size: int = 64
    pipeline: Literal["timm", "device"] = "timm"
    last_batch: Literal["drop", "fill"] = "drop"
    balance: Literal["none", "sampling", "loss"] = "none"
    workers: int = 0
    keep_decoded: bool = False
    skip_bad: bool = False
    check: Literal["auto", "full", "header", "off"] = "auto"
    value_range: tuple[float, float] | None = None
    background: Literal["white", "gray", "black"] = "white"
    crop: Literal["pad", "reflect", "resized", "center"] = "pad"
    shift: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333333)
    crop_pct: float = 1.0
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"
    hflip: float = 0.0
    flip: Literal["random", "alternating"] = "random"
    auto_augment: str | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erase: Literal["before_mixing", "after_mixing"] = "before_mixing"

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise InputError(f"data.val_fraction is {self.val_fraction}; give a share between 0 and 1")
        if self.batch_size < 1:
            raise InputError(f"data.batch_size is {self.batch_size}; give 1 or more")
        if not 0 <= self.split_seed < 2**32:
            raise InputError(f"data.split_seed is {self.split_seed}; give 0 or more, below 2**32")
        if not 0 < self.cache_gb < math.inf:
            raise InputError(f"data.cache_gb is {self.cache_gb}; give more than 0, in 1e9 bytes")
        if "://" in self.name and ("?" in self.name or "@" in self.name.split("://")[1].split("/")[0]):
            raise InputError(  # without the name: messages are logged
                "data.name is a URL with a user, a password or a query, which would be written into the run; leave it "
                "out, and give credentials where the library of the protocol looks for them, such as the environment"
            )
        if not 0 <= self.workers <= _MOST_WORKERS:
            raise InputError(f"data.workers is {self.workers}; give 0 to {_MOST_WORKERS}, at most one per core")
        low, high = self.value_range or (0.0, 1.0)
        if not -math.inf < low < high < math.inf:
            raise InputError(f"data.value_range is [{low:g}, {high:g}]; give two finite numbers, the smaller one first")
        if not SMALLEST_CROP <= self.crop_pct <= 1:
            raise InputError(f"data.crop_pct is {self.crop_pct}; give a share from {SMALLEST_CROP} to 1")
        for field in ("hflip", "random_erasing"):
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(f"data.{field} is {getattr(self, field)}; give a probability from 0 to 1")
        if self.shift is not None and (self.shift < 1 or self.crop not in ("pad", "reflect")):
            raise InputError(
                f"data.shift is {self.shift} and data.crop {self.crop}; give 1 pixel or more, with crop pad or reflect"
            )
        if self.flip == "alternating" and self.hflip in (0, 1):
            raise InputError(
                f"data.flip is alternating and data.hflip {self.hflip:g}, by which all images would turn round "
                "together; set data.hflip 0.5"
            )
        for field, most in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, field)
            if not (0 < low <= high <= most and high < math.inf):
                top = f", up to {most:g}" if most < math.inf else ""
                raise InputError(
                    f"data.{field} is [{low:g}, {high:g}]; give two numbers above 0{top}, the smaller one first"
                )
        for field in ("mixup", "cutmix"):
            if not 0 <= getattr(self, field) < math.inf:
                raise InputError(f"data.{field} is {getattr(self, field)}; give 0 (off) or more")
        sizes = (self.image_size,) if isinstance(self.image_size, int) else self.image_size or ()
        if not all(1 <= side <= LARGEST_SIDE for side in sizes):
            raise InputError(f"data.image_size is {self.image_size}; give 1 pixel or more, at most {LARGEST_SIDE:,}")


@dataclass
class MaskConfig:
    """Masks of segmentation: what their values mean, and how image and mask are cut to the model's input.

    Args:
        classes: Names of the classes, in the order of their indices. Default: the names of `palette`, a file
            `classes.txt` beside the images with a name a line, or as many as the largest index of the training masks
            takes.
        palette: Colour of each class in masks that store colours, such as `{road: "#804080"}`, in the order of the
            classes. Default: masks store indices.
        values: Index that is stored for each class, in their order, such as `[0, 255]`. Default: 0, 1, 2, ...
        image_column: Column of encoded images in parquet files. Default: by the usual names.
        mask_column: Column of encoded masks in them, likewise.
        ignore_index: Index, or in coloured masks every colour of no class, that counts for nothing. null: each must
            be a class.
        fit: `resize` scales each image to the model's input; `window` keeps its pixels, trains on random pieces and
            slides a window over the whole for validation and prediction.
        overlap: Share of a window that the next one shares.
        jitter: Largest relative change of brightness, contrast and saturation of training images. 0: none.
    """

    classes: list[str] | None = None
    palette: dict[str, str] | None = None
    values: list[int] | None = None
    image_column: str | None = None
    mask_column: str | None = None
    ignore_index: int | None = 255
    fit: Literal["resize", "window"] = "resize"
    overlap: float = 0.5
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.classes is not None and not 2 <= len(set(self.classes)) == len(self.classes) <= _MOST_CLASSES:
            raise InputError(f"masks.classes has {len(self.classes)} names; give 2 to {_MOST_CLASSES}, each once")
        if self.classes is not None and self.palette is not None:
            raise InputError("masks.classes and masks.palette are both given; the palette names the classes, leave one")
        if self.palette is not None:
            if not 2 <= len(self.palette) <= _MOST_CLASSES:
                raise InputError(f"masks.palette has {len(self.palette)} colours; give 2 to {_MOST_CLASSES}")
            colours = [parse_colour(name, text) for name, text in self.palette.items()]
            if len(set(colours)) < len(colours):
                raise InputError("masks.palette gives two classes one colour; give each its own")
        if self.values is not None:
            self._check_values(self.values)
        if self.image_column is not None and self.image_column == self.mask_column:
            raise InputError(f"masks.image_column and masks.mask_column are both {self.image_column}; give two columns")
        if self.ignore_index is not None and not 0 <= self.ignore_index <= _LARGEST_INDEX:
            raise InputError(f"masks.ignore_index is {self.ignore_index}; give an index from 0, or null")
        if not 0 <= self.overlap < 1:
            raise InputError(f"masks.overlap is {self.overlap}; give a share from 0, below 1")
        if not 0 <= self.jitter < 1:
            raise InputError(f"masks.jitter is {self.jitter}; give a share from 0, below 1")

    def _check_values(self, values: list[int]) -> None:
        if not 2 <= len(set(values)) == len(values) <= _MOST_CLASSES or not all(
            0 <= v <= _LARGEST_INDEX for v in values
        ):
            raise InputError(
                f"masks.values is {values}; give the index of each class, 2 to {_MOST_CLASSES}, each once, from 0"
            )
        if self.palette is not None:
            raise InputError("masks.values and masks.palette are both given; masks store indices or colours, leave one")
        if self.classes is not None and len(self.classes) != len(values):
            raise InputError(
                f"masks.values has {len(values)} indices and masks.classes {len(self.classes)} names; give one for each"
            )


def parse_colour(name: str, text: str) -> tuple[int, int, int]:
    """Convert a colour such as `#804080` to (red, green, blue).

    Args:
        name: The class, for the message.
        text: The colour.

    Raises:
        InputError: If it is no such colour.
    """
    digits = str(text).removeprefix("#")
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        raise InputError(f"masks.palette gives {name!r} the colour {text!r}; write it as '#804080'") from None
    return red, green, blue

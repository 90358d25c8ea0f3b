"""Answer the questions that the page asks about a run: plain values in, plain values out, no server."""

from __future__ import annotations

import base64
import io
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal, get_args

from PIL import Image
from torch import Tensor

import imixer
from imixer.analysis.explore.digit_recall import MOST_STORED
from imixer.analysis.explore.inspection import inspect_image, most_iterations
from imixer.analysis.explore.stored_images import StoredImages, store_images
from imixer.analysis.features import picture_of
from imixer.analysis.recall.images import MASKS
from imixer.data.image_data import ImageData, LabelledImages
from imixer.data.sources.decoding import UnreadableImage, convert_image, decode_bytes, pixel_format
from imixer.errors import InputError
from imixer.escaping import one_line
from imixer.hopfield.memory_kinds import Kind
from imixer.models.probe import implicit_layers
from imixer.training.finished_run import FinishedRun

Split = Literal["held-out", "training"]

LARGEST_UPLOAD = 16 * 2**20  # bytes
_MOST_PIXELS = 50_000_000  # of an upload; a small file may hold far more
_THUMBNAIL = 256  # pixels
_OFFERED = 12  # held-out images to pick from at once


class Explorer:
    """A run that is explored. `imixer explore` makes one and serves a page about it.

    Choose it to ask for the same numbers in a notebook; `imixer.analysis.analyze` measures many images and writes
    them down.

    Args:
        run: The run. Nothing is written into it.
        data_path: Where the run's data lie now. Default: where they lay; without them, only images that are given can
            be looked at.
        patterns: Number of training images to store, for the nearest ones.

    Raises:
        InputError: If the run gives an image no class, `patterns` is out of range, or data are said to lie where they
            do not.
    """

    def __init__(self, run: FinishedRun, *, data_path: str | None = None, patterns: int = 100) -> None:
        run.require_classes()
        if not 2 <= patterns <= 10_000:
            raise InputError(f"patterns is {patterns}; give 2 to 10,000 training images to store")
        self.run = run
        self._patterns = patterns
        self._data: ImageData | None = None
        self._without_data = ""
        try:
            self._data = run.data(data_path)
        except InputError as error:
            if data_path is not None:
                raise
            self._without_data = one_line(error)

    @property
    def facts(self) -> dict[str, Any]:
        """What the page has to know before it asks anything."""
        model = self.run.model
        blocks = implicit_layers(model)
        total = 0 if self._data is None else len(self._data.val)
        inversion = blocks[0][1].inversion if blocks else None
        return {
            "version": imixer.__version__,
            "run": self.run.name,
            "checkpoint": self.run.checkpoint,
            "model": self.run.config.model.name,
            "data": self.run.config.data.name,
            "classes": len(self.run.class_names),
            "input_size": self.run.input_size,
            "blocks": [number for number, _ in blocks],
            "n_iter": blocks[0][1].n_iter if blocks else None,
            "fixed": inversion is not None and inversion.solver == "fixed",
            "most_iterations": most_iterations(model),
            "held_out": total,
            "offered": sorted({i * total // _OFFERED for i in range(_OFFERED)}) if total else [],
            "without_data": self._without_data,
            "largest_upload": LARGEST_UPLOAD,
            "patterns": self._patterns,
            "kinds": get_args(Kind),
            "masks": MASKS,
            "most_stored": MOST_STORED,
        }

    def inspect(
        self, upload: bytes | None, held_out: int | None, n_iter: int | None, tolerance: float | None, block: int | None
    ) -> dict[str, Any]:
        """Inspect an image, see `inspect_image`, and show it as the model sees it.

        Args:
            upload: Bytes of an image file; None for a held-out image.
            held_out: Number of the held-out image, if there is no upload.
            n_iter: Iterations of every inverse. None: as trained.
            tolerance: Tolerance in place of them.
            block: Block whose feature maps are shown. None: the last.

        Raises:
            InputError: If there is no such image, or `inspect_image` refuses an argument.
        """
        image, truth = self._image(upload, held_out)
        inspection = inspect_image(self.run, image, n_iter=n_iter, tolerance=tolerance, block=block)
        return {**asdict(inspection), "truth": truth, "picture": self._picture(image)}

    def nearest(self, upload: bytes | None, held_out: int | None) -> dict[str, Any]:
        """Find the stored training images that are nearest to an image, see `StoredImages`.

        Args:
            upload: Bytes of an image file; None for a held-out image.
            held_out: Number of the held-out image, if there is no upload.

        Raises:
            InputError: If there is no such image, or the run's data are not there.
        """
        image, _ = self._image(upload, held_out)
        stored = self._stored
        return {"stored": len(stored.places), "nearest": [asdict(e) for e in stored.nearest(self.run.model, image)]}

    def thumbnail(self, split: str, place: int) -> bytes:
        """Return one of the run's images as a PNG of at most 256 x 256 pixels.

        Args:
            split: `held-out` or `training`.
            place: Number of the image.

        Raises:
            InputError: If there is no such image.
        """
        image = _item(self._items(split), split, place)[0].copy()
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        return _png(image)

    @cached_property
    def _stored(self) -> StoredImages:
        return store_images(self.run, self._require_data(), self._patterns)

    def _require_data(self) -> ImageData:
        if self._data is None:
            raise InputError(f"the run's images are not at hand: {self._without_data}")
        return self._data

    def _items(self, split: str) -> LabelledImages:
        data = self._require_data()
        if split not in get_args(Split):
            raise InputError(f"there are no {split} images; choose {' or '.join(get_args(Split))}")
        return data.val if split == "held-out" else data.train

    def _image(self, upload: bytes | None, held_out: int | None) -> tuple[Tensor, str | None]:
        """Return an image as the model takes it, and its class if that is known."""
        truth = None
        if upload is not None:
            image = self._decoded(upload)
        elif held_out is not None:
            image, label = _item(self._items("held-out"), "held-out", held_out)
            truth = self._require_data().class_names[label]
        else:
            raise InputError("no image is given; drop a file or choose a held-out image")
        return self.run.transform(image).to(self.run.device), truth

    def _decoded(self, upload: bytes) -> Image.Image:
        if len(upload) > LARGEST_UPLOAD:
            raise InputError(f"the file is larger than {LARGEST_UPLOAD // 2**20} MB; give a smaller one")
        try:
            _check_pixels(upload)
            image = decode_bytes(upload)
        except UnreadableImage as error:
            raise InputError(f"cannot read the image: {error}; give a complete image file") from None
        return convert_image(image, self.run.input_size[0], pixel_format(self.run.config.data), "that was given")

    def _picture(self, image: Tensor) -> str:
        pixels = picture_of(image, self.run.pretrained_cfg).mul(255).round().byte().numpy()
        picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return f"data:image/png;base64,{base64.b64encode(_png(picture)).decode()}"


def _item(items: LabelledImages, split: str, place: int) -> tuple[Image.Image, int]:
    if not 0 <= place < len(items):
        raise InputError(f"there is no {split} image {place}; give 0 to {len(items) - 1}")
    return items[place]


def _check_pixels(upload: bytes) -> None:
    """Raise UnreadableImage if an image says of itself that it is enormous, before it is decoded."""
    try:
        with Image.open(io.BytesIO(upload)) as image:
            width, height = image.size
    except Exception:  # what is wrong, decoding tells
        return
    if width * height > _MOST_PIXELS:
        raise UnreadableImage(f"it has {width} x {height} pixels, more than {_MOST_PIXELS:,}")


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    (image if image.mode in ("L", "RGB") else image.convert("RGB")).save(out, "PNG")
    return out.getvalue()

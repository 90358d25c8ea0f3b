"""From encoded bytes to a grayscale or colour image, or a short reason why not."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from imixer.errors import InputError

SKIP_REMEDY = "mend or remove it, or pass --data.check full --data.skip_bad true"

_MODES = {1: "L", 3: "RGB"}


class UnreadableImage(Exception):
    """Why an image cannot be read, in a few words and without its name."""


def reason(error: BaseException) -> str:
    """The gist of an error in one line."""
    if isinstance(error, UnidentifiedImageError):  # its own text repeats the path or a memory address
        return "not an image that Pillow can read"
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def decode_file(path: str | Path) -> Image.Image:
    """Read and decode a file completely, in the mode it is stored in.

    Raises:
        UnreadableImage: The file is missing, empty, truncated or no image.
    """
    return _open(path, os.stat(path).st_size if os.path.isfile(path) else None, load=True)


def decode_bytes(encoded: Any) -> Image.Image:
    """Decode the bytes of an image file completely, in the mode it is stored in.

    Args:
        encoded: Bytes, or a buffer of them.

    Raises:
        UnreadableImage: The bytes are empty, truncated or no image.
    """
    return _open(io.BytesIO(encoded), len(encoded), load=True)


def check_header(path: str | Path) -> None:
    """Look at the first bytes of a file only.

    Raises:
        UnreadableImage: The file is missing, empty or no image.
    """
    _open(path, os.stat(path).st_size if os.path.isfile(path) else None, load=False)


def _open(source: Any, size: int | None, *, load: bool) -> Image.Image:
    if size == 0:
        raise UnreadableImage("it is empty (0 bytes)")
    try:
        # closing matters for files with several frames; pixels that were loaded stay
        with Image.open(source) as image:
            if load:
                image.load()
    except MemoryError:
        raise
    except Exception as error:  # on corrupted bytes, decoders raise almost anything
        raise UnreadableImage(reason(error)) from error
    return image


def is_gray(image: Image.Image) -> bool:
    """Whether an image is stored without colour."""
    return image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")


def to_channels(image: Image.Image, in_chans: int) -> Image.Image:
    """Bring an image to mode `L` (1 channel) or `RGB` (3 channels). 16-bit images keep their upper 8 bits.

    Raises:
        InputError: `in_chans` is neither 1 nor 3.
    """
    mode = _MODES.get(in_chans)
    if mode is None:
        raise InputError(f"in_chans is {in_chans}; images come with 1 channel (gray) or 3 (RGB)")
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
        image = Image.fromarray(values.astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def read_file(path: str | Path, remedy: str) -> Image.Image:
    """Read and decode a file completely, in the mode it is stored in.

    Raises:
        InputError: It cannot be read; the message names the file and ends with `remedy`.
    """
    try:
        return decode_file(path)
    except UnreadableImage as error:
        raise InputError(f"cannot read image {path}: {error}; {remedy}") from None

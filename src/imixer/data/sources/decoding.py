"""Decode image files to gray or RGB, or say in a few words why not; find those that cannot be decoded."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from imixer.data.config import DataConfig
from imixer.errors import InputError
from imixer.progress import with_progress

SKIP_REMEDY = "mend or remove it, or train with --data.check full --data.skip_bad true"
TURNED = "imixer_turned"  # marks in `image.info` that the pixels were turned upright
CUT = "imixer_cut"  # that it has colours of 16 bits, of which Pillow gives the upper 8
SCALED = "imixer_scaled"  # that its grays of 2 or 4 bits were scaled to 8
FRAMES = "imixer_frames"  # and how many frames the file holds

_MODES = {1: "L", 3: "RGB"}
_READABLE = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"}
)
_ORIENTATION = 274  # EXIF tag
_TURNS = range(2, 9)  # of its values, those that are not upright
_SPECIAL_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_BACKGROUNDS = {"white": 255, "gray": 128, "black": 0}
_UNSIGNED_16 = (0.0, 65535.0)


@dataclass(frozen=True)
class PixelFormat:
    """The meaning of stored pixel values, where the file itself does not say.

    Args:
        value_range: Stored values that become black and white in images of more than 8 bits. None: unknown.
        background: Gray value, 0 to 255, under transparent pixels.
    """

    value_range: tuple[float, float] | None = None
    background: int = 255


EIGHT_BITS = PixelFormat()


def pixel_format(config: DataConfig) -> PixelFormat:
    """Read the pixel format from the settings. A finished run's settings hold the range that was measured."""
    return PixelFormat(
        config.value_range and (config.value_range[0], config.value_range[1]), _BACKGROUNDS[config.background]
    )


class UnreadableImage(Exception):
    """The reason why an image cannot be read, in a few words and without its name."""


def error_reason(error: BaseException) -> str:
    """Summarise an error in one line."""
    if isinstance(error, UnidentifiedImageError):  # its own text repeats the path or a memory address
        return "not an image that Pillow can read"
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def decode_file(path: str | Path, *, upright: bool = True) -> Image.Image:
    """Read and decode an image file completely, in the mode it is stored in.

    Args:
        path: The file.
        upright: Whether to turn it as its EXIF orientation says.

    Raises:
        UnreadableImage: If the file is missing, no regular file, empty, truncated or no image, or its pixels mean
            nothing.
    """
    size = _size(path)
    # as a stream, since Pillow maps raw TIFFs that it has a name of, and maps those on their side with rows for columns
    try:
        with open(path, "rb") as stream:
            return _open(stream, size, load=True, upright=upright)
    except OSError as error:
        raise UnreadableImage(error_reason(error)) from error


def decode_bytes(encoded: Any) -> Image.Image:
    """Decode the bytes of an image file completely, upright, in the mode it is stored in.

    Args:
        encoded: Bytes, or a buffer of them.

    Raises:
        UnreadableImage: If the bytes are empty, truncated or no image, or its pixels mean nothing.
    """
    return _open(io.BytesIO(encoded), len(encoded), load=True)


def decode_header(path: str | Path) -> Image.Image:
    """Read the first bytes of an image file only, which finds no file that is cut off later.

    Returns:
        An image with mode, size and `CUT`, and without pixels.

    Raises:
        UnreadableImage: If the file is missing, no regular file, empty or no image.
    """
    return _open(path, _size(path), load=False)


def special_file(path: str | Path) -> str | None:
    """Name the kind of a path that is there and no regular file: opening a pipe would wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    return None if stat.S_ISREG(mode) else _SPECIAL_KINDS.get(stat.S_IFMT(mode), "a special file")


def _size(path: str | Path) -> int:
    if kind := special_file(path):
        raise UnreadableImage(f"it is {kind}, not a file")
    try:
        return os.stat(path).st_size
    except (OSError, ValueError) as error:
        gone = os.path.islink(path) and isinstance(error, FileNotFoundError)
        raise UnreadableImage("it is a link to nothing" if gone else error_reason(error)) from error


def _open(source: Any, size: int, *, load: bool, upright: bool = True) -> Image.Image:
    if size == 0:
        raise UnreadableImage("it is empty (0 bytes)")
    try:
        # closing matters for files with several frames; pixels that were loaded stay
        with Image.open(source) as image:
            _require_readable(image.mode)
            cut = image.mode in ("LA", "RGB", "RGBA") and ";16" in str(image.tile)
            image.info[CUT] = cut
            if load:
                frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # whose second is a preview
                scaled = image.mode == "L" and any(bits in str(image.tile) for bits in ("L;2", "L;4"))
                turned = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_ORIENTATION) in _TURNS
                image.load()  # which turns TIFFs
                image.info |= {FRAMES: frames, CUT: cut, SCALED: scaled} | ({TURNED: True} if turned else {})
    except (MemoryError, UnreadableImage):
        raise
    except Exception as error:  # on corrupted bytes, decoders raise almost anything
        raise UnreadableImage(error_reason(error)) from error
    if load:
        if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
            raise UnreadableImage("it holds values that are not finite")
        if upright:
            _turn_upright(image)
    return image


def _require_readable(mode: str) -> None:
    if mode not in _READABLE and not mode.startswith("I;16"):
        raise UnreadableImage(f"its pixels are of mode {mode}, which cannot be turned into gray or RGB")


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation in place. Damaged EXIF says nothing, and the image stays as it is."""
    with contextlib.suppress(Exception):  # its parser raises almost anything
        if image.getexif().get(_ORIENTATION, 1) in _TURNS:
            ImageOps.exif_transpose(image, in_place=True)
            image.info[TURNED] = True


def is_gray(image: Image.Image) -> bool:
    """Tell whether an image is stored without colour."""
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def is_high_depth(image: Image.Image) -> bool:
    """Tell whether an image has more than 8 bits, so that a range must say which values are black and white."""
    return image.mode == "F" or image.mode.startswith("I")


def is_transparent(image: Image.Image) -> bool:
    """Tell whether any pixel of an image is transparent."""
    if is_high_depth(image) or not image.has_transparency_data:
        return False
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def to_channels(image: Image.Image, in_chans: int, pixels: PixelFormat = EIGHT_BITS) -> Image.Image:
    """Convert an image to mode `L` (1 channel) or `RGB` (3 channels).

    Values of more than 8 bits are mapped linearly from `pixels.value_range`, and clipped. Without a range, integers are
    taken for 16-bit ones, and floats for values from 0 to 255. Transparent pixels show `pixels.background`.

    Args:
        image: The image, in any mode that is read.
        in_chans: 1 or 3.
        pixels: How stored pixel values become bytes.

    Raises:
        InputError: If `in_chans` is neither 1 nor 3.
        UnreadableImage: If there is no range, and the values do not fit the one that is assumed.
    """
    mode = _MODES.get(in_chans)
    if mode is None:
        raise InputError(f"in_chans is {in_chans}; images come with 1 channel (gray) or 3 (RGB)")
    if is_high_depth(image):
        image = _to_bytes(image, pixels.value_range)
    elif is_transparent(image):
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, (pixels.background,) * 3)
        image.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    elif image.mode == "P" and "transparency" in image.info:  # and opaque: Pillow would warn
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def convert_image(image: Image.Image, in_chans: int, pixels: PixelFormat, name: str) -> Image.Image:
    """Convert an image to mode `L` or `RGB`, as `to_channels` does, and name it if that fails.

    Args:
        image: The image, in any mode that is read.
        in_chans: 1 or 3.
        pixels: How stored pixel values become bytes.
        name: Name of the image in the message.

    Raises:
        InputError: If nothing says which of its values are black and white.
    """
    try:
        return to_channels(image, in_chans, pixels)
    except UnreadableImage as error:
        raise InputError(f"cannot read image {name}: {error}") from None


def _to_bytes(image: Image.Image, value_range: tuple[float, float] | None) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F":
        if value_range is None:
            value_range = (0.0, 255.0)
            if not (values.min() >= 0 and 1 < values.max() <= 255):
                raise _unknown_range(values)
        if value_range == (0.0, 255.0):
            return image.convert("L")
    elif value_range is None:
        value_range = _UNSIGNED_16
        if values.min() < 0 or values.max() > 65535:
            raise _unknown_range(values)
    low, high = value_range
    above = values.astype(np.float64) - low
    if image.mode == "F" or high - low < 255:
        return Image.fromarray(np.rint(np.clip(above / (high - low), 0, 1) * 255).astype(np.uint8))
    # so that a range of 2^k values keeps the upper 8 of k bits
    steps = np.floor(above * (256 / (high - low + 1)))
    return Image.fromarray(np.clip(steps, 0, 255).astype(np.uint8))


def _unknown_range(values: Any) -> UnreadableImage:
    return UnreadableImage(
        f"its values run from {values.min():g} to {values.max():g}, and nothing says which are black and white, as the "
        "model was trained on images of 8 bits; convert it to 8 bits"
    )


def read_image_file(path: str | Path, remedy: str, *, upright: bool = True) -> Image.Image:
    """Read and decode an image file completely, in the mode it is stored in, and name it if that fails.

    Args:
        path: The file.
        remedy: What to do if it cannot be read, to end the message with.
        upright: Whether to turn it as its EXIF orientation says.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return decode_file(path, upright=upright)
    except UnreadableImage as error:
        raise InputError(f"cannot read image {path}: {error}; {remedy}") from None


_T = TypeVar("_T")

_CHUNK = 256  # items at most that a thread is given at once
_ROUNDS = 8  # chunks at least that each thread gets, so that the first one tells soon how long all take


def try_in_parallel(work: Callable[[_T], object], items: Sequence[_T]) -> Iterator[list[tuple[_T, str | None]]]:
    """Do work on all items in threads, and collect what is unreadable.

    Args:
        work: Reads one item; raises UnreadableImage.
        items: The items.

    Yields:
        Chunks of pairs of an item and the reason why it is unreadable, or None, in order.
    """
    threads = min(8, os.cpu_count() or 1)
    chunk = max(1, min(_CHUNK, len(items) // (_ROUNDS * threads)))

    def attempt(start: int) -> list[tuple[_T, str | None]]:
        outcomes: list[tuple[_T, str | None]] = []
        for item in items[start : start + chunk]:
            try:
                work(item)
            except UnreadableImage as error:
                outcomes.append((item, str(error)))
            else:
                outcomes.append((item, None))
        return outcomes

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(attempt, range(0, len(items), chunk))


def find_unreadable(
    items: Sequence[_T], work: Callable[[_T], object], name: Callable[[_T], str], *, skip_bad: bool
) -> dict[_T, str]:
    """Find the unreadable items.

    Args:
        items: The items to test, such as paths.
        work: Reads one item; raises UnreadableImage.
        name: From an item to its name in a message.
        skip_bad: Whether unreadable items are acceptable.

    Returns:
        The name of each unreadable item.

    Raises:
        InputError: If one is unreadable and `skip_bad` is off. The message names the first and counts the rest.
    """
    outcomes = with_progress(try_in_parallel(work, items), len(items), "checking images")
    bad = [(item, why) for item, why in outcomes if why is not None]
    if bad and not skip_bad:
        item, why = bad[0]
        rest = f" (and {len(bad) - 1} more like it)" if len(bad) > 1 else ""
        raise InputError(
            f"cannot read image {name(item)}: {why}{rest}; mend or remove it, or train with --data.skip_bad true"
        )
    return {item: name(item) for item, _ in bad}

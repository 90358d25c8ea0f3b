"""Channels, size, range, mean and deviation of a data set, from a sample of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imixer.data.config import DataConfig
from imixer.data.sources.decoding import (
    CUT,
    EIGHT_BITS,
    FRAMES,
    TURNED,
    PixelFormat,
    is_deep,
    is_gray,
    is_transparent,
    pixel_format,
    to_channels,
)
from imixer.errors import InputError

_SAMPLE = 2000
_SAMPLE_OF_LARGE = 500
_BARELY_USED = 64  # of 256 values
_LARGE = 128 * 128  # pixels
_DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits that cameras and scanners give
_FLOAT_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0))


@dataclass(frozen=True)
class Survey:
    """Facts on a sample of images.

    Args:
        in_chans: 1 when all are gray, else 3.
        native_size: (height, width) in pixels when all share it.
        mean: Mean of each channel, with pixel values in [0, 1]. Each image counts the same, whatever its size.
        std: Standard deviation of each channel, likewise; at least 1/255.
        pixels: How stored pixels become bytes.
        notes: What was seen and decided, a sentence each.
        problem: Why nothing can be learned from the images; empty if something can.
    """

    in_chans: int
    native_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: PixelFormat = EIGHT_BITS
    notes: tuple[str, ...] = ()
    problem: str = ""


class Extremes:
    """Collect the smallest and largest stored value of images with more than 8 bits. Several threads may."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, tuple[float, float]] = {}

    def see(self, image: Image.Image) -> None:
        """Count an image in, if it has more than 8 bits."""
        if not is_deep(image):
            return
        values = np.asarray(image)
        low, high, kind = float(values.min()), float(values.max()), "floats" if image.mode == "F" else "integers"
        with self._lock:
            before = self._of.get(kind, (low, high))
            self._of[kind] = min(low, before[0]), max(high, before[1])

    def measured(self) -> tuple[float, float] | None:
        """The smallest and the largest value. None if no image had more than 8 bits."""
        return (
            (min(low for low, _ in self._of.values()), max(high for _, high in self._of.values())) if self._of else None
        )

    def value_range(self) -> tuple[float, float] | None:
        """The customary range that holds all values, else the values' own. None if no image had more than 8 bits.

        Raises:
            InputError: Some images hold integers and others floats, whose ranges differ.
        """
        if not self._of:
            return None
        if len(self._of) > 1:
            raise InputError(
                "some images hold floats and others integers of more than 8 bits, and black and white are not the same "
                "values in both; pass --data.value_range, or convert them to one kind"
            )
        ((kind, (low, high)),) = self._of.items()
        fitting = _FLOAT_RANGES if kind == "floats" else [(0.0, 2.0**bits - 1) for bits in _DEPTHS]
        return next((each for each in fitting if each[0] <= low and high <= each[1]), (low, high))


class _Seen:
    """What a pass over the sample counts."""

    def __init__(self) -> None:
        self.sizes: set[tuple[int, int]] = set()
        self.gray = self.turned = self.transparent = self.several_frames = self.cut = self.flat = 0
        self.gray_shares = np.zeros(256)
        self.colour_shares = np.zeros((3, 256))
        self.pictures: set[bytes] = set()


def dataset_statistics(
    load: Callable[[int], Image.Image],
    count: int,
    *,
    config: DataConfig | None = None,
    extremes: Extremes | None = None,
    what: str = "the data",
) -> Survey:
    """Measure up to 2,000 of `count` images, up to 500 when they are large. The sample is always the same.

    Args:
        load: Gives image i, in the mode it is stored in.
        count: How many images there are, at least 1.
        config: Gives `value_range` and `background`, where they are set.
        extremes: Values that were seen before, if any were looked at.
        what: The data set, for messages.

    Raises:
        InputError: The images' ranges cannot be told, or `data.value_range` is set and no image has more than 8 bits.
    """
    order = np.random.default_rng(0).permutation(count)[:_SAMPLE]
    first = load(int(order[0]))
    if first.width * first.height > _LARGE:
        order = order[:_SAMPLE_OF_LARGE]
    settings = config or DataConfig()
    extremes = extremes or Extremes()

    pixels = replace(pixel_format(settings), value_range=None)
    seen = _look(load, order, pixels, extremes)
    value_range = settings.value_range or extremes.value_range()
    if settings.value_range and extremes.measured() is None:
        raise InputError(
            f"data.value_range is {_span(settings.value_range)}, but the images of {what} have 8 bits, and black and "
            "white are 0 and 255; leave it out"
        )
    if value_range is not None:
        pixels = replace(pixels, value_range=value_range)
        seen = _look(load, order, pixels, extremes)

    all_gray = seen.gray == len(order)
    shares = seen.gray_shares[None] if all_gray else seen.colour_shares + seen.gray_shares
    mean, std = moments(shares / len(order))
    return Survey(
        1 if all_gray else 3,
        seen.sizes.pop() if len(seen.sizes) == 1 else None,
        mean,
        std,
        pixels,
        _notes(seen, shares, len(order), settings, extremes, pixels),
        _problem(seen, shares, len(order), what, pixels),
    )


def survey_usable(
    load: Callable[[int], Image.Image], count: int, config: DataConfig, what: str, extremes: Extremes | None = None
) -> Survey:
    """Measure as `survey` does, and see that there is something to learn.

    Args:
        load: Gives image i, in the mode it is stored in.
        count: How many images there are, at least 1.
        config: Gives `value_range` and `background`, where they are set.
        what: The data set, for messages.
        extremes: Values that were seen before, if any were looked at.

    Raises:
        InputError: All images of the sample are of one and the same colour or are the same picture; and as `survey`.
    """
    facts = dataset_statistics(load, count, config=config, extremes=extremes, what=what)
    if facts.problem:
        raise InputError(facts.problem)
    return facts


def _look(
    load: Callable[[int], Image.Image], order: NDArray[np.int64], pixels: PixelFormat, extremes: Extremes
) -> _Seen:
    """Count over the sample. Without a range, images of more than 8 bits only have their extremes seen."""
    seen = _Seen()
    for index in order:
        image = load(int(index))
        seen.sizes.add((image.height, image.width))
        seen.turned += TURNED in image.info
        seen.several_frames += image.info.get(FRAMES, 1) > 1
        seen.cut += bool(image.info.get(CUT))
        seen.gray += is_gray(image)
        if is_deep(image) and pixels.value_range is None:
            extremes.see(image)
            continue
        seen.transparent += is_transparent(image)
        bytes_ = to_channels(image, 1 if is_gray(image) else 3, pixels)
        shares = _shares(bytes_)
        if is_gray(image):
            seen.gray_shares += shares[0]
        else:
            seen.colour_shares += shares
        seen.flat += bool((shares.max(axis=1) == 1).all())
        if len(seen.pictures) < 2:
            seen.pictures.add(bytes_.tobytes())
    return seen


def _shares(image: Image.Image) -> NDArray[np.float64]:
    """Share of the pixels at each of the 256 values, per channel: moments of it are exact."""
    counts = np.array(image.histogram(), dtype=np.float64)
    return counts.reshape(-1, 256) / (image.width * image.height)


def _problem(seen: _Seen, shares: NDArray[np.float64], count: int, what: str, pixels: PixelFormat) -> str:
    """Why the images of the sample cannot be told apart; empty if they can."""
    if all(np.count_nonzero(channel) == 1 for channel in shares):
        remedy = "look whether they hold what you think"
        if seen.transparent:
            other = "black" if pixels.background else "white"
            remedy = f"they are transparent: pass --data.background {other}, or {remedy}"
        elif pixels.value_range:
            remedy = f"black and white are {_span(pixels.value_range)}: pass --data.value_range, or {remedy}"
        values = [int(np.flatnonzero(channel)[0]) for channel in shares]
        return f"all {count:,} sampled images of {what} are of one colour, {_colour(values)}; {remedy}"
    brightest = int(np.flatnonzero(shares.sum(axis=0))[-1])
    if seen.cut == count and brightest < _BARELY_USED:
        return (
            f"the sampled images of {what} have 16-bit colours, of which the upper 8 bits are read, and these reach "
            f"only {brightest} of 255; convert them to 8 bits"
        )
    if count > 1 and len(seen.pictures) == 1:
        return f"all {count:,} sampled images of {what} are the same picture; look whether they hold what you think"
    return ""


def _notes(
    seen: _Seen,
    shares: NDArray[np.float64],
    count: int,
    settings: DataConfig,
    extremes: Extremes,
    pixels: PixelFormat,
) -> tuple[str, ...]:
    """What was seen on the sample, a sentence each."""
    sample = f"of {count:,} looked at"
    notes = []
    if 0 < seen.gray < count:
        notes.append(f"RGB, as {count - seen.gray:,} {sample} are in colour; the gray ones have three equal channels")
    if seen.gray == count:
        notes.append(f"1 channel, as all {count:,} looked at are gray; colour in any other would be dropped")
    measured = extremes.measured()
    if pixels.value_range is not None and measured is not None:
        source = "set" if settings.value_range else f"as values run from {measured[0]:g} to {measured[1]:g}"
        notes.append(f"more than 8 bits: {_span(pixels.value_range)} become black and white, {source}")
    else:
        used = np.flatnonzero(shares.sum(axis=0))
        notes.append(f"8 bits: values from {used[0]} to {used[-1]}, where 0 is black and 255 white")
    if seen.cut:
        notes.append(f"{seen.cut:,} {sample} have 16-bit colours, of which the upper 8 bits are used")
    if seen.transparent:
        notes.append(f"{seen.transparent:,} {sample} are transparent in part and lie on {settings.background}")
    if seen.turned:
        notes.append(f"{seen.turned:,} {sample} were turned upright as their EXIF orientation says")
    if seen.several_frames:
        notes.append(f"{seen.several_frames:,} {sample} hold several frames, of which the first is used")
    if seen.flat:
        notes.append(f"{seen.flat:,} {sample} are of a single colour each")
    return tuple(notes)


def _span(value_range: Sequence[float]) -> str:
    low, high = value_range
    return f"{low:g} and {high:g}"


def _colour(values: Sequence[int]) -> str:
    if len(set(values)) == 1 and values[0] in (0, 255):
        return "black" if values[0] == 0 else "white"
    return f"{values[0]} of 255" if len(set(values)) == 1 else f"RGB {tuple(values)}"


def moments(shares: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in [0, 1], of a (channels, 256) table of shares that sum to 1."""
    values = np.arange(256) / 255
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    # a set of constant images must not divide by zero
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())

"""Channels, size, range, mean and deviation of a data set, measured on a sample of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
    decode_file,
    decode_header,
    find_unreadable,
    is_gray,
    is_high_depth,
    is_transparent,
    pixel_format,
    to_channels,
)
from imixer.errors import InputError
from imixer.progress import with_progress

_SET_OR_CONVERT = "pass --data.value_range, or convert them to one kind"
_SAMPLE = 2000
_SAMPLE_OF_LARGE = 500
_BARELY_USED = 64  # of 256 values
_LARGE = 128 * 128  # pixels
_DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits that cameras and scanners give
_FLOAT_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0))


@dataclass(frozen=True)
class DatasetStatistics:
    """The statistics of a sample of images.

    Args:
        in_chans: 1 when all are gray, else 3.
        native_size: (height, width) in pixels when all share it.
        mean: Mean of each channel, with pixel values in [0, 1]. Each image counts the same, whatever its size.
        std: Standard deviation of each channel, likewise; at least 1/255.
        pixels: How stored pixel values become bytes.
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


class MinMaxObserver:
    """The smallest and largest stored value of images with more than 8 bits. Several threads may feed it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_kind: dict[str, tuple[float, float]] = {}

    def observe(self, image: Image.Image) -> None:
        """Count an image in, if it has more than 8 bits."""
        if not is_high_depth(image):
            return
        values = np.asarray(image)
        low, high, kind = float(values.min()), float(values.max()), "floats" if image.mode == "F" else "integers"
        with self._lock:
            before = self._by_kind.get(kind, (low, high))
            self._by_kind[kind] = min(low, before[0]), max(high, before[1])

    def min_max(self) -> tuple[float, float] | None:
        """Return the smallest and the largest value. None if no image had more than 8 bits."""
        return (
            (min(low for low, _ in self._by_kind.values()), max(high for _, high in self._by_kind.values()))
            if self._by_kind
            else None
        )

    def value_range(self, remedy: str = _SET_OR_CONVERT) -> tuple[float, float] | None:
        """Choose the customary range that holds all values, else the values' own.

        Args:
            remedy: What to do if there is none, to end the message with.

        Returns:
            (low, high). None: no image had more than 8 bits.

        Raises:
            InputError: If some images hold integers and others floats, whose ranges differ.
        """
        if not self._by_kind:
            return None
        if len(self._by_kind) > 1:
            raise InputError(
                "some images hold floats and others integers of more than 8 bits, and black and white are not the same "
                f"values in both; {remedy}"
            )
        ((kind, (low, high)),) = self._by_kind.items()
        fitting = _FLOAT_RANGES if kind == "floats" else [(0.0, 2.0**bits - 1) for bits in _DEPTHS]
        return next((each for each in fitting if each[0] <= low and high <= each[1]), (low, high))


class CutObserver:
    """The images with colours of 16 bits, of which the upper 8 are read. Several threads may feed it.

    Attributes:
        images: Number of those that were seen.
        brightest: Largest value that they show, 0 to 255.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.images, self.brightest = 0, 0

    def observe(self, stored: Image.Image, shown: Image.Image) -> None:
        """Count an image in, if it has such colours.

        Args:
            stored: The image in the mode it is stored in.
            shown: The same in mode `L` or `RGB`.
        """
        if not stored.info.get(CUT):
            return
        brightest = int(np.asarray(shown).max())
        with self._lock:
            self.images, self.brightest = self.images + 1, max(self.brightest, brightest)

    def problem(self, count: int, what: str) -> str:
        """Explain why images would be nearly black; empty if they are not.

        Args:
            count: Number of images that were looked at.
            what: What these are, in messages.
        """
        if self.images < count or self.brightest >= _BARELY_USED:
            return ""
        return (
            f"{what} have 16-bit colours, of which the upper 8 bits are read, and these reach only {self.brightest} of "
            "255; convert them to 8 bits"
        )

    def notes(self, count: int) -> tuple[str, ...]:
        """Write how many of the images that were looked at have such colours, in a sentence if any has."""
        if not self.images:
            return ()
        return (f"{self.images:,} of {count:,} looked at have 16-bit colours, of which the upper 8 bits are used",)


class DepthObserver:
    """The images of more bits than those that a model was trained on. Several threads may feed it.

    Choose it for images that a trained model is given, whose range is that of training; `MinMaxObserver` measures one.

    Args:
        pixels: How stored pixel values become bytes, as in training.
    """

    def __init__(self, pixels: PixelFormat) -> None:
        self.pixels = pixels
        self._lock = threading.Lock()
        self._images = 0
        self._deep: list[str] = []
        self._cut = CutObserver()

    def observe(self, stored: Image.Image, name: str | Path) -> None:
        """Count an image in.

        Args:
            stored: The image in the mode it is stored in; one with colours of 16 bits, with its pixels.
            name: The name of the image.
        """
        if stored.info.get(CUT):
            self._cut.observe(stored, to_channels(stored, 3, self.pixels))
        # of integers alone: floats without a range are checked as they are converted
        deep = self.pixels.value_range is None and stored.mode.startswith("I")
        with self._lock:
            self._images += 1
            self._deep += [str(name)] if deep else []

    def observe_header(self, header: Image.Image, file: Path) -> None:
        """Count an image in that was opened without its pixels, which are read if they are needed.

        Args:
            header: What `decode_header` gave.
            file: The file.
        """
        self.observe(decode_file(file) if header.info.get(CUT) else header, file)

    def notes(self, what: str) -> tuple[str, ...]:
        """Write which images are darker for the model than those of training, a sentence each.

        Args:
            what: What the images are.
        """
        told = []
        if self._deep:
            told.append(
                f"{len(self._deep):,} of {self._images:,} images have more than 8 bits, unlike those of training, and "
                f"were read as 16, so that 65,535 is white; the first: {min(self._deep)}"
            )
        if self._images and (problem := self._cut.problem(self._images, what)):
            told.append(problem)
        return tuple(told)


def depth_notes(files: Sequence[Path], pixels: PixelFormat, what: str) -> tuple[str, ...]:
    """Look at image files and write what `DepthObserver` does. A file that cannot be read is left to those who read it.

    Args:
        files: The files.
        pixels: How stored pixel values become bytes, as in training.
        what: What the images are.
    """
    observer = DepthObserver(pixels)
    find_unreadable(files, lambda file: observer.observe_header(decode_header(file), file), str, skip_bad=True)
    return observer.notes(what)


def measured_format(
    files: Sequence[Path], pixels: PixelFormat, what: str, remedy: str = _SET_OR_CONVERT
) -> tuple[PixelFormat, tuple[str, ...]]:
    """Measure what becomes black and white in image files of more than 8 bits, where nothing says it.

    A file that cannot be read is left to those who read it for its pixels.

    Args:
        files: The files.
        pixels: How stored pixel values become bytes, where that is known.
        what: What the images are, in messages.
        remedy: See `MinMaxObserver.value_range`.

    Returns:
        How they do, and what was seen, a sentence each.

    Raises:
        InputError: If some images hold integers and others floats, or all have colours of 16 bits and are nearly black.
    """
    observer, cut = MinMaxObserver(), CutObserver()

    def look(file: Path) -> None:
        header = decode_header(file)
        if is_high_depth(header) and pixels.value_range is None:
            observer.observe(decode_file(file))
        elif header.info.get(CUT):
            image = decode_file(file)
            cut.observe(image, to_channels(image, 3, pixels))

    unreadable = find_unreadable(files, look, str, skip_bad=True)
    count = len(files) - len(unreadable)
    if count and (problem := cut.problem(count, what)):
        raise InputError(problem)
    value_range, seen = observer.value_range(remedy), observer.min_max()
    if value_range is None or seen is None:
        return pixels, cut.notes(count)
    return replace(pixels, value_range=value_range), (deep_note(value_range, seen), *cut.notes(count))


class _SampleCounts:
    """The counts and histograms of one pass over the sample."""

    def __init__(self) -> None:
        self.sizes: set[tuple[int, int]] = set()
        self.gray = self.turned = self.transparent = self.several_frames = self.single_colour = 0
        self.cut = CutObserver()
        self.gray_histogram = np.zeros(256)
        self.colour_histogram = np.zeros((3, 256))
        self.distinct_images: set[bytes] = set()


def dataset_statistics(
    load: Callable[[int], Image.Image],
    count: int,
    *,
    config: DataConfig | None = None,
    observer: MinMaxObserver | None = None,
    what: str = "the data",
) -> DatasetStatistics:
    """Measure up to 2,000 of `count` images, up to 500 when they are large. The sample is always the same.

    Args:
        load: From a number to the image, in the mode it is stored in.
        count: Number of images, at least 1.
        config: Gives `value_range` and `background`, where they are set.
        observer: The values that were seen before, if any were looked at.
        what: Name of the data set in messages.

    Raises:
        InputError: If the images' range cannot be told, or `data.value_range` is set and no image has more than 8 bits.
    """
    order = np.random.default_rng(0).permutation(count)[:_SAMPLE]
    first = load(int(order[0]))
    if first.width * first.height > _LARGE:
        order = order[:_SAMPLE_OF_LARGE]
    settings = config or DataConfig()
    observer = observer or MinMaxObserver()

    pixels = replace(pixel_format(settings), value_range=None)
    sample = _count_sample(load, order, pixels, observer)
    value_range = settings.value_range or observer.value_range()
    all_seen = len(order) == count or settings.check not in ("off", "header")
    if settings.value_range and observer.min_max() is None and all_seen:
        raise InputError(
            f"data.value_range is {_span(settings.value_range)}, but the images of {what} have 8 bits, and black and "
            "white are 0 and 255; leave it out"
        )
    if value_range is not None:
        pixels = replace(pixels, value_range=value_range)
        sample = _count_sample(load, order, pixels, observer)

    all_gray = sample.gray == len(order)
    histogram = sample.gray_histogram[None] if all_gray else sample.colour_histogram + sample.gray_histogram
    mean, std = moments(histogram / len(order))
    return DatasetStatistics(
        1 if all_gray else 3,
        sample.sizes.pop() if len(sample.sizes) == 1 else None,
        mean,
        std,
        pixels,
        _notes(sample, histogram, len(order), settings, observer, pixels),
        _problem(sample, histogram, len(order), what, pixels),
    )


def usable_statistics(
    load: Callable[[int], Image.Image],
    count: int,
    config: DataConfig,
    what: str,
    observer: MinMaxObserver | None = None,
) -> DatasetStatistics:
    """Measure as `dataset_statistics` does, and require that there is something to learn.

    Args:
        load: From a number to the image, in the mode it is stored in.
        count: Number of images, at least 1.
        config: Gives `value_range` and `background`, where they are set.
        what: Name of the data set in messages.
        observer: The values that were seen before, if any were looked at.

    Raises:
        InputError: If all images of the sample are of one and the same colour or are the same picture, the images'
            range cannot be told, or `data.value_range` is set and no image has more than 8 bits.
    """
    statistics = dataset_statistics(load, count, config=config, observer=observer, what=what)
    if statistics.problem:
        raise InputError(statistics.problem)
    return statistics


def _count_sample(
    load: Callable[[int], Image.Image], order: NDArray[np.int64], pixels: PixelFormat, observer: MinMaxObserver
) -> _SampleCounts:
    """Count over the sample. Without a range, only the extremes of images of more than 8 bits are observed."""
    sample = _SampleCounts()
    numbers = order.tolist()
    for number in with_progress(([each] for each in numbers), len(numbers), "measuring images"):
        image = load(number)
        sample.sizes.add((image.height, image.width))
        sample.turned += TURNED in image.info
        sample.several_frames += image.info.get(FRAMES, 1) > 1
        sample.gray += is_gray(image)
        if is_high_depth(image) and pixels.value_range is None:
            observer.observe(image)
            continue
        sample.transparent += is_transparent(image)
        converted = to_channels(image, 1 if is_gray(image) else 3, pixels)
        sample.cut.observe(image, converted)
        histogram = _histogram(converted)
        if is_gray(image):
            sample.gray_histogram += histogram[0]
        else:
            sample.colour_histogram += histogram
        sample.single_colour += bool((histogram.max(axis=1) == 1).all())
        if len(sample.distinct_images) < 2:
            sample.distinct_images.add(converted.tobytes())
    return sample


def _histogram(image: Image.Image) -> NDArray[np.float64]:
    """Compute the share of the pixels at each of the 256 values, per channel; its moments are exact."""
    counts = np.array(image.histogram(), dtype=np.float64)
    return counts.reshape(-1, 256) / (image.width * image.height)


def _problem(sample: _SampleCounts, histogram: NDArray[np.float64], count: int, what: str, pixels: PixelFormat) -> str:
    """Explain why the images of the sample cannot be told apart; empty if they can."""
    if all(np.count_nonzero(channel) == 1 for channel in histogram):
        remedy = "look whether they hold what you think"
        if sample.transparent:
            other = "black" if pixels.background else "white"
            remedy = f"they are transparent: pass --data.background {other}, or {remedy}"
        elif pixels.value_range:
            remedy = f"black and white are {_span(pixels.value_range)}: pass --data.value_range, or {remedy}"
        values = [int(np.flatnonzero(channel)[0]) for channel in histogram]
        return f"all {count:,} sampled images of {what} are of one colour, {_colour(values)}; {remedy}"
    if problem := sample.cut.problem(count, f"the sampled images of {what}"):
        return problem
    if count > 1 and len(sample.distinct_images) == 1:
        return f"all {count:,} sampled images of {what} are the same picture; look whether they hold what you think"
    return ""


def _notes(
    sample: _SampleCounts,
    histogram: NDArray[np.float64],
    count: int,
    settings: DataConfig,
    observer: MinMaxObserver,
    pixels: PixelFormat,
) -> tuple[str, ...]:
    """Write what was seen on the sample, a sentence each."""
    of_sample = f"of {count:,} looked at"
    notes = []
    if 0 < sample.gray < count:
        notes.append(
            f"RGB, as {count - sample.gray:,} {of_sample} are in colour; the gray ones have three equal channels"
        )
    if sample.gray == count:
        notes.append(f"1 channel, as all {count:,} looked at are gray; colour in any other would be dropped")
    min_max = observer.min_max()
    if pixels.value_range is not None and min_max is not None:
        notes.append(deep_note(pixels.value_range, None if settings.value_range else min_max))
    else:
        used = np.flatnonzero(histogram.sum(axis=0))
        notes.append(f"8 bits: values from {used[0]} to {used[-1]}, where 0 is black and 255 white")
    notes += sample.cut.notes(count)
    if sample.transparent:
        notes.append(f"{sample.transparent:,} {of_sample} are transparent in part and lie on {settings.background}")
    if sample.turned:
        notes.append(f"{sample.turned:,} {of_sample} were turned upright as their EXIF orientation says")
    if sample.several_frames:
        notes.append(f"{sample.several_frames:,} {of_sample} hold several frames, of which the first is used")
    if sample.single_colour:
        notes.append(f"{sample.single_colour:,} {of_sample} are of a single colour each")
    return tuple(notes)


def deep_note(value_range: tuple[float, float], seen: tuple[float, float] | None) -> str:
    """Write a sentence on what becomes black and white in images of more than 8 bits.

    Args:
        value_range: The stored values that do.
        seen: The smallest and the largest value, by which the range was chosen. None: it was set.
    """
    source = "set" if seen is None else f"as values run from {seen[0]:g} to {seen[1]:g}"
    return f"more than 8 bits: {_span(value_range)} become black and white, {source}"


def _span(value_range: Sequence[float]) -> str:
    low, high = value_range
    return f"{low:g} and {high:g}"


def _colour(values: Sequence[int]) -> str:
    if len(set(values)) == 1 and values[0] in (0, 255):
        return "black" if values[0] == 0 else "white"
    return f"{values[0]} of 255" if len(set(values)) == 1 else f"RGB {tuple(values)}"


def moments(histogram: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation per channel, in [0, 1], of histograms (channels, 256) that sum to 1."""
    values = np.arange(256) / 255
    mean = histogram @ values
    variance = (histogram * (values - mean[:, None]) ** 2).sum(axis=1)
    # a set of constant images must not divide by zero
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())

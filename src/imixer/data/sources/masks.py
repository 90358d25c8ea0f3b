"""Read masks: from stored indices or colours to a class for each pixel, and the colours to draw classes in."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imixer.data.config import MaskConfig, parse_colour
from imixer.data.image_data import IGNORED
from imixer.data.sources.decoding import CUT, FRAMES, SCALED, UnreadableImage, is_transparent

_GOLDEN = 0.618  # of the circle of hues: neighbours among classes are far apart
_SHOWN = 3  # values named in a message
_COLOURS = frozenset({"RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})
_GRAYS = frozenset({"L", "LA", "La"})
_BACKGROUNDS = frozenset({"background", "bg"})  # names of the class that drawings leave bare
_BLACK = (0, 0, 0)


@dataclass(frozen=True)
class MaskCoding:
    """The meaning of the stored values of masks.

    Args:
        classes: Number of classes. None: any index below `IGNORED` is one.
        palette: Colour of each class. None: masks store indices.
        ignored: Index that counts for nothing; with a palette, not None lets any other colour count for nothing.
        values: Index that is stored for each class. None: its number. What is listed here is not ignored.
    """

    classes: int | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    ignored: int | None = 255
    values: tuple[int, ...] | None = None

    def decode(self, mask: Image.Image) -> NDArray[np.uint8]:
        """Turn a stored mask into classes.

        Args:
            mask: The mask as it is stored: indices in mode `1`, `L`, `P`, `I` or `I;16`, or colours.

        Returns:
            Class of each pixel (height, width), `IGNORED` where it counts for nothing.

        Raises:
            UnreadableImage: If there is a colour without a palette, an index beside one, a value or colour of no class,
                or pixels that are transparent, fractions, or not exact.
        """
        _require_exact(mask)
        if self.palette is not None:
            self._require_colours(mask)
            return self._decode_colours(np.asarray(mask.convert("RGB")).astype(np.int64))
        if mask.mode in _COLOURS:
            mask = mask.convert("RGB")
            if len({mask.getchannel(channel).tobytes() for channel in "RGB"}) > 1:
                raise UnreadableImage(
                    "its mask stores colours, and nothing says which class each is; pass "
                    "--masks.palette '{road: \"#804080\", ...}'"
                )
        values = np.asarray(mask).astype(np.int64)
        if values.ndim == 3:  # gray in three channels, or with one of opacity
            values = values[..., 0]
        return self._decode_indices(values)

    def _decode_indices(self, values: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self.values is None:
            most = min(self.classes or IGNORED, IGNORED) - 1
            wrong, said = (values < 0) | (values > most), f"classes are 0 to {most}"
            classes = values
        else:
            order = np.argsort(self.values)
            places = np.searchsorted(self.values, values, sorter=order).clip(max=len(self.values) - 1)
            classes = order[places]
            wrong = np.asarray(self.values)[classes] != values
            said = f"masks.values are {', '.join(map(str, self.values[:_SHOWN]))}{', ...' * (len(order) > _SHOWN)}"
        ignored = values == (-1 if self.ignored is None else self.ignored)
        if self.values is not None:
            ignored &= wrong
        if (wrong & ~ignored).any():
            shown = ", ".join(map(str, np.unique(values[wrong & ~ignored])[:_SHOWN]))
            but = "" if self.ignored is None else f", and {self.ignored} is ignored"
            raise UnreadableImage(f"its mask has the value {shown}, and {said}{but}")
        return np.where(ignored, IGNORED, classes).astype(np.uint8)

    def _decode_colours(self, values: NDArray[np.int64]) -> NDArray[np.uint8]:
        packed = _packed(values)
        classes = np.full(packed.shape, IGNORED, np.uint8)
        for number, colour in enumerate(self.palette or ()):
            classes[packed == _packed(np.array(colour))] = number
        if self.ignored is None and (classes == IGNORED).any():
            raise UnreadableImage(
                f"its mask has the colour {_first_colour(values, classes)}, which masks.palette gives to no class"
            )
        return classes

    def _require_colours(self, mask: Image.Image) -> None:
        """Refuse masks of indices, which a palette would take for shades of gray."""
        remedy = "leave masks.palette out, and name classes by --masks.classes"
        if mask.mode.startswith("I"):
            raise UnreadableImage(f"its mask stores numbers of more than 8 bits, and no colours; {remedy}")
        if mask.mode in _GRAYS:
            palette = self.palette or ()
            grays = {red for red, green, blue in palette if red == green == blue}
            there = np.flatnonzero(mask.getchannel(0).histogram()[: len(palette)]).tolist()
            if indices := [value for value in there if value not in grays]:
                raise UnreadableImage(
                    f"its mask is gray with the value {indices[0]}, which is an index and no colour of masks.palette; "
                    f"{remedy}"
                )

    def unknown_colour(self, mask: Image.Image) -> str | None:
        """Return the first colour of a mask that the palette gives to no class, such as `#0000ff`. None: there is none.

        Args:
            mask: The mask as it is stored.
        """
        if self.palette is None:
            return None
        values = np.asarray(mask.convert("RGB")).astype(np.int64)
        classes = self._decode_colours(values)
        return _first_colour(values, classes) if (classes == IGNORED).any() else None


def _require_exact(mask: Image.Image) -> None:
    """Refuse masks whose pixels are no exact classes.

    Raises:
        UnreadableImage: If some are transparent, or they are fractions, of more than 8 bits a colour, lossy, or of
            several frames.
    """
    if mask.format == "JPEG":
        raise UnreadableImage("its mask is a JPEG, whose pixels are not exact; save masks as PNG")
    if mask.mode == "F":
        raise UnreadableImage("its mask holds fractions, and classes are whole numbers; save their indices")
    if mask.info.get(CUT):
        raise UnreadableImage("its mask has colours of 16 bits, of which 8 are read; save it with 8")
    if mask.info.get(SCALED):
        raise UnreadableImage("its mask has grays of 2 or 4 bits, which are read as others; save it with 8")
    if mask.info.get(FRAMES, 1) > 1:
        raise UnreadableImage(f"its mask holds {mask.info[FRAMES]} frames; save one")
    if is_transparent(mask):
        raise UnreadableImage("its mask has transparent pixels, which say no class; save it without transparency")


def _first_colour(values: NDArray[np.int64], classes: NDArray[np.uint8]) -> str:
    """Write the first colour of no class."""
    red, green, blue = values[classes == IGNORED][0]
    return f"#{red:02x}{green:02x}{blue:02x}"


def _packed(values: NDArray[np.int64]) -> NDArray[np.int64]:
    packed: NDArray[np.int64] = (values[..., 0] << 16) | (values[..., 1] << 8) | values[..., 2]
    return packed


def given_classes(config: MaskConfig) -> tuple[str, ...] | None:
    """Return the names of the classes that the settings give.

    Args:
        config: Gives palette, names and values.

    Returns:
        The names; of `values` alone, these. None: the settings say nothing.
    """
    if config.palette is not None:
        return tuple(config.palette)
    if config.classes is not None:
        return tuple(config.classes)
    return None if config.values is None else tuple(map(str, config.values))


def coding_of(config: MaskConfig, classes: int | None = None) -> MaskCoding:
    """Read the meaning of masks from the settings.

    Args:
        config: Gives palette, values and ignored index.
        classes: Number of classes, where masks store indices and it is known.
    """
    palette = config.palette and tuple(parse_colour(name, text) for name, text in config.palette.items())
    values = None if config.values is None else tuple(config.values)
    known = len(palette) if palette else len(values) if values else classes
    return MaskCoding(known, palette or None, config.ignore_index, values)


def default_palette(class_names: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """Choose a colour for each class, far from that of the next: black for the background, hues for the others.

    The background is the class of that name, or the first of classes that are numbers.

    Args:
        class_names: The names of the classes.
    """
    black = _named_background(class_names)
    if black is None and all(name.isdecimal() for name in class_names):
        black = 0
    colours: list[tuple[int, int, int]] = []
    for number in range(len(class_names) - (black is not None)):
        shade = colorsys.hsv_to_rgb(number * _GOLDEN % 1.0, 0.85 if number % 2 else 0.6, 0.95)
        colours.append((round(shade[0] * 255), round(shade[1] * 255), round(shade[2] * 255)))
    if black is not None:
        colours.insert(black, _BLACK)
    return tuple(colours)


def background_class(class_names: Sequence[str], palette: Sequence[Sequence[int]]) -> int | None:
    """Find the class that drawings leave bare: the one called background, or else the first if it is black.

    Args:
        class_names: The names of the classes.
        palette: The colour of each class.

    Returns:
        Its number. None: all are drawn.
    """
    named = _named_background(class_names)
    return named if named is not None else 0 if tuple(palette[0]) == _BLACK else None


def _named_background(class_names: Sequence[str]) -> int | None:
    return next((number for number, name in enumerate(class_names) if name.strip().lower() in _BACKGROUNDS), None)


def mask_image(classes: NDArray[np.uint8], palette: Sequence[Sequence[int]]) -> Image.Image:
    """Make a PNG's image of a mask: indices, with the colours of the classes as its palette.

    Args:
        classes: Class of each pixel (height, width).
        palette: Colour of each class.
    """
    image = Image.fromarray(classes).convert("P")
    image.putdata(classes.ravel().tolist())
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(palette)] = palette
    image.putpalette(colours.ravel().tolist())
    return image


def overlay(
    image: Image.Image,
    classes: NDArray[np.uint8],
    palette: Sequence[Sequence[int]],
    background: int | None,
    strength: float = 0.55,
) -> Image.Image:
    """Lay the colours of classes over an image; the background and ignored pixels stay as they are.

    Args:
        image: The image.
        classes: Class of each of its pixels (height, width).
        palette: Colour of each class.
        background: Number of the class that is left bare, as `background_class` finds it. None: there is none.
        strength: Share of the colour, from 0 to 1.
    """
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    colours = np.zeros((256, 3), np.float32)
    colours[: len(palette)] = palette
    bare = classes == (IGNORED if background is None else background)
    shown = (~bare & (classes != IGNORED))[..., None]
    mixed = np.where(shown, (1 - strength) * pixels + strength * colours[classes], pixels)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))

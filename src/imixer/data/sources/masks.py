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
from imixer.data.sources.decoding import UnreadableImage

_GOLDEN = 0.618  # of the circle of hues: neighbours among classes are far apart
_SHOWN = 3  # values named in a message


@dataclass(frozen=True)
class MaskCoding:
    """The meaning of the stored values of masks.

    Args:
        classes: Number of classes. None: any index below `IGNORED` is one.
        palette: Colour of each class. None: masks store indices.
        ignored: Index that counts for nothing; with a palette, not None lets any other colour count for nothing.
    """

    classes: int | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    ignored: int | None = 255

    def decode(self, mask: Image.Image) -> NDArray[np.uint8]:
        """Turn a stored mask into classes.

        Args:
            mask: The mask as it is stored: indices in mode `1`, `L`, `P`, `I` or `I;16`, or colours.

        Returns:
            Class of each pixel (height, width), `IGNORED` where it counts for nothing.

        Raises:
            UnreadableImage: If there is a colour without a palette, or a value or colour of no class.
        """
        if self.palette is not None:
            return self._decode_colours(np.asarray(mask.convert("RGB")).astype(np.int64))
        values = np.asarray(mask)
        if mask.mode in ("RGB", "RGBA", "LA", "CMYK", "YCbCr", "F"):
            if mask.mode in ("CMYK", "YCbCr", "F") or (mask.mode[:3] == "RGB" and _is_coloured(values)):
                raise UnreadableImage(
                    "its mask stores colours, and nothing says which class each is; pass "
                    "--masks.palette '{road: \"#804080\", ...}'"
                )
            values = values[..., 0]
        values = values.astype(np.int64)
        ignored = values == (-1 if self.ignored is None else self.ignored)
        most = min(self.classes or IGNORED, IGNORED) - 1
        wrong = ~ignored & ((values < 0) | (values > most))
        if wrong.any():
            shown = ", ".join(map(str, np.unique(values[wrong])[:_SHOWN]))
            but = "" if self.ignored is None else f", and {self.ignored} is ignored"
            raise UnreadableImage(f"its mask has the value {shown}, and classes are 0 to {most}{but}")
        return np.where(ignored, IGNORED, values).astype(np.uint8)

    def _decode_colours(self, values: NDArray[np.int64]) -> NDArray[np.uint8]:
        packed = _packed(values)
        classes = np.full(packed.shape, IGNORED, np.uint8)
        for number, colour in enumerate(self.palette or ()):
            classes[packed == _packed(np.array(colour))] = number
        if self.ignored is None and (classes == IGNORED).any():
            red, green, blue = values[classes == IGNORED][0]
            raise UnreadableImage(
                f"its mask has the colour #{red:02x}{green:02x}{blue:02x}, which masks.palette gives to no class"
            )
        return classes


def _is_coloured(values: NDArray[np.uint8]) -> bool:
    return bool((values[..., 0] != values[..., 1]).any() or (values[..., 1] != values[..., 2]).any())


def _packed(values: NDArray[np.int64]) -> NDArray[np.int64]:
    packed: NDArray[np.int64] = (values[..., 0] << 16) | (values[..., 1] << 8) | values[..., 2]
    return packed


def coding_of(config: MaskConfig, classes: int | None = None) -> MaskCoding:
    """Read the meaning of masks from the settings.

    Args:
        config: Gives palette and ignored index.
        classes: Number of classes, where masks store indices and it is known.
    """
    palette = config.palette and tuple(parse_colour(name, text) for name, text in config.palette.items())
    return MaskCoding(len(palette) if palette else classes, palette or None, config.ignore_index)


def default_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """Choose a colour for each class, far from that of the next: black for the first, then hues."""
    colours: list[tuple[int, int, int]] = [(0, 0, 0)]
    for number in range(classes - 1):
        shade = colorsys.hsv_to_rgb(number * _GOLDEN % 1.0, 0.85 if number % 2 else 0.6, 0.95)
        colours.append((round(shade[0] * 255), round(shade[1] * 255), round(shade[2] * 255)))
    return tuple(colours[:classes])


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
    image: Image.Image, classes: NDArray[np.uint8], palette: Sequence[Sequence[int]], strength: float = 0.55
) -> Image.Image:
    """Lay the colours of classes over an image; the first class and ignored pixels stay as they are.

    Args:
        image: The image.
        classes: Class of each of its pixels (height, width).
        palette: Colour of each class.
        strength: Share of the colour, from 0 to 1.
    """
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    colours = np.zeros((256, 3), np.float32)
    colours[: len(palette)] = palette
    shown = ((classes != 0) & (classes != IGNORED))[..., None]
    mixed = np.where(shown, (1 - strength) * pixels + strength * colours[classes], pixels)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))

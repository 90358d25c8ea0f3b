"""Compute feature maps of each fixed point iteration of one block: the paper's Figure 7.

S: tokens on a grid (gh, gw), C: channels, D: D_S, width of x.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn

from imixer.analysis.convergence import block_iterates, resolve_n_iter
from imixer.errors import InputError
from imixer.models.mixer import grid_of
from imixer.models.probe import capture_activations, number_ranges, require_implicit_layers

_MOST_SHOWN = 8  # iterations, as many as fit side by side


@dataclass(frozen=True)
class Features:
    """Hold the iterates of one image in one block, as pictures.

    The paper does not say which of two things it calls feature maps; both are here. The D entries of a channel of x
    have no place in the image, since each is a weighted sum over all tokens. H leads back to the tokens: H(x^a) is what
    the block would add to its input if it stopped after a iterations. It is a picture per channel.

    Attributes:
        block: Number of the block, from 0.
        name: Name of the image.
        picture: The image as the model sees it, in [0, 1], (height, width, in_chans).
        x: Iterates x^0 = G(v), ..., x^n, (n + 1, C, D).
        maps: H(x^a), (n + 1, C, gh, gw).
    """

    block: int
    name: str
    picture: Tensor
    x: Tensor
    maps: Tensor

    @property
    def n_iter(self) -> int:
        """Number of iterations."""
        return len(self.x) - 1

    @property
    def shown(self) -> tuple[int, ...]:
        """Iterations a to show pictures of, from 0 to n: all, or 8 of them evenly spread."""
        count = min(_MOST_SHOWN, self.n_iter + 1)
        return tuple(sorted({round(i * self.n_iter / (count - 1)) for i in range(count)}))

    @property
    def changes_of_x(self) -> Tensor:
        """Relative change ||x^(a+1) - x^a|| / ||x^n|| of each iteration, (n,)."""
        return _changes(self.x)

    @property
    def changes_of_maps(self) -> Tensor:
        """Relative change ||H(x^(a+1)) - H(x^a)|| / ||H(x^n)|| of each iteration, (n,)."""
        return _changes(self.maps)

    @property
    def states(self) -> Tensor:
        """Iterates x^a as pictures, (n + 1, C, height, width): square if D is a square number, else of one row."""
        side = isqrt(self.x.shape[2])
        return self.x.unflatten(2, (side, side) if side**2 == self.x.shape[2] else (1, -1))

    @property
    def explanations(self) -> list[str]:
        """Sentences on the two kinds of pictures, `states` and `maps`."""
        height, width = self.states.shape[2:]
        gh, gw = self.maps.shape[2:]
        layout = f"{height} x {width}" if height > 1 else "one row"
        return [
            f"x^a: the {self.x.shape[2]} numbers of a channel's inner state, laid out as {layout}; their places have "
            "no meaning",
            f"H(x^a): what the block would add to the {gh} x {gw} tokens of the channel after a iterations",
        ]

    def channels(self, count: int) -> tuple[int, ...]:
        """Return the channels whose H(x^n) varies most over the tokens, the most varied first."""
        return tuple(self.maps[-1].flatten(1).std(1).topk(min(count, self.maps.shape[1])).indices.tolist())


@torch.no_grad()
def features_at(
    model: nn.Module, image: Tensor, *, block: int | None = None, n_iter: int | None = None, name: str = "image"
) -> Features:
    """Compute feature maps of one image in one block, after each iteration.

    Args:
        model: An iMixer in evaluation mode.
        image: (in_chans, H, W), normalised as the model expects.
        block: Number of the block, from 0. Default: the last.
        n_iter: Iterations of this block. Default: the model's own n, which all other blocks do in any case.
        name: Name of the image.

    Raises:
        InputError: If the model has no inverse or no such block, n_iter is below 1, or it is missing where the model
            has no n.

    Source: paper appendix C.4, Figure 7.
    """
    blocks = [number for number, _ in require_implicit_layers(model, "draw")]
    block = blocks[-1] if block is None else block
    if block not in blocks:
        raise InputError(f"block is {block}; this model has inverses in the blocks {number_ranges(blocks)}")
    inside = capture_activations(model, image[None], "draw")[blocks.index(block)]
    x = block_iterates(inside, resolve_n_iter(inside.imlp, n_iter))[:, 0]
    return Features(
        block=block,
        name=name,
        picture=picture_of(image, cast(dict[str, Any], model.pretrained_cfg)),
        x=x.double().cpu(),
        maps=inside.imlp.H(x).unflatten(-1, grid_of(model, block)).double().cpu(),
    )


def picture_of(image: Tensor, cfg: dict[str, Any]) -> Tensor:
    """Return a normalised image (in_chans, H, W) as pixels in [0, 1], (H, W, in_chans).

    Args:
        image: The image.
        cfg: The `pretrained_cfg` of the model that takes it.
    """
    mean, std = (torch.tensor(cfg[key]).to(image)[:, None, None] for key in ("mean", "std"))
    return (image * std + mean).clamp(0, 1).movedim(0, -1).cpu()


def _changes(values: Tensor) -> Tensor:
    values = values.flatten(1)
    return torch.linalg.vector_norm(values.diff(dim=0), dim=1) / torch.linalg.vector_norm(values[-1])

"""Weights from elsewhere: the published code's names, MLP-Mixer's, and other token grids."""

import logging
import math
from collections.abc import MutableMapping

import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]

_log = logging.getLogger(__name__)

# Inside `mlp_tokens`: the published code's names -> ours. Its `weight_u` and `weight_sigma` follow from the rest.
# MLP-Mixer has those without `_sn`.
_PUBLISHED = {
    "fc1.weight": "fc_in.weight",
    "fc1.bias": "fc_in.bias",
    "fc_sn1.weight_orig": "contraction.fc1.weight",
    "fc_sn1.weight_v": "contraction.fc1.v",
    "fc_sn1.bias": "contraction.fc1.bias",
    "fc_sn2.weight_orig": "contraction.fc2.weight",
    "fc_sn2.weight_v": "contraction.fc2.v",
    "fc_sn2.bias": "contraction.fc2.bias",
    "fc2.weight": "fc_out.weight",
    "fc2.bias": "fc_out.bias",
}


def rename_published(state: MutableMapping[str, Tensor], within: str = "") -> None:
    """Give the parameters of the published iMixer, or of timm's MLP-Mixer, their names here, in place.

    Does nothing to a state dict of ours.

    Args:
        state: The state dict.
        within: What the names of the model's parameters begin with; others are left alone.
    """
    mark = ".mlp_tokens.fc1.weight"
    for block in [key[: -len(mark)] for key in state if key.startswith(within) and key.endswith(mark)]:
        for theirs, ours in _PUBLISHED.items():
            if f"{block}.mlp_tokens.{theirs}" in state:
                state[f"{block}.mlp_tokens.{ours}"] = state.pop(f"{block}.mlp_tokens.{theirs}")
        for derived in ("weight_u", "weight_sigma"):
            for layer in ("fc_sn1", "fc_sn2"):
                state.pop(f"{block}.mlp_tokens.{layer}.{derived}", None)


def resample_tokens(
    state: MutableMapping[str, Tensor],
    target: Grid,
    likely_source: Grid | None = None,
    *,
    source: Grid | None = None,
    within: str = "",
) -> None:
    """Bring every token mixing weight to another token grid, in place. Equal token counts are left alone.

    A row of `fc_in.weight` and a column of `fc_out.weight` are images over the token grid, and are resampled as such
    (bicubic, antialiased). `fc_in` sums over tokens, so it is divided by the factor by which their number grows. With
    tied couplings `fc_in` leads back too. It is then divided by the root of that factor, so that both ways together
    keep their scale. The matrices of the contraction do not touch tokens. An MLP-Mixer's `fc1` and `fc2` are treated
    as `fc_in` and `fc_out`. Gradients flow.

    Args:
        state: State dict with our names.
        target: Token grid (height, width) of the model to load into.
        likely_source: Grid the weights may come from. Used if it has as many tokens as they do; otherwise they are
            taken to come from a square, and a warning says so.
        source: Grid that all weights come from. Choose it where the grid is known: as many tokens of another shape
            are then resampled too.
        within: Beginning of the names to look at, such as `blocks.3.` for one block. Default: all.

    Raises:
        ValueError: If the source is neither `likely_source` nor square.
    """
    guessed = bring_to_grid(state, target, likely_source, source=source, within=within)
    tell_guesses(guessed, "give source=(height, width)")


def tell_guesses(tokens: set[int], remedy: str) -> None:
    """Warn that grids were taken for squares, which nothing but their number of tokens speaks for.

    Args:
        tokens: Numbers of tokens of these grids; with none, nothing is said.
        remedy: What to do if one is no square.
    """
    if tokens:
        counts = sorted(tokens, reverse=True)
        grids = " and ".join(f"{math.isqrt(count)}x{math.isqrt(count)}" for count in counts)
        _log.warning(
            f"the weights mix {' and '.join(map(str, counts))} tokens, which are taken for a grid of {grids}; if it is "
            f"another, {remedy}"
        )


def bring_to_grid(
    state: MutableMapping[str, Tensor],
    target: Grid,
    likely_source: Grid | None = None,
    *,
    source: Grid | None = None,
    within: str = "",
    certain: bool = False,
) -> set[int]:
    """Do what `resample_tokens` does, with its arguments, and return the numbers of tokens that it guessed squares of.

    With `certain`, weights of as many tokens as `likely_source` has are of that grid, even if the target has as many.

    Raises:
        ValueError: If the source is neither `likely_source` nor square.
    """
    guessed: set[int] = set()
    ways = {"mlp_tokens.fc_in.weight": "fc_out", "mlp_tokens.fc1.weight": "fc2"}
    for name in [key for key in state if key.startswith(within) and key.endswith(tuple(ways))]:
        block, entry = name[: name.rindex("mlp_tokens.")] + "mlp_tokens.", name[name.rindex("mlp_tokens.") :]
        tokens = state[name].shape[1]
        known = source or (likely_source if certain and likely_source and tokens == math.prod(likely_source) else None)
        if known == target or (known is None and tokens == math.prod(target)):
            continue
        origin = known or _grid(tokens, likely_source)
        if source is None and origin != likely_source:
            guessed.add(tokens)
        back = block + ways[entry]
        out = back + ".weight"
        shrink = tokens / math.prod(target)
        state[name] = _resample(state[name], origin, target) * (shrink if out in state else math.sqrt(shrink))
        if out in state:
            state[out] = _resample(state[out].T, origin, target).T.contiguous()
        state[back + ".bias"] = _resample(state[back + ".bias"][None], origin, target)[0]
    return guessed


def _grid(tokens: int, likely: Grid | None) -> Grid:
    if likely is not None and math.prod(likely) == tokens:
        return likely
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(
            f"the weights mix {tokens} tokens, not a square grid; resample them first with "
            "imixer.models.resample_tokens(state_dict, target, source=(height, width))"
        )
    return side, side


def _resample(rows_NS: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resample each of N images over the source grid."""
    image = rows_NS.float().reshape(1, -1, *source)
    image = F.interpolate(image, size=target, mode="bicubic", antialias=True, align_corners=False)
    return image.flatten(2)[0].to(rows_NS.dtype)

"""timm's MLP-Mixer with a choice of stems, and of stages whose token grids shrink.

S: tokens, C: channels (`embed_dim`).
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, to_2tuple
from timm.models._features import feature_take_indices
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from imixer.models.checkpoints import bring_to_grid
from imixer.models.stems import Size, StemName, build_stem

Grid = tuple[int, int]

_NORM = partial(nn.LayerNorm, eps=1e-6)  # timm's default


class Merge(nn.Module):
    """LayerNorm, then a 3x3 convolution of stride 2 over the token grid: a quarter of the tokens, of other channels.

    Choose it between two stages of a model of your own, as `Mixer` does. Tokens (B, S, dim) -> (B, S / 4, out_dim).

    Args:
        dim: Channels before.
        out_dim: Channels after.
        grid_size: Token grid (height, width) before; both even.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        grid_size: Grid,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.height, self.width = grid_size
        self.dim = dim
        self.norm = nn.LayerNorm(dim, eps=1e-6, device=device, dtype=dtype)
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, device=device, dtype=dtype)

    def forward(self, x: Tensor, height: int = 0, width: int = 0) -> Tensor:
        """Merge tokens (B, S, dim) -> (B, S / 4, out_dim), of another grid (height, width) if one is given."""
        if height == 0:  # no `or`, which is a truth value to TorchScript
            height, width = self.height, self.width
        x = self.norm(x).transpose(1, 2).reshape(-1, self.dim, height, width)
        return self.conv(x).flatten(2).transpose(1, 2)


class Mixer(MlpMixer):
    """timm's `MlpMixer` with a choice of stem, and of stages. With its own arguments alone it is timm's, bit for bit.

    Choose stages where tokens are many: token mixing costs S^2, and later stages have a quarter of the tokens each.

    Args:
        stem: `patch`, `conv`, `whitened` or `deep`, see `imixer.models.stems.build_stem`.
        stem_width: Channels of the stem's first convolution.
        num_blocks: Number of blocks, or a sequence with one for each stage.
        embed_dim: Channels C, or a sequence with one for each stage. A `Merge` stands between two stages.
        tokens_dim: Width D_S of the token mixing, or a sequence with one for each stage. Default: `mlp_ratio`.
        mlp_ratio: Widths of the token and channel mixing over C.
        zero_init: Start the last layer of each MLP at zero, so that every block begins as the identity.
        dynamic_img_size: Take images of any size. They are padded below and to the right by repeating the border, up to
            whole tokens in every stage, and the token mixing is resampled to their grid, with gradients.
        kwargs: Arguments of timm's `MlpMixer`.

    Attributes:
        grids: Token grid (height, width) after each module of `blocks`.
        levels: Modules of `blocks` that indices of features stand for: every block, or the last of each stage.

    Raises:
        ValueError: If the stem refuses its arguments, sequences differ in length, or a stage's grid cannot be halved.
    """

    def __init__(
        self,
        *,
        img_size: Size = 224,
        in_chans: int = 3,
        patch_size: int = 16,
        num_blocks: int | Sequence[int] = 8,
        embed_dim: int | Sequence[int] = 512,
        mlp_ratio: float | tuple[float, float] = (0.5, 4.0),
        stem: StemName = "patch",
        stem_width: int | None = None,
        tokens_dim: int | Sequence[int] | None = None,
        zero_init: bool = False,
        dynamic_img_size: bool = False,
        **kwargs: Any,
    ) -> None:
        blocks, dims, widths = _stages(num_blocks, embed_dim, tokens_dim)
        if dynamic_img_size:
            img_size = _whole(to_2tuple(img_size), [side << (len(dims) - 1) for side in to_2tuple(patch_size)])
        common: dict[str, Any] = dict(img_size=img_size, in_chans=in_chans, patch_size=patch_size, **kwargs)
        single = len(dims) == 1
        ratios = [_ratio(dim, width, mlp_ratio) for dim, width in zip(dims, widths, strict=True)]
        super().__init__(num_blocks=blocks[0] if single else 0, embed_dim=dims[-1], mlp_ratio=ratios[-1], **common)
        dd: dict[str, Any] = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        if stem != "patch" or stem_width is not None or not single:
            norm_layer = kwargs.get("norm_layer", _NORM) if kwargs.get("stem_norm") else None
            self.stem = build_stem(
                stem, img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=dims[0],
                width=stem_width, norm_layer=norm_layer, **dd,
            )  # fmt: skip
        self.dynamic_img_size = False
        if dynamic_img_size:
            self.take_any_size()
        self.grids: list[Grid] = [self.stem.grid_size] * len(self.blocks)
        self.levels = list(range(len(self.blocks)))
        if not single:
            self._build_stages(blocks, dims, ratios, kwargs, dd)
        if stem != "patch" or not single:
            self.init_weights(nlhb=kwargs.get("nlhb", False))
        if zero_init:
            _start_as_identity(self.blocks)

    def _build_stages(
        self,
        blocks: Sequence[int],
        dims: Sequence[int],
        ratios: Sequence[tuple[float, float]],
        kwargs: dict[str, Any],
        dd: dict[str, Any],
    ) -> None:
        modules: list[nn.Module] = []
        reduction: Any = self.stem.feat_ratio()
        self.feature_info, grid = [], self.stem.grid_size
        for stage, (count, dim, ratio) in enumerate(zip(blocks, dims, ratios, strict=True)):
            if stage > 0:
                if any(side % 2 for side in grid):
                    raise ValueError(
                        f"stage {stage + 1} halves the token grid, which is {grid[0]}x{grid[1]}; give fewer stages, "
                        "smaller patches or a larger image"
                    )
                modules.append(Merge(dims[stage - 1], dim, grid, **dd))
                grid, reduction = (grid[0] // 2, grid[1] // 2), 2 * reduction
            # a Mixer whose image is the grid has the blocks of this stage
            like: Any = dict(img_size=grid, patch_size=1, in_chans=1, num_blocks=count, embed_dim=dim, mlp_ratio=ratio)
            without_head = {"num_classes": 0, "nlhb": False}  # log 0 classes would be its bias
            modules += MlpMixer(**(kwargs | like | without_head)).blocks
            self.grids += [grid] * (len(modules) - len(self.grids))
            if modules:
                last = len(modules) - 1
                self.feature_info.append(dict(module=f"blocks.{last}", num_chs=dim, reduction=reduction))
        self.levels = [int(str(info["module"]).removeprefix("blocks.")) for info in self.feature_info]
        self.blocks = nn.Sequential(*modules)

    def init_weights(self, nlhb: bool = False) -> None:
        """Draw the weights anew, as timm does; the negative log bias is of a head that there is."""
        super().init_weights(nlhb=nlhb and self.num_classes > 0)

    def forward_features(self, x: Tensor) -> Tensor:
        """Turn images (B, in_chans, H, W) into tokens (B, S, C)."""
        if not self.dynamic_img_size:
            return super().forward_features(x)
        tokens, _ = self._tokens(x, len(self.blocks))[-1]
        return self.norm(tokens)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the features at the chosen `levels`, in the order of the indices, and the last, as timm's does.

        The last are normed, but those of an earlier stage of another width, where `stop_early` may end, are not.

        Raises:
            ValueError: If `norm` is asked of stages of different widths, or the format is unknown.
        """
        if norm and len({info["num_chs"] for info in self.feature_info}) > 1:
            raise ValueError("norm is true, but the last norm does not fit the features of earlier stages")
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}; choose NCHW or NLC")
        taken, furthest = feature_take_indices(len(self.levels), indices)
        after = self._tokens(x, self.levels[furthest] + 1 if stop_early else len(self.blocks))
        maps = []
        for tokens, grid in (after[self.levels[level] + 1] for level in taken):
            y = self.norm(tokens) if norm else tokens
            maps.append(y if output_fmt == "NLC" else y.transpose(1, 2).unflatten(2, grid).contiguous())
        if intermediates_only:
            return maps
        last = after[-1][0]
        return self.norm(last) if last.shape[-1] == self.num_features else last, maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the features at the chosen `levels` do not need, and return these levels, as timm's does."""
        taken, furthest = feature_take_indices(len(self.levels), indices)
        self.levels = self.levels[: furthest + 1]
        super().prune_intermediate_layers([self.levels[-1]], prune_norm, prune_head)
        return taken

    def stem_tokens(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Turn images (B, in_chans, H, W) into the tokens (B, S, C) that the blocks take, and return their grid too.

        A model that takes images of any size pads them first, which the stem alone does not.
        """
        grid: Grid = self.stem.grid_size
        if self.dynamic_img_size:
            height, width = x.shape[-2:]
            tall, wide = self._padded_size((height, width))
            if (tall, wide) != (height, width):
                x = F.pad(x, (0, wide - width, 0, tall - height), mode="replicate")
            grid = tall // self.stem.patch_size[0], wide // self.stem.patch_size[1]
        return self.stem(x), grid

    def _padded_size(self, size: Sequence[int]) -> Grid:
        """Return the size (height, width) in whole tokens of every stage to which images of a size are padded."""
        shrink = self.stem.grid_size[0] // self.grids[-1][0] if self.grids else 1
        return _whole(size, [side * shrink for side in self.stem.patch_size])

    def _tokens(self, x: Tensor, depth: int) -> list[tuple[Tensor, Grid]]:
        """Return the tokens (B, S, C), and their grid, after the stem and each of the first modules of `blocks`."""
        own: Grid = self.stem.grid_size
        x, grid = self.stem_tokens(x)
        after = [(x, grid)]
        for i, (block, place) in enumerate(zip(self.blocks[:depth], self.grids, strict=False)):
            before, shrink = grid, own[0] // place[0]
            grid = after[0][1][0] // shrink, after[0][1][1] // shrink
            if isinstance(block, Merge):
                step: Any = partial(block, height=before[0], width=before[1])
            elif grid == place:
                step = block
            else:
                self._require_resamplable(i)
                step = partial(_call_resampled, block, place, grid)
            resumed = self.grad_checkpointing and torch.is_grad_enabled()
            x = checkpoint(step, x, use_reentrant=False) if resumed else step(x)
            after.append((x, grid))
        return after

    def _require_resamplable(self, number: int) -> None:
        """Raise ValueError if something was put on the token mixing of a block that is called at another size."""
        mlp: Any = getattr(self.blocks[number], "mlp_tokens", nn.Identity())
        ways = ("fc_in", "fc_out") if hasattr(mlp, "fc_in") else ("fc1", "fc2")  # of an iMixer, of a Mixer
        way_in, way_out = ways
        needed = [f"{way_in}.weight", f"{way_out}.bias"] + [f"{way_out}.weight"] * (not getattr(mlp, "tied", False))
        own = {name for name, _ in mlp.named_parameters()}
        missing = next((name for name in needed if hasattr(mlp, name.partition(".")[0]) and name not in own), None)
        if missing is not None:
            height, width = self.stem.img_size
            raise ValueError(
                f"blocks.{number}.mlp_tokens.{missing} is no parameter, since a wrapper or a parametrization is put on "
                f"it, and cannot be resampled to images of another size; give images of {height}x{width}, or merge or "
                "remove what is put on it"
            )

    def take_any_size(self) -> None:
        """Take images of any size from now on, as `dynamic_img_size` does."""
        self.dynamic_img_size = True
        self.stem.strict_img_size = False

    def require_one_size(self) -> None:
        """Raise ValueError if the model takes images of any size, as TorchScript cannot."""
        if self.dynamic_img_size:
            raise ValueError("dynamic_img_size is true, and TorchScript takes one size; build the model without it")

    def __prepare_scriptable__(self) -> MlpMixer:
        # timm's own forward is what TorchScript understands
        self.require_one_size()
        scriptable: Any = copy.copy(self)
        scriptable.__class__ = MlpMixer
        return scriptable


def _call_resampled(block: nn.Module, source: Grid, target: Grid, x: Tensor) -> Tensor:
    """Apply a block to tokens of another grid, its token mixing resampled from its own."""
    weights: dict[str, Tensor] = dict(block.named_parameters())
    bring_to_grid(weights, target, source=source)
    return functional_call(block, weights, (x,))


def _whole(size: Sequence[int], unit: Sequence[int]) -> Grid:
    """Round a size (height, width) up to whole multiples."""
    height, width = (-(-side // part) * part for side, part in zip(size, unit, strict=True))
    return height, width


def grid_of(model: nn.Module, block: int, size: Sequence[int] | None = None) -> Grid:
    """Return the token grid (height, width) that a module of a Mixer's `blocks` gives.

    Args:
        model: The Mixer.
        block: Number of the module.
        size: Size of the images. Default: that for which the model was built.
    """
    grids: list[Grid] | None = getattr(model, "grids", None)
    stem = cast(PatchEmbed, model.stem)
    height, width = grids[block] if grids else stem.grid_size
    if size is not None and isinstance(model, Mixer) and model.dynamic_img_size:
        tall, wide = model._padded_size(size)
        own: Any = stem.img_size
        return tall * height // own[0], wide * width // own[1]
    return height, width


def _stages(
    num_blocks: int | Sequence[int], embed_dim: int | Sequence[int], tokens_dim: int | Sequence[int] | None
) -> tuple[list[int], list[int], list[int | None]]:
    given = {"num_blocks": num_blocks, "embed_dim": embed_dim, "tokens_dim": tokens_dim}
    lists = {name: list(value) for name, value in given.items() if isinstance(value, Sequence)}
    stages = len(next(iter(lists.values()), [0]))
    for name, values in lists.items():
        if len(values) != stages or not values:
            raise ValueError(f"{name} is {values}; give one number for each of the {stages} stages, or one for all")
    for name in ("num_blocks", "embed_dim"):
        if name not in lists and stages > 1:
            lists[name] = [cast(int, given[name])] * stages
    for name, values in lists.items():
        if min(values) < (least := 0 if name == "num_blocks" else 1):
            raise ValueError(f"{name} is {values}; give {least} or more for each stage")
    spread: Any = [lists.get(name, [value] * stages) for name, value in given.items()]
    return spread[0], spread[1], spread[2]


def _ratio(dim: int, width: int | None, mlp_ratio: float | tuple[float, float]) -> tuple[float, float]:
    tokens, channels = to_2tuple(mlp_ratio)
    if width is None:
        return tokens, channels
    if width < 1:
        raise ValueError(f"tokens_dim is {width}; give 1 or more")
    return (width + 0.5) / dim, channels  # timm multiplies by dim and rounds down


@torch.no_grad()
def _start_as_identity(blocks: nn.Sequential) -> None:
    for block in blocks:
        for mlp in (getattr(block, "mlp_tokens", None), getattr(block, "mlp_channels", None)):
            last: Any = getattr(mlp, "fc_out", None) or getattr(mlp, "fc2", None)
            if mlp is None:
                continue
            if getattr(last, "weight", None) is None:
                raise ValueError("zero_init is true, and the couplings are tied: the way out is the way in")
            last.weight.zero_()
            last.bias.zero_()

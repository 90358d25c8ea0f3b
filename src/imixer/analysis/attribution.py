"""Find the tokens that a class is decided by: Grad-CAM, on the tokens after a block.

S: tokens on a grid (gh, gw), C: channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from imixer.analysis.features import picture_of
from imixer.errors import InputError, did_you_mean
from imixer.escaping import few_names
from imixer.models.mixer import grid_of


@dataclass(frozen=True)
class Attribution:
    """Hold the map of one image for one class.

    Attributes:
        name: Name of the image.
        picture: The image as the model sees it, in [0, 1], (height, width, in_chans).
        class_name: The class that is explained.
        probability: Its probability.
        predicted: The class that the model puts first.
        block: Number of the block, from 0, after which the tokens are looked at.
        map: Weight of each token, (gh, gw), 0 or more. The largest is 1, unless nothing speaks for the class. Tokens of
            padding alone are no part of it.
        covered: Height and width in pixels that the map covers, which may be more than the picture's. None: as many.
    """

    name: str
    picture: Tensor
    class_name: str
    probability: float
    predicted: str
    block: int
    map: Tensor
    covered: tuple[int, int] | None = None


def attribution_of(
    model: nn.Module,
    image: Tensor,
    class_names: tuple[str, ...],
    *,
    target: str | None = None,
    block: int | None = None,
    name: str = "image",
) -> Attribution:
    """Compute what each token adds to the logit of a class: relu(sum_c mean_s(d logit / d y_sc) y_sc).

    It follows the gradient through all blocks after the chosen one. Their inverses are differentiated as `gradient` of
    the model says.

    Args:
        model: An iMixer, or another Mixer of timm, in evaluation mode.
        image: (in_chans, H, W), normalised as the model expects.
        class_names: Names of the classes, in the order of the logits.
        target: The class to explain. Default: the one that the model puts first.
        block: Number of the block, from 0. Default: the last.
        name: Name of the image.

    Raises:
        InputError: If there is no such class or block, or the model is no Mixer.

    Source: Selvaraju et al., arXiv 1610.02391, with the tokens for the places of a feature map.
    """
    if not isinstance(model, MlpMixer):
        raise InputError(f"the model is {type(model).__name__}, and attribution looks at the blocks of a Mixer")
    block = len(model.blocks) - 1 if block is None else block
    if not 0 <= block < len(model.blocks):
        raise InputError(f"block is {block}; this model has the blocks 0 to {len(model.blocks) - 1}")
    if target is not None and target not in class_names:
        close = did_you_mean(target, class_names)
        raise InputError(f"target is {target}, and the classes are {few_names(class_names)}{close}")
    seen: list[Tensor] = []
    with torch.enable_grad():
        hook = model.blocks[block].register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            logits = model.forward(image[None].detach().requires_grad_())[0]
        finally:
            hook.remove()
        predicted = int(logits.argmax())
        index = predicted if target is None else class_names.index(target)
        (gradient,) = torch.autograd.grad(logits[index], seen[0])
    weights_C = gradient[0].mean(0)
    cam_S = (seen[0][0].detach() @ weights_C).clamp_min(0)
    cam, sides = _without_padding(model, block, cam_S, image.shape[-2:])
    largest = cam.max()
    return Attribution(
        name=name,
        picture=picture_of(image, cast(dict[str, Any], model.pretrained_cfg)),
        class_name=class_names[index],
        probability=float(logits.detach().softmax(0)[index]),
        predicted=class_names[predicted],
        block=block,
        map=(cam / largest if largest > 0 else cam).double().cpu(),
        covered=(cam.shape[0] * sides[0], cam.shape[1] * sides[1]),
    )


def _without_padding(model: MlpMixer, block: int, cam_S: Tensor, size: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
    """Return the map (gh, gw) without tokens beyond an image of a size, and the sides of a token in pixels."""
    grid, own = grid_of(model, block), cast(tuple[int, int], model.stem.img_size)
    high, wide = own[0] // grid[0], own[1] // grid[1]
    return cam_S.unflatten(0, grid_of(model, block, size))[: -(-size[0] // high), : -(-size[1] // wide)], (high, wide)

"""Images to measure a run on."""

from typing import Optional

import torch
from torch import Tensor

from imixer.data.transforms import eval_transform
from imixer.errors import InputError
from imixer.training.reload import Reloaded


def held_out_images(reloaded: Reloaded, count: int, moved_to: Optional[str] = None) -> Tensor:
    """Held-out images (B, in_chans, H, W), evenly spread, as the model takes them and on its device.

    Args:
        reloaded: The run.
        count: How many; fewer if there are not as many.
        moved_to: Where the data lie now. Default: where they lay.

    Raises:
        InputError: If count is below 1, or the data are not there.
    """
    if count < 1:
        raise InputError(f"images is {count}; give 1 or more")
    val = reloaded.data(moved_to).val
    total = len(val)  # type: ignore[arg-type]  # torch's Dataset does not promise a length
    cfg = reloaded.model.pretrained_cfg
    transform = eval_transform(
        reloaded.input_size, tuple(cfg["mean"]), tuple(cfg["std"]), cfg["crop_pct"], cfg["interpolation"]
    )
    places = sorted({i * total // count for i in range(count)})
    return torch.stack([transform(val[place][0]) for place in places]).to(reloaded.device)

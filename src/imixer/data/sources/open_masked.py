"""Open images with masks by the name of their data set."""

from __future__ import annotations

import os

from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import MaskedData
from imixer.data.sources.image_files import expand_user
from imixer.data.sources.mask_folder import open_mask_folder
from imixer.data.sources.scenes import open_scenes
from imixer.data.sources.storage import is_remote, local_path, missing_folder
from imixer.errors import InputError, did_you_mean
from imixer.escaping import middle_cut

_NAMED = ("scenes",)


def open_masked(config: DataConfig, masks: MaskConfig, smallest_side: int = 1) -> MaskedData:
    """Open the images with masks that `config.name` names.

    Args:
        config: The name, and how images are split and read.
        masks: What masks mean.
        smallest_side: Pixels of a side below which an image is of no use, such as a patch of the model.

    Returns:
        The data set, without transforms.

    Raises:
        InputError: If the name is unknown, or the data cannot be used. The message says what to do.
    """
    name = config.name
    if name == "scenes":
        return open_scenes(config)
    path = expand_user(local_path(name))
    if name and os.path.isdir(path):
        return open_mask_folder(path, config, masks, smallest_side)
    if is_remote(name):
        raise InputError(
            f"data.name: {middle_cut(name, 80)} is a URL; copy the images and masks here, and give the folder"
        )
    if os.sep in name or name.startswith((".", "~")):
        raise InputError(missing_folder(name, path))
    hint = did_you_mean(name.lower(), _NAMED, count=1) or ";"
    raise InputError(
        f"data.name: {middle_cut(name, 80)!r} is no data set with masks{hint} Known: {', '.join(_NAMED)}, and a folder "
        "with images/ and masks/"
    )

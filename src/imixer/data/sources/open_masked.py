"""Open images with masks by the name of their data set."""

from __future__ import annotations

import os
from dataclasses import replace

from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import MaskedData
from imixer.data.names import MASKED, SCENES, is_named
from imixer.data.sources.decoding import error_reason, special_file
from imixer.data.sources.image_files import expand_user
from imixer.data.sources.mask_folder import has_masks, open_mask_folder
from imixer.data.sources.mask_parquet import open_mask_parquet
from imixer.data.sources.mask_sets import open_mask_set
from imixer.data.sources.masked_pairs import PatchSide
from imixer.data.sources.scenes import open_scenes
from imixer.data.sources.shard_files import PARQUET, find_shards
from imixer.data.sources.storage import RemotePath, is_remote, list_files, local_path, missing_folder
from imixer.errors import InputError, did_you_mean
from imixer.escaping import middle_cut


def open_masked(
    config: DataConfig, masks: MaskConfig, patch_side: PatchSide | None = None, *, whole: bool = False
) -> MaskedData:
    """Open the images with masks that `config.name` names.

    A name that is known wins over a folder of that name; write `./scenes` for the folder.

    Args:
        config: The name, and how images are split and read.
        masks: What masks mean.
        patch_side: From the size (height, width) that all images share, or None, to the side of a patch of the model
            in pixels, below which an image is of no use.
        whole: Whether the images are a test set: both splits then hold all of them, or those of the test part alone
            where there are parts. Scenes are split as ever.

    Returns:
        The data set, without transforms.

    Raises:
        InputError: If the name is unknown, or the data cannot be used. The message says what to do.
    """
    name = config.name
    if name == SCENES:
        _refuse_columns(masks, name)
        return open_scenes(config)
    if name in MASKED:
        _refuse_columns(masks, name)
        return open_mask_set(name, config, masks, patch_side, whole=whole)
    if is_remote(name):
        shards = find_shards(RemotePath(name), PARQUET, list_files(RemotePath(name)), test=whole)
        if shards is None:
            raise InputError(f"data.name: no parquet file is at {name}; correct the URL, or copy the images here")
        return open_mask_parquet(RemotePath(name), shards, config, masks, patch_side, whole=whole)
    path = expand_user(local_path(name))
    if name and os.path.isdir(path):
        try:
            if not has_masks(path) and (shards := find_shards(path, PARQUET, test=whole)) is not None:
                return open_mask_parquet(path, shards, config, masks, patch_side, whole=whole)
            _refuse_columns(masks, name)
            return open_mask_folder(path, config, masks, patch_side, whole=whole)
        except OSError as error:
            raise InputError(f"data.name: cannot read folder {path}: {error_reason(error)}") from error
    if name and os.path.exists(path):
        raise InputError(f"data.name: {path} is {special_file(path) or 'a file'}; give the folder it lies in")
    if os.sep in name or name.startswith((".", "~")):
        raise InputError(missing_folder(name, path))
    hint = did_you_mean(name.lower(), MASKED, count=1) or ";"
    raise InputError(
        f"data.name: {middle_cut(name, 80)!r} is no data set with masks{hint} Known: {', '.join(MASKED)}, and a folder "
        "with images/ and masks/ or with parquet files"
    )


def relocated_masks(config: DataConfig, path: str) -> DataConfig:
    """Return the settings for the same images and masks at another place.

    Args:
        config: The settings.
        path: The place; of a data set that torchvision knows, its root.
    """
    in_root = config.name != SCENES and is_named(config.name, "segment")
    return replace(config, root=path) if in_root else replace(config, name=path)


def _refuse_columns(masks: MaskConfig, name: str) -> None:
    """Refuse settings that are about parquet files, of data that are none."""
    for option in ("image_column", "mask_column"):
        if getattr(masks, option) is not None:
            raise InputError(f"masks.{option} is of parquet files, and {middle_cut(name, 80)} has none; leave it out")

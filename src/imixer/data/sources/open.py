"""Open a data set by its name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.names import DIGITS, TIMM_PREFIXES, TORCHVISION, is_named, timm_prefix
from imixer.data.sources.decoding import error_reason, special_file
from imixer.data.sources.digits import open_digits
from imixer.data.sources.folder import open_folder
from imixer.data.sources.image_files import expand_user
from imixer.data.sources.parquet import open_parquet
from imixer.data.sources.shard_files import PARQUET, TAR, find_shards, parquet_files, shard_suffix
from imixer.data.sources.storage import RemotePath, is_remote, list_files, local_path, missing_folder
from imixer.data.sources.tar import open_tar
from imixer.data.sources.timm_sets import open_timm
from imixer.data.sources.torchvision_sets import open_torchvision
from imixer.errors import InputError, did_you_mean
from imixer.escaping import middle_cut

_NAMED = (DIGITS, *TORCHVISION)


def open_dataset(config: DataConfig) -> ImageData:
    """Open the data set that `config.name` names.

    A built-in name wins over a folder of that name, and so does a prefix of timm's; write `./digits` for the folder.
    The split, when the data have none of their own, depends on `config.split_seed` only.

    Args:
        config: The name, and how images are split, checked and read.

    Returns:
        The data set, without transforms.

    Raises:
        InputError: If the name is unknown, or the data cannot be used. The message says what to do.
    """
    name = config.name
    if name == DIGITS:
        return open_digits(config)
    if name in TORCHVISION:
        return open_torchvision(name, config)
    if timm_prefix(name):
        return open_timm(name, config)
    if is_remote(name):
        return _open_remote(name, config)
    return _open_path(expand_user(local_path(name)), config)


def relocated(config: DataConfig, path: str) -> DataConfig:
    """Return the settings for the same data at another place.

    A data set that torchvision or timm knows lies in a root, unless the place holds parquet files, which are then it.
    Whether images are streamed is decided anew.

    Args:
        config: The settings.
        path: The place.
    """
    config = replace(config, streaming="auto")
    if is_remote(path):
        return replace(config, name=path)
    folder = expand_user(local_path(path))
    in_root = config.name != DIGITS and is_named(config.name)
    if in_root and not (os.path.isdir(folder) and parquet_files(folder)):
        return replace(config, root=path)
    return replace(config, name=path)


def _open_remote(url: str, config: DataConfig) -> ImageData:
    """Open the shards at a URL."""
    root = RemotePath(url)
    files = list_files(root)
    if files == [root]:  # a single file
        root = RemotePath(root.parent)
    if (shards := find_shards(root, PARQUET, files)) is not None:
        return open_parquet(root, shards, config)
    if (shards := find_shards(root, TAR, files)) is not None:
        return open_tar(root, shards, config)
    packed = next((file for file in files if file.name.endswith((".tgz", ".tar.gz", ".tar.zst", ".zip"))), None)
    if packed is not None:
        raise InputError(f"data.name: {packed} is compressed as a whole; put it there as a plain tar file")
    raise InputError(
        f"data.name: no parquet or tar file is among the {len(files):,} files at {root}; "
        "correct the URL, or copy the images here"
    )


def _open_path(path: Path, config: DataConfig) -> ImageData:
    """Open the data in a folder: parquet shards or tar shards if it holds any, else class folders."""
    name = config.name
    if os.path.isdir(path) and name:  # Path's own fails on names that are too long
        try:
            suffix = shard_suffix(path)
            shards = None if suffix is None else find_shards(path, suffix)
            if shards is None:
                return open_folder(path, config)
            return open_parquet(path, shards, config) if suffix == PARQUET else open_tar(path, shards, config)
        except OSError as error:
            raise InputError(f"data.name: cannot read folder {path}: {error_reason(error)}") from error
    if os.path.exists(path) and name:
        raise InputError(f"data.name: {path} is {special_file(path) or 'a file'}; give the folder it lies in")
    if os.sep in name or "/" in name or name.startswith((".", "~")):
        raise InputError(missing_folder(name, path))
    hint = did_you_mean(name.lower(), _NAMED, count=1) or ";"
    raise InputError(
        f"data.name: unknown data set {middle_cut(name, 80)!r}{hint} Known: {', '.join(_NAMED)}, a folder, "
        f"or a name of timm's that starts with {'/, '.join(TIMM_PREFIXES)}/"
    )

"""All images of a data set in the memory of a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from imixer.data.image_data import ImageData, LabelledImages
from imixer.errors import InputError
from imixer.progress import with_progress

REMEDY = "use data.pipeline timm, in a new run"

_CHUNK = 256


class ResidentImages(NamedTuple):
    """Images and labels on a device.

    Args:
        images: Bytes (images, C, H, W).
        labels: `int64` (images,).
    """

    images: Tensor
    labels: Tensor


def load_resident(data: ImageData, device: torch.device) -> tuple[ResidentImages, ResidentImages]:
    """Decode all training and all validation images, once, onto a device.

    Raises:
        InputError: If an image cannot be read, images differ in size, or they need more memory than the device has
            free.
    """
    first, _ = data.train[0]
    counts = [len(items) for items in (data.train, data.val)]
    needed, free = sum(counts) * data.in_chans * first.width * first.height, free_memory(device)
    if needed > free:
        raise InputError(
            f"data.pipeline is device, but the images of {data.name} take {needed / 2**30:.2f} GiB and {device} has "
            f"{free / 2**30:.2f} GiB free; {REMEDY}"
        )
    shape = (data.in_chans, first.height, first.width)
    return _load(data.train, shape, data.name, "training", device), _load(data.val, shape, data.name, "val", device)


def free_memory(device: torch.device) -> int:
    """Measure the bytes that can still be taken on a device."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # of an earlier run, for us
        return torch.cuda.mem_get_info(device)[0] + kept
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return next(int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if "MemAvailable" in line)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _load(
    items: LabelledImages, shape: tuple[int, int, int], name: str, part: str, device: torch.device
) -> ResidentImages:
    count = len(items)
    images = np.empty((count, *shape), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)

    def read(start: int) -> list[int]:
        numbers = list(range(start, min(start + _CHUNK, count)))
        for number in numbers:
            image, labels[number] = items[number]
            if (image.height, image.width) != shape[1:]:
                raise InputError(
                    f"data.pipeline is device, but {part} image {number} of {name} has {image.height}x{image.width} "
                    f"pixels and others have {shape[1]}x{shape[2]}; {REMEDY}"
                )
            images[number] = np.asarray(image).reshape(*shape[1:], shape[0]).transpose(2, 0, 1)
        return numbers

    def chunks() -> Iterator[list[int]]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            yield from pool.map(read, range(0, count, _CHUNK))

    for _ in with_progress(chunks(), count, f"reading {part} images"):
        pass
    return ResidentImages(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))

"""Image files below a folder."""

from __future__ import annotations

import os
from pathlib import Path

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})


def is_image_file(name: str) -> bool:
    """Whether a file name looks like an image that is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def images_under(folder: Path) -> list[Path]:
    """Images in a folder and its subfolders, sorted, hidden files and folders left out."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above would go round in circles
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if is_image_file(name)]
    return sorted(found)


def subfolders(folder: Path) -> list[Path]:
    """Folders directly inside a folder, sorted by name, hidden ones left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))

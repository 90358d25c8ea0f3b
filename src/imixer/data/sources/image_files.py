"""Image files: list those below folders and what else lies there, and read single ones."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from imixer.data.sources.decoding import EIGHT_BITS, PixelFormat, convert_image, error_reason, read_image_file
from imixer.data.sources.statistics import DepthObserver
from imixer.errors import InputError
from imixer.escaping import middle_cut

_log = logging.getLogger(__name__)

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
_OF_SYSTEMS = frozenset(
    {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
)


def expand_user(path: str | Path) -> Path:
    """Replace the `~` of a path by the home that it stands for.

    Raises:
        InputError: If there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path} names a home that does not exist; give the whole path") from error


def data_root(setting: str | None) -> Path:
    """Return the folder of the data sets that have names: the one that is set, or else `data`.

    Raises:
        InputError: If it names a home that does not exist.
    """
    return expand_user(setting or "data")


def is_image_file(name: str) -> bool:
    """Tell whether a file name looks like that of an image, and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


@dataclass
class FolderListing:
    """The contents of a folder and its subfolders.

    Args:
        images: Images, sorted; hidden files and folders are left out.
        other_files: Number of files that are no images, by extension.
        subfolders: Names of the subfolders directly inside that hold images.
        real_folders: Real paths of the folders that were entered.
        linked_images: Images that are links, by the real path they lead to.
    """

    images: list[Path]
    other_files: Counter[str] = field(default_factory=Counter)
    subfolders: list[str] = field(default_factory=list)
    real_folders: list[str] = field(default_factory=list)
    linked_images: dict[str, Path] = field(default_factory=dict)


def require_disjoint(listings: dict[str, FolderListing], folder: Path) -> None:
    """Require that no link leads from two classes, or from two splits, to the same folder or image.

    Args:
        listings: What each class, or each split, holds, by its name in messages.
        folder: The folder that they lie in.

    Raises:
        InputError: If one does.
    """
    owner: dict[str, str] = {}
    for name, listing in listings.items():
        for real_path in listing.real_folders:
            if (other := owner.setdefault(real_path, name)) != name:
                raise _shared_error(other, name, folder, real_path)
    for name, listing in listings.items():
        for real_path in listing.linked_images:
            if (other := owner.setdefault(real_path, owner.get(os.path.dirname(real_path), name))) != name:
                raise _shared_error(other, name, folder, real_path)


def _shared_error(one: str, other: str, folder: Path, real_path: str) -> InputError:
    return InputError(
        f"{one} and {other} of {folder} share {real_path}, by a link; an image can belong to one only; remove the link"
    )


def visible_folders(
    folder: Path, onerror: Callable[[OSError], None] | None = None, left_out: Counter[str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Enter a folder and its subfolders, each once, however many links lead to it.

    Hidden ones are left out, and those of operating systems, such as the thumbnails in `@eaDir`.

    Args:
        folder: The folder to begin with.
        onerror: Called where a folder cannot be listed. Default: it is left out.
        left_out: Counts folders of operating systems, by name.

    Yields:
        The path of a folder, and the names of its files.
    """
    seen: set[str] = set()
    for path, folders, files in os.walk(folder, followlinks=True, onerror=onerror):
        real = os.path.realpath(path)
        if real in seen:  # a link to a folder above would go round in circles
            folders.clear()
            continue
        seen.add(real)
        if left_out is not None:
            left_out.update(f"{name}/" for name in folders if name.lower() in _OF_SYSTEMS)
        folders[:] = [name for name in folders if not _is_left_out(name)]
        yield path, files


def list_folder(folder: Path) -> FolderListing:
    """List a folder and its subfolders, each once, however many links lead to it.

    Raises:
        InputError: If a folder cannot be listed.
    """
    listing = FolderListing([])
    with_images: set[str] = set()

    def fail(error: OSError) -> None:
        raise InputError(
            f"cannot list folder {error.filename}: {error_reason(error)}; change its permissions or remove it"
        )

    for parent, files in visible_folders(folder, fail, listing.other_files):
        listing.real_folders.append(os.path.realpath(parent))
        images = [name for name in files if is_image_file(name)]
        listing.other_files.update(_extension(name) for name in files if not is_image_file(name))
        listing.images += [Path(parent, name) for name in images]
        if images and parent != str(folder):
            with_images.add(Path(parent).relative_to(folder).parts[0])
        for name in images:
            path = os.path.join(parent, name)
            if os.path.islink(path) and os.path.isfile(path):
                listing.linked_images[os.path.realpath(path)] = Path(path)
    listing.images.sort()
    listing.subfolders = sorted(with_images)
    return listing


def images_under(folder: Path) -> list[Path]:
    """List the images in a folder and its subfolders, sorted; hidden files and folders are left out.

    Raises:
        InputError: If a folder cannot be listed.
    """
    return list_folder(folder).images


def contains_image(folder: Path) -> bool:
    """Tell whether there is an image in a folder or its subfolders. It stops at the first one."""
    return any(is_image_file(name) for _, files in visible_folders(folder) for name in files)


def subfolders(folder: Path) -> list[Path]:
    """List the folders directly inside a folder, sorted, without hidden ones and those of operating systems."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_left_out(path.name))


def list_loose_files(folder: Path, used: Collection[str] = ()) -> FolderListing:
    """List the files directly inside a folder, but those of some names; links to nothing count as files."""
    names = [path.name for path in folder.iterdir() if not path.is_dir() and path.name not in used]
    images = sorted(folder / name for name in names if is_image_file(name))
    return FolderListing(images, Counter(_extension(name) for name in names if not is_image_file(name)))


def system_folders(folder: Path) -> list[Path]:
    """List the folders directly inside that operating systems make, such as `__MACOSX`."""
    return sorted(path for path in folder.iterdir() if path.name.lower() in _OF_SYSTEMS)


def count_by_extension(other_files: Counter[str]) -> str:
    """Write numbers of files by extension as `12 .heic, 3 .txt`, most frequent first; empty for none."""
    kinds: Iterable[tuple[str, int]] = sorted(other_files.items(), key=lambda kind: (-kind[1], kind[0]))
    return ", ".join(f"{count:,} {extension}" for extension, count in kinds)


def _extension(name: str) -> str:
    if name.startswith("."):
        return "hidden"
    return os.path.splitext(name)[1].lower() or "without extension"


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def load_image(path: str | Path, in_chans: int, pixels: PixelFormat = EIGHT_BITS) -> Image.Image:
    """Read one image file as mode `L` (1 channel) or `RGB` (3 channels), upright.

    Args:
        path: The file.
        in_chans: 1 or 3.
        pixels: How stored pixel values become bytes, as in training.

    Raises:
        InputError: If the file is missing, empty, truncated or no image, or nothing says which of its values are black
            and white. The message names the file.
    """
    path = expand_user(path)
    return convert_image(_stored_image(path), in_chans, pixels, str(path))


def _stored_image(path: Path) -> Image.Image:
    """Read one image file in the mode it is stored in."""
    if not os.path.lexists(path):
        raise InputError(f"no such image file: {middle_cut(str(path), 80)}; correct the path")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give an image file")
    return read_image_file(path, "give a complete image file")


def load_images(
    files: Sequence[Path], in_chans: int, pixels: PixelFormat = EIGHT_BITS
) -> Iterator[tuple[Path, Image.Image]]:
    """Read image files one by one, and leave out those that cannot be read.

    Warnings at the end tell of these, of images of more than 8 bits where no range says what is black and white, and of
    colours of 16 bits that are all nearly black.

    Args:
        files: The files.
        in_chans: 1 or 3.
        pixels: How stored pixel values become bytes, as in training.

    Yields:
        A file that could be read, and its image as of `load_image`.

    Raises:
        InputError: If none of them can be read. The message is that of the first.
    """
    unreadable: list[InputError] = []
    depth = DepthObserver(pixels)
    for file in files:
        try:
            stored = _stored_image(file)
            image = convert_image(stored, in_chans, pixels, str(file))
        except InputError as error:
            unreadable.append(error)
            continue
        depth.observe(stored, file)
        yield file, image
    if unreadable and len(unreadable) == len(files):
        raise unreadable[0]
    if unreadable:
        _log.warning(f"left out {len(unreadable):,} of {len(files):,} images; the first: {unreadable[0]}")
    for note in depth.notes("the images"):
        _log.warning(note)


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """List the image files at some paths: files as they are, and those below folders, each folder's sorted.

    Args:
        paths: Files and folders.

    Raises:
        InputError: If no path is given, one does not exist, or a folder holds no images.
    """
    images_at_paths: dict[Path, None] = {}  # keeps order, drops repetition
    for path in map(expand_user, paths):
        if os.path.isdir(path):
            images = images_under(path)
            if not images:
                raise InputError(f"no images in folder {path}; give image files or a folder that holds some")
        elif os.path.lexists(path):
            images = [path]
        else:
            raise InputError(f"no such file or folder: {middle_cut(str(path), 80)}; correct the path")
        images_at_paths.update(dict.fromkeys(images))
    if not images_at_paths:
        raise InputError("no images given; name image files or folders")
    return list(images_at_paths)

"""Files here and elsewhere: list, open and identify them by path or URL, or say in one line why not."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import PurePath, PurePosixPath
from typing import IO, Any, TypeVar
from urllib.parse import unquote

from imixer.data.sources.decoding import error_reason
from imixer.errors import InputError
from imixer.escaping import middle_cut

_T = TypeVar("_T")

_TRIES, _PAUSE_S = 3, 0.5  # on errors that may pass, each pause twice as long as the one before
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, ValueError)
_VERSIONS = ("ETag", "etag", "generation", "blob_id", "md5Hash", "mtime", "LastModified", "Last-Modified", "created")
_SIGNED = re.compile(r"\?\S+|//[^/\s@]+@")  # where URLs carry what is secret
_HERE = "file://"
_PROTOCOLS = ("s3", "gs", "gcs", "hf", "https", "http", "file", "az", "abfs")
_OF_EXTRA = ("s3", "gs", "gcs", "https", "http")  # whose libraries the extra `remote` installs
_NEARLY = re.compile(rf"({'|'.join(_PROTOCOLS)})(?::/*|//+)(?=[^/])(.+)", re.IGNORECASE)


class RemotePath(PurePosixPath):
    """A URL with the parts of a path. Choose it for what fsspec opens, such as `s3://bucket/train-00.parquet`."""

    def __str__(self) -> str:
        return re.sub(r"^([a-z][a-z0-9+.-]+):/+", r"\1://", super().__str__())


def is_remote(name: str) -> bool:
    """Return whether a name is a URL of something elsewhere, and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]+://", name) is not None and not name.startswith(_HERE)


def missing_folder(name: str, path: str | os.PathLike[str]) -> str:
    """Say that a folder is not there, and what to do; for a URL that is nearly one, the URL.

    Args:
        name: What was given.
        path: The path that it stands for.
    """
    nearly = _NEARLY.fullmatch(name)
    remedy = f"write {nearly[1].lower()}://{nearly[2]} for a URL" if nearly else "create it or correct the path"
    return f"data.name: no such folder {middle_cut(str(path), 80)}; {middle_cut(remedy, 120)}"


def local_path(name: str) -> str:
    """Return the path that a name is, or that a URL such as `file:///data/pets` stands for."""
    return unquote(name.removeprefix(_HERE)) if name.startswith(_HERE) else name


def list_files(root: RemotePath) -> list[RemotePath]:
    """List all files at a URL and below it, sorted; hidden ones are left out.

    Raises:
        InputError: If it cannot be listed, or nothing is there.
    """
    if str(root).endswith(":"):
        raise InputError(f"data.name: {root}// names no place; give one, such as {root}//NAME/FOLDER")

    def find() -> list[str]:
        file_system, path = _file_system(root)
        file_system.invalidate_cache()  # what was listed before may be gone
        below = file_system.find(path)
        return [str(root) + name[len(path.rstrip("/")) :] for name in below]

    names = _tried(find, root)
    if not names:
        pattern = any(sign in str(root) for sign in "*{[")
        remedy = "give the folder's URL, without a pattern" if pattern else "correct the URL, or put the data there"
        raise InputError(f"data.name: nothing is at {root}; {remedy}")
    files = [RemotePath(name) for name in names]
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(root).parts))


def open_file(file: PurePath) -> IO[bytes]:
    """Open a file here or elsewhere for reading, with seeking. What fails there is an OSError or of another kind."""
    if not isinstance(file, RemotePath):
        return open(file, "rb")
    file_system, path = _file_system(file)
    return file_system.open(path, "rb", cache_type="readahead", block_size=2**20)


def read_file(file: PurePath, work: Callable[[IO[bytes]], _T]) -> _T:
    """Open a file and do work on it, again where the network fails for a moment.

    Args:
        file: The file.
        work: What is done with it, from the beginning on each try.

    Returns:
        The work's result.

    Raises:
        InputError: If the file cannot be read; the message names it and the remedy.
    """

    def attempt() -> _T:
        with open_file(file) as stream:
            return work(stream)

    return _tried(attempt, file)


def read_range(file: PurePath, first: int, end: int) -> bytes:
    """Read some bytes of a file in one request, again where the network fails for a moment.

    Args:
        file: The file.
        first: Number of the first byte.
        end: Number of the byte behind the last.

    Returns:
        The bytes, fewer where the file ends before.

    Raises:
        InputError: If the file cannot be read; the message names it and the remedy.
    """

    def read() -> bytes:
        if isinstance(file, RemotePath):
            file_system, path = _file_system(file)
            text = bytes(file_system.cat_file(path, start=first, end=end))
            return text if len(text) <= end - first else text[first:end]  # of a server that knows no ranges
        with open(file, "rb", buffering=0) as stream:
            return os.pread(stream.fileno(), end - first, first)

    return _tried(read, file)


def file_version(file: PurePath) -> str:
    """Read what tells a file from another of its name: its size, and its checksum or time.

    Raises:
        InputError: If the file is gone, or must not be seen.
    """

    def read() -> str:
        if not isinstance(file, RemotePath):
            seen = os.stat(file)
            return f"{seen.st_size} {seen.st_mtime_ns}"
        file_system, path = _file_system(file)
        file_system.invalidate_cache()
        info = file_system.info(path)
        return " ".join(str(info[name]) for name in ("size", *_VERSIONS) if info.get(name) is not None)

    return _tried(read, file)


def require_version(file: PurePath, version: str) -> None:
    """Require that a file is still the one that it was when the data were opened.

    Args:
        file: The file.
        version: What `file_version` said then.

    Raises:
        InputError: If it was replaced, or is gone.
    """
    if file_version(file) != version:
        raise InputError(
            f"{file} was replaced after the data were opened; put back the file that training began with, or start a "
            "new run"
        )


def file_size(file: PurePath) -> int:
    """Return the size of a file in bytes.

    Raises:
        InputError: If the file is gone, or must not be seen.
    """
    return int(file_version(file).split()[0])


def total_size(files: Sequence[PurePath]) -> int:
    """Sum the sizes of files in bytes."""
    return sum(file_size(file) for file in files)


def _file_system(file: RemotePath) -> tuple[Any, str]:
    """Return the file system of a URL, one for each process, and the path in it."""
    import fsspec  # deferred: only those with remote data need it

    return fsspec.core.url_to_fs(str(file))


def _tried(work: Callable[[], _T], file: PurePath) -> _T:
    """Do work, again where it fails for a reason that may pass, and turn what is left into one line."""
    if not isinstance(file, RemotePath):
        try:
            return work()
        except OSError as error:
            raise InputError(f"cannot read {file}: {error_reason(error)}; put the file back as it was") from error
    for number in range(_TRIES):
        try:
            return work()
        except InputError:
            raise
        except Exception as error:  # each library behind fsspec has kinds of its own
            reason = _http_error(error) or error
            if _is_lasting(reason) or number == _TRIES - 1:
                # from None: tracebacks may show signed addresses
                raise InputError(_explain(file, reason)) from None
            time.sleep(_PAUSE_S * 2**number)
    raise AssertionError("the last try returns or raises")


def _http_error(error: BaseException) -> BaseException | None:
    """Return what a server said, where fsspec takes any answer for that a file is not there."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    return cause if type(cause).__module__.startswith("aiohttp") and getattr(cause, "status", 0) != 404 else None


def _is_lasting(error: BaseException) -> bool:
    """Tell whether trying again is of no use."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)
    return isinstance(error, _LASTING) or "Credential" in type(error).__name__


def _explain(file: RemotePath, error: BaseException) -> str:
    """Say in one line why a URL cannot be read, and what to do."""
    shown, protocol = middle_cut(str(file), 120), str(file).partition("://")[0]
    kind, reason = type(error).__name__, middle_cut(_SIGNED.sub("...", error_reason(error)), 160)
    if isinstance(error, ImportError):
        if protocol in _OF_EXTRA:
            return f"{shown}: a library for {protocol}:// is not installed; pip install 'imixer[remote]'"
        return f"{shown}: a library for {protocol}:// is not installed: {reason}"
    if isinstance(error, ValueError) and "rotocol" in reason:
        return f"data.name: {protocol}:// is no protocol that fsspec knows; use s3, gs, hf or https"
    if isinstance(error, ValueError) and "Decode" not in kind:  # what a server answers may be no JSON
        return f"data.name: {shown} is no such URL: {reason}; correct it"
    forbidden = isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403)
    if forbidden or "Credential" in kind or "Gated" in kind:
        return (
            f"no permission to read {shown}; give credentials where the {protocol}:// library looks for them, such as "
            "environment variables, or ask for access"
        )
    if isinstance(error, FileNotFoundError) or "NotFound" in kind:
        return f"{shown} is not there; put it back, or correct data.name"
    return f"cannot read {shown}: {reason}; look whether the network and the server are up"

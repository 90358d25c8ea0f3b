"""An index of a tar file of images: where each lies, its key and its label, read once and kept on the local disk."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePath
from typing import IO, Any

from filelock import FileLock

from imixer.data.sources.decoding import error_reason, special_file
from imixer.data.sources.image_files import EXTENSIONS
from imixer.data.sources.storage import RemotePath, file_version, read_file
from imixer.errors import InputError
from imixer.escaping import few_names, middle_cut
from imixer.writing import json_text, write_text

LABEL_FIELDS = ("label", "cls", "class", "class_id", "class_name", "labels", "fine_label")  # of json, by rank
_FORM = 1  # of the file that an index is kept in, another one whenever it is written otherwise
_LARGEST_LABEL = 1_000_000  # bytes of a file with a label
_BLOCK = 512
_PADDING = 1_000_000  # bytes of zeros that may follow the end
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7z": "xz"}
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # up to the first dot of the name, as in webdataset

Label = int | str


@dataclass(frozen=True)
class TarIndex:
    """The samples of a tar file, in order.

    Args:
        version: What tells the file from another of its name.
        label_place: Where labels stand, in words, such as `member cls`.
        keys: What the members of each sample are called, without extension.
        offsets: First byte of each image; -1 where a sample has none.
        sizes: Bytes of each image.
        labels: Label of each sample: a number or a text.
        others: Members that are neither image nor label.
    """

    version: str
    label_place: str
    keys: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[Label]
    others: int


def load_index(file: PurePath, folder: Path | None) -> TarIndex:
    """Load the index of a tar file, and build it where there is none for the file as it is now.

    Args:
        file: The file, here or elsewhere.
        folder: Where indices are kept. None: it is built, and not kept.

    Raises:
        InputError: If the file cannot be read, is no tar file, or does not hold images with labels.
    """
    version = file_version(file)
    if folder is None:
        return _build(file, version)
    kept = folder / f"{hashlib.sha256(f'{file} {version}'.encode()).hexdigest()[:32]}.index"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(kept.with_suffix(".lock")):  # one process builds it, the others wait
            if (index := _kept(kept, version)) is None:
                index = _build(file, version)
                write_text(kept, json_text({"form": _FORM} | asdict(index), indent=None))
            return index
    except OSError as error:
        raise InputError(
            f"cannot keep an index in {folder}: {error_reason(error)}; name another place with data.cache_dir"
        ) from error


def _kept(file: Path, version: str) -> TarIndex | None:
    """Read an index that was kept. None: there is none, or it is damaged."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored.pop("form") != _FORM or set(stored) != {field.name for field in fields(TarIndex)}:
            return None
        index = TarIndex(**stored)
        lengths = {len(each) for each in (index.keys, index.offsets, index.sizes, index.labels)}
        return index if index.version == version and len(lengths) == 1 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass
class _Sample:
    key: str
    image: tuple[int, int] | None = None
    image_name: str = ""
    cls: bytes | None = None
    json: bytes | None = None


def _build(file: PurePath, version: str) -> TarIndex:
    """Read a tar file from member to member."""
    if not isinstance(file, RemotePath) and (kind := special_file(Path(file))):
        raise InputError(f"cannot read tar file {file}: it is {kind}, not a file; remove it")

    def work(stream: IO[bytes]) -> TarIndex:
        others = [0]
        samples = list(_samples(file, stream, others))
        if not any(sample.image for sample in samples):
            raise InputError(f"{file} holds no image beside a label; write KEY.jpg and KEY.cls, or give another folder")
        return _index(file, version, samples, others[0])

    return read_file(file, work)


def _samples(file: PurePath, stream: IO[bytes], others: list[int]) -> Iterator[_Sample]:
    """Yield the samples: members in a row that share a key. Count what is no image and no label in `others`."""
    sample: _Sample | None = None
    seen: set[str] = set()
    for name, offset, size in _members(file, stream):
        parts = _KEY.fullmatch(name)
        kind = "" if parts is None else parts[2].lower()
        is_image = f".{kind}" in EXTENSIONS
        if parts is None or not (is_image or kind in ("cls", "json")):
            others[0] += 1
            continue
        if sample is None or sample.key != parts[1]:
            if sample is not None:
                yield sample
            sample = _Sample(parts[1])
            if sample.key in seen:
                raise InputError(
                    f"{file} has members of {_shown(sample.key)} in two places; write those of a key one after another"
                )
            seen.add(sample.key)
        if is_image:
            if sample.image is not None:
                raise InputError(
                    f"{file} has two images of one key, {_shown(sample.image_name)} and {_shown(name)}; give each its "
                    "own"
                )
            sample.image, sample.image_name = (offset, size), name
        elif size > _LARGEST_LABEL:
            raise InputError(f"{file}: {_shown(name)} has {size:,} bytes, too many for a label; correct or remove it")
        else:
            stream.seek(offset)
            setattr(sample, kind, stream.read(size))
    if sample is not None:
        yield sample


def _members(file: PurePath, stream: IO[bytes]) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and size of each plain file in a tar file, and require that it ends as one does."""
    head = stream.read(_BLOCK)
    for sign, name in _COMPRESSED.items():
        if head.startswith(sign):
            raise InputError(f"{file} is compressed by {name}, which cannot be read from the middle; decompress it")
    total = stream.seek(0, 2)
    stream.seek(0)
    if not total:
        raise InputError(f"{file} is empty; fetch it again")
    try:
        archive: Any = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 - of a stream that is closed elsewhere
        while (member := archive.next()) is not None:
            archive.members = []  # else it keeps all of them
            if member.isreg() and not member.issparse():
                if member.offset_data + member.size > total:
                    raise InputError(f"{file} ends in the middle of {_shown(member.name)}; fetch it again")
                yield member.name, member.offset_data, member.size
            elif not member.isdir():
                _refuse_link(file, member.name)
                yield member.name, 0, 0
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise InputError(f"cannot read tar file {file}: {error_reason(error)}; fetch it again") from error
    stream.seek(archive.offset if archive.offset < total else total)
    rest = stream.read(_PADDING)
    if len(rest) < _BLOCK:
        raise InputError(f"{file} ends without the mark of its end; fetch it again")
    if any(rest):
        raise InputError(f"{file} is damaged behind byte {archive.offset:,}, or several files in one; fetch it again")


def _refuse_link(file: PurePath, name: str) -> None:
    """Refuse an image or a label that is a link, a sparse file or the like, whose bytes do not stand in its place."""
    kind = (_KEY.fullmatch(name) or ("", "", ""))[2].lower()
    if f".{kind}" in EXTENSIONS or kind in ("cls", "json"):
        raise InputError(
            f"{file}: {_shown(name)} is a link, or another file without bytes of its own; write it with `tar "
            "--dereference --hard-dereference`, not sparse"
        )


def _index(file: PurePath, version: str, samples: list[_Sample], others: int) -> TarIndex:
    """Choose where labels stand by the first sample that has one, and read them there."""
    bare = next((sample for sample in samples if sample.cls is None and sample.json is None), None)
    if bare is not None:
        raise InputError(
            f"{file}: {_shown(bare.image_name)} has no label beside it; write {_shown(bare.key)}.cls, or unpack class "
            "folders and give their folder"
        )
    field = None if all(sample.cls is not None for sample in samples) else _field(file, samples)
    place = "member cls" if field is None else f"{field} of member json"
    return TarIndex(
        version,
        place,
        [sample.key for sample in samples],
        [sample.image[0] if sample.image else -1 for sample in samples],
        [sample.image[1] if sample.image else 0 for sample in samples],
        [_of_cls(file, sample) if field is None else _of_json(file, sample, field) for sample in samples],
        others,
    )


def _of_cls(file: PurePath, sample: _Sample) -> Label:
    try:
        text = (sample.cls or b"").decode().strip()
    except UnicodeDecodeError:
        text = "\0"
    if not text or "\0" in text:
        raise InputError(f"{file}: {_shown(sample.key)}.cls holds {'no text' if text else 'nothing'}; write a class")
    return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else text


def _field(file: PurePath, samples: list[_Sample]) -> str:
    """Choose the field of json that holds labels."""
    content = _parsed(file, next(sample for sample in samples if sample.json is not None))
    field = next((name for name in LABEL_FIELDS if name in content), None)
    if field is None:
        names = few_names([str(name) for name in content]) or "none"
        raise InputError(f"{file}: json has no field for the class (its fields: {names}); call it {LABEL_FIELDS[0]}")
    return field


def _of_json(file: PurePath, sample: _Sample, field: str) -> Label:
    if sample.json is None:
        raise InputError(f"{file}: {_shown(sample.key)} has no json, as others have; write one")
    label = _parsed(file, sample).get(field)
    if isinstance(label, bool):
        return str(label)
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if (isinstance(label, int) and abs(label) < 2**63) or (isinstance(label, str) and label.strip()):
        return label
    shown = middle_cut(json_text(label, indent=None, non_finite="null").strip(), 40)
    raise InputError(
        f"{file}: {_shown(sample.key)}.json has {shown} as {field}, which is no class; write a number or a text"
    )


def _parsed(file: PurePath, sample: _Sample) -> dict[str, Any]:
    try:
        content = json.loads(sample.json or b"")
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{file}: {_shown(sample.key)}.json is no JSON object; write one with a field for the class")
    return content


def _shown(name: str) -> str:
    return middle_cut(name, 80)

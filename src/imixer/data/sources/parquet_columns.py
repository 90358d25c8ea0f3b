"""The columns of a parquet file that hold images and labels, and the class that each label means."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from imixer.errors import InputError
from imixer.escaping import few_names

_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "fine_label")
_NO_LABELS = {"id", "idx", "index", "image_id", "img_id", "row_id", "width", "height", "__index_level_0__"}
_LARGEST_NUMBER = 2**31  # of a class; above are ids and hashes
_FEW_ROWS = 10

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Args:
        image: Name of the column of encoded images.
        label: Name of the column of labels, of any kind.
        notes: How they were chosen, if not by the usual names alone.
    """

    image: str
    label: str
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> LabelSource:
        """Where the labels stand."""
        return LabelSource(f"column {self.label}", _NAME_IT, self.notes)


@dataclass(frozen=True)
class ShardLabels:
    """The labels of one file, as numbers.

    Args:
        file: The file.
        numbers: A number for each row (rows,).
        words: What each number means. None: the file does not say.
        kind: `named` by the file's metadata, `text`, `truth` values, or bare `numbers`.
    """

    file: PurePath
    numbers: Numbers
    words: tuple[str, ...] | None
    kind: str


def find_columns(schema: pa.Schema, file: PurePath) -> Columns:
    """Choose the columns of images and labels by name, else by kind where only one column is of it.

    Args:
        schema: The file's columns.
        file: The file, for messages.

    Raises:
        InputError: If no column holds images or labels, or several might.
    """
    images = [field.name for field in schema if holds_bytes(field.type)]
    wanted = "name the one with encoded images (bytes, or a struct with bytes) image"
    if not images:
        text = next((field.name for field in schema if field.name in _IMAGE_NAMES and not holds_bytes(field.type)), "")
        why = (
            f" ({text} is of type {_short_type(schema.field(text).type)}; paths and arrays are not read)"
            if text
            else ""
        )
        raise InputError(f"{file} has no image column: columns {', '.join(schema.names)}{why}; {wanted}")
    image = _by_name(images, _IMAGE_NAMES) or _single_column(images, "several columns of bytes", schema, file, wanted)
    notes = _choice_note("images", image, images)

    labels = [field.name for field in schema if _holds_labels(field.type) and field.name != image]
    label = _by_name(labels, _LABEL_NAMES)
    if label is None:
        wanted = "name the one with the classes label"
        labels = [name for name in labels if name.lower() not in _NO_LABELS]
        if not labels:
            raise InputError(
                f"{file} has no label column (numbers, text, true or false): columns {', '.join(schema.names)}; "
                f"{wanted}"
            )
        integers = [name for name in labels if pa.types.is_integer(schema.field(name).type)]
        label = _single_column(
            integers or labels, f"several {'integer ' if integers else ''}columns", schema, file, wanted
        )
    return Columns(image, label, notes + _choice_note("labels", label, labels))


def require_columns(columns: Columns, schema: pa.Schema, file: PurePath) -> None:
    """Require that a file has the columns of the others, of a usable kind.

    Args:
        columns: The columns of the other files.
        schema: The file's columns.
        file: The file, for messages.

    Raises:
        InputError: If it lacks one, or has it of another kind.
    """
    require_usable({columns.image: holds_bytes, columns.label: _holds_labels}, schema, file)


def require_usable(columns: Mapping[str, Callable[[pa.DataType], bool]], schema: pa.Schema, file: PurePath) -> None:
    """Require columns of a file, each of a type that passes a check.

    Args:
        columns: From the names to the checks.
        schema: The file's columns.
        file: The file, for messages.

    Raises:
        InputError: If it lacks one, or has it of another kind.
    """
    for name, usable in columns.items():
        if name not in schema.names or not usable(schema.field(name).type):
            raise InputError(
                f"{file} has no usable column {name}, as other files have: columns {', '.join(schema.names)}; "
                "remove the file or write it like the others"
            )


def read_labels(column: pa.ChunkedArray, schema: pa.Schema, name: str, file: PurePath) -> ShardLabels:
    """Convert a column of labels to numbers, with what they mean if the file says so.

    Args:
        column: The column.
        schema: The file's columns, whose metadata may name the classes.
        name: Name of the column.
        file: The file, for messages.

    Raises:
        InputError: If a row has no label, or one that is no class: a fraction, an empty text, a number too large.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):  # whose own count of nulls is not that of its values
        kind = kind.value_type
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], kind)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise InputError(f"{file} row {row} has no label; remove unlabelled rows")
    if pa.types.is_boolean(kind):
        return ShardLabels(file, column.to_numpy().astype(np.int64), ("False", "True"), "truth")
    if _is_text(kind):
        words, numbers = np.unique(np.array(column.to_pylist(), dtype=object), return_inverse=True)
        if len(words) and not words[0].strip():
            row = int(np.flatnonzero(numbers == 0)[0])
            raise InputError(f"{file} row {row} has an empty label; remove unlabelled rows")
        return ShardLabels(file, numbers.astype(np.int64), tuple(words.tolist()), "text")
    values = column.to_numpy()
    real = values.astype(np.float64)
    whole = np.isfinite(real) & (real == np.floor(real))
    wrong = np.flatnonzero(~(whole & (np.abs(real) < _LARGEST_NUMBER)))
    if len(wrong):
        row = int(wrong[0])
        what = "is an id rather than a class" if whole[row] else "is no whole number"
        raise InputError(f"{file} row {row} has label {values[row]} in column {name}, which {what}; {_NAME_IT}")
    words_of = _metadata_names(schema, name)
    return ShardLabels(file, values.astype(np.int64), words_of, "named" if words_of else "numbers")


_NAME_IT = "name the column with the classes label"


@dataclass(frozen=True)
class LabelSource:
    """Where the labels of all files stand.

    Args:
        place: In words, such as `column label`.
        remedy: What to do where these are no classes.
        notes: How it was chosen, if not by a usual name alone.
    """

    place: str
    remedy: str
    notes: tuple[str, ...] = ()


class Classes:
    """The classes of the training files, and the label that each row of any file gets. Names decide, not numbers.

    Args:
        files: Labels of the training files.
        source: Where they stand, for messages.

    Attributes:
        names: Name of each label.
        notes: What was decided, a sentence each.

    Raises:
        InputError: If labels are ids, or of kinds that do not go together.
    """

    def __init__(self, files: Sequence[ShardLabels], source: LabelSource) -> None:
        self.notes: list[str] = []
        self._numbers: Numbers | None = None  # the value of each label, where files give bare numbers only
        named = next((shard for shard in files if shard.kind == "named"), None)
        worded = [shard for shard in files if shard.words is not None]
        if named is not None:
            assert named.words is not None
            self.names = named.words
            if len(set(self.names)) < len(self.names):
                twice = next(name for name in self.names if self.names.count(name) > 1)
                raise InputError(f"{named.file} names two classes {twice!r}; give each its own name")
        elif worded:
            bare = next((shard for shard in files if shard.words is None), None)
            if bare is not None:
                raise InputError(f"{worded[0].file} has labels in words and {bare.file} in numbers; write them alike")
            self.names = _sorted_words({word for shard in worded for word in _used_words(shard)})
            self._refuse_ids(len(self.names), sum(len(shard.numbers) for shard in files), source)
            _refuse_alike(self.names, source)
            kind = "true or false" if all(shard.kind == "truth" for shard in worded) else "text"
            self.notes.append(f"{source.place} holds {kind}: classes are {few_names(self.names)}")
        else:
            self.names = self._of_numbers(files, source)
        self._named = named is not None
        self._label = {name: label for label, name in enumerate(self.names)}

    def _of_numbers(self, files: Sequence[ShardLabels], source: LabelSource) -> tuple[str, ...]:
        for shard in files:
            _refuse_negative(shard)
        numbers = np.concatenate([shard.numbers for shard in files])
        values = np.unique(numbers)
        self._refuse_ids(len(values), len(numbers), source)
        self._numbers = values
        if len(values) and (values[0] != 0 or values[-1] != len(values) - 1):
            self.notes.append(
                f"{source.place} has the {len(values)} numbers {few_names([str(value) for value in values])}: the "
                f"classes are called so, and have the labels 0 to {len(values) - 1}"
            )
        return tuple(str(value) for value in values)

    @staticmethod
    def _refuse_ids(classes: int, rows: int, source: LabelSource) -> None:
        if rows >= _FEW_ROWS and classes > rows / 2:
            raise InputError(
                f"{source.place} has {classes:,} different values in {rows:,} rows, which are ids or captions rather "
                f"than classes; {source.remedy}"
            )

    def labels(self, files: Sequence[ShardLabels]) -> Numbers:
        """Label the rows, in order.

        Args:
            files: Labels of the files, as `read_labels` gives them.

        Returns:
            The label of each row (rows,).

        Raises:
            InputError: If a row is of a class that the training files do not know. The message names file and row.
        """
        return np.concatenate([self._labels(shard) for shard in files])

    def _labels(self, shard: ShardLabels) -> Numbers:
        if shard.words is None:
            return self._of_bare(shard)
        if self._numbers is not None and shard.kind != "named":
            raise InputError(f"{shard.file} has labels in words, but the training files have numbers; write them alike")
        if self._numbers is not None:
            raise InputError(f"{shard.file} names its classes, but the training files do not; add the names to them")
        if shard.kind == "named":
            _refuse_outside(shard, len(shard.words))
            if shard.words != self.names:
                self.notes.append(f"the class numbers of {shard.file.name} are others, and were matched by name")
        table = np.array([self._label.get(word, -1) for word in shard.words], dtype=np.int64)
        labels = table[shard.numbers]
        unknown = np.flatnonzero(labels < 0)
        if len(unknown):
            row = int(unknown[0])
            raise InputError(
                f"{shard.file} row {row} is of class {shard.words[shard.numbers[row]]!r}, which the training files do "
                f"not name; they have {few_names(self.names)}"
            )
        return labels

    def _of_bare(self, shard: ShardLabels) -> Numbers:
        if self._numbers is None:
            if not self._named:
                raise InputError(
                    f"{shard.file} has labels in numbers, but the training files in words; write them alike"
                )
            self.notes.append(
                f"{shard.file.name} does not name its classes: its numbers are taken for those of the others"
            )
            _refuse_outside(shard, len(self.names))
            return shard.numbers
        _refuse_negative(shard)
        labels = np.searchsorted(self._numbers, shard.numbers).clip(max=len(self._numbers) - 1)
        unknown = np.flatnonzero(self._numbers[labels] != shard.numbers)
        if len(unknown):
            row = int(unknown[0])
            raise InputError(
                f"{shard.file} row {row} has label {shard.numbers[row]}, which the training rows do not have, outside "
                f"{few_names(self.names)}; correct or remove it"
            )
        return labels


def _used_words(shard: ShardLabels) -> list[str]:
    assert shard.words is not None
    return [shard.words[number] for number in np.unique(shard.numbers)]


def _sorted_words(words: set[str]) -> tuple[str, ...]:
    """Sort words by number if all are whole numbers, else by letters."""
    by_number = all(re.fullmatch(r"-?\d+", word) for word in words)
    return tuple(sorted(words, key=lambda word: (int(word), word)) if by_number else sorted(words))


def _refuse_alike(names: Sequence[str], source: LabelSource) -> None:
    alike: dict[str, str] = {}
    for name in names:
        plain = name.casefold().strip()
        if plain in alike and len(plain) > 1:
            raise InputError(
                f"{source.place} has the labels {alike[plain]!r} and {name!r}, which differ in case or spaces only; "
                "write them alike"
            )
        alike[plain] = name


def _refuse_negative(shard: ShardLabels) -> None:
    if len(wrong := np.flatnonzero(shard.numbers < 0)):
        row = int(wrong[0])
        raise InputError(f"{shard.file} row {row} has label {shard.numbers[row]}, below 0; correct or remove it")


def _refuse_outside(shard: ShardLabels, classes: int) -> None:
    if len(wrong := np.flatnonzero((shard.numbers < 0) | (shard.numbers >= classes))):
        row = int(wrong[0])
        raise InputError(
            f"{shard.file} row {row} has label {shard.numbers[row]}, outside 0 to {classes - 1}; correct or remove it"
        )


def holds_bytes(kind: pa.DataType) -> bool:
    """Tell whether a column of a type can hold encoded images: bytes, or a struct with bytes."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and holds_bytes(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind) or _is_text(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _by_name(usable: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in usable), None)


def _single_column(usable: Sequence[str], several: str, schema: pa.Schema, file: PurePath, wanted: str) -> str:
    if len(usable) == 1:
        return usable[0]
    raise InputError(f"{file} has {several} ({', '.join(usable)}) and columns {', '.join(schema.names)}; {wanted}")


def _choice_note(what: str, chosen: str, usable: Sequence[str]) -> tuple[str, ...]:
    """Write a sentence on a choice among columns, or on one by kind only; none if the choice is the usual one."""
    rest = [name for name in usable if name != chosen]
    if not rest and chosen in (*_IMAGE_NAMES, *_LABEL_NAMES):
        return ()
    return (f"{what} are those of column {chosen}" + (f", not of {few_names(rest)}" if rest else ""),)


def _short_type(kind: pa.DataType) -> str:
    text = str(kind)
    return text if len(text) < 40 else f"{text[:37]}..."


def _metadata_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Read the class names that Hugging Face stores with the schema, in any of the layouts it has used."""
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = stored.get("info", stored).get("features", {})
        if isinstance(features, list):
            features = {feature["name"]: feature.get("dtype", feature) for feature in features}
        feature = features.get(label, {})
        names = feature.get("class_label", feature).get("names")
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names, key=int)]
        return tuple(map(str, names)) if names else None
    except (ValueError, KeyError, AttributeError, TypeError):  # foreign metadata: the labels still serve
        return None

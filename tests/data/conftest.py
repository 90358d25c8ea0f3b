"""Small real data sets on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

MakeImage = Callable[..., Image.Image]
MakeFolder = Callable[..., Path]
MakeShard = Callable[..., Path]


@pytest.fixture
def make_image() -> MakeImage:
    """A noise image; the same number gives the same pixels."""

    def make(number: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
        shape = (*size, 3) if mode == "RGB" else size
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def make_folder(make_image: MakeImage) -> MakeFolder:
    """Class folders with a number of PNG files each."""

    def make(root: Path, classes: dict[str, int], **image: Any) -> Path:
        for place, (name, count) in enumerate(classes.items()):
            (root / name).mkdir(parents=True)
            for number in range(count):
                make_image(100 * place + number, **image).save(root / name / f"{number:03}.png")
        return root

    return make


@pytest.fixture
def make_shard(make_image: MakeImage) -> MakeShard:
    """A parquet file with PNG images; label i of `labels` goes with image i."""

    def make(
        path: Path,
        labels: Sequence[int | None],
        *,
        names: Sequence[str] | None = ("cat", "dog"),
        columns: tuple[str, str] = ("image", "label"),
        struct: bool = True,
        replace: dict[int, bytes | None] | None = None,
        metadata: object = None,
        rows_per_group: int | None = None,
        **image: Any,
    ) -> Path:
        encoded: list[bytes | None] = []
        for number in range(len(labels)):
            stream = io.BytesIO()
            make_image(number, **image).save(stream, "PNG")
            encoded.append(stream.getvalue())
        for number, content in (replace or {}).items():
            encoded[number] = content
        images = (
            pa.array(
                [{"bytes": each, "path": None} for each in encoded],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            )
            if struct
            else pa.array(encoded, pa.binary())
        )
        table = pa.table({columns[0]: images, columns[1]: pa.array(labels, pa.int64())})
        if metadata is None and names is not None:
            metadata = {"info": {"features": {columns[1]: {"names": list(names), "_type": "ClassLabel"}}}}
        if metadata is not None:
            table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=rows_per_group)
        return path

    return make

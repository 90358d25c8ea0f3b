"""Shards that are fetched by groups give the images that they give from memory."""

import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.sampler import BatchOrder, BatchShard, Windows
from imixer.data.sources.group_cache import GroupCache
from imixer.data.sources.open import open_dataset
from imixer.errors import InputError

GROUPS, ROWS = 8, 6


@pytest.fixture
def shards(tmp_path, make_shard):
    for shard in range(2):
        labels = [row % 2 for row in range(GROUPS // 2 * ROWS)]
        make_shard(tmp_path / "shards" / f"train-{shard}.parquet", labels, rows_per_group=ROWS)
    return tmp_path / "shards"


def opened(name, tmp_path, streaming="always", **settings) -> ImageData:
    cache = {"cache_dir": str(tmp_path / "cache"), "cache_gb": 6e-6}
    return open_dataset(DataConfig(name=str(name), streaming=streaming, **cache | settings))


def cached(tmp_path):
    return sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.images"))


def same_images(one, other):
    return len(one) == len(other) and all(
        a[1] == b[1] and np.array_equal(a[0], b[0]) for a, b in ((one[i], other[i]) for i in range(len(one)))
    )


def test_streamed_images_and_their_split_are_those_from_memory_in_a_bounded_cache(shards, tmp_path):
    streamed, held = opened(shards, tmp_path), opened(shards, tmp_path, "never")
    assert same_images(streamed.train, held.train) and same_images(streamed.val, held.val)
    assert 0 < cached(tmp_path) <= 6000
    assert held.windows is None and not held.fingerprint
    assert any("streamed: 8 groups" in note and "cache" in note for note in streamed.notes)


def test_a_cache_that_is_lost_or_torn_changes_nothing(shards, tmp_path):
    streamed, held = opened(shards, tmp_path), opened(shards, tmp_path, "never")
    for file in (tmp_path / "cache").rglob("*.images"):
        os.truncate(file, file.stat().st_size // 2)
    assert same_images(streamed.train, held.train)
    shutil.rmtree(tmp_path / "cache")
    assert same_images(streamed.train, held.train)


def test_writers_at_the_same_time_share_the_bound_and_make_place_of_what_a_killed_one_left(tmp_path, bytes_in_cache):
    cache = GroupCache(tmp_path, 1000, "pets")
    (tmp_path / "pets").mkdir()
    left = tmp_path / "pets/99-1-1.part"
    left.write_bytes(bytes(900))
    seen = []

    def fetch():
        seen.append(bytes_in_cache(tmp_path))
        return [b"x" * 300]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda group: cache.read(group, 0, fetch), range(40))) == [b"x" * 300] * 40
    assert not left.exists() and max(seen) <= 1000
    assert len(list(tmp_path.rglob("*.images"))) == 3


def test_a_group_that_grew_beyond_the_cache_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"more than data\.cache_gb 1e-06; give"):
        GroupCache(tmp_path, 1000, "pets").hold(0, lambda: [b"x" * 1001])


def test_an_epoch_takes_each_image_once_and_each_group_in_one_window():
    windows = Windows(np.repeat(np.arange(GROUPS), ROWS), np.full(GROUPS, 10), limit=30)
    for epoch in range(3):
        order = windows.order(0, epoch).numpy()
        assert sorted(order) == list(range(GROUPS * ROWS))
        for window in np.split(order, windows.ends(0, epoch)[:-1]):
            assert len(set(window // ROWS)) <= 3 and len(window) == ROWS * len(set(window // ROWS))
    assert not np.array_equal(windows.order(0, 0), windows.order(0, 1))
    assert not np.array_equal(windows.order(0, 0), windows.order(1, 0))


def test_processes_share_the_batches_of_a_streamed_epoch():
    windows = Windows(np.repeat(np.arange(GROUPS), ROWS), np.full(GROUPS, 10), limit=30)
    whole = BatchOrder(GROUPS * ROWS, 8, 3, windows=windows)
    halves = [BatchOrder(GROUPS * ROWS, 8, 3, BatchShard(rank, 2), windows) for rank in range(2)]
    for step, batch in enumerate(whole.epoch(2)):
        parts = [next(half.epoch(2, step)).tolist() for half in halves]
        assert batch.tolist() == parts[0] + parts[1]


def test_small_shards_keep_the_order_that_they_have_in_memory(shards, tmp_path):
    assert opened(shards, tmp_path, "auto").windows is None


@pytest.mark.parametrize(("harm", "part"), [("replace", "was replaced"), ("remove", "No such file")])
def test_a_shard_that_changes_while_it_is_read_is_named(shards, tmp_path, harm, part):
    data = opened(shards, tmp_path)
    shutil.rmtree(tmp_path / "cache")
    if harm == "replace":
        shutil.copy(shards / "train-1.parquet", shards / "train-0.parquet")
    else:
        (shards / "train-0.parquet").unlink()
    with pytest.raises(InputError, match=part) as raised:
        data.train[0]
    assert "train-0.parquet" in str(raised.value) and "\n" not in str(raised.value)


def test_a_group_that_does_not_fit_the_cache_is_refused_with_a_size_that_does(shards, tmp_path):
    with pytest.raises(InputError, match=r"half of data\.cache_gb 1e-06; give"):
        opened(shards, tmp_path, cache_gb=1e-6)


def test_rows_without_an_image_are_found_from_the_metadata(tmp_path, make_shard):
    make_shard(tmp_path / "shards/train.parquet", [0, 1] * 20, replace={3: None}, rows_per_group=ROWS)
    with pytest.raises(InputError, match=r"row 3: the row has no image bytes"):
        opened(tmp_path / "shards", tmp_path)
    assert len(opened(tmp_path / "shards", tmp_path, skip_bad=True).skipped) == 1


def test_text_labels_are_read_without_reading_images(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    table = pa.table({"image": [stream.getvalue()] * 40, "label": ["cat", "dog"] * 20})
    (tmp_path / "shards").mkdir()
    pq.write_table(table, tmp_path / "shards/all.parquet", row_group_size=5)
    with pytest.raises(InputError, match="one colour"):  # the statistics, which come after labels and split
        opened(tmp_path / "shards", tmp_path)


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("s3://bucket/pets", r"pip install 'imixer\[remote\]'$"),
        ("gs://bucket/pets", r"pip install 'imixer\[remote\]'$"),
        ("abfs://container/pets", "Install adlfs"),
        ("sftp://host/pets", "paramiko"),
    ],
)
def test_a_missing_library_is_named_that_reads_the_protocol(url, remedy, monkeypatch):
    known = {"s3": "Install s3fs", "gs": "Install gcsfs", "abfs": "Install adlfs", "sftp": "it requires paramiko"}

    def missing(*args, **options):
        raise ImportError(known[url.partition(":")[0]])

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    monkeypatch.setattr("fsspec.url_to_fs", missing, raising=False)
    with pytest.raises(InputError, match=remedy):
        open_dataset(DataConfig(name=url))

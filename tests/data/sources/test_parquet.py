"""Parquet shards in the way of Hugging Face."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imixer.data.config import DataConfig
from imixer.data.sources.open import open_dataset
from imixer.data.sources.parquet_columns import _sorted_words
from imixer.errors import InputError

CIFAR10 = Path(__file__).parents[4] / "shared/data/cifar10"
HALF = [0, 1] * 10


def read(root, **settings):
    return open_dataset(DataConfig(name=str(root), **settings))


def labels(items):
    return [items[i][1] for i in range(len(items))]


def test_train_and_test_shards_are_told_apart_by_name(tmp_path, make_shard, make_image):
    make_shard(tmp_path / "train-00000-of-00002.parquet", [0, 1, 1])
    make_shard(tmp_path / "train-00001-of-00002.parquet", [1, 0])
    make_shard(tmp_path / "test-00000-of-00001.parquet", [1, 0, 0])
    data = read(tmp_path)
    assert (labels(data.train), labels(data.val)) == ([0, 1, 1, 1, 0], [1, 0, 0])
    assert data.class_names == ("cat", "dog")
    assert (data.name, data.in_chans, data.native_size, data.split) == (tmp_path.name, 3, (8, 8), "test")
    assert np.array_equal(data.train[4][0], make_image(1))


@pytest.mark.parametrize("prefix", ["validation", "val", "valid"])
def test_a_validation_shard_wins_over_a_test_shard(tmp_path, make_shard, prefix):
    make_shard(tmp_path / "train-0.parquet", [0, 1])
    make_shard(tmp_path / f"{prefix}-0.parquet", [0, 1, 0, 1])
    make_shard(tmp_path / "test-0.parquet", [-1])
    assert len(read(tmp_path).val) == 4


def test_shards_in_a_data_folder_are_found(tmp_path, make_shard):
    make_shard(tmp_path / "data" / "train-0.parquet", HALF)
    assert len(read(tmp_path).train) == 16


def test_hidden_files_and_shards_of_other_splits_are_ignored(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF)
    make_shard(tmp_path / "unsupervised-0.parquet", [-1] * 7)
    (tmp_path / ".train-1.parquet").write_bytes(b"junk")
    assert len(read(tmp_path).train) == 16


def test_without_held_out_shards_a_stratified_part_is_held_out(tmp_path, make_shard):
    make_shard(tmp_path / "all.parquet", HALF)
    data = read(tmp_path, val_fraction=0.3)
    assert data.split is None
    assert (np.bincount(labels(data.train)).tolist(), np.bincount(labels(data.val)).tolist()) == ([7, 7], [3, 3])
    assert not set(data.train.chosen) & set(data.val.chosen)
    assert np.array_equal(data.val.chosen, read(tmp_path, val_fraction=0.3).val.chosen)
    assert not np.array_equal(data.val.chosen, read(tmp_path, val_fraction=0.3, split_seed=1).val.chosen)


def test_every_row_is_found_across_row_groups_and_files(tmp_path, make_shard, make_image):
    for shard in range(3):
        make_shard(tmp_path / f"train-{shard}.parquet", HALF, rows_per_group=3)
    make_shard(tmp_path / "test-0.parquet", HALF)
    train = read(tmp_path).train
    for index in range(60):
        assert np.array_equal(train[index][0], make_image(index % 20))


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label"), ("image", "labels"), ("photo", "kind")])
@pytest.mark.parametrize("struct", [True, False])
def test_columns_are_found_by_name_or_by_kind(tmp_path, make_shard, columns, struct):
    make_shard(tmp_path / "train.parquet", HALF, columns=columns, struct=struct)
    data = read(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.train[0][0].size == (8, 8)


@pytest.mark.parametrize(
    "metadata",
    [
        {"info": {"features": {"label": {"names": ["cat", "dog"]}}}},
        {"features": {"label": {"names": {"0": "cat", "1": "dog"}}}},
        {"info": {"features": [{"name": "label", "dtype": {"class_label": {"names": {"1": "dog", "0": "cat"}}}}]}},
    ],
)
def test_class_names_are_read_from_each_layout_of_the_metadata(tmp_path, make_shard, metadata):
    make_shard(tmp_path / "train.parquet", HALF, metadata=metadata)
    assert read(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("metadata", [None, [], {"info": {}}, {"info": {"features": {"label": {"dtype": "int64"}}}}])
def test_without_names_in_the_metadata_classes_are_numbered(tmp_path, make_shard, metadata):
    make_shard(tmp_path / "train.parquet", HALF, names=None, metadata=metadata)
    assert read(tmp_path).class_names == ("0", "1")


def test_gray_images_give_one_channel(tmp_path, make_shard):
    make_shard(tmp_path / "train.parquet", HALF, mode="L")
    data = read(tmp_path)
    assert (data.in_chans, data.train[0][0].mode) == (1, "L")


def test_items_travel_to_worker_processes(tmp_path, make_shard):
    make_shard(tmp_path / "train.parquet", HALF)
    train = read(tmp_path).train
    copy = pickle.loads(pickle.dumps(train))
    assert np.array_equal(copy[3][0], train[3][0])


def test_a_truncated_file_is_named(tmp_path, make_shard):
    path = make_shard(tmp_path / "train-0.parquet", HALF)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"cannot read parquet file .*train-0\.parquet: .*fetch it again") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "train-0.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read parquet file .*train-0\.parquet"):
        read(tmp_path)


def test_a_file_without_image_column_is_named_with_its_columns(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet has no image column: columns text, label"):
        read(tmp_path)


def test_a_file_without_label_column_is_named_with_its_columns(tmp_path):
    pq.write_table(pa.table({"image": [b"a"], "label": [[0, 1]]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"no label column .*: columns image, label"):
        read(tmp_path)


def test_two_candidates_for_a_column_are_not_guessed_between(tmp_path):
    pq.write_table(pa.table({"image": [b"a"], "x": [0], "y": [1]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"several integer columns \(x, y\)"):
        read(tmp_path)


def test_held_out_shards_alone_are_refused(tmp_path, make_shard):
    make_shard(tmp_path / "test-0.parquet", HALF)
    with pytest.raises(InputError, match=r"no train-\*\.parquet"):
        read(tmp_path)


@pytest.mark.parametrize("label", [-1, 2])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_label_out_of_range_is_named_by_file_and_row(tmp_path, make_shard, part, label):
    for name in ("train", "test"):
        make_shard(tmp_path / f"{name}-0.parquet", [0, 1, label if name == part else 0, 1])
    with pytest.raises(InputError, match=rf"{part}-0\.parquet row 2 has label {label}, outside 0 to 1"):
        read(tmp_path)


def test_a_missing_label_is_named_by_file_and_row(tmp_path, make_shard):
    make_shard(tmp_path / "train.parquet", [0, 1, None])
    with pytest.raises(InputError, match=r"train\.parquet row 2 has no label"):
        read(tmp_path)


def test_one_class_is_not_enough(tmp_path, make_shard):
    make_shard(tmp_path / "train.parquet", [1] * 5)
    with pytest.raises(InputError, match="only the class 'dog'"):
        read(tmp_path)


def test_no_rows_are_not_enough(tmp_path, make_shard):
    make_shard(tmp_path / "train.parquet", [])
    with pytest.raises(InputError, match="no rows"):
        read(tmp_path)


@pytest.mark.parametrize(("content", "why"), [(b"junk", "not an image"), (b"", "it is empty")])
def test_a_bad_image_is_named_by_file_and_row_when_it_is_used(tmp_path, make_shard, content, why):
    make_shard(tmp_path / "train-0.parquet", HALF)
    make_shard(tmp_path / "test-0.parquet", HALF, replace={7: content})
    val = read(tmp_path).val
    val[6]
    with pytest.raises(InputError, match=rf"test-0\.parquet row 7: .*{why}.*--data\.check full --data\.skip_bad true"):
        val[7]


def test_a_row_without_image_is_named_before_training(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF)
    make_shard(tmp_path / "test-0.parquet", HALF, replace={7: None, 9: None})
    with pytest.raises(
        InputError, match=r"test-0\.parquet row 7: .*no image bytes \(and 1 more .*--data\.skip_bad true"
    ):
        read(tmp_path)
    data = read(tmp_path, skip_bad=True)
    assert (len(data.val), len(data.skipped)) == (18, 2)


def test_rows_of_the_second_file_are_counted_from_its_own_start(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF)
    make_shard(tmp_path / "train-1.parquet", HALF, replace={15: b"junk"}, rows_per_group=4)
    with pytest.raises(InputError, match=r"train-1\.parquet row 15"):
        read(tmp_path, check="full")


def test_a_full_check_names_the_first_bad_row_and_counts_the_others(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF, replace={3: b"junk", 9: b""})
    with pytest.raises(InputError, match=r"row 3: .* \(and 1 more like it\)"):
        read(tmp_path, check="full")


def test_a_full_check_skips_and_records_bad_rows_on_request(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF, replace={3: b"junk", 9: None})
    make_shard(tmp_path / "test-0.parquet", HALF, replace={1: b"junk"})
    data = read(tmp_path, check="full", skip_bad=True)
    assert [name.split("/")[-1] for name in data.skipped] == [
        "train-0.parquet row 3",
        "train-0.parquet row 9",
        "test-0.parquet row 1",
    ]
    assert (len(labels(data.train)), len(labels(data.val))) == (18, 19)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not here")
def test_cifar10_shards_are_cifar10():
    data = read(CIFAR10)
    assert (len(data.train), len(data.val), data.native_size, data.in_chans) == (50_000, 10_000, (32, 32), 3)
    assert data.class_names[0] == "airplane"
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.01)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.01)


def test_labels_of_one_number_have_one_order():
    words = {"1", "01", "001", "0", "-0"}
    assert _sorted_words(words) == ("-0", "0", "001", "01", "1")

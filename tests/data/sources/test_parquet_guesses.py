"""What parquet files, their columns and labels mean is told or refused, never guessed in silence."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imixer.data.config import DataConfig
from imixer.data.sources.open import open_dataset
from imixer.data.sources.parquet_columns import read_labels
from imixer.errors import InputError

HALF = [0, 1] * 10


def read(root, **settings):
    return open_dataset(DataConfig(name=str(root), **settings))


def labels(items):
    return [items[i][1] for i in range(len(items))]


def classes(data, items):
    return [data.class_names[label] for label in labels(items)]


def counts(data):
    return len(data.train), len(data.val)


def told(data, words):
    return any(words in note for note in data.notes)


def refused(root, match, **settings):
    with pytest.raises(InputError, match=match) as caught:
        read(root, **settings)
    assert "\n" not in str(caught.value)


@pytest.fixture
def make_table(make_image):
    """A parquet file of noise images, with any column of labels and any others."""

    def make(path, label, *, name="label", names=None, image="image", **others):
        count = len(label)
        encoded = []
        for number in range(count):
            stream = io.BytesIO()
            make_image(number).save(stream, "PNG")
            encoded.append(stream.getvalue())
        columns = {image: pa.array(encoded, pa.binary()), name: label, **others}
        table = pa.table(columns)
        if names:
            features = {name: {"names": list(names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path

    return make


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("cifar10-train.parquet", "cifar10-test.parquet"),
        ("0000_Training.parquet", "0000_Valid.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("default/train/0000.parquet", "default/validation/0000.parquet"),
        ("data/train-00000-of-00001-0f3b.parquet", "data/validation-00000-of-00001-77aa.parquet"),
        ("data/train/part-0.parquet", "data/dev/part-0.parquet"),
        ("cifar10-train/0.parquet", "cifar10-test/0.parquet"),
        ("TrainImages.parquet", "HoldOut.parquet"),
    ],
)
def test_parts_are_told_by_words_anywhere_in_the_names_of_files_and_folders(tmp_path, make_shard, train, held_out):
    make_shard(tmp_path / train, HALF)
    make_shard(tmp_path / held_out, [1, 0, 0])
    data = read(tmp_path)
    assert (counts(data), labels(data.val)) == ((20, 3), [1, 0, 0])
    assert all("(1 file)" in source for source in data.sources)


def test_shards_of_a_part_are_read_in_order(tmp_path, make_shard):
    for number, content in enumerate(([0, 1, 1], [1, 0])):
        make_shard(tmp_path / "plain_text" / "train" / f"{number:04}.parquet", content)
    make_shard(tmp_path / "plain_text" / "test" / "0000.parquet", [1, 0])
    data = read(tmp_path)
    assert labels(data.train) == [0, 1, 1, 1, 0]
    assert data.sources == ("plain_text/train/*.parquet (2 files)", "plain_text/test/*.parquet (1 file)")


def test_unused_files_and_folders_are_named(tmp_path, make_shard):
    for name in ("train-0", "validation-0", "test-0", "unsupervised-0"):
        make_shard(tmp_path / "data" / f"{name}.parquet", HALF)
    (tmp_path / "README.md").write_text("")
    (tmp_path / "masks").mkdir()
    data = read(tmp_path)
    assert counts(data) == (20, 20)
    assert data.left_out == ("README.md", "data/test-0.parquet", "data/unsupervised-0.parquet", "masks/")


def test_several_sets_are_not_mixed(tmp_path, make_shard):
    for name in ("plain_text", "fancy"):
        make_shard(tmp_path / name / "train-0.parquet", HALF)
    refused(tmp_path, "several sets of parquet files, in .*fancy, .*plain_text; give the folder of one")
    assert counts(read(tmp_path / "fancy")) == (16, 4)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["train_test_split-0"], "names several parts, train and test"),
        (["train-0", "validation-0", "val-0"], "serve the same purpose"),
        (["train-0", "training-0"], "serve the same purpose"),
        (["validation-0"], r"no train-\*\.parquet"),
    ],
)
def test_names_that_say_too_much_or_too_little_are_refused(tmp_path, make_shard, names, why):
    for name in names:
        make_shard(tmp_path / f"{name}.parquet", HALF)
    refused(tmp_path, why)


def test_a_folder_of_images_with_a_table_inside_is_one_of_images(tmp_path, make_folder, make_shard):
    make_folder(tmp_path, {"a": 5, "b": 5})
    make_shard(tmp_path / "a" / "meta" / "train.parquet", HALF)
    data = read(tmp_path)
    assert data.class_names == ("a", "b")
    assert any("1 .parquet" in each for each in data.left_out)


def test_class_names_decide_and_not_their_numbers(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF, names=["zebra", "ant"])
    make_shard(tmp_path / "train-1.parquet", HALF, names=["ant", "zebra"])
    make_shard(tmp_path / "test-0.parquet", [0, 0, 1], names=["ant", "zebra"])
    data = read(tmp_path)
    assert data.class_names == ("zebra", "ant")
    assert labels(data.train) == [0, 1] * 10 + [1, 0] * 10
    assert classes(data, data.val) == ["ant", "ant", "zebra"]
    assert told(data, "the class numbers of test-0.parquet are others, and were matched by name")


def test_a_part_may_name_fewer_classes_but_no_others(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF, names=["zebra", "ant", "emu"])
    make_shard(tmp_path / "test-0.parquet", [0, 1], names=["emu", "ant"])
    data = read(tmp_path)
    assert classes(data, data.val) == ["emu", "ant"]
    make_shard(tmp_path / "test-0.parquet", [0, 1], names=["emu", "cow"])
    refused(tmp_path, r"test-0\.parquet row 1 is of class 'cow', which the training files do not name")


def test_numbers_without_names_beside_names_are_told(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF, names=["zebra", "ant"])
    make_shard(tmp_path / "test-0.parquet", [0, 1], names=None)
    assert told(
        read(tmp_path), "test-0.parquet does not name its classes: its numbers are taken for those of the others"
    )


def test_names_that_only_the_held_out_part_has_are_refused(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF, names=None)
    make_shard(tmp_path / "test-0.parquet", [0, 1], names=["ant", "zebra"])
    refused(tmp_path, "names its classes, but the training files do not")


def test_two_classes_of_one_name_are_refused(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF, names=["ant", "ant"])
    refused(tmp_path, "names two classes 'ant'")


def test_text_is_sorted_into_classes_and_told(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", ["dog", "cat", "dog", "cat"] * 5)
    make_table(tmp_path / "test.parquet", ["cat", "dog"])
    data = read(tmp_path)
    assert (data.class_names, labels(data.train)[:2], labels(data.val)) == (("cat", "dog"), [1, 0], [0, 1])
    assert told(data, "column label holds text: classes are cat, dog")


def test_numbers_written_as_text_are_sorted_as_numbers(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", [str(number) for number in range(11)] * 3)
    make_table(tmp_path / "test.parquet", ["10", "9"])
    assert read(tmp_path).class_names == tuple(map(str, range(11)))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_text_of_every_arrow_type_is_read(tmp_path, make_table, kind):
    make_table(tmp_path / "train.parquet", pa.array(["dog", "cat"] * 10).cast(kind))
    assert read(tmp_path).class_names == ("cat", "dog")


def test_dictionaries_of_numbers_are_numbers(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", pa.array(HALF, pa.int64()).dictionary_encode(), names=["cat", "dog"])
    make_table(tmp_path / "test.parquet", [1, 0], names=["cat", "dog"])
    data = read(tmp_path)
    assert classes(data, data.train)[:2] == ["cat", "dog"]


@pytest.mark.parametrize("values", [["cat", "dog", None], [0, 1, None]])
def test_a_null_among_the_values_of_a_dictionary_is_no_label(values):
    indices = pa.array([0, 1, 0, 2, 1], pa.int8())
    column = pa.chunked_array([pa.DictionaryArray.from_arrays(indices, pa.array(values))])
    assert column.null_count == 0
    with pytest.raises(InputError, match=r"train\.parquet row 3 has no label; remove unlabelled rows"):
        read_labels(column, pa.schema([]), "label", Path("train.parquet"))


def test_text_that_only_the_held_out_part_has_is_refused(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", ["dog", "cat"] * 10)
    make_table(tmp_path / "test.parquet", ["dog", "cow"])
    refused(tmp_path, r"test\.parquet row 1 is of class 'cow'")


@pytest.mark.parametrize(("train", "test"), [(["a", "b"] * 9, HALF), (HALF, ["0", "1"])])
def test_text_and_numbers_are_not_mixed(tmp_path, make_table, train, test):
    make_table(tmp_path / "train.parquet", train)
    make_table(tmp_path / "test.parquet", test)
    refused(tmp_path, "in words.*in numbers|in numbers.*in words|have numbers; write them alike")


def test_text_that_differs_in_case_only_is_refused(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", ["Dog", "dog", "cat"] * 5)
    refused(tmp_path, "the labels 'Dog' and 'dog', which differ in case or spaces only")


def test_empty_text_is_no_label(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", ["dog", "cat", ""] * 5)
    refused(tmp_path, r"train\.parquet row 2 has an empty label")


def test_truth_values_are_two_classes(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", [True, False, True] * 5)
    data = read(tmp_path, val_fraction=0.4)
    assert data.class_names == ("False", "True")
    assert told(data, "holds true or false")


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.float16()])
def test_whole_floats_are_numbers(tmp_path, make_table, kind):
    make_table(tmp_path / "train.parquet", pa.array(np.array(HALF, np.float16)).cast(kind))
    assert read(tmp_path).class_names == ("0", "1")


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf")])
def test_other_floats_are_no_labels(tmp_path, make_table, value):
    make_table(tmp_path / "train.parquet", [0.0, 1.0, value, 1.0])
    refused(tmp_path, rf"train\.parquet row 2 has label {value} in column label, which is no")


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.uint64()])
def test_integers_of_every_width_are_read(tmp_path, make_table, kind):
    make_table(tmp_path / "train.parquet", pa.array(HALF, kind))
    make_table(tmp_path / "test.parquet", pa.array([1, 0], kind))
    data = read(tmp_path)
    assert (labels(data.train), labels(data.val)) == (HALF, [1, 0])


@pytest.mark.parametrize("value", [2**40, 2**31, 2**63 - 1])
def test_ids_are_no_labels(tmp_path, make_table, value):
    make_table(tmp_path / "train.parquet", [0, 1, value] * 5)
    refused(tmp_path, rf"row 2 has label {value} in column label, which is an id rather than a class")


def test_an_unsigned_id_is_no_label(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", pa.array([0, 2**64 - 1] * 5, pa.uint64()))
    refused(tmp_path, "is an id rather than a class")


@pytest.mark.parametrize("column", [list(range(40)), list(range(10**6, 10**6 + 40)), [f"{n}.png" for n in range(40)]])
def test_a_different_label_in_every_row_is_no_label(tmp_path, make_table, column):
    make_table(tmp_path / "train.parquet", column)
    make_table(tmp_path / "test.parquet", column)
    refused(tmp_path, "column label has 40 different values in 40 rows, which are ids or captions")


@pytest.mark.parametrize(
    ("values", "names"), [([1, 2], ("1", "2")), ([0, 7, 3], ("0", "3", "7")), ([5, 4], ("4", "5"))]
)
def test_labels_from_1_or_with_gaps_are_told_and_have_no_empty_classes(tmp_path, make_table, values, names):
    make_table(tmp_path / "train.parquet", values * 5)
    make_table(tmp_path / "test.parquet", values)
    data = read(tmp_path)
    assert data.class_names == names
    assert classes(data, data.val) == [str(value) for value in values]
    assert told(data, f"has the {len(names)} numbers {', '.join(names)}: the classes are called so")


def test_a_number_that_training_never_saw_is_refused(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", [1, 3] * 5)
    make_table(tmp_path / "test.parquet", [1, 2])
    refused(tmp_path, r"test\.parquet row 1 has label 2, which the training rows do not have")


def test_negative_labels_are_refused(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", [-1, 0, 1] * 5)
    refused(tmp_path, r"train\.parquet row 0 has label -1, below 0")


def test_the_columns_chosen_among_several_are_told(tmp_path, make_table):
    mask = pa.array([b"x"] * 20, pa.binary())
    make_table(tmp_path / "train.parquet", HALF, name="fine_label", coarse_label=HALF, mask=mask)
    data = read(tmp_path)
    assert told(data, "images are those of column image, not of mask")
    assert told(data, "labels are those of column fine_label, not of coarse_label")


def test_ids_and_sizes_beside_are_not_taken_for_labels(tmp_path, make_table):
    rest = {name: list(range(20)) for name in ("id", "image_id", "width")}
    make_table(tmp_path / "train.parquet", ["cat", "dog"] * 10, name="breed", **rest)
    data = read(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert told(data, "labels are those of column breed")
    make_table(tmp_path / "train.parquet", list(range(20)), name="id")
    refused(tmp_path, "no label column")


def test_several_columns_of_text_are_not_guessed_between(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", ["a", "b"] * 10, name="kind", author=["x", "y"] * 10)
    refused(tmp_path, r"several columns \(kind, author\)")


def test_several_columns_of_images_without_a_usual_name_are_not_guessed_between(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", HALF, image="left", right=pa.array([b"x"] * 20, pa.binary()))
    refused(tmp_path, r"several columns of bytes \(left, right\)")


def test_all_files_are_read_from_the_same_columns(tmp_path, make_table):
    make_table(tmp_path / "train.parquet", HALF)
    make_table(tmp_path / "test.parquet", HALF, name="kind")
    refused(tmp_path, r"test\.parquet has no usable column label, as other files have: columns image, kind")


def test_a_column_of_paths_is_named(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": f"cats/{number}.png"} for number in range(20)]
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": HALF}), tmp_path / "train.parquet")
    for settings in ({}, {"skip_bad": True}, {"check": "full"}):
        refused(
            tmp_path, r"column image of .*train\.parquet holds paths, such as cats/0\.png, and no image", **settings
        )


@pytest.mark.parametrize(
    ("column", "kind"),
    [(["cats/0.png"] * 20, "string"), ([[[0, 1], [2, 3]]] * 20, "list"), ([{"path": "a.png"}] * 20, "struct")],
)
def test_a_column_of_paths_or_arrays_only_is_named(tmp_path, column, kind):
    pq.write_table(pa.table({"image": column, "label": HALF}), tmp_path / "train.parquet")
    refused(tmp_path, f"no image column: columns image, label .image is of type {kind}.*not read")


def test_rows_without_image_are_named_before_training(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF, replace={3: None, 5: None}, rows_per_group=4)
    refused(tmp_path, r"row 3: the row has no image bytes \(and 1 more like it\)")
    data = read(tmp_path, skip_bad=True)
    assert [name.rpartition("/")[2] for name in data.skipped] == ["train-0.parquet row 3", "train-0.parquet row 5"]


def test_a_pipe_among_the_shards_is_named(tmp_path, make_shard):
    make_shard(tmp_path / "train-0.parquet", HALF)
    os.mkfifo(tmp_path / "train-1.parquet")
    refused(tmp_path, r"train-1\.parquet: it is a pipe, not a file")

"""Data sets are found as torchvision lays them out, as folders, or are said to be missing."""

import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imixer.data.config import DataConfig
from imixer.errors import InputError
from imixer.experiments.data_sets import locate_dataset


def class_folders(root, classes=3):
    for part, count in (("train", 4), ("val", 2)):
        for name in range(classes):
            folder = Path(root, part, f"class{name}")
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((8, 8, 3), 20 * name + number, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def shard(folder, images=4):
    Path(folder).mkdir(parents=True)
    for part in ("train", "test"):
        encoded = []
        for label in range(images):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 10 * label, dtype=np.uint8)).save(file, "png")
            encoded.append({"bytes": file.getvalue(), "path": None})
        pq.write_table(
            pa.table({"image": encoded, "label": [0, 1] * (images // 2)}), f"{folder}/{part}-00000-of-00001.parquet"
        )


def test_digits_need_no_folder():
    found = locate_dataset("digits")
    assert (found.missing, found.training, found.held_out, found.in_chans, found.num_classes) == ("", 1437, 360, 1, 10)
    assert found.settings == {"data.name": "digits"}


def test_a_folder_called_like_the_data_set():
    class_folders("sets/cifar100")
    found = locate_dataset("cifar100", "sets")
    assert found.missing == ""
    assert found.settings == {"data.name": "sets/cifar100"}
    assert (found.training, found.held_out, found.in_chans, found.num_classes) == (12, 6, 3, 3)


@pytest.mark.parametrize("given", ["sets", "sets/cifar10"])
def test_shards_of_cifar_10(given):
    shard("sets/cifar10")
    found = locate_dataset("cifar10", given)
    assert found.settings == {"data.name": "sets/cifar10"}
    assert (found.missing, found.training, found.num_classes) == ("", 4, 2)
    assert locate_dataset("food101", given).missing


def test_torchvisions_layout_comes_first(monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR100._check_integrity", lambda self: True)  # it sums the real files
    folder = Path("sets/cifar-100-python")
    folder.mkdir(parents=True)
    pixels = np.zeros((6, 3072), dtype=np.uint8)
    for part in ("train", "test"):
        (folder / part).write_bytes(pickle.dumps({"data": pixels, "fine_labels": [0, 1, 2, 0, 1, 2]}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b", "c"]}))
    monkeypatch.setattr("torchvision.datasets.CIFAR100._load_meta", lambda self: setattr(self, "classes", list("abc")))
    class_folders("sets/cifar100")
    found = locate_dataset("cifar100", "sets")
    assert found.settings == {"data.name": "cifar100", "data.root": "sets"}
    assert (found.missing, found.training, found.num_classes) == ("", 6, 3)


def test_what_is_missing_is_said():
    Path("sets").mkdir()
    for name in ("cifar10", "cifar100", "stanford_cars", "food101", "imagenet"):
        assert f"{name} is not in sets; give --data_dir a folder with" in locate_dataset(name, "sets").missing
    assert "cifar10 is not in data" in locate_dataset("cifar10").missing


def test_a_broken_folder_says_what_is_wrong_with_it():
    Path("sets/food101").mkdir(parents=True)
    assert "neither class folders" in locate_dataset("food101", "sets").missing


@pytest.mark.parametrize("kind", ["shards", "folders"])
def test_all_but_digits_need_a_test_split(kind):
    if kind == "shards":
        shard("sets/cifar10", images=20)
        Path("sets/cifar10/test-00000-of-00001.parquet").unlink()
    else:
        class_folders("sets/cifar10")
        shutil.rmtree("sets/cifar10/val")
    found = locate_dataset("cifar10", "sets")
    assert "cifar10 in sets/cifar10 has no test split; add" in found.missing and "\n" not in found.missing
    assert found.training == 0


def test_held_out_images_are_called_what_they_are():
    shard("sets/cifar10")
    class_folders("sets/cifar100")
    assert locate_dataset("cifar10", "sets").held_out_part == "test split"
    assert locate_dataset("cifar100", "sets").held_out_part == "val split"
    assert locate_dataset("digits").held_out_part == "held-out fifth of the training images"
    assert DataConfig().val_fraction == 1 / 5


def test_no_folder_at_all_is_refused():
    with pytest.raises(InputError, match="data_dir is nowhere, which is no folder"):
        locate_dataset("cifar10", "nowhere")

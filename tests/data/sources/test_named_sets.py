"""Data sets by name: torchvision's, timm's, and unknown ones."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from imixer.data.config import DataConfig
from imixer.data.sources import timm_sets
from imixer.data.sources.open import open_dataset, relocated
from imixer.data.sources.torchvision_sets import SETS
from imixer.errors import InputError


class Pictures:
    """Stands for a data set of torchvision."""

    classes = ("cat", ("dog", "hound"))

    def __init__(self, root, train=True, split=None, download=False, loader=None):
        self.train = train if split is None else split == "train"

    def __len__(self):
        return 6 if self.train else 4

    def __getitem__(self, index):
        return Image.new("RGB", (32, 32), (index, 0, 0)), np.uint8(index % 2)


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_set_of_torchvision_is_opened_by_its_name(tmp_path, monkeypatch, name):
    monkeypatch.setattr(torchvision.datasets, SETS[name].factory, Pictures)
    data = open_dataset(DataConfig(name=name, root=str(tmp_path)))
    image, label = data.val[3]
    assert (len(data.train), len(data.val), image.mode, label, type(label)) == (6, 4, "RGB", 1, int)
    assert (data.name, data.in_chans, data.class_names) == (name, 3, ("cat", "dog, hound"))
    assert data.native_size == ((32, 32) if name.startswith("cifar") else None)
    assert data.split == ("val" if name == "imagenet" else "test")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "food101"])
def test_a_set_that_is_not_there_asks_for_the_download(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name} is not in {tmp_path}.*--data\.download true"):
        open_dataset(DataConfig(name=name, root=str(tmp_path)))


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("name", ["imagenet", "stanford_cars"])
def test_a_set_that_cannot_be_downloaded_says_what_to_put_where(tmp_path, name, download):
    with pytest.raises(InputError, match=f"put .* into {tmp_path} yourself") as caught:
        open_dataset(DataConfig(name=name, root=str(tmp_path), download=download))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        ConnectionError("reset"),
        RuntimeError("File not found or corrupted."),
        OSError(28, "No space left"),
    ],
)
def test_a_download_that_fails_gives_the_reason_and_what_to_do(tmp_path, monkeypatch, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(InputError, match=rf"could not download cifar10: .*; put .* into {tmp_path} yourself"):
        open_dataset(DataConfig(name="cifar10", root=str(tmp_path), download=True))


def cifar10_archive(root):
    """CIFAR-10 in torchvision's own layout, with one image per batch."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    batch = {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0, 1]}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile"]}))


def test_files_in_torchvisions_layout_are_read(tmp_path, monkeypatch):
    cifar10_archive(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = open_dataset(DataConfig(name="cifar10", root=str(tmp_path)))
    assert (len(data.train), len(data.val), data.class_names) == (10, 2, ("airplane", "automobile"))
    assert data.train[0][0].size == (32, 32)


def test_files_that_fail_their_checksum_count_as_not_there(tmp_path):
    cifar10_archive(tmp_path)
    with pytest.raises(InputError, match="incomplete"):
        open_dataset(DataConfig(name="cifar10", root=str(tmp_path)))


def mnist(root, monkeypatch, items=8):
    """MNIST as torchvision stores it, but small."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (items, 28, 28))
        pixels = np.random.default_rng(0).integers(0, 256, items * 784, dtype=np.uint8).tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels)
        labels = b"\x00\x00\x08\x01" + items.to_bytes(4, "big") + bytes(i % 10 for i in range(items))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def test_a_name_of_timm_is_opened_and_measured(tmp_path, monkeypatch):
    mnist(tmp_path, monkeypatch)
    data = open_dataset(DataConfig(name="torch/mnist", root=str(tmp_path)))
    assert (data.name, data.in_chans, data.native_size, len(data.class_names)) == ("torch_mnist", 1, (28, 28), 10)
    assert data.mean == pytest.approx([0.5], abs=0.02) and data.split == "test"
    assert (data.val[3][0].mode, data.val[3][1]) == ("L", 3)


def test_a_failed_download_leaves_no_empty_folders(tmp_path, monkeypatch):
    def fail(root, **_kwargs):
        (Path(root) / "food-101").mkdir(parents=True)
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "Food101", fail)
    with pytest.raises(InputError, match="could not download"):
        open_dataset(DataConfig(name="food101", root=str(tmp_path / "data"), download=True))
    assert not (tmp_path / "data").exists()


def test_a_name_of_timm_that_is_not_there_gives_the_reason(tmp_path):
    with pytest.raises(InputError, match=r"could not open torch/mnist .*not found.*--data\.download true"):
        open_dataset(DataConfig(name="torch/mnist", root=str(tmp_path)))


def test_a_download_through_timm_that_fails_gives_the_reason(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    with pytest.raises(InputError, match=rf"could not open torch/mnist.*; put the files into {tmp_path} yourself"):
        open_dataset(DataConfig(name="torch/mnist", root=str(tmp_path), download=True))


def test_an_unknown_name_with_timms_prefix_gives_the_reason(tmp_path):
    with pytest.raises(InputError, match="Unknown torchvision dataset nonsense"):
        open_dataset(DataConfig(name="torch/nonsense", root=str(tmp_path)))


@pytest.mark.parametrize("name", ["hfids/mnist", "tfds/mnist", "wds/mnist"])
def test_streams_are_refused_with_an_alternative(name):
    with pytest.raises(InputError, match=r"is a stream.*use hfds/"):
        open_dataset(DataConfig(name=name))


def test_hugging_face_names_say_which_package_they_need(without):
    without("datasets")
    with pytest.raises(InputError, match=r'pip install "imixer\[data\]"'):
        open_dataset(DataConfig(name="hfds/mnist"))


class HubReader:
    """Stands for timm's reader of a Hugging Face data set: encoded files and labels."""

    def __init__(self, contents, listed=None):
        self.class_to_idx = {"dog": 1, "cat": 0}
        self.contents = contents
        self.dataset = SimpleNamespace(info=SimpleNamespace(splits=listed))

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, index):
        return io.BytesIO(self.contents[index]), index % 2


def open_hub(monkeypatch, contents, splits=("train", "test"), listed=None):
    def create(name, *, root, split, download):
        if split not in splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        return SimpleNamespace(reader=HubReader(contents, listed))

    monkeypatch.setattr(timm_sets, "create_dataset", create)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(__spec__=object()))
    return open_dataset(DataConfig(name="hfds/Some/Pets"))


def encoded(make_image, count):
    contents = []
    for number in range(count):
        stream = io.BytesIO()
        make_image(number).save(stream, "PNG")
        contents.append(stream.getvalue())
    return contents


def test_a_hub_set_falls_back_to_its_test_split(monkeypatch, make_image):
    data = open_hub(monkeypatch, encoded(make_image, 6))
    assert (data.name, data.class_names, data.native_size) == ("hfds_some_pets", ("cat", "dog"), (8, 8))
    assert (data.split, data.sources) == ("test", ("its split train", "its split test"))
    assert np.array_equal(data.val[5][0], make_image(5))


@pytest.mark.parametrize(
    ("splits", "held_out"),
    [
        (("train", "valid"), "valid"),
        (("train", "test", "dev"), "dev"),
        (("test", "train"), "test"),
        (("train", "unlabelled", "Validation"), "Validation"),
    ],
)
def test_a_hub_set_holds_out_the_split_that_it_lists_under_any_name_for_it(monkeypatch, make_image, splits, held_out):
    data = open_hub(monkeypatch, encoded(make_image, 6), splits, dict.fromkeys(splits))
    assert (data.split, data.sources) == (held_out, ("its split train", f"its split {held_out}"))


def test_a_hub_set_that_lists_no_held_out_split_is_refused_with_those_it_has(monkeypatch, make_image):
    with pytest.raises(InputError, match=r"no held-out split among its splits \(train, extra\); save its images"):
        open_hub(monkeypatch, encoded(make_image, 6), ("train", "extra"), dict.fromkeys(("train", "extra")))


def test_a_held_out_split_that_cannot_be_fetched_is_not_replaced_by_another(monkeypatch, make_image):
    with pytest.raises(InputError, match=r"could not open hfds/Some/Pets \(validation\)"):
        open_hub(monkeypatch, encoded(make_image, 6), ("train", "test"), dict.fromkeys(("train", "validation", "test")))


def test_a_hub_set_without_held_out_split_gives_the_reason(monkeypatch, make_image):
    with pytest.raises(InputError, match='Unknown split "test"'):
        open_hub(monkeypatch, encoded(make_image, 6), splits=("train",))


def test_a_bad_image_of_a_hub_set_is_named_and_not_replaced_by_its_neighbour(monkeypatch, make_image):
    contents = encoded(make_image, 6)
    data = open_hub(monkeypatch, contents)
    contents[2] = b"junk"
    with pytest.raises(InputError, match="cannot read image 2 of hfds/Some/Pets"):
        data.val[2]


@pytest.mark.parametrize("hidden", [-1, None, 2])
def test_a_hidden_label_of_a_hub_set_is_refused_before_training_or_as_it_is_read(monkeypatch, make_image, hidden):
    said = rf"image 1 of hfds/Some/Pets \((training|validation)\) has the label {hidden}, and .* from 0 to 1; save the"
    monkeypatch.setattr(HubReader, "__getitem__", lambda self, index: (io.BytesIO(self.contents[index]), hidden))
    monkeypatch.setattr(timm_sets, "read_item", lambda items, index, name: (items[index][0], 0))
    data = open_hub(monkeypatch, encoded(make_image, 6))
    with pytest.raises(InputError, match=said):
        data.val[1]

    class Table(SimpleNamespace):
        def __getitem__(self, column):
            return {"label": [0, hidden, 1, 0, 1, 0]}[column]

    began = HubReader.__init__

    def begin(self, contents, listed=None):
        began(self, contents, listed)
        self.label_key, self.dataset = "label", Table(info=self.dataset.info)

    monkeypatch.setattr(HubReader, "__init__", begin)
    monkeypatch.setattr(timm_sets, "usable_statistics", lambda *args: pytest.fail("labels go first"))
    with pytest.raises(InputError, match=said):
        open_hub(monkeypatch, encoded(make_image, 6))


@pytest.mark.parametrize(("name", "suggestion"), [("cifar", "cifar10"), ("digit", "digits"), ("Food-101", "food101")])
def test_an_unknown_name_gets_the_known_ones_and_the_closest(tmp_path, monkeypatch, name, suggestion):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=f"unknown data set '{name}'; did you mean {suggestion}.*Known: digits, cifar10"
    ):
        open_dataset(DataConfig(name=name))


@pytest.mark.parametrize("name", ["", "zzz"])
def test_a_name_like_no_other_gets_the_known_ones(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"unknown data set '{name}'; Known: digits"):
        open_dataset(DataConfig(name=name))


@pytest.mark.parametrize("name", ["./nowhere", "some/where", "~/nowhere-at-all", ".x"])
def test_a_path_that_does_not_exist_is_called_a_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"data\.name: no such folder"):
        open_dataset(DataConfig(name=name))


def test_a_folder_may_be_named_without_a_slash(tmp_path, monkeypatch, make_folder):
    make_folder(tmp_path / "pets", {"a": 5, "b": 5})
    monkeypatch.chdir(tmp_path)
    assert open_dataset(DataConfig(name="pets")).name == "pets"


def test_the_same_data_are_found_in_a_root_in_parquet_files_and_in_a_folder(tmp_path):
    known, own = DataConfig(name="cifar10"), DataConfig(name="/was/here")
    assert relocated(known, str(tmp_path)) == DataConfig(name="cifar10", root=str(tmp_path))
    (tmp_path / "train-0.parquet").touch()
    assert relocated(known, str(tmp_path)) == relocated(own, str(tmp_path)) == DataConfig(name=str(tmp_path))


@pytest.mark.parametrize("name", ["torch/image_folder", "torch/Folder"])
def test_a_folder_by_the_name_that_timm_has_for_it_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"give the folder itself as data\.name"):
        open_dataset(DataConfig(name=name, root=str(tmp_path)))

"""Strange files and settings end in one line, with exit code 2, before anything is written."""

from __future__ import annotations

import os
import socket

import pytest

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.data.sources.folder import open_test_folder
from imixer.data.sources.image_files import find_images, load_image
from imixer.data.sources.open import open_dataset
from imixer.errors import InputError

LONG = "x" * 300


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # addresses are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def make_device(path):
    path.symlink_to("/dev/zero")


SPECIAL = [(make_pipe, "a pipe"), (make_socket, "a socket"), (make_device, "a device")]


@pytest.mark.parametrize(
    ("make", "what", "check"), [(*each, "full") for each in SPECIAL] + [(*SPECIAL[0], "header"), (*SPECIAL[0], "off")]
)
def test_what_is_no_file_is_never_waited_for(tmp_path, make_folder, make, what, check):
    root = make_folder(tmp_path / "pets", {"a": 5, "b": 5})
    for name in "ab":
        for number in range(5):
            os.remove(root / name / f"{number:03}.png")
            make(root / name / f"{number:03}.png")
    with pytest.raises(InputError, match=rf"\.png: it is {what}, not a file"):
        open_dataset(DataConfig(name=str(root), check=check))


@pytest.mark.parametrize(("make", "what"), SPECIAL)
def test_prediction_and_testing_do_not_wait_either(tmp_path, make_folder, make, what):
    root = make_folder(tmp_path, {"a": 2, "b": 2})
    make(root / "a" / "x.png")
    (path,) = [path for path in find_images([root]) if path.name == "x.png"]
    with pytest.raises(InputError, match=f"it is {what}, not a file"):
        load_image(path, 3)
    with pytest.raises(InputError, match=f"it is {what}, not a file"):
        open_test_folder(root, ("a", "b"), 3, DataConfig())
    assert len(open_test_folder(root, ("a", "b"), 3, DataConfig(skip_bad=True)).images) == 4


def test_links_in_circles_are_no_files_and_no_folders(tmp_path, make_folder):
    root = make_folder(tmp_path, {"a": 5, "b": 5})
    (root / "a" / "x.png").symlink_to("x.png")
    (root / "c").symlink_to("c")
    with pytest.raises(InputError, match=r"a/x\.png: "):
        open_dataset(DataConfig(name=str(root)))
    assert open_dataset(DataConfig(name=str(root), skip_bad=True)).class_names == ("a", "b")
    with pytest.raises(InputError, match=r"x\.png: "):
        load_image(root / "a" / "x.png", 3)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, make_folder, monkeypatch):
    root = make_folder(tmp_path, {"a": 5, "b": 5})
    (root / "a" / "locked").mkdir()
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(InputError, match=r"cannot list folder .*locked: Permission denied; change its permissions"):
        open_dataset(DataConfig(name=str(root)))


def test_an_image_that_must_not_be_read_is_named(tmp_path, make_folder, monkeypatch):
    root = make_folder(tmp_path, {"a": 5, "b": 5})
    known = open

    def denied(path, *args, **kwargs):
        if str(path).endswith("002.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return known(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(InputError, match=r"a/002\.png: Permission denied \(and 1 more"):
        open_dataset(DataConfig(name=str(root)))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.name", LONG], "unknown data set"),
        (["--data.name", f"./{LONG}"], "no such folder"),
        (["--data.name", "~nobody-of-this-name/pets"], "home that does not exist"),
        (["--data.name", "/dev/null"], "is a device; give the folder"),
        (["--data.name", "cifar10", "--data.root", LONG], "cifar10 is not in"),
        (["--data.name", "cifar10", "--data.root", "~nobody-of-this-name"], "home that does not exist"),
        (["--data.name", "cifar10", "--data.value_range", "[0, 1]"], "of cifar10 have 8; leave it out"),
        (["--data.split_seed", "-1"], "data.split_seed is -1; give 0 or more, below 2**32"),
        (["--data.val_fraction", "nan"], "data.val_fraction is 'nan'"),
        (["--data.value_range", "[0, 1]"], "black and white are 0 and 255; leave it out"),
        (["--data.background", "green"], "give one of white, gray, black"),
        (["--data.batch_size", str(10**12)], "more than the"),
    ],
)
def test_a_strange_setting_ends_in_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *flags]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("imixer: ")
    assert words in line
    assert len(line) < 500
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split_seed": 2**32}, r"data\.split_seed is 4294967296; give 0 or more, below 2\*\*32"),
        ({"workers": 9999}, r"data\.workers is 9999; give 0 to 256"),
        ({"workers": -1}, r"data\.workers is -1; give 0 to 256"),
        ({"value_range": (1.0, 0.0)}, r"data\.value_range is \[1, 0\]"),
        ({"val_fraction": 1.0}, r"data\.val_fraction is 1\.0; give a share between 0 and 1"),
        ({"batch_size": 0}, r"data\.batch_size is 0; give 1 or more"),
        ({"crop_pct": 0.05}, r"data\.crop_pct is 0\.05; give a share from 0\.1 to 1"),
        ({"hflip": 1.5}, r"data\.hflip is 1\.5; give a probability from 0 to 1"),
        ({"random_erasing": -0.1}, r"data\.random_erasing is -0\.1; give a probability from 0 to 1"),
        ({"cutmix": float("inf")}, r"data\.cutmix is inf; give 0 \(off\) or more"),
        ({"image_size": (0, 8)}, r"data\.image_size is \(0, 8\); give 1 pixel or more, at most 8,192"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_name_and_value(settings, words):
    with pytest.raises(InputError, match=words):
        DataConfig(**settings)


@pytest.mark.parametrize(("root", "words"), [(f"/tmp/{LONG}/{LONG}", "no such folder"), ("", "unknown data set")])
def test_a_name_that_no_folder_can_have_is_named(root, words):
    with pytest.raises(InputError, match=words):
        open_dataset(DataConfig(name=root))


def test_a_root_in_no_home_is_named_for_sets_of_timm_too():
    with pytest.raises(InputError, match="home that does not exist"):
        open_dataset(DataConfig(name="torch/mnist", root="~nobody-of-this-name"))


@pytest.mark.parametrize("name", [LONG, "~nobody-of-this-name", "a\0b"])
def test_prediction_and_testing_name_a_path_that_cannot_be(name):
    with pytest.raises(InputError, match=r"no such file or folder|home that does not exist"):
        find_images([name])
    with pytest.raises(InputError, match=r"no such image file|home that does not exist"):
        load_image(name, 3)


def test_a_test_folder_of_an_impossible_name_is_named(tmp_path):
    with pytest.raises(InputError, match=r"test: no folder .*…xxx.*; correct"):
        open_test_folder(tmp_path / LONG, ("a", "b"), 3, DataConfig())


def test_a_long_name_of_data_and_classes_is_trained_on(tmp_path, make_folder, train_quick, monkeypatch):
    root = make_folder(tmp_path / ("d" * 250), {"c" * 250: 9, "e" * 250: 9}, mode="L")
    monkeypatch.chdir(tmp_path)
    train = ["train", "--epochs", "1", "--schedule.warmup_epochs", "0", "--schedule.cooldown_epochs", "0"]
    tiny = ["--model.num_blocks", "1", "--model.embed_dim", "16", "--data.batch_size", "8", "--logger", "csv"]
    assert main([*train, *tiny, "--data.name", str(root)]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "model" / "model.safetensors").is_file()

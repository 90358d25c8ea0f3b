"""Folders of class folders."""

from __future__ import annotations

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from imixer.data.config import DataConfig
from imixer.data.sources import folder as folder_module
from imixer.data.sources.open import open_dataset
from imixer.errors import InputError
from imixer.progress import with_progress


def read(root, **settings):
    return open_dataset(DataConfig(name=str(root), **settings))


def labels(items):
    return [items[i][1] for i in range(len(items))]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-60])


def test_class_folders_are_split_by_class(tmp_path, make_folder):
    data = read(make_folder(tmp_path / "pets", {"dog": 20, "cat": 10}), val_fraction=0.2)
    assert data.name == "pets"
    assert data.class_names == ("cat", "dog")
    assert (np.bincount(labels(data.train)).tolist(), np.bincount(labels(data.val)).tolist()) == ([8, 16], [2, 4])
    assert not set(data.train.paths) & set(data.val.paths)
    assert (data.in_chans, data.native_size, data.skipped) == (3, (8, 8), ())


def test_labels_go_with_the_folder_an_image_lies_in(tmp_path, make_folder):
    data = read(make_folder(tmp_path, {"a": 5, "b": 5, "c": 5}), val_fraction=0.4)
    for path, label in zip(data.train.paths, labels(data.train), strict=True):
        assert data.class_names[label] == os.path.basename(os.path.dirname(path))


def test_the_split_depends_on_its_seed_only(tmp_path, make_folder):
    root = make_folder(tmp_path, {"a": 20, "b": 20})
    assert read(root).val.paths == read(root).val.paths
    assert read(root).val.paths != read(root, split_seed=1).val.paths


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_train_and_held_out_folders_are_used_as_they_are(tmp_path, make_folder, held_out):
    make_folder(tmp_path / "train", {"a": 3, "b": 4})
    make_folder(tmp_path / held_out, {"a": 2, "b": 1})
    data = read(tmp_path)
    assert (labels(data.train), labels(data.val), data.split) == ([0, 0, 0, 1, 1, 1, 1], [0, 0, 1], held_out)


def test_val_wins_over_test(tmp_path, make_folder):
    for part, count in (("train", 3), ("val", 2), ("test", 5)):
        make_folder(tmp_path / part, {"a": count, "b": count})
    assert len(read(tmp_path).val) == 4


def test_a_train_folder_alone_is_split(tmp_path, make_folder):
    data = read(make_folder(tmp_path / "train", {"a": 10, "b": 10}).parent)
    assert (len(data.train), len(data.val), data.split) == (16, 4, None)


def test_a_class_may_be_called_train(tmp_path, make_folder):
    assert read(make_folder(tmp_path, {"bus": 5, "train": 5})).class_names == ("bus", "train")


def test_hidden_files_and_folders_and_other_files_are_ignored(tmp_path, make_folder):
    root = make_folder(tmp_path, {"a": 5, "b": 5, ".cache": 3})
    (root / "a" / "._000.png").write_bytes(b"junk")
    (root / "a" / "notes.txt").write_text("junk")
    data = read(root)
    assert data.class_names == ("a", "b")
    assert len(data.train) + len(data.val) == 10


@pytest.mark.parametrize("extension", ["png", "jpg", "JPEG", "bmp", "webp", "gif", "tif", "tiff", "ppm"])
def test_common_image_formats_are_read(tmp_path, make_image, extension):
    for name in "ab":
        (tmp_path / name / "deep").mkdir(parents=True)
        for number in range(3):
            make_image(number).save(tmp_path / name / "deep" / f"{number}.{extension}")
    image, label = read(tmp_path, val_fraction=0.4).val[0]
    assert (image.mode, image.size, label) == ("RGB", (8, 8), 0)


def test_images_that_are_all_gray_give_one_channel(tmp_path, make_folder):
    data = read(make_folder(tmp_path, {"a": 5, "b": 5}, mode="L"))
    assert (data.in_chans, len(data.mean), data.train[0][0].mode) == (1, 1, "L")


def test_one_colour_image_makes_all_of_them_rgb(tmp_path, make_folder, make_image):
    root = make_folder(tmp_path, {"a": 9, "b": 9}, mode="L")
    make_folder(tmp_path / "val", {})
    for number in range(9):
        make_image(number).save(root / "b" / f"{number:03}.png")
    data = read(root)
    assert {data.train[i][0].mode for i in range(len(data.train))} == {"RGB"}


def test_images_of_several_sizes_have_no_native_size(tmp_path, make_folder, make_image):
    root = make_folder(tmp_path, {"a": 5, "b": 5})
    make_image(size=(9, 9)).save(root / "a" / "big.png")
    assert read(root, val_fraction=0.4, split_seed=0).native_size in (None, (8, 8))
    for number in range(5):
        make_image(size=(9 + number, 9)).save(root / "b" / f"{number:03}.png")
    assert read(root).native_size is None


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.name: no such folder .*nowhere"):
        read(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(InputError, match="is a file"):
        read(tmp_path / "a.zip")


def test_a_folder_with_nothing_in_it_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} holds neither class folders"):
        read(tmp_path)


def test_images_without_class_folders_are_explained(tmp_path, make_image):
    make_image().save(tmp_path / "a.png")
    with pytest.raises(InputError, match="holds images but no class folders"):
        read(tmp_path)


def test_one_class_is_not_enough(tmp_path, make_folder):
    with pytest.raises(InputError, match="only the class 'cat'"):
        read(make_folder(tmp_path, {"cat": 5}))


def test_a_class_folder_without_images_is_named(tmp_path, make_folder):
    with pytest.raises(InputError, match=r"class folder .*emu holds no images"):
        read(make_folder(tmp_path, {"cat": 5, "dog": 5, "emu": 0}))


def test_a_class_that_only_one_part_has_is_named(tmp_path, make_folder):
    make_folder(tmp_path / "train", {"a": 3, "b": 3})
    make_folder(tmp_path / "val", {"a": 3, "b": 3, "c": 3})
    with pytest.raises(InputError, match=r"class 'c' is in .*val but not in .*train"):
        read(tmp_path)


def test_a_class_with_a_single_image_is_named(tmp_path, make_folder):
    with pytest.raises(InputError, match=r"class 'b' of .* has 1 image"):
        read(make_folder(tmp_path, {"a": 9, "b": 1}))


def test_the_first_bad_image_is_named_and_the_others_counted(tmp_path, make_folder):
    root = make_folder(tmp_path, {"a": 5, "b": 5})
    truncate(root / "a" / "002.png")
    (root / "b" / "001.png").write_bytes(b"")
    (root / "b" / "002.png").write_text("no image")
    with pytest.raises(
        InputError, match=r"a/002\.png: .*truncated.* \(and 2 more like it\); .*--data\.skip_bad true"
    ) as caught:
        read(root)
    assert "\n" not in str(caught.value)


def test_bad_images_are_skipped_and_recorded_on_request(tmp_path, make_folder):
    root = make_folder(tmp_path, {"a": 5, "b": 5})
    truncate(root / "a" / "002.png")
    (root / "b" / "001.png").write_bytes(b"")
    data = read(root, skip_bad=True)
    assert data.skipped == ("a/002.png", "b/001.png")
    assert len(data.train) + len(data.val) == 8
    assert not [path for path in data.train.paths + data.val.paths if path.endswith(data.skipped)]


def test_a_class_without_readable_images_is_named(tmp_path, make_folder):
    root = make_folder(tmp_path, {"a": 3, "b": 2})
    for path in (root / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no image of class 'b'"):
        read(root, skip_bad=True)


def test_the_header_check_finds_empty_files_but_not_truncated_ones(tmp_path, make_folder):
    root = make_folder(tmp_path, {"a": 5, "b": 5}, size=(32, 32))
    (root / "a" / "001.png").write_bytes(b"")
    truncate(root / "b" / "001.png")
    bad = folder_module._check(
        [root / "a" / "001.png", root / "b" / "001.png"], root, DataConfig(check="header", skip_bad=True)
    )
    assert list(bad.values()) == ["a/001.png"]


def test_auto_checks_headers_only_above_the_limit(tmp_path, make_folder, monkeypatch):
    root = make_folder(tmp_path, {"a": 5, "b": 5}, size=(32, 32))
    truncate(root / "b" / "001.png")
    paths, config = [root / "b" / "001.png"] * 4, DataConfig(skip_bad=True)
    assert folder_module._check(paths, root, config)
    monkeypatch.setattr(folder_module, "_FULL_CHECK_UP_TO", 3)
    assert not folder_module._check(paths, root, config)


def test_without_a_check_a_bad_image_is_named_when_it_is_used(tmp_path, make_folder):
    root = make_folder(tmp_path, {"a": 5, "b": 5})
    data = read(root, check="off")
    bad = data.val.paths[0]
    with open(bad, "wb"):
        pass
    with pytest.raises(InputError, match=r"it is empty.*--data\.check full --data\.skip_bad true") as caught:
        data.val[0]
    assert bad in str(caught.value)


def test_a_decompression_bomb_is_refused_like_any_bad_image(tmp_path, make_folder, monkeypatch):
    root = make_folder(tmp_path, {"a": 5, "b": 5})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(InputError, match="decompression bomb"):
        read(root)


def test_progress_passes_everything_on_and_keeps_stdout_clean(capsys, monkeypatch):
    monkeypatch.setattr("imixer.progress.Console", lambda **_: _terminal())
    assert list(with_progress([[1, 2], [3]], 3, "checking", patience=-1)) == [1, 2, 3]
    assert capsys.readouterr().out == ""


def _terminal():
    from rich.console import Console

    return Console(file=io.StringIO(), force_terminal=True)


def nested_splits(make_folder, tmp_path):
    """Both parts have their class folders in a folder of one name."""
    root = tmp_path / "root"
    for part in ("train", "test"):
        make_folder(root / part / "imgs", {"cat": 3, "dog": 3})
    return root


def test_parts_whose_class_folders_lie_in_folders_of_one_name_are_told_apart(make_folder, tmp_path):
    root = nested_splits(make_folder, tmp_path)
    assert open_dataset(DataConfig(name=str(root))).split == "test"
    shutil.rmtree(root / "test/imgs/cat")
    (root / "test/imgs/cat").symlink_to("../../train/imgs/cat")
    with pytest.raises(InputError, match=r"share .*, by a link"):
        open_dataset(DataConfig(name=str(root)))


def test_thumbnails_of_operating_systems_are_no_images_and_are_named(make_folder, tmp_path):
    root = tmp_path / "root"
    make_folder(root, {"cat": 5, "dog": 5})
    for name in ("cat", "dog"):
        (root / name / "@eaDir").mkdir()
        shutil.copy(next((root / name).glob("*.*")), root / name / "@eaDir" / "thumb.png")
    data = open_dataset(DataConfig(name=str(root)))
    assert len(data.train) + len(data.val) == 10
    assert any("2 @eadir/" in each.lower() for each in data.left_out)

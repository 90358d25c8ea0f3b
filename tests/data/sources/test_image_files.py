"""Single images: reading, naming what is wrong, finding files."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from imixer.data.sources.decoding import to_channels
from imixer.data.sources.image_files import count_by_extension, find_images, list_folder, load_image
from imixer.errors import InputError


@pytest.mark.parametrize(("in_chans", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("stored", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_load_image_delivers_the_asked_channels_from_any_stored_mode(tmp_path, make_image, stored, in_chans, mode):
    path = tmp_path / ("image.tif" if stored == "CMYK" else "image.png")
    image = Image.new("I;16", (8, 8)) if stored == "I;16" else make_image().convert(stored)
    image.save(path)
    assert load_image(path, in_chans).mode == mode


def test_load_image_returns_the_stored_pixels(tmp_path, make_image):
    make_image(3).save(tmp_path / "a.png")
    assert np.array_equal(load_image(str(tmp_path / "a.png"), 3), make_image(3))


@pytest.mark.parametrize("extension", ["gif", "tif", "webp", "png"])
def test_the_first_of_several_frames_is_read_and_the_file_closed(tmp_path, make_image, extension):
    frames = [make_image(number, mode="L") for number in range(3)]
    path = tmp_path / f"moving.{extension}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if extension == "webp" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an open file would be a ResourceWarning
        image = load_image(path, 1)
    assert np.array_equal(image, frames[0])


def test_sixteen_bit_images_keep_their_upper_eight_bits():
    image = Image.fromarray(np.array([[0, 255, 256, 65535]], dtype=np.uint16))
    assert np.asarray(to_channels(image, 1)).tolist() == [[0, 0, 1, 255]]


def test_palette_images_with_transparency_convert_without_a_warning(tmp_path, make_image, recwarn):
    image = make_image().convert("P")
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    load_image(tmp_path / "a.png", 3)
    assert not recwarn.list


def test_channels_other_than_one_or_three_are_refused(make_image):
    with pytest.raises(InputError, match="in_chans is 4"):
        to_channels(make_image(), 4)


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"no such image file: nowhere/cat\.png"):
        load_image("nowhere/cat.png", 3)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        load_image(tmp_path, 3)


def bad_file(tmp_path: Path, image: Image.Image, kind: str) -> Path:
    path = tmp_path / f"bad.{'jpg' if kind == 'truncated jpeg' else 'png'}"
    image.save(path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"this is no image\n" * 9,
            "truncated png": content[: len(content) // 2],
            "truncated jpeg": content[: len(content) * 3 // 4],
            "cut in the header": content[:12],
            "damaged": content[:60] + b"\xff" * 40 + content[100:],
        }[kind]
    )
    return path


BAD_KINDS = ["empty", "text", "truncated png", "truncated jpeg", "cut in the header", "damaged"]


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_an_unreadable_file_is_named_in_one_line(tmp_path, make_image, kind):
    path = bad_file(tmp_path, make_image(size=(64, 64)), kind)
    with pytest.raises(InputError) as caught:
        load_image(path, 3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(str(path)) == 1


def test_truncated_images_are_not_loaded_as_if_whole():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_find_images_searches_folders_recursively_and_sorts(tmp_path, make_image):
    for name in ("b/2.png", "b/deep/1.JPG", "a/3.webp", ".hidden/4.png", "a/.5.png", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in find_images([tmp_path])]
    assert found == ["a/3.webp", "b/2.png", "b/deep/1.JPG"]


def test_files_that_are_no_images_are_counted_the_most_frequent_kind_first(tmp_path):
    for name in ("a.txt", "b.heic", "c.heic", "d.HEIC", "e", ".f"):
        (tmp_path / name).write_bytes(b"")
    assert count_by_extension(list_folder(tmp_path).other_files) == "3 .heic, 1 .txt, 1 hidden, 1 without extension"


def test_find_images_is_not_caught_by_a_link_to_a_folder_above(tmp_path, make_image):
    (tmp_path / "a").mkdir()
    make_image().save(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    assert find_images([tmp_path]) == [tmp_path / "a" / "0.png"]


def test_find_images_takes_named_files_as_they_are_and_once(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "odd").write_bytes(b"")
    assert find_images([tmp_path / "odd", str(tmp_path), tmp_path / "a.png"]) == [tmp_path / "odd", tmp_path / "a.png"]


def test_find_images_names_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match=r"no such file or folder: .*nothing"):
        find_images([tmp_path / "nothing"])


def test_find_images_names_a_folder_without_images(tmp_path):
    with pytest.raises(InputError, match=f"no images in folder {tmp_path}"):
        find_images([tmp_path])


def test_find_images_wants_at_least_one_path():
    with pytest.raises(InputError, match="no images given"):
        find_images([])

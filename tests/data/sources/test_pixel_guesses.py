"""What stored values, transparency and orientation mean is told or refused, never guessed in silence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imixer.data.config import DataConfig
from imixer.data.device.resident import load_resident
from imixer.data.sources.decoding import PixelFormat, UnreadableImage, decode_bytes, pixel_format, to_channels
from imixer.data.sources.folder import open_test_folder
from imixer.data.sources.image_files import load_image
from imixer.data.sources.open import open_dataset
from imixer.data.sources.statistics import dataset_statistics, usable_statistics
from imixer.errors import InputError

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
CLASSES, PER_CLASS, SIDE = ("a", "b"), 6, 4


def read(root, **settings):
    return open_dataset(DataConfig(name=str(root), **settings))


def write(root: Path, make, extension: str = "tif", **save) -> Path:
    """Class folders with images that `make(number)` gives."""
    for place, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            make(place * PER_CLASS + number).save(root / name / f"{number}.{extension}", **save)
    return root


def pixels(data) -> list[np.ndarray]:
    return [np.asarray(items[place][0]) for items in (data.train, data.val) for place in range(len(items))]


def told(data, words: str) -> bool:
    return any(words in note for note in data.notes)


def floats(low, high):
    """Images whose values run from low to high, in eight steps."""
    return lambda number: Image.fromarray(
        np.roll(np.linspace(low, high, SIDE * SIDE), number).reshape(SIDE, SIDE).astype(np.float32)
    )


@pytest.mark.parametrize("span", [(0, 1), (-1, 1), (0, 200), (0, 60_000), (-3.5, 2000.25)])
def test_float_images_use_all_bytes_whatever_their_range(tmp_path, span):
    data = read(write(tmp_path, floats(*span)))
    low, high = data.value_range
    assert low <= span[0] < span[1] <= high
    values = np.stack(pixels(data))
    assert (values.min() <= 2, values.max() >= 199) == (True, True)
    assert told(data, f"more than 8 bits: {low:g} and {high:g} become black and white")


def test_floats_from_0_to_1_are_bytes_divided_by_255(tmp_path):
    stored = RNG.integers(0, 256, (len(CLASSES) * PER_CLASS, SIDE, SIDE), dtype=np.uint8)
    data = read(write(tmp_path, lambda number: Image.fromarray(stored[number].astype(np.float32) / 255)))
    assert {each.tobytes() for each in pixels(data)} == {each.tobytes() for each in stored}


def test_floats_become_the_nearest_byte():
    image = Image.fromarray(np.array([[0.0, 0.15, 0.152, 1.0]], np.float32))
    assert np.asarray(to_channels(image, 1, PixelFormat((0.0, 1.0)))).tolist() == [[0, 38, 39, 255]]


@pytest.mark.parametrize(
    ("bits", "extension"), [(8, "png"), (10, "tif"), (12, "png"), (14, "tif"), (16, "png"), (16, "tif")]
)
def test_integers_keep_the_upper_8_bits_of_those_they_have(tmp_path, extension, bits):
    stored = RNG.integers(0, 2**bits, (len(CLASSES) * PER_CLASS, SIDE, SIDE)).astype(np.uint16)
    stored[:, 0, 0] = 2**bits - 1
    data = read(write(tmp_path, lambda number: Image.fromarray(stored[number]), extension))
    assert data.value_range == (0, 2**bits - 1)
    expected = (stored >> (bits - 8)).astype(np.uint8)
    assert {each.tobytes() for each in pixels(data)} == {each.tobytes() for each in expected}


@pytest.mark.parametrize("span", [(0, 1), (0, 10), (-3, 100), (5, 205), (0, 254), (0, 255), (0, 4095), (-1000, 3000)])
def test_the_ends_of_any_range_of_integers_become_black_and_white(span):
    image = Image.fromarray(np.array([[span[0] - 9, *span, span[1] + 9]], np.int32))
    assert np.asarray(to_channels(image, 1, PixelFormat(tuple(map(float, span))))).tolist() == [[0, 0, 255, 255]]


def test_negative_integers_run_from_the_smallest_to_the_largest(tmp_path):
    stored = RNG.integers(-1000, 3001, (len(CLASSES) * PER_CLASS, SIDE, SIDE)).astype(np.int32)
    stored[0, 0, :2] = -1000, 3000
    data = read(write(tmp_path, lambda number: Image.fromarray(stored[number])))
    assert data.value_range == (-1000, 3000)
    assert (np.stack(pixels(data)).min(), np.stack(pixels(data)).max()) == (0, 255)


def test_the_range_is_that_of_all_images_where_all_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("imixer.data.sources.statistics._SAMPLE", 2)
    root = write(tmp_path, lambda number: Image.fromarray(np.full((4, 4), 7 + number, np.uint16)))
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(root / "b" / "0.tif")
    assert read(root).value_range == (0, 4095)


def test_a_range_can_be_set_and_values_beyond_it_are_clipped(tmp_path):
    data = read(write(tmp_path, floats(-10, 10)), value_range=(0.0, 5.0))
    values = np.stack(pixels(data))
    assert ((values == 0).mean() >= 0.5, (values == 255).mean() >= 0.25) == (True, True)
    assert told(data, "0 and 5 become black and white, set")


def test_a_range_without_effect_is_refused(tmp_path, make_folder):
    with pytest.raises(InputError, match=r"data\.value_range is 0 and 15, but .* 8 bits"):
        read(make_folder(tmp_path, {"a": 5, "b": 5}), value_range=(0.0, 15.0))


def test_a_range_that_was_measured_before_is_kept_where_not_all_images_are_looked_at(
    tmp_path, make_folder, monkeypatch
):
    monkeypatch.setattr("imixer.data.sources.statistics._SAMPLE", 2)
    data = read(make_folder(tmp_path, {"a": 5, "b": 5}), value_range=(0.0, 4095.0), check="off")
    assert data.value_range == (0, 4095)


@pytest.mark.parametrize("value", [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_range_that_is_none_is_refused(value):
    with pytest.raises(InputError, match="give two finite numbers"):
        DataConfig(value_range=value)


def test_floats_among_integers_are_not_guessed(tmp_path):
    root = write(tmp_path, floats(0, 1))
    Image.fromarray(np.full((4, 4), 999, np.uint16)).save(root / "b" / "0.tif")
    with pytest.raises(InputError, match=r"some images hold floats and others integers.*value_range"):
        read(root)
    assert read(root, value_range=(0.0, 1.0)).value_range == (0.0, 1.0)


def test_images_of_8_bits_among_deeper_ones_stay_as_they_are(tmp_path, make_image):
    root = write(tmp_path, floats(0, 1))
    make_image(3, mode="L", size=(4, 4)).save(root / "b" / "0.tif")
    data = read(root)
    assert np.asarray(make_image(3, mode="L", size=(4, 4))).tobytes() in {each.tobytes() for each in pixels(data)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(tmp_path, value):
    root = write(tmp_path, floats(0, 1))
    bad = np.zeros((4, 4), np.float32)
    bad[0, 0] = value
    Image.fromarray(bad).save(root / "b" / "0.tif")
    with pytest.raises(InputError, match=r"b/0\.tif: it holds values that are not finite"):
        read(root)
    assert len(read(root, skip_bad=True).skipped) == 1


def test_both_pipelines_testing_and_prediction_read_alike(tmp_path):
    data = read(write(tmp_path, floats(0, 1)))
    trained = DataConfig(value_range=data.value_range)
    tested = open_test_folder(tmp_path, CLASSES, 1, trained).images
    resident, _ = load_resident(data, CPU)
    for place, path in enumerate(data.train.paths):
        stored = np.asarray(data.train[place][0])
        assert np.array_equal(resident.images[place, 0], stored)
        assert np.array_equal(tested[tested.paths.index(path)][0], stored)
        assert np.array_equal(load_image(path, 1, pixel_format(trained)), stored)


def test_a_model_of_8_bits_refuses_values_whose_range_nobody_knows(tmp_path):
    for number, image in enumerate((floats(0, 1)(0), floats(-1, 1)(0), floats(0, 999)(0))):
        image.save(tmp_path / f"{number}.tif")
        with pytest.raises(InputError, match=rf"{number}\.tif: its values run from .* convert it to 8 bits"):
            load_image(tmp_path / f"{number}.tif", 1)
    image = Image.fromarray(np.array([[70_000, -1]], np.int32))
    with pytest.raises(UnreadableImage, match="values run from -1 to 70000"):
        to_channels(image, 1)


def drawing(mode: str):
    """Strokes in black on a transparent ground; the bytes below the ground are black as well."""

    def make(number: int) -> Image.Image:
        alpha = np.zeros((SIDE, SIDE), np.uint8)
        alpha[number % SIDE, :] = 255
        alpha[:, number // SIDE] = 255
        zeros = [Image.new("L", (SIDE, SIDE))] * (len(mode) - 1)
        return Image.merge(mode, [*zeros, Image.fromarray(alpha)])

    return make


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_black_drawings_on_a_transparent_ground_lie_on_white(tmp_path, mode):
    data = read(write(tmp_path, drawing(mode), "png"))
    assert {int(value) for image in pixels(data) for value in np.unique(image)} == {0, 255}
    assert told(data, "are transparent in part and lie on white")
    assert data.mean[0] == pytest.approx(np.mean(pixels(data)[: len(data.train)]) / 255)


@pytest.mark.parametrize(("ground", "value"), [("white", 255), ("gray", 128), ("black", 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "palette", "key"])
def test_transparent_pixels_show_the_ground_in_every_way_to_store_them(ground, value, mode):
    stream = io.BytesIO()
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
        image.putpalette([10, 20, 30, 200, 200, 200])
        image.save(stream, "PNG", transparency=0)
    elif mode == "palette":
        image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
        image.putpalette([10, 20, 30, 200, 200, 200])
        image.save(stream, "GIF", transparency=0)
    elif mode == "key":
        Image.fromarray(np.array([[[1, 2, 3], [200, 200, 200]]], np.uint8)).save(stream, "PNG", transparency=(1, 2, 3))
    else:
        clear, solid = ((9, 0), (200, 255)) if mode == "LA" else ((9, 9, 9, 0), (200, 200, 200, 255))
        Image.fromarray(np.array([[clear, solid]], np.uint8), mode=None).save(stream, "PNG")
    stored = decode_bytes(stream.getvalue())
    for in_chans in (1, 3):
        seen = np.asarray(to_channels(stored, in_chans, pixel_format(DataConfig(background=ground))))
        assert np.array_equal(seen.reshape(2, -1), [[value] * in_chans, [200] * in_chans])


def test_half_transparent_pixels_are_blended():
    image = Image.fromarray(np.array([[[0, 0, 0, 128]]], np.uint8))
    assert np.asarray(to_channels(image, 1)).item() == pytest.approx(127, abs=1)


def test_opaque_images_are_what_they_were(make_image):
    for mode in ("RGBA", "LA", "P"):
        image = make_image().convert(mode)
        plain = image.convert("RGBA").convert("RGB")
        assert np.array_equal(to_channels(image, 3), plain), mode


def test_an_unknown_ground_is_refused():
    from imixer.cli import main

    assert main(["train", "--data.background", "green"]) == 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, orientation):
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255  # white at the upper left
    upright[8:, 16:] = 128  # gray at the lower right
    undo = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # numbers of Image.Transpose
    image = Image.fromarray(upright)
    stored = image if undo == 1 else image.transpose(turns[undo])
    exif = Image.Exif()
    exif[274] = orientation
    for extension in ("png", "jpg", "webp", "tif"):
        path = tmp_path / f"0.{extension}"
        stored.save(path, exif=exif, **({"lossless": True} if extension == "webp" else {}))
        for seen in (load_image(path, 1), decode_bytes(path.read_bytes()).convert("L")):
            assert seen.size == (24, 16), extension
            assert np.abs(np.asarray(seen).astype(int) - upright).mean() < 8, extension


def test_turned_images_are_counted_and_give_the_common_size(tmp_path, make_image):
    exif = Image.Exif()
    exif[274] = 6
    root = write(tmp_path, lambda number: make_image(number, size=(4, 8)), "png", exif=exif)
    data = read(root)
    assert data.native_size == (8, 4)
    assert told(data, "were turned upright as their EXIF orientation says")


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_is_ignored(tmp_path, make_image, value):
    exif = Image.Exif()
    exif[274] = value
    make_image().save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "a.png", 3), make_image())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored(tmp_path, make_image):
    make_image().save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x01")
    assert np.array_equal(load_image(tmp_path / "a.png", 3), make_image())


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_colour_models_are_read_as_rgb(mode, make_image):
    image = make_image().convert(mode)
    assert np.array_equal(to_channels(image, 3), image.convert("RGB"))


def test_a_colour_model_that_cannot_be_converted_is_named(tmp_path):
    root = write(tmp_path, lambda number: Image.fromarray(RNG.integers(0, 255, (4, 4, 3), dtype=np.uint8), "LAB"))
    with pytest.raises(InputError, match=r"a/0\.tif: its pixels are of mode LAB.* \(and 11 more"):
        read(root)


def test_two_tones_become_black_and_white(tmp_path):
    data = read(write(tmp_path, lambda number: Image.fromarray(np.arange(16).reshape(4, 4) % (number + 2) == 0), "png"))
    assert {int(value) for image in pixels(data) for value in np.unique(image)} == {0, 255}


def png_16_bit_rgb(values: np.ndarray) -> bytes:
    """A PNG with three channels of 16 bits, which Pillow reads and does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [12, 16])
def test_colours_of_16_bits_are_told_and_refused_where_they_would_be_black(tmp_path, bits):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for number in range(PER_CLASS):
            values = RNG.integers(0, 2**bits, (4, 4, 3))
            (tmp_path / name / f"{number}.png").write_bytes(png_16_bit_rgb(values))
    if bits == 12:
        with pytest.raises(InputError, match=r"16-bit colours, .* reach only 15 of 255; convert them to 8 bits"):
            read(tmp_path)
    else:
        assert told(read(tmp_path), "have 16-bit colours, of which the upper 8 bits are used")


@pytest.mark.parametrize("extension", ["tif", "gif", "webp", "png"])
def test_files_with_several_frames_are_told(tmp_path, make_image, extension):
    frames = [make_image(number, mode="L") for number in range(3)]
    root = write(tmp_path, lambda number: make_image(number + 9, mode="L"), extension)
    for name in CLASSES:
        for number in range(PER_CLASS):
            frames[0].save(root / name / f"{number}.{extension}", save_all=True, append_images=frames[1:])
        make_image(99, mode="L").save(root / name / f"0.{extension}")
    assert told(read(root), "hold several frames, of which the first is used")


def test_images_of_one_colour_stop_with_the_reason(tmp_path, make_folder):
    root = write(tmp_path / "black", lambda number: Image.new("RGB", (4, 4)), "png")
    with pytest.raises(InputError, match=r"all 9 sampled images of .*black are of one colour, black; look") as caught:
        read(root)
    assert "\n" not in str(caught.value)
    root = write(tmp_path / "red", lambda number: Image.new("RGB", (4, 4), (200, 0, 0)), "png")
    with pytest.raises(InputError, match=r"of one colour, RGB \(200, 0, 0\)"):
        read(root)


def test_white_drawings_on_a_transparent_ground_are_sent_to_black(tmp_path):
    def make(number):
        image = drawing("LA")(number)
        return Image.merge("LA", [Image.new("L", image.size, 255), image.getchannel("A")])

    root = write(tmp_path, make, "png")
    with pytest.raises(InputError, match=r"of one colour, white; they are transparent: pass --data.background black"):
        read(root)
    assert len(read(root, background="black").train) == 9


def test_a_range_that_hides_everything_is_named(tmp_path):
    with pytest.raises(InputError, match=r"of one colour, black; black and white are 5 and 6: pass --data.value_range"):
        read(write(tmp_path, floats(0, 1)), value_range=(5.0, 6.0))


def test_the_same_picture_everywhere_stops(tmp_path, make_image):
    with pytest.raises(InputError, match="are the same picture"):
        read(write(tmp_path, lambda number: make_image(1), "png"))


def test_some_images_of_a_single_colour_are_counted(tmp_path, make_image):
    root = write(tmp_path, lambda number: Image.new("L", (4, 4), 20 * number), "png")
    assert told(read(root), "are of a single colour each")


def test_gray_among_colour_and_gray_alone_are_told(tmp_path, make_folder, make_image):
    root = make_folder(tmp_path / "gray", {"a": 5, "b": 5}, mode="L")
    assert told(read(root), "1 channel, as all 8 looked at are gray")
    make_image(1).save(root / "a" / "000.png")
    make_image(2).save(root / "b" / "000.png")
    make_image(2).save(root / "b" / "001.png")
    assert told(read(root, split_seed=1), "are in colour; the gray ones have three equal channels")


def test_measuring_alone_refuses_nothing():
    statistics = dataset_statistics(lambda number: Image.new("L", (4, 4), 7), 3)
    assert "of one colour, 7 of 255" in statistics.problem
    with pytest.raises(InputError, match="of one colour"):
        usable_statistics(lambda number: Image.new("L", (4, 4), 7), 3, DataConfig(), "it")


def test_without_a_format_8_bits_are_what_they_are(make_image):
    assert np.array_equal(to_channels(make_image(), 3, PixelFormat((0.0, 1.0))), make_image())

"""Images with masks are found in folders, parquet files and torchvision's layouts, and what does not fit is named."""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision import datasets

from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import IGNORED
from imixer.data.sources.decoding import CUT, UnreadableImage
from imixer.data.sources.masks import MaskCoding, background_class, default_palette, overlay
from imixer.data.sources.open_masked import open_masked, relocated_masks
from imixer.errors import InputError

DRAW = np.random.default_rng(0)


def picture(size=(12, 10)):
    return Image.fromarray(DRAW.integers(0, 255, (*size, 3), dtype=np.uint8))


def mask(values, size=(12, 10)):
    return Image.fromarray(DRAW.choice(np.array(values, np.uint8), size))


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def folder(root, images=6, values=(0, 1, 2)):
    for number in range(images):
        save(root / "images" / f"{number}.jpg", picture())
        save(root / "masks" / f"{number}.png", mask(values))
    return root


def opened(root, skip_bad=False, patch=None, **masks):
    return open_masked(DataConfig(name=str(root), skip_bad=skip_bad), MaskConfig(**masks), patch)


def shard(path, rows=5, values=(0, 1, 2), **columns):
    """Write columns of encoded images as Hugging Face does, by name: a function that makes a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {name: [make() if callable(make) else make for _ in range(rows)] for name, make in columns.items()}
    table = {
        name: [{"bytes": encoded(each), "path": None} if isinstance(each, Image.Image) else each for each in made]
        for name, made in data.items()
    }
    pq.write_table(pa.table(table), path)


def a_mask():
    return mask((0, 1, 2))


@pytest.mark.parametrize(
    ("image", "target"),
    [
        ("image", "label"),
        ("image", "annotation"),
        ("pixel_values", "label"),
        ("image", "semantic_segmentation"),
        ("img", "segmentation_map"),
        ("image", "what"),
        ("what", "mask"),
    ],
)
def test_two_columns_of_images_are_told_apart_by_the_usual_names(image, target, tmp_path):
    shard(tmp_path / "data" / "train-0.parquet", **{image: picture, target: a_mask, "id": 3, "label_text": "x"})
    shard(tmp_path / "data" / "validation-0.parquet", 3, **{image: picture, target: a_mask})
    data = opened(tmp_path)
    assert (len(data.train), len(data.val), data.split, data.class_names) == (5, 3, "validation", ("0", "1", "2"))
    assert f"images from column {image}, masks from column {target}" in data.notes
    stored = pq.read_table(tmp_path / "data" / "validation-0.parquet").column(target)[2].as_py()["bytes"]
    assert np.array_equal(data.val[2][1], np.asarray(Image.open(io.BytesIO(stored))))


def test_a_single_split_of_parquet_is_split_and_columns_are_taken_as_named(tmp_path):
    shard(tmp_path / "a.parquet", 10, image=picture, mask=picture, label=a_mask)
    with pytest.raises(InputError, match=r"columns image, mask, label .* which holds masks; pass --masks.mask_column"):
        opened(tmp_path)
    data = opened(tmp_path, mask_column="label")
    assert (len(data.train), len(data.val)) == (8, 2) and data.sources[1] == "20% of them"


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"a": picture, "b": picture}, {}, r"columns a, b .* which holds images; pass --masks.image_column"),
        ({"image": picture, "label": 3}, {}, r"1 columns of encoded images \(image\).* its columns are image, label"),
        ({"image": picture, "label": a_mask}, {"mask_column": "labels"}, "masks.mask_column is labels, which is not"),
        ({"image": picture, "mask": a_mask, "n": 3}, {"mask_column": "n"}, "is n, which holds no encoded images"),
    ],
)
def test_columns_that_are_not_clear_are_refused_with_the_option(columns, options, said, tmp_path):
    shard(tmp_path / "a.parquet", **columns)
    with pytest.raises(InputError, match=said):
        opened(tmp_path, **options)


def test_rows_that_do_not_fit_are_named_by_number_and_counted(tmp_path):
    image, target = [encoded(picture()) for _ in range(8)], [encoded(a_mask()) for _ in range(8)]
    image[2], target[4], target[5] = None, None, encoded(mask((0, 1), (3, 3)))
    pq.write_table(pa.table({"image": image, "mask": target}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet row 2: the row has no image bytes \(and 2 more like it\)"):
        opened(tmp_path)
    assert opened(tmp_path, skip_bad=True).skipped == ("a.parquet row 2", "a.parquet row 4", "a.parquet row 5")


def test_a_column_of_another_kind_in_a_later_shard_and_shards_without_rows_are_refused(tmp_path):
    shard(tmp_path / "train-0.parquet", image=picture, mask=a_mask)
    shard(tmp_path / "train-1.parquet", image=picture, mask=3)
    with pytest.raises(InputError, match=r"train-1.parquet has no usable column mask"):
        opened(tmp_path)
    (tmp_path / "train-1.parquet").unlink()
    shard(tmp_path / "test-0.parquet", 0, image=picture, mask=a_mask)
    with pytest.raises(InputError, match=r"has no usable column|has no rows"):
        opened(tmp_path)


def voc(root, year="2012", border=True):
    """Make a VOC as torchvision unpacks it."""
    inside = root / "TrainVal" / "VOCdevkit" if year == "2011" else root / "VOCdevkit"
    base = inside / f"VOC{year}"
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, names in {"train": ["a_1", "a_2", "a_3"], "val": ["b_1", "b_2"]}.items():
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            save(base / "JPEGImages" / f"{name}.jpg", picture())
            indices = mask((0, 7, 20, 255) if border else (0, 7)).convert("P")
            indices.putpalette(DRAW.integers(0, 255, 768, dtype=np.uint8).tobytes())
            save(base / "SegmentationClass" / f"{name}.png", indices)
    save(base / "JPEGImages" / "unused.jpg", picture())
    return root


@pytest.mark.parametrize(("name", "year"), [("voc", "2012"), ("voc2011", "2011"), ("voc2007", "2007")])
def test_voc_is_read_as_torchvision_reads_it_with_its_classes_and_its_border_ignored(name, year, tmp_path):
    data = open_masked(DataConfig(name=name, root=str(voc(tmp_path, year))), MaskConfig())
    assert len(data.class_names) == 21 and data.class_names[15] == "person" and data.split == "val"
    for ours, split in ((data.train, "train"), (data.val, "val")):
        theirs = datasets.VOCSegmentation(str(tmp_path), year=year, image_set=split, download=False)
        assert len(ours) == len(theirs)
        for place in range(len(ours)):
            image, target = ours[place]
            assert np.array_equal(np.asarray(image), np.asarray(theirs[place][0]))
            assert np.array_equal(target, np.asarray(theirs[place][1])) and IGNORED in target


def pets(root):
    """Make Oxford's pets as torchvision unpacks them."""
    base = root / "oxford-iiit-pet"
    for split, names in {"trainval": ["Abyssinian_1", "beagle_2", "pug_3"], "test": ["pug_4"]}.items():
        lines = "".join(f"{name} {number} 1 1\n" for number, name in enumerate(names, 1))
        (base / "annotations").mkdir(parents=True, exist_ok=True)
        (base / "annotations" / f"{split}.txt").write_text(lines)
        for name in names:
            save(base / "images" / f"{name}.jpg", picture())
            save(base / "annotations" / "trimaps" / f"{name}.png", mask((1, 2, 3)))
    (base / "annotations" / "trimaps" / "._pug_4.png").write_bytes(b"of a Mac")
    return root


def test_oxford_pets_are_read_as_torchvision_reads_them_and_trimaps_count_from_0(tmp_path):
    data = open_masked(DataConfig(name="oxford_pets", root=str(pets(tmp_path))), MaskConfig())
    assert data.class_names == ("pet", "background", "border") and (len(data.train), len(data.val)) == (3, 1)
    for ours, split in ((data.train, "trainval"), (data.val, "test")):
        theirs = datasets.OxfordIIITPet(str(tmp_path), split=split, target_types="segmentation", download=False)
        for place in range(len(ours)):
            image, target = ours[place]
            assert np.array_equal(np.asarray(image), np.asarray(theirs[place][0]))
            assert np.array_equal(target + 1, np.asarray(theirs[place][1]))


@pytest.mark.parametrize(("name", "make"), [("voc", voc), ("oxford_pets", pets)])
def test_a_set_that_is_absent_or_incomplete_or_contradicted_says_what_to_do(name, make, tmp_path):
    def refused(said, **config):
        with pytest.raises(InputError, match=said):
            open_masked(DataConfig(name=name, root=str(tmp_path), **config), MaskConfig())

    refused(f"{name} is not in {tmp_path}: there is no folder .*; put torchvision's files there, or name its folder by")
    make(tmp_path)
    refused("data.download is true", download=True)
    with pytest.raises(InputError, match=r"masks.classes is given, and"):
        open_masked(DataConfig(name=name, root=str(tmp_path)), MaskConfig(classes=["a", "b"]))
    gone = sorted(path for path in tmp_path.rglob("*.png") if not path.name.startswith("."))[0]
    gone.unlink()
    refused(rf"{gone.stem}.jpg of \w+.txt has no mask .*{gone.name}")
    data = open_masked(DataConfig(name=name, root=str(tmp_path), skip_bad=True), MaskConfig())
    assert len(data.skipped) == 1 and gone.stem in data.skipped[0]
    next(iter(sorted(tmp_path.rglob("t*.txt")))).unlink()
    refused(f"{name} is incomplete: there is no")


def test_a_named_set_moves_by_its_root_and_a_folder_by_itself():
    assert relocated_masks(DataConfig(name="voc", root="old"), "new") == DataConfig(name="voc", root="new")
    assert relocated_masks(DataConfig(name="old"), "new") == DataConfig(name="new")
    with pytest.raises(InputError, match=r"'vocs' is no data set with masks, did you mean|'vocs' is no data set"):
        open_masked(DataConfig(name="vocs"), MaskConfig())


def test_ade_like_folders_and_an_ignored_zero(tmp_path):
    for split, count in (("training", 4), ("validation", 2)):
        for number in range(count):
            save(tmp_path / "images" / split / f"ADE_{split}_{number}.jpg", picture())
            save(tmp_path / "annotations" / split / f"ADE_{split}_{number}.png", mask((0, 1, 150)))
    data = opened(tmp_path)
    assert (len(data.train), len(data.val), len(data.class_names)) == (4, 2, 151)
    data = opened(tmp_path, values=list(range(1, 151)), ignore_index=0)
    assert len(data.class_names) == 150 and set(np.unique(data.train[0][1])) == {0, 149, IGNORED}


def test_values_are_classes_in_their_order_and_win_over_the_ignored_index():
    coding = MaskCoding(3, values=(255, 0, 700))
    stored = Image.fromarray(np.array([[0, 255, 700]], np.uint16))
    assert coding.decode(stored).tolist() == [[1, 0, 2]]
    with pytest.raises(UnreadableImage, match=r"has the value 9, and masks.values are 255, 0, 700, and 255 is ignored"):
        coding.decode(Image.fromarray(np.array([[0, 9]], np.uint8)))
    assert MaskCoding(2, ignored=9, values=(0, 4)).decode(Image.fromarray(np.array([[4, 9]], np.uint8))).tolist() == [
        [1, IGNORED]
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"values": [1]}, "masks.values is"),
        ({"values": [1, 1]}, "masks.values is"),
        ({"values": [0, -1]}, "masks.values is"),
        ({"values": [0, 1], "classes": ["a", "b", "c"]}, "2 indices and masks.classes 3 names"),
        ({"values": [0, 1], "palette": {"a": "#000000", "b": "#ffffff"}}, "masks.values and masks.palette"),
        ({"image_column": "a", "mask_column": "a"}, "both a; give two columns"),
    ],
)
def test_settings_of_masks_that_contradict_each_other_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        MaskConfig(**options)


def test_every_way_to_store_indices_gives_the_same_classes():
    values = DRAW.integers(0, 3, (5, 4), dtype=np.uint8)
    gray = Image.fromarray(values)
    indexed = gray.convert("P")
    opaque = Image.merge("LA", (gray, Image.new("L", gray.size, 255)))
    stored = [
        gray,
        indexed,
        Image.fromarray(values.astype(np.uint16)),
        Image.fromarray(values.astype(np.int32)),
        opaque,
    ]
    stored += [gray.convert("RGB"), opaque.convert("RGBA"), indexed.convert("PA")]
    for each in stored:
        assert np.array_equal(MaskCoding(3).decode(each), np.asarray(indexed if each.mode[0] == "P" else gray)), (
            each.mode
        )
    assert MaskCoding(2).decode(Image.fromarray(values > 1)).tolist() == (values > 1).tolist()


def with_info(image, **info):
    image.info |= info
    return image


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: picture(), "stores colours, and nothing says which class each is"),
        (lambda: Image.merge("RGB", (mask([0]), mask([0]), mask([9]))), "stores colours"),
        (lambda: picture().convert("CMYK"), "stores colours"),
        (lambda: picture().convert("HSV"), "stores colours"),
        (lambda: Image.fromarray(np.full((3, 3), 300, np.uint16)), "has the value 300, and classes are 0 to 2"),
        (lambda: Image.fromarray(np.full((3, 3), -1, np.int32)), "has the value -1"),
        (lambda: Image.fromarray(np.ones((3, 3), np.float32)), "holds fractions"),
        (lambda: Image.merge("LA", (mask([0, 1]), mask([0, 255]))), "transparent pixels"),
        (lambda: Image.merge("RGBA", (*[mask([1])] * 3, mask([0]))), "transparent pixels"),
        (lambda: with_info(mask([0]), **{CUT: True}), "colours of 16 bits"),
        (lambda: with_info(mask([0]), imixer_frames=3), "holds 3 frames"),
    ],
)
def test_a_mask_that_says_no_exact_classes_is_named(make, said):
    with pytest.raises(UnreadableImage, match=said):
        MaskCoding(3).decode(make())


@pytest.mark.parametrize("named", [True, False])
def test_masks_of_one_class_and_ignored_pixels_are_refused_however_many_names_there_are(named, tmp_path):
    root = folder(tmp_path, values=(1, 255))
    options = {"classes": ["background", "object"]} if named else {}
    with pytest.raises(InputError, match=r'only one class; .* as 255, which is ignored, pass .*"\[1, 255\]"'):
        opened(root, **options)
    assert len(opened(root, values=[1, 255], **options).class_names) == 2
    blue_on_black = {"ground": "#000000", "sky": "#0000ff"}
    with pytest.raises(InputError, match=r"have only one class in the images to train on"):
        opened(folder(tmp_path / "black", values=(0,)), palette=blue_on_black)


def test_a_test_set_may_have_one_class_but_not_0_and_255(tmp_path):
    def held_out(values):
        root = folder(tmp_path / f"{values}", values=values)
        return open_masked(DataConfig(name=str(root)), MaskConfig(classes=["a", "b"]), whole=True)

    assert "no pixel of the test masks is of b" in held_out((0,)).notes
    assert "no pixel of the test masks is of a" in held_out((1, 255)).notes
    with pytest.raises(InputError, match=r"hold 0 and 255 alone, and 255 is ignored; store the indices that the run"):
        held_out((0, 255))


def test_classes_without_pixels_and_the_share_of_ignored_ones_are_told(tmp_path):
    root = folder(tmp_path, values=(0, 2))
    save(root / "masks" / "0.png", Image.fromarray(np.tile(np.array([0, 2, 255, 255], np.uint8), (12, 3))[:, :10]))
    names = ["a", "b", "c"]
    data = open_masked(DataConfig(name=str(root), val_fraction=0.01, split_seed=1), MaskConfig(classes=names))
    share = f"{sum((mask == IGNORED).sum() for _, mask in data.train) / (len(data.train) * 120):.2%}"
    assert data.notes[:2] == (
        "no pixel of the training masks is of b",
        f"{share} of the pixels of the training masks are 255, and count for nothing",
    )
    assert not any("pixels of the" in note for note in opened(folder(tmp_path / "whole"), classes=names).notes)


def test_colours_of_no_class_are_counted_and_the_first_is_named(tmp_path):
    root = folder(tmp_path)
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8)
    for file in (root / "masks").iterdir():
        save(file, Image.fromarray(colours[np.asarray(Image.open(file))]))
    data = opened(root, palette={"ground": "#000000", "road": "#ff0000"})
    share = np.mean([mask == IGNORED for _, mask in data.train])
    told = f"{share:.2%} of the pixels of the training masks have colours of no class, first #0000ff, and count for"
    assert share > 0.2 and data.notes[0].startswith(told)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mask((0, 1)), "is gray with the value 1, which is an index and no colour of masks.palette; leave"),
        (lambda: Image.merge("LA", (mask((0, 1)), mask((255,)))), "is gray with the value 1"),
        (lambda: Image.fromarray(np.ones((3, 3), np.uint16)), "stores numbers of more than 8 bits, and no colours"),
        (lambda: Image.fromarray(np.ones((3, 3), np.int32)), "stores numbers of more than 8 bits, and no colours"),
    ],
)
def test_a_mask_of_indices_beside_a_palette_is_named(make, said):
    coding = MaskCoding(2, ((0, 0, 0), (128, 64, 128)))
    with pytest.raises(UnreadableImage, match=said):
        coding.decode(make())
    gray = MaskCoding(2, ((0, 0, 0), (255, 255, 255)))
    assert gray.decode(Image.fromarray(np.array([[0, 255, 9]], np.uint8))).tolist() == [[0, 1, IGNORED]]


@pytest.mark.parametrize(
    ("names", "palette", "bare"),
    [
        (("pet", "background", "border"), None, 1),
        (("road", "sky"), None, None),
        (("road", "sky"), ((128, 64, 128), (0, 0, 255)), None),
        (("ground", "sky"), ((0, 0, 0), (0, 0, 255)), 0),
        (("Background", "sky"), ((9, 9, 9), (0, 0, 255)), 0),
        (("0", "1", "2"), None, 0),
    ],
)
def test_an_overlay_leaves_the_background_bare_and_draws_every_other_class(names, palette, bare):
    palette = palette or default_palette(names)
    assert background_class(names, palette) == bare and len(set(palette)) == len(names)
    classes = np.array([[*range(len(names)), IGNORED]], np.uint8)
    image = Image.new("RGB", classes.shape[::-1], (40, 90, 60))
    drawn = np.asarray(overlay(image, classes, palette, bare))[0]
    same = [number for number, pixel in enumerate(drawn) if tuple(pixel) == (40, 90, 60)]
    assert same == [*([] if bare is None else [bare]), len(names)]


def lossy(root):
    (root / "masks" / "3.png").unlink()
    save(root / "masks" / "3.jpg", mask([0, 1]))
    return "3.jpg: its mask is a JPEG"


def for_no_image(root):
    save(root / "masks" / "other.png", mask([0, 1]))
    return "mask .*other.png has no image in"


def two_masks(root):
    save(root / "masks" / "3.tif", mask([0, 1]))
    return "mask .*3.tif has the name of 3.png"


def two_images(root):
    save(root / "images" / "3.png", picture())
    return "image .*3.png has the mask of 3.jpg, 3.png"


def all_ignored(root):
    save(root / "masks" / "3.png", mask([255]))
    return "3.jpg: its mask has no pixel that counts, all are ignored"


def sixteen_bits(root):
    save(root / "masks" / "3.png", Image.fromarray(np.full((12, 10), 4000, np.uint16)))
    return "3.jpg: its mask has the value 4000"


def see_through(root):
    save(root / "masks" / "3.png", Image.merge("LA", (mask([0, 1]), mask([0, 255]))))
    return "3.jpg: its mask has transparent pixels"


@pytest.mark.parametrize("spoil", [lossy, for_no_image, two_masks, two_images, all_ignored, sixteen_bits, see_through])
def test_what_does_not_fit_in_a_folder_is_named_and_skip_bad_counts_it(spoil, tmp_path):
    said = spoil(folder(tmp_path))
    with pytest.raises(InputError, match=said):
        opened(tmp_path)
    data = opened(tmp_path, skip_bad=True)
    assert len(data.skipped) == 1 and len(data.train) + len(data.val) >= 5


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (["images/a.png"], "has no folder masks/, it holds images; put images and masks there"),
        (["masks/a.png"], "has no folder images/, it holds masks"),
        (["train/images/a.png"], "train has no folder masks/"),
        (["images/train/a.png", "images/val/a.png", "masks/train/a.png"], "no folder for the masks of .*val"),
        (["a.png"], "has no folder images/, it holds no folder"),
    ],
)
def test_a_folder_without_one_of_both_says_what_it_holds(layout, said, tmp_path):
    for path in layout:
        save(tmp_path / path, picture())
    with pytest.raises(InputError, match=said):
        opened(tmp_path)


def parts(root, *names, images=3):
    """Put images and masks into folders of a folder, or of its `images` and `masks`."""
    for name in names:
        for number in range(images):
            image, target = (
                (f"{name}/images", f"{name}/masks")
                if "*" not in name
                else (
                    name.replace("*", "images"),
                    name.replace("*", "masks"),
                )
            )
            save(root / image / f"{number}.jpg", picture())
            save(root / target / f"{number}.png", a_mask())
    return root


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train", "training", "test"], "train and training in .* are both called like a training part; keep one"),
        (["train", "val", "valid"], "val and valid in .* are both called like a validation part"),
        (["train", "test", "Testing"], "Testing and test in .* are both called like a test part"),
        (["*/train", "*/training"], "train and training in .*images are both called like a training part"),
        (
            ["*", "valid"],
            "valid is called like a part, and lies beside a folder of images; put the others into .*train",
        ),
        (["val", "test"], "holds val, test, but no train folder"),
        (["*/val", "*/test"], "images holds val, test, but no train folder"),
    ],
)
def test_folders_whose_split_is_uncertain_are_refused(names, said, tmp_path):
    with pytest.raises(InputError, match=said):
        opened(parts(tmp_path, *names))


@pytest.mark.parametrize(
    ("names", "counts", "split", "left_out"),
    [
        (["train", "val", "test", "extra"], (3, 3), "val", ("extra/ (3 images)", "test/ (3 images)")),
        (["train", "val", "test", "testing"], (3, 3), "val", ("test/ (3 images)", "testing/ (3 images)")),
        (["train", "test"], (3, 3), "test", ()),
        (["Train", "Validation"], (3, 3), "Validation", ()),
        (["train", "*"], (2, 1), None, ("images/ (3 images)", "masks/ (3 images)")),
        (["*", "extra"], (2, 1), None, ("extra/ (3 images)",)),
        (["*/train", "*/validation"], (3, 3), "validation", ()),
        (
            ["*/train", "*/val", "*/test"],
            (3, 3),
            "val",
            ("images/test/ (3 images)", "masks/test/ (3 images)"),
        ),
        (
            ["*/train", "*"],
            (2, 1),
            None,
            ("3 images in images, outside of train/", "3 images in masks, outside of train/"),
        ),
    ],
)
def test_what_belongs_to_no_split_is_named_and_the_split_is_called_as_its_folder(
    names, counts, split, left_out, tmp_path
):
    data = opened(parts(tmp_path, *names))
    assert ((len(data.train), len(data.val)), data.split, data.left_out) == (counts, split, left_out)


def test_files_beside_the_images_are_named_but_that_of_the_classes(tmp_path):
    root = parts(tmp_path, "train", "val")
    for file in ("classes.txt", "README.md", "train/notes.txt", "train/images/9.heic"):
        (root / file).write_text("a\nb\nc\n")
    assert opened(root).left_out == (f"1 .md in {root.name}", "1 .txt in train", "1 .heic in train/images/")


def test_classes_txt_names_the_values_of_masks_and_has_as_many(tmp_path):
    folder(tmp_path, values=(0, 255))
    (tmp_path / "classes.txt").write_text("background\nobject\n")
    assert opened(tmp_path, values=[0, 255]).class_names == ("background", "object")
    assert opened(tmp_path, values=[0, 255], classes=["a", "b"]).class_names == ("a", "b")
    (tmp_path / "classes.txt").write_text("background\nobject\nother\n")
    with pytest.raises(InputError, match=r"names 3 classes, and masks\.values has 2"):
        opened(tmp_path, values=[0, 255])


def test_an_image_in_a_folder_of_its_own_is_told_which_mask_it_lacks(tmp_path):
    folder(tmp_path)
    save(tmp_path / "images" / "a" / "1.jpg", picture())
    with pytest.raises(InputError, match=r"has no mask a/1\.png in "):
        opened(tmp_path)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_gray_mask_of_few_bits_is_named(tmp_path, bits):
    folder(tmp_path)
    rows = b"".join(b"\0" + bytes(-(-10 * bits // 8)) for _ in range(12))
    header = struct.pack(">IIBBBBB", 10, 12, bits, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        png += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    (tmp_path / "masks" / "0.png").write_bytes(png)
    with pytest.raises(InputError, match="grays of 2 or 4 bits"):
        opened(tmp_path)


def test_an_image_below_the_patch_of_the_model_that_is_meant_is_counted(tmp_path):
    folder(tmp_path)
    save(tmp_path / "images" / "3.jpg", picture((3, 30)))
    save(tmp_path / "masks" / "3.png", mask([0, 1], (3, 30)))
    with pytest.raises(InputError, match=r"3.jpg has 3x30 pixels, less than the model's patch of 4x4"):
        opened(tmp_path, patch=lambda native: 4 if native is None else 99)
    assert opened(tmp_path, skip_bad=True, patch=lambda native: 4).skipped == ("images/3.jpg",)


def test_columns_are_refused_where_there_is_no_parquet(tmp_path):
    with pytest.raises(InputError, match=r"masks.mask_column is of parquet files, and .* has none"):
        opened(folder(tmp_path), mask_column="label")

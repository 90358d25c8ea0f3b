"""What a folder's names mean is told or refused, never guessed in silence."""

from __future__ import annotations

import os
import shutil

import pytest

from imixer.data.config import DataConfig
from imixer.data.sources.folder import open_test_folder
from imixer.data.sources.open import open_dataset
from imixer.data.sources.splitting import split_role, split_words
from imixer.errors import InputError

TRAIN = [
    "train",
    "Train",
    "TRAIN",
    "training",
    "Training",
    "train_images",
    "images-train",
    "TrainSet",
    "trainset",
    "train2017",
]
VAL = ["val", "Valid", "validation", "VALIDATION_SET", "dev", "val images", "valData", "development"]
TEST = ["test", "Testing", "TEST", "test_set", "tests", "testset", "eval", "holdout", "hold-out", "HeldOut", "held_out"]


def read(root, **settings):
    return open_dataset(DataConfig(name=str(root), **settings))


def counts(data):
    return len(data.train), len(data.val)


def refused(root, match, **settings):
    with pytest.raises(InputError, match=match) as caught:
        read(root, **settings)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize(("names", "role"), [(TRAIN, "train"), (VAL, "val"), (TEST, "test")])
def test_the_usual_words_for_a_part_are_known_in_any_case(names, role):
    for name in names:
        assert split_role(name) == role, name


@pytest.mark.parametrize(
    "name",
    ["cat", "train_station", "test_tube", "contest", "latest", "trainer", "tester", "evaluator", "device", "validator"],
)
def test_a_word_that_only_contains_one_is_no_part(name):
    assert split_role(name) is None


def test_other_words_remain():
    assert split_words("asl-alphabet_TestImages01") == ({"test": "test"}, ("asl", "alphabet"))


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("Training", "Testing"),
        ("train", "valid"),
        ("TRAIN", "VAL"),
        ("train_images", "test_images"),
        ("trainset", "holdout"),
        ("seg_train", "seg_test"),
        ("asl alphabet train", "asl alphabet dev"),
    ],
)
def test_folders_called_like_parts_are_parts(tmp_path, make_folder, train, held_out):
    make_folder(tmp_path / train, {"a": 3, "b": 4})
    make_folder(tmp_path / held_out, {"a": 2, "b": 1})
    data = read(tmp_path)
    assert (counts(data), data.class_names, data.sources) == ((7, 3), ("a", "b"), (f"{train}/", f"{held_out}/"))


def test_unused_folders_and_files_are_named(tmp_path, make_folder, make_image):
    for part, count in (("Train", 3), ("valid", 2), ("Test", 5)):
        make_folder(tmp_path / part, {"a": count, "b": count})
    make_folder(tmp_path / "extra", {"a": 1})
    make_image().save(tmp_path / "overview.png")
    make_image().save(tmp_path / "Train" / "loose.png")
    (tmp_path / "labels.csv").write_text("")
    (tmp_path / "Train" / "a" / "1.heic").write_text("")
    (tmp_path / "Train" / "b" / "2.HEIC").write_text("")
    (tmp_path / "__MACOSX").mkdir()
    data = read(tmp_path)
    assert counts(data) == (6, 4)
    assert set(data.left_out) == {
        "Test/ (10 images)",
        "extra/ (1 image)",
        "__MACOSX/",
        f"1 image in {tmp_path.name}, outside of the class folders",
        f"1 .csv in {tmp_path.name}",
        "1 image in Train, outside of the class folders",
        "2 .heic in the class folders of Train",
    }


def test_a_test_part_without_class_folders_is_left_out_and_named(tmp_path, make_folder, make_image):
    make_folder(tmp_path / "train", {"a": 10, "b": 10})
    (tmp_path / "test").mkdir()
    make_image().save(tmp_path / "test" / "0.png")
    data = read(tmp_path)
    assert (counts(data), data.left_out) == ((16, 4), ("test/ (1 image)",))
    assert data.sources == ("train/", "20% of each class of them, by data.split_seed 0")


@pytest.mark.parametrize("depth", [1, 3])
def test_folders_one_level_down_are_found_and_told(tmp_path, make_folder, depth):
    root = tmp_path / "PetImages"
    inner = root.joinpath(*["deep"] * depth)
    make_folder(inner / "Train", {"a": 3, "b": 3})
    make_folder(inner / "Test", {"a": 1, "b": 1})
    (root / "__MACOSX").mkdir()
    data = read(root)
    place = "/".join(["deep"] * depth)
    assert (data.name, counts(data), data.sources) == ("PetImages", (6, 2), (f"{place}/Train/", f"{place}/Test/"))
    assert f"the class folders are those of {place}/" in data.notes
    assert "__MACOSX/" in data.left_out


def test_class_folders_one_level_down_are_found_and_told(tmp_path, make_folder):
    make_folder(tmp_path / "PetImages", {"Cat": 5, "Dog": 5})
    data = read(tmp_path)
    assert data.class_names == ("Cat", "Dog")
    assert "the class folders are those of PetImages/" in data.notes


def test_a_part_inside_a_folder_of_its_own_name_is_found(tmp_path, make_folder):
    for part in ("seg_train", "seg_test"):
        make_folder(tmp_path / part / part, {"a": 3, "b": 3})
    data = read(tmp_path)
    assert data.sources == ("seg_train/seg_train/", "seg_test/seg_test/")


@pytest.mark.parametrize("other", ["Testing", "val", "dev", "holdout", "training"])
def test_a_folder_called_like_a_part_is_no_class_among_others(tmp_path, make_folder, other):
    make_folder(tmp_path, {"cat": 5, "dog": 5, other: 5})
    refused(tmp_path, f"{other}.*(rename|move)")


def test_train_among_vehicles_is_a_class_and_that_is_told(tmp_path, make_folder):
    data = read(make_folder(tmp_path, {"bus": 5, "train": 5}))
    assert data.class_names == ("bus", "train")
    assert any(note.startswith("train is taken for a class") for note in data.notes)


def test_parts_without_class_folders_are_no_classes(tmp_path, make_folder):
    make_folder(tmp_path, {"train": 5, "test": 5})
    refused(tmp_path, "train holds images but no class folders; put the images of each class in a folder")


def test_a_training_part_beside_folders_of_images_is_not_guessed(tmp_path, make_folder):
    make_folder(tmp_path, {"bus": 5})
    make_folder(tmp_path / "train", {"steam": 5, "electric": 5})
    refused(tmp_path, "are these classes, or is train the training part")


def test_a_held_out_part_alone_is_refused(tmp_path, make_folder):
    make_folder(tmp_path / "test", {"a": 3, "b": 3})
    make_folder(tmp_path / "val", {"a": 3, "b": 3})
    refused(tmp_path, "but no train folder")


def test_a_held_out_part_beside_classes_is_refused(tmp_path, make_folder):
    make_folder(tmp_path, {"cat": 5, "dog": 5})
    make_folder(tmp_path / "val", {"cat": 2, "dog": 2})
    refused(tmp_path, "val is called like a validation part.*cat, dog.*train")


@pytest.mark.parametrize("names", [("train", "Training"), ("val", "dev"), ("test", "holdout")])
def test_two_folders_for_the_same_purpose_are_refused(tmp_path, make_folder, names):
    for name in {"train", *names}:
        make_folder(tmp_path / name, {"a": 3, "b": 3})
    refused(tmp_path, "both called like")


def test_parts_inside_classes_are_not_mixed(tmp_path, make_folder):
    for name in ("cat", "dog"):
        make_folder(tmp_path / name, {"Train": 4, "Test": 2})
    refused(tmp_path, "cat would be a class, but holds folders that are called like parts: Test, Train")


def test_names_of_class_and_part_at_once_are_refused(tmp_path, make_folder):
    make_folder(tmp_path, {"cat_train": 4, "cat_test": 2, "dog_train": 4, "dog_test": 2})
    refused(tmp_path, "classes and parts at once, such as cat_test and cat_train")


def test_folders_inside_class_folders_are_told(tmp_path, make_folder):
    make_folder(tmp_path / "animal", {"cat": 4, "dog": 4})
    make_folder(tmp_path / "vehicle", {"car": 4, "train": 4})
    data = read(tmp_path)
    assert data.class_names == ("animal", "vehicle")
    assert any("animal/cat, animal/dog, vehicle/car, vehicle/train" in note for note in data.notes)


def test_classes_that_all_hold_the_same_folders_may_be_parts_in_other_words(tmp_path, make_folder):
    for name in ("gallery", "query"):
        make_folder(tmp_path / name, {"cat": 4, "dog": 4})
    (note,) = [note for note in read(tmp_path).notes if "inside class folders" in note]
    assert note.endswith("All hold cat, dog: if these are the classes, call the others train and val")


def test_a_class_of_other_files_says_what_they_are(tmp_path, make_folder):
    make_folder(tmp_path, {"a": 3, "b": 3, "c": 0})
    for number in range(3):
        (tmp_path / "c" / f"{number}.heic").write_text("")
    refused(tmp_path, r"c holds no images; it holds 3 \.heic, of which none .*\.png")


def test_a_class_that_differs_in_case_between_parts_is_shown(tmp_path, make_folder):
    make_folder(tmp_path / "train", {"Cat": 3, "dog": 3})
    make_folder(tmp_path / "val", {"cat": 3, "dog": 3})
    refused(tmp_path, "class 'Cat' is in .*train but not in .*val, where there is 'cat'")


@pytest.mark.parametrize("twin", ["CAT", "cat ", "ｃａｔ"])
def test_classes_that_differ_in_case_or_spaces_only_are_refused(tmp_path, make_folder, twin):
    make_folder(tmp_path, {"cat": 5, twin: 5})
    refused(tmp_path, "differ in case or spaces only")


def test_accents_in_two_encodings_are_one_class(tmp_path, make_folder):
    make_folder(tmp_path, {"caf\u00e9": 5, "cafe\u0301": 5})
    refused(tmp_path, "differ in case or spaces only")


def test_single_letters_in_both_cases_are_classes_and_told(tmp_path, make_folder):
    data = read(make_folder(tmp_path, {"a": 5, "A": 5, "b": 5}))
    assert data.class_names == ("A", "a", "b")
    assert "classes that differ in case only: A, a" in data.notes


def test_a_class_name_that_is_no_text_is_refused(tmp_path, make_folder):
    make_folder(tmp_path, {"a": 5, "b": 5})
    os.rename(tmp_path / "b", os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    refused(tmp_path, "not named in UTF-8")


@pytest.mark.parametrize("target", ["..", "../a"])
def test_a_class_that_is_a_link_to_others_is_refused(tmp_path, make_folder, target):
    make_folder(tmp_path / "pets", {"a": 5, "b": 5})
    (tmp_path / "pets" / "c").symlink_to(tmp_path / "pets" / "x" / target, target_is_directory=True)
    (tmp_path / "pets" / "x").mkdir()
    shutil.copy(tmp_path / "pets" / "a" / "000.png", tmp_path / "pets" / "x" / "0.png")
    refused(tmp_path / "pets", "share .*, by a link")


def test_a_link_inside_a_class_does_not_bring_other_classes_in(tmp_path, make_folder):
    make_folder(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "round").symlink_to(tmp_path, target_is_directory=True)
    refused(tmp_path, "class 'a' and class 'b' .* share")


def test_a_link_to_itself_does_no_harm(tmp_path, make_folder):
    make_folder(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "round").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "nowhere").symlink_to("nowhere")
    assert counts(read(tmp_path)) == (8, 2)


@pytest.mark.parametrize("source", ["a", "held"])
def test_an_image_that_links_share_between_classes_or_parts_is_refused(tmp_path, make_folder, source):
    make_folder(tmp_path / "train", {"a": 3, "b": 3})
    make_folder(tmp_path / "val", {"a": 3, "b": 3})
    link = tmp_path / ("train/b" if source == "a" else "val/a") / "link.png"
    link.symlink_to(tmp_path / "train" / "a" / "000.png")
    refused(tmp_path, "share .*000.png, by a link")


def test_a_link_to_nothing_is_named(tmp_path, make_folder):
    make_folder(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    refused(tmp_path, r"gone\.png: it is a link to nothing")


def test_a_test_folder_says_what_it_leaves_out_and_which_class_is_meant(tmp_path, make_folder):
    make_folder(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "readme.md").write_text("")
    (tmp_path / "__MACOSX").mkdir()
    images, skipped, left_out, _ = open_test_folder(tmp_path, ("cat", "dog", "emu"), 3, DataConfig())
    assert (len(images), skipped, left_out) == (4, (), ("__MACOSX/", f"1 .md in {tmp_path.name}"))
    with pytest.raises(InputError, match="class folder 'cat', which the model does not know; it knows 'Cat'"):
        open_test_folder(tmp_path, ("Cat", "dog"), 3, DataConfig())

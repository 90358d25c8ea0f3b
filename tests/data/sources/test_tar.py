"""Tar shards of images and labels: by an index, in memory and streamed, and what is wrong with them in one line."""

import gzip
import io
import json
import tarfile

import fsspec
import numpy as np
import pytest

from imixer.data.config import DataConfig
from imixer.data.sources.open import open_dataset
from imixer.data.sources.tar_index import load_index
from imixer.errors import InputError


def png(make_image, number):
    stream = io.BytesIO()
    make_image(number).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def samples(make_image):
    """Members of the samples from a number on: images, with a text of each label."""

    def make(count, first=0, label="cls", suffix="png"):
        members = []
        for number in range(first, first + count):
            text = json.dumps({"width": 8, "label": number % 2}) if label == "json" else str(number % 2)
            members += [(f"{number:04}.{suffix}", png(make_image, number)), (f"{number:04}.{label}", text.encode())]
        return members

    return make


def write_tar(file, members, **form):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", **form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def opened(folder, tmp_path, streaming="never", **settings):
    cache = {"cache_dir": str(tmp_path / "cache"), "cache_gb": 6e-6}
    return open_dataset(DataConfig(name=str(folder), streaming=streaming, **cache | settings))


@pytest.mark.parametrize("label", ["cls", "json"])
@pytest.mark.parametrize("form", [{}, {"format": tarfile.GNU_FORMAT}, {"format": tarfile.PAX_FORMAT}])
def test_images_and_labels_are_those_that_were_written(tmp_path, samples, make_image, label, form):
    members = samples(40, label=label)
    members.insert(6, ("a/very/long/" + "name/" * 40 + "note.txt", b"not an image"))
    write_tar(tmp_path / "pets/train-0.tar", members, **form)
    write_tar(tmp_path / "pets/val-0.tar", samples(10, 100, label, "PNG"), **form)
    data = opened(tmp_path / "pets", tmp_path)
    assert (len(data.train), len(data.val), data.class_names, data.name) == (40, 10, ("0", "1"), "pets")
    for part, first in ((data.train, 0), (data.val, 100)):
        for number in range(len(part)):
            image, truth = part[number]
            assert np.array_equal(image, make_image(first + number)) and truth == number % 2
    assert any("json" in note for note in data.notes) == (label == "json")


def test_streamed_samples_and_their_split_are_those_from_memory_without_a_copy_of_them(tmp_path, samples):
    for shard in range(3):
        write_tar(tmp_path / f"pets/{shard}.tar", samples(16, 16 * shard))
    held, streamed = (opened(tmp_path / "pets", tmp_path, streaming) for streaming in ("never", "always"))
    for one, other in ((held.train, streamed.train), (held.val, streamed.val)):
        assert len(one) == len(other)
        assert all(np.array_equal(one[i][0], other[i][0]) and one[i][1] == other[i][1] for i in range(len(one)))
    assert held.windows is None and len(streamed.windows.sizes) > 3
    assert not list((tmp_path / "cache").rglob("*.images")) and len(list((tmp_path / "cache").rglob("*.index"))) == 3


def test_an_index_is_built_once_and_again_where_it_is_damaged_or_the_file_is_another(tmp_path, samples, monkeypatch):
    file = write_tar(tmp_path / "pets.tar", samples(4))
    index = load_index(file, tmp_path / "indices")
    built = []
    monkeypatch.setattr(
        "imixer.data.sources.tar_index._build",
        lambda *args, build=load_index.__globals__["_build"]: built.append(1) or build(*args),
    )
    assert load_index(file, tmp_path / "indices") == index and not built
    (kept,) = (tmp_path / "indices").glob("*.index")
    for damage in ("", "{}", kept.read_text()[:-40], '{"form": 0}', "[]"):
        kept.write_text(damage)
        assert load_index(file, tmp_path / "indices") == index
    assert len(built) == 5
    write_tar(file, samples(6))
    assert len(load_index(file, tmp_path / "indices").keys) == 6


def test_text_labels_name_the_classes_and_numbers_among_them_are_texts(tmp_path, samples):
    words = {b"0": b"cat\n", b"1": b" 12 "}
    for shard in range(2):
        members = [(name, words.get(content, content)) for name, content in samples(20, 20 * shard)]
        write_tar(tmp_path / f"pets/{shard}.tar", members)
    assert opened(tmp_path / "pets", tmp_path).class_names == ("12", "cat")


def test_members_that_the_tools_of_webdataset_leave_are_no_samples(tmp_path, samples):
    extra = [("._0000.png", b"x"), (".hidden", b"x"), ("README", b"x"), ("0003.seg.png", b"x"), ("0003.txt", b"a cat")]
    write_tar(tmp_path / "pets/all.tar", samples(4)[:8] + extra + samples(30, 4))
    data = opened(tmp_path / "pets", tmp_path)
    assert len(data.train) + len(data.val) == 34
    assert "members that are no image and no label are not read: 5 of all.tar" in data.notes


def test_a_sample_without_an_image_is_skipped_only_if_asked_to(tmp_path, samples):
    members = [member for member in samples(40) if member[0] != "0005.png"]
    write_tar(tmp_path / "pets/all.tar", members)
    for streaming in ("always", "never"):
        with pytest.raises(InputError, match=r"0005 of .*all\.tar.*no image"):
            opened(tmp_path / "pets", tmp_path, streaming)
        assert len(opened(tmp_path / "pets", tmp_path, streaming, skip_bad=True).skipped) == 1


def changed(members, name, content):
    return [(n, content if n == name else c) for n, c in members if n != name or content is not None]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda m: changed(m, "0003.cls", None), ["0003.png has no label", "write 0003.cls"]),
        (lambda m: changed(m, "0003.cls", b""), ["0003.cls holds nothing", "write a class"]),
        (lambda m: changed(m, "0003.cls", b"\xff\xfe"), ["0003.cls holds no text", "write a class"]),
        (lambda m: [*m, ("0000.png", b"x")], ["0000 in two places", "one after another"]),
        (lambda m: [*m, ("0039.jpg", b"x")], ["two images of one key", "0039.png", "0039.jpg"]),
        (lambda m: [(n.replace("png", "txt"), c) for n, c in m], ["holds no image beside a label"]),
        (lambda m: [(f"cat/{n}", c) for n, c in m if "png" in n], ["no label beside it", "unpack class folders"]),
        (lambda m: changed(m, "0003.cls", b"-1"), ["label -1", "below 0"]),
        (lambda m: changed(m, "0003.cls", b"1" * 2_000_000), ["0003.cls has 2,000,000 bytes", "too many for a label"]),
    ],
)
def test_samples_that_cannot_be_used_are_named_with_what_to_do(tmp_path, samples, change, parts):
    write_tar(tmp_path / "pets/all.tar", change(samples(40)))
    with pytest.raises(InputError) as raised:
        opened(tmp_path / "pets", tmp_path)
    text = str(raised.value)
    assert "\n" not in text and "all.tar" in text and all(part in text for part in parts), text


def test_a_link_makes_no_shard_a_part_of_both_splits(tmp_path, samples):
    write_tar(tmp_path / "pets/train.tar", samples(20))
    (tmp_path / "pets/val.tar").symlink_to("train.tar")
    with pytest.raises(InputError, match=r"train.tar and .*val.tar are one file, by a link"):
        opened(tmp_path / "pets", tmp_path)


@pytest.mark.parametrize(
    ("json_text", "part"),
    [
        (b"[1]", "is no JSON object"),
        (b"{", "is no JSON object"),
        (b'{"caption": "x"}', "no field for the class (its fields: caption)"),
        (b'{"label": null}', "null as label, which is no class"),
        (b'{"label": [1]}', "[1] as label, which is no class"),
        (b'{"label": 0.5}', "0.5 as label, which is no class"),
        (b'{"label": %d}' % 10**30, "as label, which is no class"),
        (b'{"label": 1e300}', "as label, which is no class"),
    ],
)
def test_json_without_a_class_is_named(tmp_path, samples, json_text, part):
    write_tar(tmp_path / "pets/all.tar", changed(samples(40, label="json"), "0000.json", json_text))
    with pytest.raises(InputError) as raised:
        opened(tmp_path / "pets", tmp_path)
    assert part in str(raised.value) and "all.tar" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("harm", "part"),
    [
        (lambda text: b"", "is empty"),
        (lambda text: b"<html>not here</html>" * 100, "cannot read tar file"),
        (lambda text: gzip.compress(text), "compressed by gzip"),
        (lambda text: text[:700], "ends in the middle of 0000.png"),
        (lambda text: text[: 512 * 41], "ends"),
        (lambda text: text[: text.rstrip(b"\0").rindex(b"ustar") - 257], "without the mark of its end"),
        (lambda text: text[:2048] + b"\xff" * 512 + text[2560:], "is damaged behind byte 2,048"),
        (lambda text: text + text, "several files in one"),
    ],
)
@pytest.mark.parametrize("streaming", ["always", "never"])
def test_files_that_are_no_whole_tar_files_are_named_with_what_to_do(tmp_path, samples, harm, part, streaming):
    file = write_tar(tmp_path / "pets/all.tar", samples(40))
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(InputError) as raised:
        opened(tmp_path / "pets", tmp_path, streaming)
    text = str(raised.value)
    assert part in text and "all.tar" in text and "\n" not in text, text


def test_a_tar_file_that_changes_while_it_is_read_is_named(tmp_path, samples):
    file = write_tar(tmp_path / "pets/all.tar", samples(40))
    data = opened(tmp_path / "pets", tmp_path, "always")
    write_tar(file, samples(40, 40))
    with pytest.raises(InputError, match=r"all\.tar was replaced"):
        data.train[0]


def test_a_tar_file_beside_folders_of_images_is_left_out(tmp_path, samples, make_folder):
    make_folder(tmp_path / "pets", {"cat": 10, "dog": 10})
    write_tar(tmp_path / "pets/all.tar", samples(4))
    data = opened(tmp_path / "pets", tmp_path)
    assert data.class_names == ("cat", "dog") and any("tar" in each for each in data.left_out)


@pytest.mark.parametrize("other", ["train-1", "val-0"])
@pytest.mark.parametrize("streaming", ["never", "always"])
def test_files_with_labels_in_different_places_are_refused_and_named(tmp_path, make_image, other, streaming):
    """Each file alone is unmistakable; together, half of the labels would mean something else."""
    for file, of_first in (("train-0", {"label": 0}), (other, {"class_id": 1})):
        members = []
        for number in range(20):
            fields = {"label": number % 2, "class_id": 1 - number % 2} if number else of_first
            members += [(f"{number}.png", png(make_image, number)), (f"{number}.json", json.dumps(fields).encode())]
        write_tar(tmp_path / f"pets/{file}.tar", members)
    with pytest.raises(InputError) as raised:
        opened(tmp_path / "pets", tmp_path, streaming)
    said = str(raised.value)
    assert "train-0.tar has labels in label of" in said and f"{other}.tar in class_id of" in said, said


def test_labels_in_cls_beside_labels_in_json_are_refused(tmp_path, samples):
    for shard, label in enumerate(("cls", "json")):
        write_tar(tmp_path / f"pets/{shard}.tar", samples(20, 20 * shard, label))
    with pytest.raises(InputError, match=r"0\.tar has labels in member cls, and .*1\.tar in label of member json"):
        opened(tmp_path / "pets", tmp_path)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("name", ["0001.png", "0001.cls"])
def test_an_image_or_label_that_is_a_link_is_named_with_what_to_do(tmp_path, samples, kind, name):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, "elsewhere"
        archive.addfile(link)
    with pytest.raises(InputError, match=rf"{name} is a link, .*--dereference"):
        load_index(tmp_path / "a.tar", folder=None)


@pytest.mark.parametrize("sizes", [(6e-6, 1.2e-5), (1.2e-5, 6e-6)])
def test_runs_with_caches_of_other_sizes_share_a_folder_and_read_their_own_images(tmp_path, samples, sizes):
    write_tar(tmp_path / "shards" / "train.tar", samples(60))
    place = fsspec.filesystem("memory")
    place.put(str(tmp_path / "shards"), "/shared", recursive=True)
    held = open_dataset(DataConfig(name=str(tmp_path / "shards"), streaming="never"))
    try:
        for size in sizes:
            config = DataConfig(name="memory://shared", cache_gb=size, cache_dir=str(tmp_path / "cache"))
            streamed = open_dataset(config)
            for one, other in ((streamed.train, held.train), (streamed.val, held.val)):
                assert all(np.array_equal(one[i][0], other[i][0]) for i in range(len(other)))
    finally:
        place.rm("/shared", recursive=True)

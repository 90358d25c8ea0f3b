"""Files are whole or as they were before, whatever goes wrong while they are written."""

import csv
import io

import pytest
from matplotlib.figure import Figure

from imixer.errors import InputError
from imixer.plotting import save_figure
from imixer.writing import (
    check_output_file,
    check_output_folder,
    csv_text,
    make_folder,
    moved_into_place,
    replacing,
    write_csv,
)


def fail_halfway(write, file):
    with write(file) as temporary:
        temporary.write_text("half")
        raise OSError("the disk is full")


@pytest.mark.parametrize("write", [replacing, moved_into_place])
def test_a_file_is_replaced_when_the_new_one_is_whole_and_not_before(tmp_path, write):
    file = tmp_path / "a.txt"
    file.write_text("before")
    with write(file) as temporary:
        temporary.write_text("after")
        assert file.read_text() == "before"
    assert file.read_text() == "after"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("write", [replacing, moved_into_place])
def test_if_anything_goes_wrong_the_old_file_stays_and_no_other(tmp_path, write):
    file = tmp_path / "a.txt"
    file.write_text("before")
    with pytest.raises(OSError, match="full"):
        fail_halfway(write, file)
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_files_beside_it_are_moved_too_and_the_name_is_kept_meanwhile(tmp_path):
    with moved_into_place(tmp_path / "model.onnx") as temporary:
        assert temporary.name == "model.onnx"
        temporary.write_text("graph")
        temporary.with_name("model.onnx.data").write_text("weights")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "model.onnx": "graph",
        "model.onnx.data": "weights",
    }


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_a_figure_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch, suffix):
    file = tmp_path / f"a{suffix}"
    save_figure(Figure(), file, dpi=20)
    before = file.read_bytes()
    assert before.startswith({".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix])

    def half(self, path, **options):
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="full"):
        save_figure(Figure(), file, dpi=20)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_a_table_reads_back_and_without_rows_there_is_nothing(tmp_path):
    rows = [{"name": "cat, or dog", "value": -0.5}, {"name": None, "value": "nan"}]
    write_csv(tmp_path / "a.csv", rows)
    text = (tmp_path / "a.csv").read_text()
    assert list(csv.reader(io.StringIO(text))) == [["name", "value"], ["cat, or dog", "-0.5"], ["", "nan"]]
    write_csv(tmp_path / "a.csv", [])
    assert (tmp_path / "a.csv").read_text() == ""
    assert csv_text([], [["=1+1", 2]]) == "'=1+1,2\n"


@pytest.mark.parametrize("write", [replacing, moved_into_place])
@pytest.mark.parametrize("place", ["nowhere/a.txt", "file/a.txt", "folder", "a.txt"])
def test_an_error_of_the_system_names_what_was_to_be_written_and_no_temporary_file(tmp_path, write, place):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()

    def fail():
        with write(tmp_path / place) as temporary:
            return temporary.write_text("whole") if place != "a.txt" else temporary.read_bytes()

    with pytest.raises(OSError, match="Errno") as raised:
        fail()
    assert raised.value.filename == str(tmp_path / place) and ".writing" not in str(raised.value)


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    for write in (replacing, moved_into_place):
        with write(tmp_path / ("ü" * 127 + "n")) as temporary:
            temporary.write_text("whole")
    assert [len(file.name) for file in tmp_path.iterdir()] == [128]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("folder", "is a folder"),
        ("file", "exists, and nothing is overwritten"),
        ("link", "exists, and nothing is overwritten"),
        ("nowhere/a.txt", "cannot be written, there is no folder"),
        ("file/a.txt", "cannot be written, there is no folder"),
        ("link/a.txt", "cannot be written, there is no folder"),
        ("n" * 300, "cannot be written, File name too long"),
        ("a\0b", "cannot be written"),
    ],
)
def test_where_no_file_can_be_written_is_told_beforehand(tmp_path, place, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(InputError, match=f"^out: .*{said}"):
        check_output_file(tmp_path / place, "out")


def test_what_can_be_written_is_not_refused_and_nothing_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    check_output_file(tmp_path / "new", "out")
    check_output_file(tmp_path / "file", "out", replace=True)
    check_output_folder(tmp_path / "a" / "b", "out")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    for place in ("file", "file/deeper"):
        with pytest.raises(InputError, match=r"^out: .* cannot be made, .*file is a file"):
            check_output_folder(tmp_path / place, "out")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    for check, place in ((check_output_file, "new"), (check_output_folder, "a")):
        with pytest.raises(InputError, match=r"^out: nothing can be written to"):
            check(tmp_path / place, "out")


def test_two_writers_of_one_folder_leave_the_first_whole_folder(tmp_path):
    def fill(folder):
        (folder / "a.txt").write_text("first half")
        make_folder(tmp_path / "model", lambda other: (other / "a.txt").write_text("the other writer's"))
        (folder / "b.txt").write_text("second half")

    make_folder(tmp_path / "model", fill)
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]
    assert {file.name: file.read_text() for file in (tmp_path / "model").iterdir()} == {"a.txt": "the other writer's"}


def test_a_folder_may_have_a_name_of_255_bytes(tmp_path):
    make_folder(tmp_path / ("m" * 255), lambda folder: (folder / "a.txt").touch())
    assert [file.name for file in tmp_path.rglob("*")] == ["m" * 255, "a.txt"]


def test_of_a_folder_that_fails_nothing_is_left(tmp_path):
    with pytest.raises(ZeroDivisionError):
        make_folder(tmp_path / "model", lambda folder: 1 / 0)
    assert list(tmp_path.iterdir()) == []

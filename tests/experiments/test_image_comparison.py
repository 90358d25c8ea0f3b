"""Runs beside each other on the same images: the counts, what may be said of them, and images that are others."""

import csv
import json
import math
import shutil

import pytest

from imixer.cli import main
from imixer.errors import InputError
from imixer.experiments.image_comparison import ImageScores, _difference, compare_on_images


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """Draw nothing: no test here looks at a picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imixer.training.evaluate.drawn", lambda path, draw: True)
        yield


@pytest.fixture(scope="module")
def unevaluated_runs(run, train_quick, tmp_path_factory):
    """Two runs on the digits, the second trained for longer."""
    folder = tmp_path_factory.mktemp("compare")
    shutil.copytree(run, folder / "short")
    train_quick(folder / "long", "--epochs", "12", "--seed", "1")
    return folder


@pytest.fixture(scope="module")
def runs(unevaluated_runs, tmp_path_factory):
    """The same, evaluated."""
    folder = tmp_path_factory.mktemp("compare") / "runs"
    shutil.copytree(unevaluated_runs, folder)
    for name in ("short", "long"):
        assert main(["evaluate", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def spoilt_runs(runs, tmp_path_factory):
    """Copies of the first run that cannot be compared with it."""
    folder = tmp_path_factory.mktemp("compare") / "runs"
    shutil.copytree(runs, folder)
    for name in ("fewer", "relabelled", "damaged", "empty"):
        shutil.copytree(folder / "short", folder / name)
    left_out = iter([None])
    rewrite(folder / "fewer", lambda row: next(left_out, row))
    rewrite(folder / "relabelled", lambda row: row | {"true_class": str(9 - int(row["true_class"]))})
    rewrite(folder / "damaged", lambda row: row | {"correct": "perhaps"})
    (folder / "empty/predictions.csv").write_text("image,correct\n")
    return folder


@pytest.fixture
def here(runs, tmp_path, monkeypatch):
    shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def right(run, file="predictions.csv"):
    with (run / file).open(newline="") as opened:
        return {row["image"]: row["correct"] == "1" for row in csv.DictReader(opened)}


def rewrite(run, change, scores=None):
    """Change the predictions of a run by hand."""
    with (run / "predictions.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    rows = [row for row in map(change, rows) if row]
    with (run / "predictions.csv").open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_runs_that_are_not_evaluated_are_and_the_counts_are_those_of_their_predictions(
    unevaluated_runs, tmp_path, monkeypatch, capsys
):
    here = tmp_path / "runs"
    shutil.copytree(unevaluated_runs, here)
    monkeypatch.chdir(here)
    assert main(["compare", "short", "long", "--out", "images.csv"]) == 0
    shown = capsys.readouterr().out
    short, long = right(here / "short"), right(here / "long")
    better = sum(long[name] and not short[name] for name in short)
    worse = sum(short[name] and not long[name] for name in short)
    n, difference = len(short), (better - worse) / len(short)
    half = 1.9666 * math.sqrt(((better + worse) / n - difference**2) / (n - 1))  # t of 359 degrees of freedom
    (line,) = (line.split() for line in shown.splitlines() if line.split()[:1] == ["long"])
    assert line[1:5] == [f"{100 * sum(long.values()) / n:.2f}", "%", f"{better}", f"{worse}"]
    low, high = (float(word.strip("[],")) for word in line[6:8])
    assert (low, high) == pytest.approx((100 * (difference - half), 100 * (difference + half)), abs=0.01)
    assert line[8:] == ["<", "0.001", "larger"]
    assert f"{n} images of digits" in shown and "nothing of other seeds" in " ".join(shown.split())
    with open("images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["image"]: (row["short"], row["long"]) for row in rows} == {
        name: (str(int(short[name])), str(int(long[name]))) for name in short
    }
    differ = [row["short"] != row["long"] for row in rows]
    assert differ == sorted(differ, reverse=True) and sum(differ) == better + worse


def test_what_has_been_evaluated_is_read_and_several_runs_are_corrected_for(here):
    for name in ("same", "worse"):
        shutil.copytree("short", name)
    flipped = iter([True] * 30)
    rewrite(here / "worse", lambda row: row | {"correct": "0"} if row["correct"] == "1" and next(flipped, 0) else row)
    alone = compare_on_images(["short", "worse"]).others[0].judgement
    same, worse = compare_on_images(["short", "same", "worse"]).others
    assert (same.better, same.worse, same.judgement.verdict, same.judgement.p) == (0, 0, "undecided", None)
    assert (worse.better, worse.worse, worse.judgement.verdict) == (0, 30, "smaller")
    assert worse.judgement.p == alone.p  # a comparison without a test is not corrected for
    shutil.copytree("worse", "again")
    twice = compare_on_images(["short", "again", "worse"]).others
    assert [each.judgement.p for each in twice] == [pytest.approx(2 * alone.p)] * 2


def test_nothing_is_said_where_hardly_an_image_differs(here):
    shutil.copytree("short", "near")
    flipped = iter([True] * 9)
    rewrite(here / "near", lambda row: row | {"correct": "0"} if row["correct"] == "1" and next(flipped, 0) else row)
    (near,) = compare_on_images(["short", "near"]).others
    assert (near.worse, near.judgement.verdict, near.judgement.p) == (9, "undecided", None)


def test_another_order_or_another_way_to_the_folder_makes_no_other_images(here, tmp_path):
    shutil.copytree("short", "moved")
    images = [tmp_path / "images" / f"{number}.png" for number in range(len(right(here / "short")))]
    images[0].parent.mkdir()
    for image in images:
        image.touch()
    (tmp_path / "link").symlink_to("images")
    for name, folder in (("short", "images"), ("moved", "link")):
        order = iter(images)
        rewrite(here / name, lambda row, o=order, f=folder: row | {"image": str(tmp_path / f / next(o).name)})
    text = (here / "moved/predictions.csv").read_text().splitlines()
    (here / "moved/predictions.csv").write_text("\n".join([text[0], *text[:0:-1]]) + "\n")
    (moved,) = compare_on_images(["short", "moved"]).others
    assert (moved.better, moved.worse) == (0, 0)


def test_rows_of_shards_are_told_apart_by_their_numbers_and_found_by_any_way_to_them(here, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/a.parquet").touch()
    (tmp_path / "link").symlink_to("shards")
    for name, folder, first in (("moved", "link", 0), ("other", "shards", 1)):
        shutil.copytree("short", name)
        numbers = iter(range(first, 10**6))
        rewrite(
            here / name, lambda row, n=numbers, f=folder: row | {"image": f"{tmp_path}/{f}/a.parquet row {next(n)}"}
        )
    numbers = iter(range(10**6))
    rewrite(here / "short", lambda row: row | {"image": f"{tmp_path}/shards/a.parquet row {next(numbers)}"})
    (moved,) = compare_on_images(["short", "moved"]).others
    assert (moved.better, moved.worse) == (0, 0)
    with pytest.raises(InputError, match="of which 359 are the same"):
        compare_on_images(["short", "other"])


def test_all_right_beside_all_wrong_is_decided_by_a_sign_test(here):
    shutil.copytree("short", "bad")
    for name, correct in (("short", "1"), ("bad", "0")):
        kept = iter([True] * 10)
        rewrite(here / name, lambda row, c=correct, k=kept: row | {"correct": c} if next(k, False) else None)
    (bad,) = compare_on_images(["short", "bad"]).others
    assert (bad.worse, bad.judgement.verdict) == (10, "smaller")
    assert bad.judgement.p == pytest.approx(2**-9) and bad.judgement.comparison.interval is None  # McNemar's, exact


def test_a_test_set_that_is_gone_is_looked_for_anew(here, capsys):
    from PIL import Image

    for digit in range(10):
        (here / "gone" / str(digit)).mkdir(parents=True)
        Image.new("L", (8, 8), 20 * digit).save(here / "gone" / str(digit) / "a.png")
    assert main(["compare", "short", "long", "--test", "gone"]) == 0
    shutil.rmtree("gone")
    capsys.readouterr()
    assert main(["compare", "short", "long", "--test", "gone"]) == 2
    assert "no folder" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("here")
def test_other_data_are_looked_at_where_they_are_given(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "imixer.experiments.image_comparison.evaluate", lambda path, **words: asked.append(words["data"])
    )
    compare_on_images(["short", "long"], data="elsewhere")
    assert asked == ["elsewhere"] * 2


def test_a_class_whose_name_a_spreadsheet_would_compute_keeps_it(here):
    rewrite(here / "short", lambda row: row | {"true_class": "'-foo"})
    shutil.copytree(here / "short", here / "other")
    compared = compare_on_images(["short", "other"])
    assert set(compared.first.true_classes.values()) == {"-foo"}
    compared.write(here / "images.csv")
    assert "''-foo" not in (here / "images.csv").read_text()


def test_the_test_set_of_a_comparison_is_the_one_that_is_asked_for(here):
    from PIL import Image

    for folder in ("one", "two"):
        for digit in range(10):
            (here / folder / str(digit)).mkdir(parents=True)
            Image.new("L", (8, 8), 20 * digit).save(here / folder / str(digit) / f"{folder}.png")
    assert main(["evaluate", "short", "--test", "one"]) == 0
    assert main(["compare", "short", "long", "--test", "two"]) == 0
    evaluated = [json.loads((here / name / "test_evaluation.json").read_text())["data"] for name in ("short", "long")]
    assert evaluated == ["two", "two"]
    Image.new("L", (8, 8), 7).save(here / "two/0/more.png")
    assert len(compare_on_images(["short", "long"], test="two").first.scores) == 11
    (here / "two/0/more.png").rename(here / "two/1/more.png")
    assert compare_on_images(["short", "long"], test="two").first.true_classes[str(here / "two/1/more.png")] == "1"
    before = (here / "short/test_predictions.csv").stat().st_mtime_ns
    compare_on_images(["short", "long"], test="two")
    assert (here / "short/test_predictions.csv").stat().st_mtime_ns == before  # read, where nothing has changed


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["short"], ["two runs or more", "there is 1"]),
        (["short", "nowhere"], ["nowhere"]),
        (["short", "long", "--margin", "0"], ["margin is 0"]),
        (["short", "long", "--test", "x", "--data", "y"], ["data is given", "leave out one of it and --test"]),
        (["short", "long", "--out", "short"], ["out: short is a folder"]),
        (["short", "long", "--test", "nowhere"], ["nowhere"]),
        (["short", "fewer"], ["360 images", "359", "359 are the same", "--test"]),
        (["short", "relabelled"], ["is of class", "others"]),
        (["short", "damaged"], ["damaged/predictions.csv is damaged", "imixer evaluate"]),
        (["short", "empty"], ["empty/predictions.csv", "imixer evaluate"]),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(spoilt_runs, monkeypatch, capsys, words, parts):
    monkeypatch.chdir(spoilt_runs)
    assert main(["compare", *words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("imixer: ") and all(part in line for part in parts), line


def test_what_files_round_away_is_no_difference_on_every_image():
    names = [str(number) for number in range(40)]
    one = ImageScores("one", "scenes", "mIoU of an image", dict.fromkeys(names, 0.5), {})
    shifts = {name: 0.5 + 1e-6 * (1 + number % 2) for number, name in enumerate(names)}
    assert _difference(one, ImageScores("two", "scenes", "mIoU of an image", shifts, {})).p is None
    same = dict.fromkeys(names, 0.75)
    assert _difference(one, ImageScores("two", "scenes", "mIoU of an image", same, {})).p < 1e-9

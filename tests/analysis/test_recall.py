"""Recalling images: what is stored, how it is corrupted, what counts as retrieved, and the `recall` command."""

import csv
import json
import math
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from imixer.analysis.recall import run as recall_run
from imixer.analysis.recall import study as recall_study
from imixer.analysis.recall.images import MASKS, add_noise, digit_patterns, image_patterns, known_half
from imixer.analysis.recall.measure import nearest_pattern, retrieve, share_with_error
from imixer.analysis.recall.run import compare_memories, recall
from imixer.cli import main
from imixer.data.sources import statistics
from imixer.data.sources.decoding import CUT
from imixer.errors import InputError
from imixer.hopfield.memory import AssociativeMemory, binarised, overlaps
from imixer.hopfield.memory_kinds import Kind


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def photos(elsewhere):
    """Five images of other sizes, in a folder."""
    (elsewhere / "photos").mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(elsewhere / "photos" / f"{i}.png")
    return elsewhere / "photos"


# Patterns and queries


def test_digits_differ_even_when_binarised():
    digits, names = digit_patterns(1400, generator())
    assert digits.shape == (1400, 8, 8) and digits.min() == -1 and digits.max() == 1
    assert len(binarised(digits).flatten(1).unique(dim=0)) == 1400
    assert set(names) == {f"a {digit}" for digit in range(10)}
    again, _ = digit_patterns(1400, generator())
    other, _ = digit_patterns(1400, generator(1))
    assert torch.equal(digits, again) and not torch.equal(digits, other)
    with pytest.raises(InputError, match="patterns is 1500; there are 14"):
        digit_patterns(1500, generator())


def test_images_become_gray_squares(photos):
    squares, names = image_patterns([str(photos)], 6)
    assert squares.shape == (5, 6, 6) and -1 <= squares.min() and squares.max() <= 1
    assert names == ("0.png", "1.png", "2.png", "3.png", "4.png")
    assert image_patterns([str(photos / "3.png")], 6)[0].equal(squares[3:4])
    assert image_patterns([str(photos)], 6, 2)[1] == ("0.png", "1.png")
    with pytest.raises(InputError, match="patterns is 6; there are 5 images"):
        image_patterns([str(photos)], 6, 6)


def deepened(photos, bits):
    """The same photos in gray, of more bits, so many of which are used."""
    folder = photos.parent / f"of {bits} bits"
    folder.mkdir()
    for file in photos.iterdir():
        gray = np.asarray(Image.open(file).convert("L")).astype(np.uint16)
        gray[0, 0] = 255
        deep = gray << (bits - 8)
        Image.fromarray(deep if bits > 8 else deep.astype(np.uint8)).save(folder / file.name)
    return folder


def test_images_of_more_than_8_bits_are_as_bright_as_their_range_and_it_is_said(photos, caplog):
    plain, _ = image_patterns([str(deepened(photos, 8))], 6)
    assert caplog.messages == []
    with caplog.at_level("INFO"):
        deep, _ = image_patterns([str(deepened(photos, 12))], 6)
    assert (deep - plain).abs().max() < 0.02
    assert caplog.messages[0].startswith("more than 8 bits: 0 and 4095 become black and white, as values run from ")
    Image.new("F", (7, 9), 0.5).save(photos / "9.tif")
    Image.new("I", (7, 9), 5).save(photos / "8.tif")
    with pytest.raises(InputError, match=r"some images hold floats .* both; convert them to one kind$"):
        image_patterns([str(photos)], 6)


def test_colours_of_16_bits_that_would_be_black_are_refused(photos, monkeypatch):
    shown = Image.new("RGB", (7, 9), (15, 3, 0))
    for module in ("decode_header", "decode_file"):
        monkeypatch.setattr(statistics, module, lambda file: with_cut(shown))
    with pytest.raises(InputError, match=r"the images have 16-bit colours, .* reach only 15 of 255; convert them"):
        image_patterns([str(photos)], 6)


def with_cut(image):
    image.info[CUT] = True
    return image


@pytest.mark.parametrize("flips", [0.0, 0.1, 0.5, 1.0])
def test_that_share_of_the_signs_flips(flips):
    patterns = torch.randint(0, 2, (500, 8, 8), generator=generator()) * 2.0 - 1.0
    changed = add_noise(patterns, flips, True, generator(1)) != patterns
    assert (changed.flatten(1).sum(1) == round(flips * 64)).all()
    if 0 < flips < 1:
        assert changed.any(0).all() and not changed.all(0).any()


def test_noise_is_in_units_of_black_to_white():
    noise = add_noise(torch.zeros(400, 8, 8), 0.3, False, generator())
    assert math.isclose(float(noise.std()), 0.6, rel_tol=0.02)
    assert abs(float(noise.mean())) < 0.01
    assert torch.equal(noise, add_noise(torch.zeros(400, 8, 8), 0.3, False, generator()))


def test_halves():
    halves = {mask: known_half(mask, (4, 6)) for mask in MASKS}
    assert halves["none"].all()
    assert halves["top"].tolist() == [[False] * 6] * 2 + [[True] * 6] * 2
    assert halves["left"].tolist() == [[False] * 3 + [True] * 3] * 4
    assert torch.equal(halves["bottom"], ~halves["top"]) and torch.equal(halves["right"], ~halves["left"])
    with pytest.raises(InputError, match="mask is 'diagonal'; choose one of none, top"):
        known_half("diagonal", (4, 6))


@pytest.mark.parametrize("mask", MASKS)
def test_the_look_up_is_the_nearest_over_the_known_pixels(mask):
    digits, _ = digit_patterns(30, generator())
    query = digits[:9] + 0.8 * torch.randn(9, 8, 8, generator=generator())
    known = known_half(mask, (8, 8))
    expected = torch.cdist(query[:, known], digits[:, known]).argmin(1)
    assert torch.equal(nearest_pattern(query, digits, known), expected)
    assert torch.equal(nearest_pattern(query, digits, known.expand(9, 8, 8)), expected)


# What counts


def test_retrieved_means_nearest_and_at_least_095():
    patterns = torch.eye(3)[:, None] * 2 - 1
    memory = AssociativeMemory(patterns)
    own = torch.tensor([0, 1, 2, 0])
    query = torch.stack([patterns[0], patterns[1], patterns[0], patterns[0]])
    found = retrieve(memory, patterns, own, query, known_half("none", (1, 3)), steps=1)
    assert found.retrieved.tolist() == found.looked_up.tolist() == [True, True, False, True]
    assert found.names == ("0", "1", "2")
    soft = retrieve(AssociativeMemory(patterns, beta=0.3), patterns, own, query, known_half("none", (1, 3)), steps=1)
    cosines = overlaps(soft.retrieval.retrieved, patterns)
    assert cosines.argmax(1).tolist() == [0, 1, 0, 0]  # nearest, but a mixture
    assert (soft.after < 0.95).all() and not soft.retrieved.any()


def test_a_patterns_hidden_half_starts_at_zero_and_the_other_is_held():
    digits, _ = digit_patterns(10, generator())
    known = known_half("left", (8, 8))
    memory = AssociativeMemory(digits)
    own = torch.arange(10)
    found = retrieve(memory, digits, own, digits, known)
    assert (found.retrieval.states[0][:, ~known] == 0).all()
    assert torch.equal(found.retrieval.retrieved[:, known], digits[:, known])
    free = retrieve(memory, digits, own, digits, known, clamp=False)
    assert not torch.equal(free.retrieval.retrieved[:, known], digits[:, known])


def test_the_uncertainty_of_a_share_is_never_zero():
    p, error = share_with_error(torch.tensor([True] * 6))
    assert p == 1.0 and 0.1 < error < 0.13
    p, error = share_with_error(torch.arange(10_000) < 2500)
    assert p == 0.25 and math.isclose(error, math.sqrt(0.25 * 0.75 / 10_000), rel_tol=1e-2)


# The command


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_command_writes_a_picture_and_the_numbers(capsys, elsewhere, kind):
    assert (
        main(["recall", "--memory", kind, "--patterns", "3", "--noise", "0.1", "--queries", "9", "--out", "out"]) == 0
    )
    shown = capsys.readouterr().out
    assert {path.name for path in (elsewhere / "out").iterdir()} == {"recall.png", "recall.csv", "recall.json"}
    assert f"{kind} memory of 3: retrieved" in shown and "energy: " in shown
    summary = json.loads((elsewhere / "out" / "recall.json").read_text())
    with (elsewhere / "out" / "recall.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(summary["queries"]) == 9
    right = [row["retrieved"] == "True" for row in rows]
    assert summary["retrieved_share"] == sum(right) / 9
    assert (summary["memory"], summary["patterns"], summary["noise"]) == (kind, 3, 0.1)
    assert summary["energy"].startswith("observed" if kind == "hierarchical" else "guaranteed")
    assert [row["pattern"] for row in rows[:3]] == [row["pattern"] for row in rows[3:6]]  # in turn
    if kind != "classical":
        assert all(right)
    for row in summary["queries"]:
        assert row["energy_after"] <= row["energy_before"]
        energies = summary["energies"][row["query"]]
        assert (energies[0], energies[row["steps"]]) == (row["energy_before"], row["energy_after"])
    with Image.open(elsewhere / "out" / "recall.png") as picture:
        assert picture.width > 1000


def test_the_default_directory_is_the_next_free_one(capsys, elsewhere):
    for number in (1, 2):
        assert main(["recall", "--patterns", "2", "--mask", "top", "--queries", "1"]) == 0
        assert f"recall-modern-00{number}" in capsys.readouterr().out
    first, second = ((elsewhere / "runs" / f"recall-modern-00{n}" / "recall.json").read_text() for n in (1, 2))
    assert first == second
    assert json.loads(first)["noise"] == 0.0  # with a mask
    assert main(["recall", "--patterns", "2", "--seed", "1", "--out", "out"]) == 0
    assert json.loads((elsewhere / "out" / "recall.json").read_text())["noise"] == 0.3


@pytest.mark.parametrize("kind", ["exponential", "hierarchical"])
def test_own_images_are_stored(capsys, elsewhere, photos, kind):
    assert main(["recall", "photos", "--memory", kind, "--size", "12", "--noise", "0.1", "--out", "out"]) == 0
    summary = json.loads((elsewhere / "out" / "recall.json").read_text())
    assert summary["patterns"] == 5 and summary["retrieved_share"] == 1.0
    assert {row["name"] for row in summary["queries"]} == {f"{i}.png" for i in range(5)}


def test_a_query_that_does_not_come_to_rest_is_told(capsys, elsewhere):
    assert main(["recall", "--steps", "1", "--out", "out"]) == 0
    assert "1, not at rest" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--memory modrn", ["'modrn'", "did you mean modern?"]),
        ("--memory classical --beta 1", ["classical", "'beta'", "steepness"]),
        ("--similarity cosine", ["'cosine'", "dot or distance"]),
        ("--memory polynomial --order 1", ["order is 1"]),
        ("--beta 0", ["beta is 0"]),
        ("--beta hot", ["beta is 'hot'", "a number"]),
        ("--patterns 0", ["patterns is 0"]),
        ("--patterns 2000", ["patterns is 2000", "there are"]),
        ("--queries 0", ["queries is 0"]),
        ("--steps 0", ["steps is 0"]),
        ("--seed -1", ["seed is -1"]),
        ("--noise -1", ["noise is -1", "standard deviation"]),
        ("--noise .nan", ["noise is nan"]),
        ("--noise .inf", ["noise is inf", "from 0 to 1,000"]),
        ("--noise 1e30", ["noise is 1e+30", "from 0 to 1,000"]),
        ("--size 16", ["size is 16", "no image is given"]),
        ("--memory classical --noise 1.5", ["noise is 1.5", "share of flipped pixels"]),
        ("--mask diagonal", ["'diagonal'", "bottom"]),
        ("nowhere.png", ["nowhere.png"]),
        ("photos --size 0", ["size is 0"]),
        ("photos --patterns 6", ["patterns is 6", "5 images"]),
        ("photos --size 10 --memory hierarchical", ["patch_size is 4", "10"]),
        ("--out photos", ["photos exists"]),
        ("--compare --patterns 5", ["compare", "leave out patterns"]),
        ("--compare photos", ["compare", "leave out images"]),
        ("--compare --out photos", ["photos exists"]),
        ("--compare --seed -1", ["seed is -1"]),
        ("--capacity --patterns 5", ["capacity", "leave out patterns"]),
        ("--capacity --compare", ["compare", "leave out capacity"]),
        ("--capacity --seed -1", ["seed is -1"]),
    ],
)
def test_bad_input(capsys, elsewhere, photos, words, parts):
    assert main(["recall", *words.split()]) == 2
    captured = capsys.readouterr()
    *before, line = captured.err.splitlines()
    assert line.startswith("imixer: ") and captured.out == ""
    assert all(text.startswith("loading") for text in before), captured.err
    for part in parts:
        assert part in line
    assert list(elsewhere.iterdir()) == [photos]


def test_a_broken_image_is_named(capsys, elsewhere, photos):
    (photos / "2.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"2\.png"):
        recall(["photos"])
    assert list(elsewhere.iterdir()) == [photos]


# The study


def test_the_study_measures_every_kind(capsys, elsewhere):
    cells, folder = compare_memories(loads=(2, 20), draws=2, out="out")
    assert {path.name for path in folder.iterdir()} == {"recall.png", "recall.md", "recall.csv", "recall.json"}
    assert "recalling digits, gray, draw 2" in capsys.readouterr().err
    by = {(c.patterns, c.varied, c.x, c.memory): c for c in cells}
    assert len(by) == len(cells) == 2 * 6 * (2 + 2 + 9) + 4 * (2 + 2 + 9)
    assert all(c.draws == 2 and 0 <= c.mean <= 1 and c.energy_decreases for c in cells)
    # few patterns: all; 20 correlated ones: none in the classical memory, most in the later ones
    assert by["random signs", "load", 2, "classical"].mean == 1.0
    assert by["digits, binary", "load", 20, "classical"].mean == 0.0
    assert by["digits, binary", "load", 20, "exponential"].mean > 0.8
    assert by["digits, gray", "noise", 0.0, "modern, by distance"].mean == 1.0
    for c in cells:
        if c.memory == recall_study.LOOK_UP and c.x in (0.0, 2):
            assert c.mean > 0.95
    rows = json.loads((folder / "recall.json").read_text())
    assert len(rows) == len(cells) and rows[0]["mean"] == cells[0].mean
    lines = (folder / "recall.md").read_text().splitlines()
    assert lines[0].startswith("| random signs | 20 stored | noise 0.0 |")
    assert sum(line.startswith("| classical |") for line in lines) == 2
    with pytest.raises(InputError, match="draws is 0"):
        recall_study.measure_memories(draws=0)


def test_compare_prints_the_tables(capsys, elsewhere, monkeypatch):
    measure = recall_study.measure_memories
    monkeypatch.setattr(recall_run, "measure_memories", lambda **given: measure(loads=(5,), draws=1, **given))
    assert main(["recall", "--compare", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    for part in ("random signs", "digits, gray", "nearest neighbour", "over 1 draws", "the energy rose in 0 of"):
        assert part in captured.out
    assert (elsewhere / "runs" / "recall-study-001" / "recall.png").exists()


def test_hopfields_own_dynamics_cannot_store_digits_either():
    """One neuron at a time, and without self-coupling: the failure is that of the energy, not of our steps."""
    shares = {}
    for name in ("random signs", "digits, binary"):
        draw = generator()
        patterns = recall_study._patterns(name, 5, draw).flatten(1)
        own = torch.arange(50) % 5
        x = add_noise(patterns[own], 0.2, True, draw)
        couplings = (patterns.T @ patterns / 64).fill_diagonal_(0)
        for _ in range(10):
            for i in torch.randperm(64, generator=draw).tolist():
                h = x @ couplings[:, i]
                x[:, i] = torch.where(h == 0, x[:, i], h.sign())
        cosines = overlaps(x, patterns)
        right = (cosines.argmax(1) == own) & (cosines.amax(1) >= 0.95)
        shares[name] = float(right.double().mean())
    assert shares["random signs"] > 0.9
    assert shares["digits, binary"] < 0.3

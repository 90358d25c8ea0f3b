"""Common corruptions: the same for the same seed, stronger with severity, and scored as they are."""

import json

import numpy as np
import pytest
import torch

from imixer.analysis.images import Pixels
from imixer.analysis.robustness.corruptions import (
    AT_ANY_SIZE,
    CORRUPTIONS,
    applicable,
    corrupt_image,
    score_corruptions,
)
from imixer.cli import main


def test_a_missing_package_is_named(run, capsys, without):
    without("imagecorruptions")
    (run / "evaluation.json").unlink(missing_ok=True)
    assert main(["evaluate", str(run), "--corruptions"]) == 2
    assert "imixer[robust]" in capsys.readouterr().err
    assert not (run / "evaluation.json").exists()  # it was not found out late


def test_small_images_get_what_has_no_length():
    assert applicable(32, 40) == CORRUPTIONS and len(CORRUPTIONS) == 15
    assert applicable(40, 31) == applicable(8, 8) == AT_ANY_SIZE
    assert set(AT_ANY_SIZE) < set(CORRUPTIONS)


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("imagecorruptions", exc_type=ImportError)  # OpenCV may lack a library of the system


def image(size, channels):
    smooth = np.add.outer(np.linspace(40, 120, size), np.linspace(0, 90, size))
    return np.repeat(smooth[..., None].astype(np.uint8), channels, 2)


@pytest.mark.parametrize(
    ("size", "name", "channels"),
    [*((8, n, 1) for n in AT_ANY_SIZE), *((32, n, 3) for n in CORRUPTIONS), (8, "fog", 3), (32, "snow", 1)],
)
def test_a_corruption_is_the_same_for_the_same_seed(package, size, name, channels):
    original = image(size, channels)
    state = np.random.get_state()[1].copy()
    for severity in (1, 5):
        made = [corrupt_image(original, name, severity, seed) for seed in (1, 1)]
        assert made[0].shape == original.shape and made[0].dtype == np.uint8
        assert np.array_equal(*made)
        assert not np.array_equal(made[0], original)
    assert np.array_equal(state, np.random.get_state()[1])  # numpy's own generator is left alone


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "glass_blur", "motion_blur"])
def test_another_seed_is_another_corruption(package, name):
    original = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert not np.array_equal(corrupt_image(original, name, 3, 1), corrupt_image(original, name, 3, 2))


def test_noise_is_as_strong_on_gray_images(package):
    deviations = [corrupt_image(np.full((64, 64, c), 128, np.uint8), "gaussian_noise", 1, 0).std() for c in (1, 3)]
    assert deviations == pytest.approx([0.08 * 255] * 2, rel=0.05)


def test_the_scores_are_of_the_corrupted_images(package):
    pixels = Pixels(torch.full((1, 1, 1), 0.2), torch.full((1, 1, 1), 0.5))
    stored = torch.full((3, 1, 8, 8), 100 / 255)
    labels = torch.tensor([0, 0, 1])

    def bright(images):  # class 1 from a mean of half gray on
        mean = pixels.of(images).mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)

    batches = [(pixels.normalised(stored)[part], labels[part]) for part in (slice(0, 2), slice(2, 3))]
    found = score_corruptions(bright, batches, pixels, ("brightness", "contrast"), total=3)
    assert found.clean.tolist() == [True, True, False]
    # 0.39 + 0.1 is below a half still, + 0.2 to 0.5 above; contrast leaves the mean
    assert found.accuracy[0].tolist() == pytest.approx([2 / 3] + [1 / 3] * 4)
    assert found.accuracy[1].tolist() == pytest.approx([2 / 3] * 5)
    assert found.mean_error[0] == pytest.approx(1 - found.accuracy.mean().item())
    errors = [0.4, 0.4, 0.6]  # of each image
    assert found.mean_error[1] == pytest.approx(np.std(errors, ddof=1) / 3**0.5)
    assert found.mean_rise[0] == pytest.approx(found.mean_error[0] - 1 / 3)


def test_evaluate_corruptions_writes_and_prints(package, run, capsys):
    words = ["evaluate", str(run), "--corruptions", "--images", "20"]
    assert main(words) == 0
    first = (run / "corruptions.json").read_text()
    out = capsys.readouterr().out
    assert "gaussian noise" in out and "left out: defocus blur" in out
    written = json.loads(first)
    assert written["images"] == 20
    assert set(written["accuracy_by_severity"]) == set(AT_ANY_SIZE)
    assert set(written["left_out"]) == set(CORRUPTIONS) - set(AT_ANY_SIZE)
    means = [np.mean(row) for row in written["accuracy_by_severity"].values()]
    assert written["mean_error"]["mean"] == pytest.approx(1 - np.mean(means))
    assert main(words) == 0
    assert (run / "corruptions.json").read_text() == first

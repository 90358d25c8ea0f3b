"""Anomalies: the images, every score by hand, the measures beside other libraries, and what a user sees."""

import csv
import math
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from imixer.analysis.anomaly.detect import (
    detect_anomalies,
    learn_normal,
    model_features,
    pixel_features,
    score_images,
)
from imixer.analysis.anomaly.detection_quality import best_f1, detection_quality, per_region_overlap
from imixer.analysis.anomaly.detector_run import evaluate_detector, features_of
from imixer.analysis.anomaly.detectors import NormalFeatures, energy_deviations
from imixer.analysis.anomaly.heat_maps import _fill_maps
from imixer.analysis.anomaly.samples import GOOD, OTHER_CLASS, digit_samples, open_defect_folder
from imixer.analysis.energy import energy_along_depth, token_energies
from imixer.cli import main
from imixer.data.sources.image_files import load_images
from imixer.errors import InputError
from imixer.experiments.anomaly_study import (
    DetectorTrials,
    comparison_grid,
    describe_detectors,
    judge_detectors,
    measure_detectors,
    trials_grid,
)
from imixer.reading import read_json
from imixer.training.finished_run import load_run
from imixer.training.run.config import TrainConfig
from imixer.weights import find_packaged
from imixer.writing import write_json


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def benchmark(root, *, masks=True, size=(20, 12), train=6, good=3):
    """A folder as industrial benchmarks have it: gray ramps, and ramps with a white square."""
    rng = np.random.default_rng(0)

    def save(path, pixels):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    def ramp():
        return np.linspace(0, 120, size[0])[None].repeat(size[1], 0) + rng.integers(0, 9, (size[1], size[0]))

    for i in range(train):
        save(root / f"train/good/{i}.png", ramp())
    for i in range(good):
        save(root / f"test/good/{i}.png", ramp())
    for i in range(3):
        image, mask = ramp(), np.zeros((size[1], size[0]))
        image[3:7, 4:9], mask[3:7, 4:9] = 250, 255
        save(root / f"test/square/{i}.png", image)
        if masks:
            save(root / f"ground_truth/square/{i}_mask.png", mask)
    return root


# --- images -----------------------------------------------------------------------------------------------------------


def test_digits_are_the_same_for_the_same_seed_and_others_for_another():
    one, again, other = (digit_samples(1, (16, 16), normal=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.test, again.test) and torch.equal(one.masks, again.masks)
    assert not torch.equal(one.normal, other.normal)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (24, 40)])
def test_a_mask_is_where_a_defect_changed_the_digit(size):
    samples = digit_samples(3, size, normal=0)
    assert samples.normal.shape[1:] == samples.test.shape[1:] == (3, *size)
    assert set(samples.kinds) == {GOOD, "cut", "blot", "shift", OTHER_CLASS}
    for kind, mask, known in zip(samples.kinds, samples.masks, samples.masked, strict=True):
        assert bool(mask.any()) == (kind in ("cut", "blot", "shift"))
        assert bool(known) == (kind != OTHER_CLASS)
        assert kind in (GOOD, OTHER_CLASS) or mask.float().mean() >= 0.01
    learned = {image.numpy().tobytes() for image in samples.normal}
    assert not any(image.numpy().tobytes() in learned for image in samples.test)


def test_a_cut_takes_ink_and_a_blot_adds_it():
    samples = digit_samples(1, (32, 32), normal=3)
    ink = {kind: samples.test[[k == kind for k in samples.kinds]].mean() for kind in ("cut", GOOD, "blot")}
    assert ink["cut"] < ink[GOOD] < ink["blot"]


def test_a_folder_gives_images_masks_and_kinds(tmp_path):
    samples = open_defect_folder(benchmark(tmp_path), 3, (24, 40))
    assert samples.normal.shape == (6, 3, 24, 40) and samples.kinds == (GOOD,) * 3 + ("square",) * 3
    assert samples.names[-1] == "square/2.png" and samples.masked.all()
    expected = torch.zeros(24, 40, dtype=torch.bool)
    expected[6:14, 8:18] = True
    assert torch.equal(samples.masks[-1], expected) and not samples.masks[0].any()


def test_without_ground_truth_no_pixels_are_known(tmp_path):
    samples = open_defect_folder(benchmark(tmp_path, masks=False), 1, (12, 20))
    assert samples.masks is None and samples.masked.tolist() == [True] * 3 + [False] * 3


def test_a_defect_of_a_single_pixel_survives_scaling_down(tmp_path):
    benchmark(tmp_path)
    mask = np.zeros((12, 20), np.uint8)
    mask[5, 5] = 255
    Image.fromarray(mask).save(tmp_path / "ground_truth/square/0_mask.png")
    samples = open_defect_folder(tmp_path, 1, (4, 4))
    assert samples.masks[3].sum() == 1


@pytest.mark.parametrize("mode", ["1", "RGBA", "I;16", "F", "P"])
def test_a_mask_may_be_stored_in_any_way(tmp_path, mode):
    """White or 1 on black, or opaque on transparent."""
    benchmark(tmp_path)
    marked = np.zeros((12, 20), bool)
    marked[3:7, 4:9] = True
    image = {
        "1": lambda: Image.fromarray(marked),
        "RGBA": lambda: Image.fromarray(np.where(marked, 255, 0).astype(np.uint8)[..., None].repeat(4, 2)),
        "I;16": lambda: Image.fromarray(marked.astype(np.uint16)),
        "F": lambda: Image.fromarray(marked.astype(np.float32)),
        "P": lambda: Image.fromarray(marked.astype(np.uint8) * 255).convert("P"),
    }[mode]()
    (tmp_path / "ground_truth/square/0_mask.png").unlink()
    image.save(tmp_path / f"ground_truth/square/0_mask.{'tiff' if mode == 'F' else 'png'}")
    samples = open_defect_folder(tmp_path, 1, (12, 20))
    assert np.array_equal(samples.masks[3].numpy(), marked)


def test_unreadable_images_are_counted_if_that_is_asked_for(tmp_path):
    benchmark(tmp_path)
    (tmp_path / "train/good/0.png").write_bytes(b"no image")
    (tmp_path / "ground_truth/square/1_mask.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"0\.png.*--data\.skip_bad"):
        open_defect_folder(tmp_path, 1, (12, 20))
    samples = open_defect_folder(tmp_path, 1, (12, 20), skip_bad=True)
    assert (
        samples.skipped == ("train/good/0.png", "test/square/1.png")
        and len(samples.normal) == 5
        and len(samples.test) == 5
    )


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    normal = torch.randn(300, 5) @ (torch.eye(5) + 0.2 * torch.randn(5, 5)) + 2
    return normal, NormalFeatures(normal, memory=40, neighbours=3, seed=1), torch.randn(50, 5) * 3


def test_the_energy_of_the_memory_is_a_soft_minimum_of_squared_distances(learned):
    _, features, x = learned
    beta = features.memory.options["beta"]
    z = (x - features.mean) / features.std
    squares = torch.cdist(z, features.stored).square()
    expected = -torch.logsumexp(-beta * squares / 2, 1) / beta + math.log(40) / beta
    torch.testing.assert_close(features.scores(x)["memory_energy"], expected, rtol=1e-4, atol=1e-3)


def test_what_retrieval_leaves_is_the_slope_of_the_energy(learned):
    _, features, x = learned
    z = ((x - features.mean) / features.std).requires_grad_()
    (slope,) = torch.autograd.grad(features.memory.energy(z).sum(), z)
    torch.testing.assert_close(features.scores(x)["retrieval"], slope.norm(dim=1), rtol=1e-3, atol=1e-4)


def test_neighbours_and_mahalanobis_are_those_of_scikit_learn(learned):
    from sklearn.covariance import EmpiricalCovariance
    from sklearn.neighbors import NearestNeighbors

    normal, features, x = learned
    scores = features.scores(x)
    z = (x - features.mean) / features.std
    distances, _ = NearestNeighbors(n_neighbors=3).fit(features.stored.numpy()).kneighbors(z.numpy())
    np.testing.assert_allclose(scores["knn"], distances.mean(1), rtol=1e-4)
    gaussian = EmpiricalCovariance().fit(normal.double().numpy())
    expected = np.sqrt(gaussian.mahalanobis(x.double().numpy()))
    np.testing.assert_allclose(scores["mahalanobis"], expected, rtol=0.01)  # ours has a ridge


def test_the_energies_of_blocks_are_those_of_the_analysis_of_energies():
    torch.manual_seed(0)
    model = timm.create_model("imixer_n2_8", in_chans=1, num_classes=4).eval()
    images = torch.randn(6, 1, 8, 8)
    expected = [step.before for step in energy_along_depth(model, images) if step.mixing == "tokens"]
    energies = token_energies(model)(images)
    torch.testing.assert_close(energies, torch.stack(expected, 1))
    score = energy_deviations(energies)
    assert score(energies.mean(0, keepdim=True) + 2 * energies.std(0, correction=0)).item() == pytest.approx(
        2, rel=1e-3
    )


def test_the_energies_of_a_model_with_stages_pass_over_what_merges():
    sizes = {"patch_size": 2, "num_blocks": [1, 2], "embed_dim": [8, 12], "tokens_dim": [6, 4]}
    model = timm.create_model("imixer_t4_32", **sizes).eval()
    assert token_energies(model)(torch.randn(2, 3, 32, 32)).shape == (2, 3)


# --- measures ---------------------------------------------------------------------------------------------------------


def test_pro_is_the_mean_share_of_regions_found_at_each_threshold():
    rng = np.random.default_rng(0)
    masks = np.zeros((4, 12, 12), bool)
    masks[0, 1:3, 1:4], masks[0, 8:12, 6:12], masks[2, 5, 5], masks[2, 6, 6] = True, True, True, True
    maps = rng.normal(size=masks.shape) + masks * rng.uniform(0, 2)
    regions = [np.zeros_like(masks) for _ in range(3)]  # neighbours across a corner are one region
    regions[0][0, 1:3, 1:4], regions[1][0, 8:12, 6:12], regions[2][2, 5, 5] = True, True, True
    regions[2][2, 6, 6] = True
    points = [(0.0, 0.0)]
    for threshold in np.sort(maps.ravel())[::-1]:
        found = maps >= threshold
        points.append((found[~masks].mean(), np.mean([found[region].mean() for region in regions])))
    x, y = np.array(points).T
    fine = np.linspace(0, 0.3, 100_001)
    expected = np.interp(fine, x, y).mean()
    assert per_region_overlap(maps, masks) == pytest.approx(expected, abs=2e-3)


def test_image_and_pixel_auroc_are_those_of_torchmetrics():
    from torchmetrics.functional.classification import binary_auroc

    rng = np.random.default_rng(1)
    kinds = tuple(rng.choice([GOOD, "a", "b"], 30))
    scores, maps, masks = rng.normal(size=30), rng.normal(size=(30, 6, 6)), rng.random((30, 6, 6)) < 0.2
    quality = detection_quality(scores, kinds, GOOD, maps, masks)
    wanted = torch.tensor([kind != GOOD for kind in kinds]).long()
    assert quality.image_auroc == pytest.approx(float(binary_auroc(torch.tensor(scores), wanted)), abs=1e-5)
    pixels = binary_auroc(torch.tensor(maps).flatten(), torch.tensor(masks).flatten().long())
    assert quality.pixel_auroc == pytest.approx(float(pixels), abs=1e-5)
    assert set(quality.by_kind) == {"a", "b"}


def test_best_f1_is_that_of_the_best_threshold():
    scores, positive = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert best_f1(scores, positive) == pytest.approx(0.8)  # two of three above 0.35


def test_anomalies_that_are_plain_to_see_are_found(tmp_path):
    samples = open_defect_folder(benchmark(tmp_path), 3, (32, 32))
    torch.manual_seed(0)
    model = timm.create_model("imixer_t4_32", num_blocks=3, embed_dim=16).eval()
    ones = torch.full((3, 1, 1), 0.5)
    sources = {
        "model": model_features(model, mean=ones, std=ones, size=(32, 32)),
        "pixels": pixel_features(3, (32, 32)),
    }
    for name, source in sources.items():
        scores = detect_anomalies(samples, source, memory=200)
        for score, quality in scores.quality.items():
            if score != "block_energy":
                assert quality.image_auroc == 1.0, (name, score)
                assert scores.maps[score].shape == (6, 32, 32)
        assert ("block_energy" in scores.images) == (name == "model")
    assert scores.quality["knn"].pixel_auroc > 0.9


@pytest.mark.parametrize("spoilt", ["maps", "energies"])
def test_features_and_energies_that_are_not_finite_are_no_scores(spoilt):
    source = pixel_features(1, (8, 8))
    source = replace(source, energies=lambda images: images.flatten(1)[:, :2])
    dark = torch.rand(6, 1, 8, 8) / 2
    learned = learn_normal(dark, source, memory=9)
    assert "block_energy" in score_images(dark, source, learned)[0]
    broken = replace(source, **{spoilt: lambda images: getattr(source, spoilt)(images) / 0})
    for ask in (lambda: score_images(dark, broken, learned), lambda: learn_normal(dark, broken, memory=9)):
        with pytest.raises(InputError, match="features or energies are not finite on these images"):
            ask()


# --- the study --------------------------------------------------------------------------------------------------------


def test_the_study_judges_the_energy_against_each_other_score_by_seed():
    def trials(score, values):
        return DetectorTrials("model", score, {"image": dict(enumerate(values))})

    made = [
        trials("memory_energy", (90.0, 91.0, 92.0, 91.0, 90.0)),
        trials("knn", (95.0, 96.1, 96.9, 96.0, 95.1)),
        trials("retrieval", (90.1, 91.0, 91.9, 91.1, 90.0)),
    ]
    comparisons = judge_detectors(made)
    assert [(each.score, each.judgement.verdict) for each in comparisons] == [
        ("knn", "smaller"),
        ("retrieval", "equivalent"),
    ]
    (low, high), p = comparisons[0].judgement.comparison.interval, comparisons[0].judgement.p
    grid = comparison_grid(comparisons)
    assert grid.header[3:] == ("difference", "95% interval", "p", "verdict")
    assert grid.rows[0][1:5] == ("nearest neighbours", "image AUROC", "-5.02", f"[{low:.2f}, {high:.2f}]")
    assert [row[-1] for row in grid.rows] == ["smaller", "equivalent within 1"] and p < 0.001
    assert trials_grid(made).rows[0][:3] == ("model", "memory energy", "90.8 +- 0.8")
    worse, alike = describe_detectors(comparisons)
    said = f"the memory's energy is worse (-5.02 points, 95% interval [{low:.2f}, {high:.2f}], corrected p < 0.001)"
    assert worse == f"image AUROC, features of model, against nearest neighbours: {said}"
    assert alike.startswith("image AUROC, features of model, against retrieval: equivalent within 1 points (")


def test_the_study_reads_what_it_has_measured(tmp_path):
    run = str(find_packaged("imixer_n2_8.digits"))
    options = dict(memory=50, seeds=(0,), classes=(3,))
    (first, *_) = measure_detectors(run, tmp_path, **options)
    assert first.source == "model" and set(first.values) == {"image", "other", "defects", "pixel", "pro", "f1"}
    file = tmp_path / "model-3-seed-0.json"
    stored = read_json(file, ["scores", "ran_on"])
    assert first.values["image"] == {0: pytest.approx(100 * stored["scores"]["memory_energy"]["image"])}
    write_json(file, stored | {"scores": {"memory_energy": {"image": 0.25}}})
    assert measure_detectors(run, tmp_path, **options)[0].values == {"image": {0: 25.0}}
    for other in (dict(memory=51), dict(neighbours=4)):
        with pytest.raises(InputError, match=f"has {next(iter(other))} .*, and not {next(iter(other.values()))}"):
            measure_detectors(run, tmp_path, **(options | other))


def test_the_study_is_an_experiment_whose_page_a_report_shows(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr("imixer.experiments.anomaly_study.CLASSES", (3,))
    monkeypatch.setattr("imixer.experiments.anomaly_study.DEFAULT_MODEL", "imixer_n2_8.digits")
    assert main(["reproduce", "anomaly", "--scale", "digits", "--trials", "1"]) == 0
    assert "1 seed, each the mean over the ten" in capsys.readouterr().out
    folder = elsewhere / "reproduced/digits"
    assert "| model | memory energy |" in (folder / "anomaly.md").read_text()
    assert main(["report", "reproduced/digits"]) == 0
    assert "Finding anomalies by a memory" in (folder / "report.html").read_text()
    (folder / "anomaly.md").unlink()
    (folder / "runs/anomaly/pixels-3-seed-0.json").unlink()
    assert main(["reproduce", "anomaly", "--scale", "digits", "--trials", "1", "--train", "false"]) == 0
    assert "1 of 2 parts are not measured" in capsys.readouterr().out and not (folder / "anomaly.md").exists()
    assert main(["reproduce", "anomaly", "--scale", "digits", "--data", "cifar10"]) == 2
    assert "anomaly has data sets of its own" in capsys.readouterr().err


def test_a_network_of_convolutions_gives_features_at_any_size():
    model = timm.create_model("resnet10t", num_classes=2).eval()
    ones = torch.full((3, 1, 1), 0.5)
    source = model_features(model, mean=ones, std=ones, size=(64, 48))
    maps = source.maps(torch.rand(2, 3, 64, 48))
    assert maps.shape[0] == 2 and maps.shape[-2] > maps.shape[-1] and source.energies is None


# --- the commands -----------------------------------------------------------------------------------------------------

SMALL = ["--model.name", "imixer_n2_8.digits", "--model.pretrained", "true", "--anomaly.memory", "50"]


@pytest.fixture
def detector(elsewhere, capsys):
    """A run that has learned from a folder, and what was said."""
    benchmark(elsewhere / "parts")
    words = ["--data.name", "parts", "--data.image_size", "16", "--out", "found"]
    assert main(["train", "--task", "anomaly", *SMALL, *words]) == 0
    return elsewhere / "found", capsys.readouterr().out


def test_training_writes_a_run_with_numbers_and_heat_maps_the_least_normal_first(detector):
    run, text = detector
    assert "nearest neighbours" in text and "learned from 6 normal images (50 vectors stored)" in text
    numbers = read_json(run / "anomaly.json", ["scores", "images", "beta"])
    assert numbers["images"] == {"good": 3, "square": 3} and "knn" in numbers["scores"]
    with Image.open(next((run / "heat_maps/square").glob("003_*.png"))) as image:
        assert image.size == (16, 16) and image.mode == "L"
    assert (run / "heat_maps.png").is_file()
    rows = [line.split(",") for line in (run / "anomaly.csv").read_text().splitlines()[1:]]
    squares = sorted((row for row in rows if row[1] == "square"), key=lambda row: -float(row[2]))
    expected = [f"{place}_{row[0].split('/')[1]}" for place, row in zip(("001", "002", "003"), squares, strict=True)]
    assert sorted(file.name for file in (run / "heat_maps/square").iterdir()) == expected


def test_the_run_is_one_like_others(detector, capsys):
    """It is listed, shown and reported, and is not made a second time."""
    run, _ = detector
    quality = read_json(run / "anomaly.json", ["scores"])["scores"]["memory_energy"]
    last = read_json(run / "result.json", ["last"])["last"]
    assert last["val_auroc"] == pytest.approx(quality["image_auroc"]) and last["val_loss"] == pytest.approx(
        1 - quality["image_auroc"]
    )
    for words, part in (
        (["runs", "."], f"{quality['image_auroc']:.2%} AUROC"),
        (["show", "found"], "AUROC"),
        (["train", "--resume", "found"], "found is finished"),
        (["report", "found"], "written"),
    ):
        assert main(words) == 0
        assert part in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "How well each score tells anomalies" in page and "Least normal images" in page


@pytest.mark.parametrize("flags", [[], ["--anomaly"]])
def test_evaluation_finds_by_what_was_learned_what_training_found(detector, capsys, flags):
    run, _ = detector
    before = read_json(run / "anomaly.json", ["scores"])["scores"]
    (run / "anomaly.json").unlink()
    assert main(["evaluate", "found", *flags]) == 0
    after = read_json(run / "anomaly.json", ["scores", "normal_images"])
    assert after["normal_images"] is None  # nothing was learned again
    for score, quality in before.items():
        again = after["scores"][score]
        assert again.pop("by_kind") == pytest.approx(quality.pop("by_kind")) and again == pytest.approx(quality), score


def test_evaluation_judges_a_folder_without_images_to_learn_from(detector, elsewhere, capsys):
    other = benchmark(elsewhere / "others", good=5)
    shutil.rmtree(other / "train")
    assert main(["evaluate", "found", "--data", "others"]) == 0
    assert "judged on 5 good and 3 defective images" in capsys.readouterr().out


def deepen(root, kind):
    """Store the images of a folder with 12 bits, or as floats from 0 to 1; masks stay."""
    for file in [*root.glob("train/**/*.png"), *root.glob("test/**/*.png")]:
        values = np.asarray(Image.open(file))
        file.unlink()
        if kind == "12 bits":
            Image.fromarray(values.astype(np.uint16) * 16).save(file)
        else:
            Image.fromarray(values.astype(np.float32) / 255).save(file.with_suffix(".tif"))
    return root


@pytest.mark.parametrize(("kind", "values"), [("12 bits", (0, 4095)), ("floats", (0, 1))])
def test_the_range_of_deep_images_is_measured_where_none_is_set(tmp_path, kind, values):
    plain = open_defect_folder(benchmark(tmp_path / "plain"), 1, (12, 20))
    deep = open_defect_folder(deepen(benchmark(tmp_path / "deep"), kind), 1, (12, 20))
    assert plain.value_range is None and plain.notes == ()
    assert deep.value_range == values and deep.notes[0].startswith(
        f"more than 8 bits: {values[0]} and {values[1]} become black and white, as values run from 0 to "
    )
    assert torch.equal(deep.normal, plain.normal) and torch.equal(deep.test, plain.test)


def test_deep_images_to_judge_by_a_detector_of_8_bits_are_told(tmp_path):
    (note,) = open_defect_folder(deepen(benchmark(tmp_path), "12 bits"), 1, (12, 20), learn=False).notes
    assert "have more than 8 bits, unlike those of training, and were read as 16, so that 65,535 is white" in note


def png_of_16_bits(values):
    """Encode colours (H, W, 3) of 16 bits, which Pillow reads and does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    png = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        png += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png


@pytest.mark.parametrize("bits", [12, 16])
def test_colours_of_16_bits_are_told_and_refused_where_they_would_be_black(tmp_path, bits, caplog):
    for file in [*benchmark(tmp_path).glob("train/**/*.png"), *tmp_path.glob("test/**/*.png")]:
        values = np.asarray(Image.open(file)).astype(np.uint16)[..., None].repeat(3, 2) << (bits - 8)
        file.write_bytes(png_of_16_bits(values))
    judged = open_defect_folder(tmp_path, 3, (12, 20), learn=False).notes
    read = [file for file, _ in load_images(sorted(tmp_path.glob("test/**/*.png")), 3)]
    assert len(read) > 1
    dark = "have 16-bit colours, of which the upper 8 bits are read, and these reach only 15 of 255"
    assert any(dark in note for note in judged) == (dark in caplog.text) == (bits == 12)
    if bits == 12:
        with pytest.raises(InputError, match=r"images of .* have 16-bit colours, .* only 15 of 255; convert them to 8"):
            open_defect_folder(tmp_path, 3, (12, 20))
    else:
        assert open_defect_folder(tmp_path, 3, (12, 20)).notes == (
            "12 of 12 looked at have 16-bit colours, of which the upper 8 bits are used",
        )


def test_what_is_not_used_of_a_folder_is_named(tmp_path):
    root = benchmark(tmp_path / "parts")
    for file in ("train/good/1.heic", "train/good/2.heic", "test/good/a.txt", "train/notes.md", "license.txt"):
        (root / file).write_text("a")
    for folder in ("train/scratch", "validation/good"):
        shutil.copytree(root / "test/square", root / folder)
    Image.new("L", (20, 12)).save(root / "9.png")
    (note,) = open_defect_folder(root, 1, (12, 20)).notes
    assert note == f"not used of {root}: " + "; ".join(
        [
            "validation/ (3 images)",
            "1 image in parts, outside of train/ and test/ and ground_truth/",
            "1 .txt in parts",
            "train/scratch/ (3 images)",
            "1 .md in train",
            "2 .heic in train/good/",
            "1 .txt in test/good/",
        ]
    )
    (note,) = open_defect_folder(root, 1, (12, 20), learn=False).notes
    assert "train/scratch" not in note and "validation/ (3 images)" in note


@pytest.mark.parametrize("link", ["a folder", "an image"])
def test_a_link_makes_no_image_one_to_learn_from_and_one_to_judge(tmp_path, link):
    root = benchmark(tmp_path)
    if link == "a folder":
        shutil.rmtree(root / "test/good")
        (root / "test/good").symlink_to(root / "train/good")
    else:
        (root / "test/square/0.png").unlink()
        (root / "test/square/0.png").symlink_to(root / "train/good/0.png")
    with pytest.raises(InputError, match=r"train/good and test/\w+ of .* share .*, by a link"):
        open_defect_folder(root, 1, (12, 20))


def test_floats_among_deep_integers_are_refused_with_the_remedy(tmp_path):
    deepen(benchmark(tmp_path), "12 bits")
    Image.new("F", (20, 12), 0.5).save(tmp_path / "test/good/9.tif")
    with pytest.raises(InputError, match=r"some images hold floats.*--data\.value_range"):
        open_defect_folder(tmp_path, 1, (12, 20))


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("12 bits", [], "0 and 4095 become black and white, as"),
        ("12 bits", ["--data.value_range", "[0, 8191]"], ""),
        ("floats", [], "0 and 1 become black and white, as"),
    ],
)
def test_a_detector_reads_deep_images_in_evaluation_and_prediction_as_in_training(elsewhere, capsys, kind, words, said):
    deepen(benchmark(elsewhere / "parts"), kind)
    words = [
        *words,
        "--data.name",
        "parts",
        "--data.image_size",
        "16",
        "--anomaly.features",
        "pixels",
        "--out",
        "found",
    ]
    assert main(["train", "--task", "anomaly", *SMALL, *words]) == 0
    assert said in capsys.readouterr().out

    def scores(file, name, column):
        with open(file) as stream:
            return {
                Path(row[name]).name + Path(row[name]).parent.name: float(row[column]) for row in csv.DictReader(stream)
            }

    trained = scores("found/anomaly.csv", "image", "memory_energy")
    assert main(["evaluate", "found"]) == 0
    assert scores("found/anomaly.csv", "image", "memory_energy") == pytest.approx(trained, rel=1e-4)
    assert main(["predict", "found", "parts/test", "--csv", "told.csv"]) == 0
    assert scores("told.csv", "image", "score") == pytest.approx(trained, rel=1e-4)


def test_features_of_a_run_are_judged_on_images_that_are_read_as_its_own(run, tmp_path):
    deepen(benchmark(tmp_path / "parts"), "12 bits")
    half_clear = Image.new("LA", (20, 12), (90, 0))
    half_clear.paste((90, 255), (10, 0, 20, 12))
    half_clear.save(tmp_path / "parts/train/good/0.png")
    finished = load_run(str(shutil.copytree(run, tmp_path / "run")), "cpu")
    data = replace(finished.config.data, value_range=(0.0, 65535.0), background="black")
    finished = replace(finished, config=replace(finished.config, data=data))
    samples = evaluate_detector(finished, str(tmp_path / "parts")).scores.samples
    assert samples.value_range == (0, 65535) and samples.test.max() < 0.07
    assert samples.normal[0, 0, 0, 0] == 0  # and not white


@pytest.mark.parametrize("kinds", [("hole 1", "hole-1"), ("hole 1", "hole_1", "hole_1-1")])
def test_defects_that_differ_by_signs_only_have_maps_of_their_own(tmp_path, kinds):
    names = [f"{kind}/{i}.png" for kind in kinds for i in range(2)]
    maps = torch.rand(len(names), 4, 4)
    samples = SimpleNamespace(kinds=tuple(name.split("/")[0] for name in names), names=names)
    _fill_maps(SimpleNamespace(samples=samples, maps={"knn": maps}, images={"knn": maps.amax((1, 2))}), "knn", tmp_path)
    assert len(list(tmp_path.iterdir())) == len(kinds) and len(list(tmp_path.rglob("*.png"))) == len(names)


def test_images_that_are_gone_are_named_with_the_remedy(detector, elsewhere, capsys):
    shutil.rmtree(elsewhere / "parts")
    assert main(["evaluate", "found"]) == 2
    assert "parts is no folder; say with --data where" in capsys.readouterr().err


def test_prediction_tells_images_of_which_nothing_is_known(detector, elsewhere, capsys):
    images = [str(elsewhere / "parts/test/good/0.png"), str(elsewhere / "parts/test/square/0.png")]
    assert main(["predict", "found", *images, "--csv", "told.csv"]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in said if row and row[0].endswith(".png")] == ["anomaly", "normal"]
    assert (elsewhere / "found/prediction.png").is_file()
    assert (elsewhere / "told.csv").read_text().splitlines()[0] == "image,score,anomalous"
    assert main(["predict", "found"]) == 2
    assert "imixer evaluate found" in capsys.readouterr().err
    for words, part in ((["--csv", "told.csv"], "told.csv exists"), (["--top", "5"], "top is given, and found is a")):
        assert main(["predict", "found", *images, *words]) == 2
        assert part in capsys.readouterr().err


def test_any_run_is_judged_by_its_features(elsewhere, capsys):
    """Of another task, it learns first; its directory gets the numbers."""
    assert main(["evaluate", "--model", "imixer_n2_8.digits", "--anomaly"]) == 0
    assert "learned from 110 normal images" in capsys.readouterr().out
    assert (elsewhere / "imixer_n2_8.digits/anomaly.json").is_file()


def test_a_sweep_trains_detectors_and_compares_them(elsewhere, capsys):
    (elsewhere / "sweep.yaml").write_text(
        "set: {task: anomaly, model.name: imixer_n2_8.digits, model.pretrained: true, anomaly.memory: 50}\n"
        "grid: {anomaly.normal: [0, 1]}\n"
    )
    assert main(["sweep", "sweep.yaml", "--out", "made"]) == 0
    for normal in (0, 1):
        result = read_json(elsewhere / f"made/normal={normal}/seed-0/result.json", ["data"])
        assert result["data"] == f"digit-{normal}"
    rows = (elsewhere / "made/results.csv").read_text().splitlines()
    assert len(rows) == 3 and all("finished" in row for row in rows[1:])


def test_random_weights_and_other_scores_and_seeds_can_be_asked_for(elsewhere, capsys):
    words = ["--model.name", "imixer_n2_8", "--anomaly.memory", "20", "--anomaly.score", "knn"]
    for seed, out in (("0", "one"), ("0", "again"), ("1", "other")):
        assert main(["train", "--task", "anomaly", *words, "--seed", seed, "--out", out]) == 0
    one, again, other = ((elsewhere / name / "anomaly.csv").read_text() for name in ("one", "again", "other"))
    assert one == again != other
    last = read_json(elsewhere / "one/result.json", ["last"])["last"]
    quality = read_json(elsewhere / "one/anomaly.json", ["scores"])["scores"]["knn"]
    assert last["val_auroc"] == pytest.approx(quality["image_auroc"])


def test_a_run_lends_its_features_to_a_detector(detector, elsewhere, capsys):
    words = ["--model.checkpoint", "found", "--data.name", "parts", "--out", "second"]
    assert main(["train", "--task", "anomaly", *words]) == 0
    assert read_json(elsewhere / "second/result.json", ["model"])["model"] == "imixer_n2_8"


def test_what_has_no_effect_is_said(elsewhere, capsys):
    words = ["--optim.lr", "0.5", "--epochs", "9", "--logger", "wandb", "--out", "found"]
    assert main(["train", "--task", "anomaly", *SMALL, *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no effect on how anomalies are learned here: optim.lr, epochs, logger" in said


def test_a_heat_map_that_cannot_be_drawn_costs_no_number_and_no_model(elsewhere, capsys, monkeypatch):
    def fail(*args):
        raise OSError("no ink")

    benchmark(elsewhere / "parts")
    monkeypatch.setattr("imixer.analysis.anomaly.heat_maps._fill_maps", fail)
    words = ["--data.name", "parts", "--data.image_size", "16", "--anomaly.features", "pixels", "--out", "found"]
    assert main(["train", "--task", "anomaly", *SMALL, *words]) == 0
    said = capsys.readouterr()
    assert "heat_maps was not drawn (OSError: no ink); all else is written" in said.err
    for file in ("metrics.csv", "result.json", "anomaly.csv", "model/model.safetensors", "heat_maps.png"):
        assert Path("found", file).is_file(), file
    assert not Path("found/heat_maps").exists() and "found/heat_maps," not in said.out


def test_numbers_and_model_are_written_before_anything_is_drawn(elsewhere, monkeypatch):
    there = []
    files = ("metrics.csv", "result.json", "anomaly.csv", "model/model.safetensors")
    look = lambda path, draw: there.append([Path("found", file).is_file() for file in files])  # noqa: E731
    monkeypatch.setattr("imixer.analysis.anomaly.heat_maps.drawn", look)
    assert main(["train", "--task", "anomaly", *SMALL, "--anomaly.features", "pixels", "--out", "found"]) == 0
    assert there == [[True] * 4] * 2


@pytest.mark.parametrize("command", [["export"], ["push", "who/what"], ["analyze", "features"], ["evaluate"]])
def test_commands_on_classes_refuse_a_detector_in_a_line(detector, capsys, command):
    name, *rest = command
    rest += ["--corruptions"] if name == "evaluate" else []
    place = ["features", "found"] if name == "analyze" else ["found", *rest]
    assert main([name, *place]) == 2
    (line,) = (text for text in capsys.readouterr().err.splitlines() if text.startswith("imixer: "))
    assert "anomalies" in line


@pytest.mark.parametrize("spoil_file", ["removed", "cut"])
def test_a_damaged_memory_is_refused_in_a_line(detector, capsys, spoil_file):
    file = detector[0] / "normal.safetensors"
    file.unlink() if spoil_file == "removed" else file.write_bytes(file.read_bytes()[:100])
    assert main(["evaluate", "found"]) == 2
    assert "normal.safetensors is missing or damaged" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("harm", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:99])])
def test_an_interrupted_run_is_finished_by_resume(detector, capsys, harm):
    run, _ = detector
    harm(run / "model/model.safetensors")
    (run / "result.json").unlink()
    assert main(["train", "--resume", "found"]) == 0
    assert read_json(run / "result.json", ["epochs"])["epochs"] == 1
    assert main(["evaluate", "found"]) == 0


@pytest.mark.parametrize("image_size", ["50", "20"])
@pytest.mark.parametrize("features", ["model", "pixels"])
def test_a_defect_far_from_the_corner_is_drawn_where_it_is(elsewhere, image_size, features):
    size = int(image_size)
    begins = size // 4 * 4 - 8  # on the grid of patches of 4 pixels
    rng = np.random.default_rng(0)
    for part, count in (("train/good", 8), ("test/good", 2), ("test/dot", 1)):
        (elsewhere / "parts" / part).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(100, 108, (size, size)).astype(np.uint8)
            if part == "test/dot":
                pixels[begins : begins + 4, begins : begins + 4] = 255
            Image.fromarray(pixels).save(elsewhere / "parts" / part / f"{i}.png")
    words = ["--data.name", "parts", "--data.image_size", image_size, "--anomaly.features", features]
    assert main(["train", "--task", "anomaly", "--out", "found", *words]) == 0
    run = load_run("found", "cpu")
    samples = open_defect_folder("parts", run.input_size[0], (size, size))
    source = features_of(run, run.config.anomaly, (size, size))
    learned = learn_normal(samples.normal, source)
    _, maps = score_images(samples.test[[samples.kinds.index("dot")]], source, learned)
    place = np.unravel_index(int(maps["knn"].argmax()), (size, size))
    off = 0 if features == "model" else source.stride // 2
    assert all(begins - off <= each < begins + 4 + off for each in place), place


def test_the_energies_of_blocks_are_learned_by_a_model_that_was_trained_at_another_size(elsewhere, train_quick):
    benchmark(elsewhere / "parts")
    train_quick(Path("classes"), "--data.name", "digits", "--data.image_size", "12")
    words = ["--model.checkpoint", "classes", "--anomaly.memory", "20", "--anomaly.score", "block_energy"]
    assert main(["train", "--task", "anomaly", "--data.name", "parts", *words, "--out", "found"]) == 0
    assert "block_energy" in read_json(Path("found/anomaly.json"), ["scores"])["scores"]


def test_a_segmentation_and_what_has_no_effect_are_told(elsewhere, capsys):
    words = ["--data.value_range", "[0, 16]", "--data.skip_bad", "true", "--anomaly.features", "pixels"]
    assert main(["train", "--task", "anomaly", "--out", "found", *words, "--anomaly.levels", "[99]"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in ("data.value_range", "data.skip_bad", "anomaly.levels"):
        assert name in said.split("no effect")[1]
    run = SimpleNamespace(name="mine", config=TrainConfig(task="segment"))
    with pytest.raises(InputError, match="mine is a segmentation"):
        evaluate_detector(run)


# --- bad input --------------------------------------------------------------------------------------------------------


def spoil(root, what):
    if what == "no normal images":
        for file in (root / "train/good").iterdir():
            file.unlink()
    elif what == "no folder":
        (root / "train/good").rename(root / "train/fine")
    elif what == "no defects":
        (root / "test/square").rename(root / "square")
    elif what == "no good":
        (root / "test/good").rename(root / "test_good")
    elif what == "no test":
        (root / "test").rename(root / "judge")
    elif what == "a second good":
        (root / "test/square").rename(root / "test/Good")
    elif what == "an empty defect":
        (root / "test/dent").mkdir()
        (root / "test/dent/1.pgm").touch()
    elif what == "a loose image":
        Image.new("L", (20, 12)).save(root / "test/7.png")
    elif what == "a small image":
        Image.new("L", (3, 1)).save(root / "test/square/1.png")
    elif what == "a small normal image":
        Image.new("L", (20, 1)).save(root / "train/good/1.png")
    elif what == "a mask of another size":
        Image.new("L", (5, 6), 255).save(root / "ground_truth/square/1_mask.png")
    elif what == "a mask missing":
        (root / "ground_truth/square/1_mask.png").unlink()
    elif what == "a mask of another image":
        (root / "ground_truth/square/1_mask.png").rename(root / "ground_truth/square/9_mask.png")
        (root / "test/square/1.png").unlink()
    elif what == "masks of another defect":
        shutil.copytree(root / "ground_truth/square", root / "ground_truth/hole")
    elif what == "a mask of a good image":
        (root / "ground_truth/good").mkdir()
        Image.new("L", (20, 12), 255).save(root / "ground_truth/good/1_mask.png")
    elif what == "an empty mask":
        Image.new("L", (20, 12)).save(root / "ground_truth/square/1_mask.png")
    elif what == "a broken image":
        (root / "test/good/1.png").write_bytes(b"?")
    elif what == "a broken mask":
        (root / "ground_truth/square/1_mask.png").write_bytes(b"?")


FOLDERS = [
    ("no normal images", ["train/good", "no images"]),
    ("no folder", ["train/good"]),
    ("no defects", ["no defects"]),
    ("no good", ["test/good"]),
    ("no test", ["no folder test"]),
    ("a second good", ["test/Good", "call it good"]),
    ("an empty defect", ["test/dent", "no images"]),
    ("a loose image", ["test/7.png", "no folder"]),
]
FILES = [
    ("a small image", ["1.png", "3 x 1", "patch of 2 x 2"]),
    ("a small normal image", ["train/good/1.png", "20 x 1", "patch of 2 x 2"]),
    ("a mask of another size", ["1_mask.png", "5 x 6", "20 x 12"]),
    ("a mask missing", ["1.png", "no mask", "1_mask.png"]),
    ("a mask of another image", ["9_mask.png", "the mask of no image"]),
    ("masks of another defect", ["hole", "the mask of no image"]),
    ("a mask of a good image", ["ground_truth/good/1_mask.png", "marks a defect in a good image"]),
    ("an empty mask", ["1_mask.png", "marks no pixel"]),
    ("a broken image", ["1.png", "not an image"]),
    ("a broken mask", ["1_mask.png", "not an image"]),
]


@pytest.mark.parametrize(("what", "parts"), [*FOLDERS, *FILES])
def test_bad_folders_are_refused_in_a_line(elsewhere, capsys, what, parts):
    spoil(benchmark(elsewhere / "parts"), what)
    more = ["--data.skip_bad"] if (what, parts) in FILES else []
    refused(capsys, ["--data.name", "parts", *SMALL], [*parts, *more])


@pytest.mark.parametrize("what", [what for what, _ in FILES])
def test_single_bad_files_are_counted_if_that_is_asked_for(tmp_path, what):
    spoil(benchmark(tmp_path), what)
    samples = open_defect_folder(tmp_path, 1, (12, 20), smallest=2, skip_bad=True)
    assert len(samples.skipped) == (3 if what == "masks of another defect" else 1)
    assert {GOOD, "square"} == set(samples.kinds)


def test_what_only_looks_like_a_mask_is_none(tmp_path):
    benchmark(tmp_path)
    before = open_defect_folder(tmp_path, 1, (12, 20), smallest=2)
    for mask in list((tmp_path / "ground_truth/square").iterdir()):
        mask.with_suffix(".json").write_text("{}")
        Image.new("L", (20, 12), 255).save(mask.with_name(f"{mask.stem}.0.png"))  # of another image
    with pytest.raises(InputError, match="is the mask of no image"):
        open_defect_folder(tmp_path, 1, (12, 20), smallest=2)
    for mask in (tmp_path / "ground_truth/square").glob("*.0.png"):
        mask.unlink()
    assert torch.equal(open_defect_folder(tmp_path, 1, (12, 20), smallest=2).masks, before.masks)


def test_blank_masks_of_good_images_are_no_contradiction(tmp_path):
    benchmark(tmp_path)
    (tmp_path / "ground_truth/good").mkdir()
    Image.new("L", (20, 12)).save(tmp_path / "ground_truth/good/1_mask.png")
    assert open_defect_folder(tmp_path, 1, (12, 20)).skipped == ()


@pytest.mark.parametrize("features", ["model", "pixels"])
@pytest.mark.parametrize("what", ["one", "the same", "black"])
def test_normal_images_may_be_one_or_all_alike(elsewhere, capsys, what, features):
    """A covariance that cannot be inverted, and distances of zero."""
    root = benchmark(elsewhere / "parts")
    for file in sorted((root / "train/good").iterdir())[1:]:
        if what == "one":
            file.unlink()
        elif what == "the same":
            shutil.copy(root / "train/good/0.png", file)
    if what == "black":
        for file in (root / "train/good").iterdir():
            Image.new("L", (20, 12)).save(file)
    words = ["--data.name", "parts", "--anomaly.features", features, "--out", "found"]
    assert main(["train", "--task", "anomaly", *SMALL, *words]) == 0
    table = np.loadtxt(elsewhere / "found/anomaly.csv", delimiter=",", skiprows=1, usecols=range(2, 6))
    assert np.isfinite(table).all()


def test_gray_and_coloured_images_and_images_of_16_bits_stand_side_by_side(tmp_path):
    benchmark(tmp_path)
    coloured = Image.open(tmp_path / "train/good/0.png").convert("RGB")
    coloured.save(tmp_path / "train/good/0.png")
    deep = np.asarray(coloured.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "train/good/1.png")
    for channels in (1, 3):
        normal = open_defect_folder(tmp_path, channels, (12, 20)).normal
        assert normal.shape == (6, channels, 12, 20) and (normal[0] - normal[1]).abs().max() < 0.02


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--data.name", "nowhere"], ["nowhere", "train/good"]),
        (["--data.name", "cifar10"], ["cifar10", "no defects"]),
        (["--anomaly.normal", "10"], ["anomaly.normal is 10"]),
        (["--anomaly.normal", "0", "--data.name", "nowhere"], ["anomaly.normal is 0", "nowhere"]),
        (["--anomaly.memory", "0"], ["anomaly.memory is 0"]),
        (["--anomaly.neighbours", "-1"], ["anomaly.neighbours is -1"]),
        (["--anomaly.features", "pixel"], ["anomaly.features is 'pixel'"]),
        (["--anomaly.score", "distance"], ["anomaly.score is 'distance'", "memory_energy"]),
        (["--anomaly.score", "block_energy", "--data.image_size", "16"], ["anomaly.score is block_energy"]),
        (["--anomaly.levels", "[9]"], ["levels is 9"]),
        (["--anomaly.levels", "[]"], ["anomaly.levels is empty"]),
        (["--data.image_size", "0"], ["data.image_size is 0"]),
        (["--seed", "-1"], ["seed is -1"]),
        (["--devices", "2"], ["devices is 2"]),
        (["--accelerator", "mps"], ["accelerator is 'mps'", "takes auto, cpu, cuda, gpu; give one"]),
        (["--accelerator", "cudda"], ["accelerator is 'cudda'", "did you mean cuda?"]),
        (["--choose", "[steps]"], ["choose is"]),
        (["--model.checkpoint", "nowhere"], ["nowhere"]),
    ],
)
def test_bad_options_are_refused_in_a_line(elsewhere, capsys, words, parts):
    refused(capsys, [*words, *([] if "--model.checkpoint" in words else SMALL[:4])], parts)


def refused(capsys, words, parts):
    assert main(["train", "--task", "anomaly", "--out", "refused", *words]) == 2
    captured = capsys.readouterr()
    (line,) = (text for text in captured.err.splitlines() if text.startswith("imixer: "))
    assert captured.out == "" and all(part in line for part in parts), line
    assert not Path("refused").exists()

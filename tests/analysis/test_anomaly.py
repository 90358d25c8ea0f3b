"""Anomalies: the images, every score by hand, the measures beside other libraries, and what a user sees."""

import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from imixer.analysis.anomaly.detect import detect_anomalies, model_features, pixel_features
from imixer.analysis.anomaly.detection_quality import best_f1, detection_quality, per_region_overlap
from imixer.analysis.anomaly.detectors import NormalFeatures, energy_deviations
from imixer.analysis.anomaly.samples import GOOD, OTHER_CLASS, digit_samples, open_defect_folder
from imixer.analysis.energy import energy_along_depth, token_energies
from imixer.cli import main
from imixer.errors import InputError
from imixer.experiments.anomaly_study import DetectorTrials, comparison_grid, judge_detectors, trials_grid
from imixer.reading import read_json


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
    with pytest.raises(InputError, match=r"0\.png.*--skip_bad"):
        open_defect_folder(tmp_path, 1, (12, 20))
    samples = open_defect_folder(tmp_path, 1, (12, 20), skip_bad=True)
    assert samples.skipped == 2 and len(samples.normal) == 5 and len(samples.test) == 5


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
    assert comparison_grid(comparisons).rows[0][1:4] == ("nearest neighbours", "image AUROC", "-5.02")
    assert trials_grid(made).rows[0][:3] == ("model", "memory energy", "90.8 +- 0.8")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_numbers_and_heat_maps(elsewhere, capsys):
    benchmark(elsewhere / "parts")
    words = ["anomaly", "parts", "--model", "imixer_n2_8.digits", "--memory", "50", "--size", "16", "--out", "found"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "nearest neighbours" in text and "learned from 6 normal images (50 vectors stored)" in text
    numbers = read_json(elsewhere / "found/anomaly.json", ["scores", "images", "beta"])
    assert numbers["images"] == {"good": 3, "square": 3} and "knn" in numbers["scores"]
    with Image.open(elsewhere / "found/heat_maps/square/003.png") as image:
        assert image.size == (16, 16) and image.mode == "L"
    assert (elsewhere / "found/heat_maps.png").is_file() and (elsewhere / "found/anomaly.csv").is_file()


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
    elif what == "a small image":
        Image.new("L", (3, 1)).save(root / "test/square/1.png")
    elif what == "a mask of another size":
        Image.new("L", (5, 6), 255).save(root / "ground_truth/square/1_mask.png")
    elif what == "a mask missing":
        (root / "ground_truth/square/1_mask.png").unlink()
    elif what == "an empty mask":
        Image.new("L", (20, 12)).save(root / "ground_truth/square/1_mask.png")
    elif what == "a broken image":
        (root / "test/good/1.png").write_bytes(b"?")


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("no normal images", ["train/good", "no images"]),
        ("no folder", ["train/good"]),
        ("no defects", ["no defects"]),
        ("no good", ["test/good"]),
        ("no test", ["no folder test"]),
        ("a small image", ["1.png", "3 x 1", "patch of 2 x 2"]),
        ("a mask of another size", ["1_mask.png", "5 x 6", "20 x 12"]),
        ("a mask missing", ["1.png", "no mask", "1_mask.png"]),
        ("an empty mask", ["1_mask.png", "marks no pixel"]),
        ("a broken image", ["1.png", "--skip_bad"]),
    ],
)
def test_bad_folders_are_refused_in_a_line(elsewhere, capsys, what, parts):
    spoil(benchmark(elsewhere / "parts"), what)
    refused(capsys, ["parts", "--model", "imixer_n2_8.digits"], parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nowhere"], ["nowhere", "train/good"]),
        (["--normal", "10"], ["normal is 10"]),
        (["--normal", "0", "nowhere"], ["normal is 0", "nowhere"]),
        (["--memory", "0"], ["memory is 0"]),
        (["--neighbours", "-1"], ["neighbours is -1"]),
        (["--features", "pixel"], ["features is 'pixel'"]),
        (["--levels", "9"], ["levels is 9"]),
        (["--size", "0"], ["size is 0"]),
        (["--seed", "-1"], ["seed is -1"]),
        (["--compare", "--normal", "0"], ["compare", "normal"]),
        (["--run", "nowhere"], ["nowhere"]),
    ],
)
def test_bad_options_are_refused_in_a_line(elsewhere, capsys, words, parts):
    model = [] if "--run" in words else ["--model", "imixer_n2_8.digits"]
    refused(capsys, [*words, *model], parts)


def refused(capsys, words, parts):
    assert main(["anomaly", *words]) == 2
    captured = capsys.readouterr()
    (line,) = (text for text in captured.err.splitlines() if text.startswith("imixer: "))
    assert captured.out == "" and all(part in line for part in parts), line

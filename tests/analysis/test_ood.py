"""Detection of other images: the measures are scikit-learn's, the scores what they say, the signs fixed."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

import imixer  # noqa: F401
from imixer.analysis.bridge import model_networks
from imixer.analysis.images import held_out_batches, pixels_of
from imixer.analysis.ood.data import SYNTHETIC_OOD, ood_batches
from imixer.analysis.ood.measure import _interval, detection
from imixer.analysis.ood.scores import SCORES, ood_scores
from imixer.analysis.views import ood
from imixer.cli import main
from imixer.errors import InputError
from imixer.training.finished_run import load_run
from imixer.training.monitor import convergence

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n", "m", "decimals"), [(60, 40, 6), (40, 90, 0), (7, 3, 1)])
def test_the_measures_are_scikit_learns_ties_included(n, m, decimals):
    rng = np.random.default_rng(n)
    in_dist, out_dist = rng.normal(0.8, 1, n).round(decimals), rng.normal(0, 1, m).round(decimals)
    found = detection(in_dist, out_dist, resamples=20)
    labels, scores = np.repeat([1, 0], [n, m]), np.concatenate([in_dist, out_dist])
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert found.auroc[0] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found.aupr_in[0] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert found.aupr_out[0] == pytest.approx(average_precision_score(1 - labels, -scores), abs=1e-12)
    assert found.fpr95[0] == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)


def test_the_ends():
    high, low = np.arange(10.0, 20), np.arange(0.0, 10)
    perfect, inverted, same = (detection(a, b) for a, b in ((high, low), (low, high), (low, low)))
    assert perfect.auroc == perfect.aupr_in == perfect.aupr_out == (1, 1, 1) and perfect.fpr95 == (0, 0, 0)
    assert inverted.auroc == (0, 0, 0) and inverted.fpr95 == (1, 1, 1)
    assert same.auroc[0] == 0.5
    diverged = detection(low, np.full(5, -np.inf))
    assert diverged.auroc[0] == 1


def test_intervals_hold_the_truth_as_often_as_they_say():
    truth = 0.7602  # P(N(1, 1) > N(0, 1))
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        _, low, high = detection(rng.normal(1, 1, 80), rng.normal(0, 1, 60), resamples=200, seed=seed).auroc
        held += low <= truth <= high
    assert 0.88 <= held / 200 <= 0.99


def test_an_interval_leaves_a_fortieth_out_at_either_end():
    assert _interval(0.5, np.arange(1001.0)) == (0.5, 25.0, 975.0)


def test_the_scores_are_what_they_say():
    torch.manual_seed(0)
    model = timm.create_model("imixer_t2_8", num_blocks=2, embed_dim=16).eval()
    torch.nn.init.normal_(model.head.weight)  # timm starts it at 0
    found = ood_scores(model, IMAGES)
    assert set(found) == set(SCORES)
    logits = model(IMAGES).detach().double()
    torch.testing.assert_close(found["max_softmax"], logits.softmax(1).amax(1))
    torch.testing.assert_close(found["logsumexp"], logits.exp().sum(1).log())
    v, energies = model.stem(IMAGES).detach(), []
    for networks in model_networks(model).values():
        update = networks.tokens
        state = dict(zip(update.layers, (v, *update.hidden(v)), strict=True))
        energies.append(update.network.energy(state, symmetrised=True).double() / v[0].numel())
        v = networks(v)
    torch.testing.assert_close(found["hopfield_mean"], -(energies[0] + energies[1]) / 2)
    torch.testing.assert_close(found["hopfield_last"], -energies[1])
    for i, score in enumerate(found["residual"]):
        blocks = [block["residual"] for block in convergence(model, IMAGES[i : i + 1])]
        assert float(-score) == pytest.approx(sum(blocks) / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "kwargs", "missing"),
    [
        ("mixer_t2_8", {}, {"residual"}),
        ("imixer_t2_8", {"num_layers": 2}, {"residual"}),
        ("resnet10t", {}, {"residual", "hopfield_mean", "hopfield_last"}),
    ],
)
def test_models_without_an_energy_or_an_inverse_have_the_other_scores(name, kwargs, missing):
    model = timm.create_model(name, num_classes=3, **kwargs).eval()
    images = IMAGES if name != "resnet10t" else torch.randn(2, 3, 64, 64)
    assert set(SCORES) - set(ood_scores(model, images)) == missing


def test_an_inverse_that_diverges_is_like_nothing_seen():
    model = timm.create_model("imixer_t2_8", num_blocks=1, norm="none", n_iter=200).eval()
    for layer in (model.blocks[0].mlp_tokens.contraction.fc1, model.blocks[0].mlp_tokens.contraction.fc2):
        layer.weight.data *= 1e6
    found = ood_scores(model, IMAGES)
    assert (found["residual"] == -torch.inf).all()


def test_spoilt_images_are_other_images_of_the_same_pixels():
    pixels = torch.rand(3, 2, 9, 9, generator=torch.Generator().manual_seed(1))
    made = {name: spoil(pixels, torch.Generator().manual_seed(0)) for name, spoil in SYNTHETIC_OOD.items()}
    for images in made.values():
        assert images.shape == pixels.shape and 0 <= images.min() and images.max() <= 1
        assert not torch.equal(images, pixels)
    torch.testing.assert_close(1 - made["inverted"], pixels)
    assert torch.equal(made["rotated"].rot90(-1, (2, 3)), pixels)
    shuffled = made["shuffled"]
    assert torch.equal(shuffled[..., 8, :], pixels[..., 8, :])  # what does not fill a tile stays
    for before, after in zip(pixels, shuffled, strict=True):
        tiles = [
            {tuple(image[:, i : i + 2, j : j + 2].flatten().tolist()) for i in range(0, 8, 2) for j in range(0, 8, 2)}
            for image in (before, after)
        ]
        assert tiles[0] == tiles[1]
    wide = torch.rand(1, 1, 4, 8)
    assert torch.equal(SYNTHETIC_OOD["rotated"](wide, torch.Generator()), wide.rot90(2, (2, 3)))


def test_inverted_images_are_what_the_model_takes(run):
    finished = load_run(str(run), "cpu")
    images, _ = next(held_out_batches(finished, 4, 4))
    other = next(ood_batches(finished, "inverted", 4, 4))
    torch.testing.assert_close(pixels_of(finished).of(other), 1 - pixels_of(finished).of(images))


def test_analyze_ood_writes_a_table_and_a_figure(run, capsys, is_print_pair):
    assert main(["analyze", "ood", str(run), "--images", "30", "--ood_dataset", "noise", "digits"]) == 0
    written = json.loads((run / "analysis" / "ood.json").read_text())
    assert written["images"] == 30 and list(written["ood_datasets"]) == ["noise", "digits"]
    for detected in written["ood_datasets"]["digits"]["detection"].values():
        assert detected["auroc"]["estimate"] == 0.5  # the very same images
    for detected in written["ood_datasets"]["noise"]["detection"].values():
        for measure in detected.values():
            assert measure["lower"] <= measure["estimate"] + 0.05 and measure["estimate"] <= measure["upper"] + 0.05
    assert set(written["scores"]) == set(SCORES) and written["missing"] == []
    is_print_pair(run / "analysis" / "ood.png")
    out = capsys.readouterr().out
    assert "Hopfield energy, last" in out and "AUROC" in out


def test_a_misspelt_name_is_found_before_anything_is_scored(run, monkeypatch):
    monkeypatch.setattr("imixer.analysis.ood.scores.ood_scores", lambda *args: pytest.fail("an image was scored"))
    with pytest.raises(InputError, match="'weather' is none of noise, shuffled"):
        ood.measure(load_run(str(run), "cpu"), images=4, ood_dataset=["noise", "weather"])


def test_other_images_are_read_as_the_runs_own_are(elsewhere):
    """The same folder again cannot be told from itself, whatever its range and what shows through its images."""
    rng = np.random.default_rng(0)
    for number in range(40):
        values = rng.integers(0, 1000, (8, 8)).astype(np.uint16)
        clear = np.stack([values % 256, rng.choice([0, 255], (8, 8))], 2).astype(np.uint8)
        file = elsewhere / "pets" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values if number % 4 < 2 else clear).save(file)
    tiny = ["--model.name", "imixer_t2_8", "--model.num_blocks", "1", "--model.embed_dim", "8", "--steps", "1"]
    read = ["--data.value_range", "[0, 4095]", "--data.background", "black", "--data.batch_size", "8"]
    assert main(["train", "--recipe", "digits_general", "--data.name", "pets", *tiny, *read, "--out", "run"]) == 0
    assert main(["analyze", "ood", "run", "--ood_dataset", "pets"]) == 0
    written = json.loads((elsewhere / "run/analysis/ood.json").read_text())
    for detected in written["ood_datasets"]["pets"]["detection"].values():
        assert detected["auroc"]["estimate"] == 0.5


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["ood", "RUN", "--images", "0"], "images is 0"),
        (["ood", "RUN", "--ood_dataset", "weather"], "'weather'"),
        (["ood", "nowhere"], "nowhere"),
        (["energy", "RUN", "--ood_dataset", "noise"], "ood_dataset is"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, named, run, capsys):
    assert main(["analyze", *(str(run) if w == "RUN" else w for w in words)]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error

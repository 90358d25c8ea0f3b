"""Norm_a and cos_a are what the paper defines, of the images and iterations asked for."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image

import imixer  # noqa: F401
from imixer.analysis.analyze import analyze
from imixer.analysis.convergence import convergence_along_depth, iterates
from imixer.analysis.convergence_figure import draw_convergence
from imixer.analysis.convergence_report import ANALYSIS
from imixer.analysis.images import random_images
from imixer.cli import main
from imixer.errors import InputError
from imixer.models.inside import look_inside
from imixer.training.reload import reload

IMAGES = torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("imixer_t2_8", img_size=(8, 12), num_blocks=2, embed_dim=16, **kwargs).eval()


def test_norm_and_cosine_are_those_of_a_plain_recomputation():
    model, images = create(n_iter=3).double(), IMAGES.double()
    found = convergence_along_depth(model, images)
    assert (found.trained, found.n_iter, found.images) == (3, 3, 3)
    tokens = model.stem(images)
    for block, measured in zip(model.blocks, found.blocks, strict=True):
        v = block.norm1(tokens).transpose(1, 2)
        F = block.mlp_tokens.contraction
        W1, W2, b1, b2 = F.weights()
        G = block.mlp_tokens.fc_in(v)
        for image in range(3):
            x = G[image]
            for a in range(3):
                after = G[image] + F.act_hidden(F.act(x) @ W1.T + b1) @ W2.T + b2
                norm = (after - x).square().sum().sqrt() / (24 * 16) ** 0.5
                cosine = (after * x).sum() / (after.square().sum() * x.square().sum()).sqrt()
                torch.testing.assert_close(measured.norms[a, image], norm)
                torch.testing.assert_close(measured.cosines[a, image], cosine)
                x = after
        tokens = block(tokens)


def test_a_contraction_settles_geometrically():
    for block in convergence_along_depth(create(coeff=0.5).double(), IMAGES.double(), n_iter=12).blocks:
        ratios = block.norms[1:] / block.norms[:-1]
        assert (ratios < 0.3).all()  # (0.5 * 1.13)^2 is 0.32
        torch.testing.assert_close(block.rate, ratios.log().mean(0).exp())
        assert (1 - block.cosines[-1] < 1e-12).all() and (block.cosines.diff(dim=0) > -1e-15).all()


@pytest.mark.parametrize(
    "kwargs", [dict(), dict(num_layers=4, tied=True), dict(legacy=True), dict(norm="batch"), dict(norm="none")], ids=str
)
def test_the_iterates_end_where_the_model_does(kwargs):
    for inside in look_inside(create(n_iter=3, **kwargs), IMAGES):
        found = iterates(inside, 3)
        assert len(found) == 4
        torch.testing.assert_close(found[-1], inside.x)


def test_looking_further_changes_nothing_before():
    model = create(n_iter=2)
    own, further = convergence_along_depth(model, IMAGES), convergence_along_depth(model, IMAGES, n_iter=6)
    assert (further.trained, further.n_iter, model.n_iter) == (2, 6, 2)
    for a, b in zip(own.blocks, further.blocks, strict=True):
        torch.testing.assert_close(a.norms, b.norms[:2], rtol=0, atol=0)
        torch.testing.assert_close(a.cosines, b.cosines[:2], rtol=0, atol=0)


def test_one_iteration_has_no_rate():
    assert convergence_along_depth(create(n_iter=1), IMAGES).blocks[0].rate is None


@pytest.mark.parametrize(
    ("kwargs", "n_iter", "named"),
    [
        (dict(n_iter=0), None, "n_iter is 0"),
        (dict(), 0, "n_iter is 0"),
        (dict(), -1, "n_iter is -1"),
        (dict(solver="anderson"), None, "anderson.* give n_iter"),
        (dict(num_layers=2), None, "nothing to iterate"),
    ],
)
def test_what_does_not_iterate_is_refused(kwargs, n_iter, named):
    with pytest.raises(InputError, match=named):
        convergence_along_depth(create(**kwargs), IMAGES, n_iter)


def test_a_model_that_solves_to_a_tolerance_can_be_iterated():
    found = convergence_along_depth(create(solver="anderson"), IMAGES, n_iter=2)
    assert found.trained is None and found.n_iter == 2


def test_images_are_drawn_by_the_seed(run):
    reloaded = reload(str(run))
    first, again, other = (random_images(reloaded, 16, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    everything = random_images(reloaded, 1000, 0)
    assert len(everything) == 360 and torch.equal(everything[:16], first)
    assert len(everything.flatten(1).unique(dim=0)) > 350  # not one image again and again


def test_several_runs_side_by_side_as_picture_and_vectors(tmp_path, is_print_pair):
    found = [convergence_along_depth(create(n_iter=n), IMAGES) for n in (1, 2, 4)]
    draw_convergence(found, tmp_path / "three.png")
    is_print_pair(tmp_path / "three.png")
    draw_convergence([*found, replace(found[0], trained=None)], tmp_path / "four.png", titles=["a", "b", "c", "d"])
    assert Image.open(tmp_path / "three.png").width == Image.open(tmp_path / "four.png").width
    draw_convergence(found[0], tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").width < Image.open(tmp_path / "three.png").width


def test_the_same_figure_is_the_same_file(tmp_path):
    found = convergence_along_depth(create(), IMAGES)
    for name in ("a.png", "b.png"):
        draw_convergence(found, tmp_path / name)
    for kind in ("png", "pdf"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_what_diverges_is_drawn_and_written_too(run, tmp_path):
    model = create(norm="none")
    for block in model.blocks:
        block.mlp_tokens.contraction.fc1.weight.data *= 1e6
    found = convergence_along_depth(model, IMAGES, n_iter=12)
    assert not found.blocks[0].norms.isfinite().all()
    draw_convergence(found, tmp_path / "diverges.png")
    _, folder = analyze(replace(ANALYSIS, measure=lambda reloaded: found), str(run))
    assert json.loads((folder / "convergence.json").read_text())["blocks"][0]["norm"][-1]["mean"] is None


def test_analyze_convergence_writes_numbers_and_figures(run, capsys, is_print_pair):
    assert main(["analyze", "convergence", str(run), "--n_iter", "3", "--seed", "5", "--images", "4"]) == 0
    written = json.loads((run / "analysis" / "convergence.json").read_text())
    assert (written["images"], written["seed"], written["n_iter"], written["trained_n_iter"]) == (4, 5, 3, 2)
    found, _ = analyze(ANALYSIS, str(run), images=4, n_iter=3, seed=5)
    for row, block in zip(written["blocks"], found.blocks, strict=True):
        assert [norm["mean"] for norm in row["norm"]] == pytest.approx(block.norms.mean(1).tolist())
        assert [cosine["std"] for cosine in row["cosine"]] == pytest.approx(block.cosines.std(1).tolist())
    is_print_pair(run / "analysis" / "convergence.png")
    out = capsys.readouterr().out
    assert "a = 2" in out and "convergence.pdf" in out
    assert main(["analyze", "convergence", str(run)]) == 0
    written = json.loads((run / "analysis" / "convergence.json").read_text())
    assert (written["images"], written["seed"], written["n_iter"]) == (16, 0, 2)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["convergence", "--images", "0"], "images is 0"),
        (["convergence", "--seed", "-1"], "seed is -1"),
        (["convergence", "--n_iter", "0"], "n_iter is 0"),
        (["convergence", "--n_iter", "two"], "n_iter"),
        (["convergence", "--block", "0"], "block is 0"),
        (["energy", "--n_iter", "3"], "n_iter is 3"),
        (["contraction", "--seed", "3"], "seed is 3"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, named, run, capsys):
    assert main(["analyze", words[0], str(run), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error

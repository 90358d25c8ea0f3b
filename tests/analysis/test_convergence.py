"""Norm_a and cos_a are what the paper defines, of the images and iterations asked for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import imixer  # noqa: F401
from imixer.analysis.analyze import analyze
from imixer.analysis.convergence import block_iterates, compare_convergence, convergence_along_depth
from imixer.analysis.images import random_images
from imixer.analysis.views.convergence import ANALYSIS, draw, draw_cosines, draw_first_block, draw_norms
from imixer.cli import main
from imixer.errors import InputError
from imixer.models.probe import capture_activations
from imixer.plotting import save_print_figure
from imixer.training.finished_run import load_run

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
    for inside in capture_activations(create(n_iter=3, **kwargs), IMAGES):
        found = block_iterates(inside, 3)
        assert len(found) == 4
        torch.testing.assert_close(found[-1], inside.x)


def test_late_steps_are_not_lost_in_rounding():
    found = convergence_along_depth(create(coeff=0.5), IMAGES, n_iter=10)  # float32
    for block in found.blocks:
        ratios = block.norms[1:] / block.norms[:-1]
        assert (block.norms[-1] < 1e-8).all() and (ratios < 0.3).all()


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
    finished = load_run(str(run))
    first, again, other = (random_images(finished, 16, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    everything = random_images(finished, 1000, 0)
    assert len(everything) == 360 and torch.equal(everything[:16], first)
    assert len(everything.flatten(1).unique(dim=0)) > 350  # not one image again and again


def compared():
    """Three models on the same images, for what is drawn of several."""
    found = [convergence_along_depth(create(n_iter=n), IMAGES, n_iter=6) for n in (1, 2, 4)]
    return [replace(each, name=f"n = {each.trained}") for each in found]


def check_panel(axes, models, block, measure):
    """A curve per model through the means, a marker at its own n, and a band over all images."""
    curves, stops = axes.lines[::2], axes.lines[1::2]
    bands = axes.collections
    assert len(axes.lines) == 2 * len(models) and len(bands) == len(models)
    for model, curve, stop, band in zip(models, curves, stops, bands, strict=True):
        values = getattr(model.blocks[block], measure).numpy()
        assert curve.get_label() == model.name
        assert curve.get_xdata().tolist() == list(range(6))
        assert curve.get_ydata() == pytest.approx(values.mean(1))
        assert stop.get_xdata().tolist() == [model.trained]
        assert stop.get_ydata().tolist() == pytest.approx([values[model.trained].mean()])
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((values.min(), values.max()))
    assert len({curve.get_linestyle() for curve in curves}) == len({curve.get_color() for curve in curves}) == 3


def test_the_first_block_is_drawn_as_norm_and_cosine_with_a_curve_per_model():
    models = compared()
    norms, cosines = draw_first_block(models).axes
    check_panel(norms, models, 0, "norms")
    check_panel(cosines, models, 0, "cosines")
    assert (norms.get_yscale(), cosines.get_yscale()) == ("log", "linear")
    assert "Norm" in norms.get_ylabel() and "cos" in cosines.get_ylabel()
    assert norms.get_title() == cosines.get_title() == "iMLP-0"


@pytest.mark.parametrize(
    ("drawing", "measure", "scale"), [(draw_norms, "norms", "log"), (draw_cosines, "cosines", "linear")]
)
def test_all_blocks_are_drawn_in_a_panel_each(drawing, measure, scale):
    models = compared()
    figure = drawing(models)
    assert [axes.get_title() for axes in figure.axes] == ["iMLP-0", "iMLP-1"]
    for block, axes in enumerate(figure.axes):
        check_panel(axes, models, block, measure)
        assert axes.get_yscale() == scale
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts][:3] == ["n = 1", "n = 2", "n = 4"]
    assert "D_S C = 8 \\cdot 16" in figure._supxlabel.get_text() and "{24 \\cdot 16}" in figure._supxlabel.get_text()


@pytest.mark.usefixtures("unsaved")
@pytest.mark.parametrize(("blocks", "panels"), [(1, (1, 1)), (3, (1, 3)), (5, (2, 3)), (8, (2, 4))])
def test_any_number_of_blocks_has_a_place(blocks, panels):
    models = [replace(model, blocks=(model.blocks * 4)[:blocks]) for model in compared()]
    figure = draw_norms(models)
    assert len(figure.axes) == blocks
    assert figure.axes[0].get_gridspec().get_geometry() == panels


def test_names_of_any_length_stay_inside_the_figure(tmp_path):
    for name in ("n = 1", "sweep/a-long-name-of-a-run/seed-0", "x" * 200):
        figure = draw_norms([replace(model, name=name) for model in compared()])
        save_print_figure(figure, tmp_path / "norms.png")
        (legend,) = figure.legends
        if len(name) < 100:
            box, page = legend.get_window_extent(), figure.bbox
            assert page.x0 <= box.x0 and box.x1 <= page.x1


def test_a_model_that_goes_on_beyond_the_figure_or_solves_has_no_mark():
    one, two = compared()[:2]
    assert [replace(one, trained=n).stop for n in (5, 6, None)] == [5, None, None]
    figure = draw_norms([replace(one, trained=6), replace(two, trained=None)])
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]


def test_a_single_model_is_drawn_with_a_line_per_block():
    found = convergence_along_depth(create(), IMAGES, n_iter=4)
    norms, cosines = draw(found).axes
    for axes, measure in ((norms, "norms"), (cosines, "cosines")):
        *lines, stop = axes.lines
        for line, block in zip(lines, found.blocks, strict=True):
            assert line.get_ydata() == pytest.approx(getattr(block, measure).mean(1).tolist())
        assert set(stop.get_xdata()) == {1.5}  # between the second step, its last, and the third


def test_the_same_figure_is_the_same_file(tmp_path):
    found = convergence_along_depth(create(), IMAGES)
    for name in ("a.png", "b.png"):
        save_print_figure(draw(found), tmp_path / name)
    for kind in ("png", "pdf"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_what_diverges_is_drawn_and_written_too(run, tmp_path):
    model = create(norm="none")
    for block in model.blocks:
        block.mlp_tokens.contraction.fc1.weight.data *= 1e12
    found = convergence_along_depth(model, IMAGES, n_iter=40)
    assert not found.blocks[0].norms.isfinite().all()
    two = [replace(found, name="one")] * 2
    for figure in (draw(found), draw_norms(two), draw_first_block(two)):
        save_print_figure(figure, tmp_path / "diverges.png")
    _, files = analyze(replace(ANALYSIS, measure=lambda finished: found), str(run))
    assert json.loads(files[0].read_text())["blocks"][0]["norm"][-1]["mean"] is None


def test_analyze_convergence_writes_numbers_and_figures(run, capsys, is_print_pair, request):
    assert main(["analyze", "convergence", str(run), "--n_iter", "3", "--seed", "5", "--images", "4"]) == 0
    written = json.loads((run / "analysis" / "convergence.json").read_text())
    assert (written["images"], written["seed"], written["n_iter"], written["trained_n_iter"]) == (4, 5, 3, 2)
    is_print_pair(run / "analysis" / "convergence.png")
    request.getfixturevalue("unsaved")
    found, _ = analyze(ANALYSIS, str(run), images=4, n_iter=3, seed=5)
    for row, block in zip(written["blocks"], found.blocks, strict=True):
        assert [norm["mean"] for norm in row["norm"]] == pytest.approx(block.norms.mean(1).tolist())
        assert [cosine["std"] for cosine in row["cosine"]] == pytest.approx(block.cosines.std(1).tolist())
    out = capsys.readouterr().out
    assert "a = 2" in out and "convergence.pdf" in out
    assert main(["analyze", "convergence", str(run)]) == 0
    written = json.loads((run / "analysis" / "convergence.json").read_text())
    assert (written["images"], written["seed"], written["n_iter"]) == (16, 0, 2)


@pytest.fixture(scope="module")
def other_runs(train_quick, tmp_path_factory):
    """Runs of one epoch that differ from `run` in one more thing each."""
    flags = {
        "four": ["--model.n_iter", "4"],
        "deep": ["--model.num_blocks", "2"],
        "large": ["--data.image_size", "16"],
        "split": ["--data.split_seed", "1"],
        "classes": ["--data.name", str(tmp_path_factory.mktemp("data") / "two")],
    }
    for label in ("dark", "light"):
        folder = Path(flags["classes"][1], label)
        folder.mkdir(parents=True)
        for number in range(20):
            Image.new("L", (8, 8), 200 * (label == "light") + number).save(folder / f"{number}.png")
    flags["classes"] += ["--data.batch_size", "8"]
    root = tmp_path_factory.mktemp("others")
    once = ["--epochs", "1", "--schedule.warmup_epochs", "0"]
    return {name: train_quick(root / name, *once, *words) for name, words in flags.items()}


def test_several_runs_are_compared_on_the_same_images(run, other_runs, capsys, tmp_path, is_print_pair, request):
    four = other_runs["four"]
    assert main(["analyze", "convergence", str(run), str(four), "--n_iter", "6", "--images", "5"]) == 0
    shown = capsys.readouterr().out
    written = json.loads((run / "analysis" / "convergence_compared.json").read_text())
    assert (written["images"], written["n_iter"], written["seed"]) == (5, 6, 0)
    assert [(model["name"], model["trained_n_iter"]) for model in written["models"]] == [
        ("digits, n = 2", 2),
        ("four, n = 4", 4),
    ]
    assert not (four / "analysis" / "convergence_compared.json").exists()
    for name in ("first_block", "norms", "cosines"):
        is_print_pair(run / "analysis" / f"convergence_{name}.png")
        assert f"convergence_{name}.pdf" in shown
    request.getfixturevalue("unsaved")
    for path, model in zip((run, four), written["models"], strict=True):
        alone, _ = analyze(ANALYSIS, str(path), images=5, n_iter=6)  # draws the same images
        for row, block in zip(model["blocks"], alone.blocks, strict=True):
            assert (row["tokens"], row["channels"], row["width"]) == (block.S, block.C, block.D) == (16, 16, 8)
            assert [norm["mean"] for norm in row["norm"]] == pytest.approx(block.norms.mean(1).tolist())
            assert [norm["max"] for norm in row["norm"]] == pytest.approx(block.norms.amax(1).tolist())
            assert [each["min"] for each in row["cosine"]] == pytest.approx(block.cosines.amin(1).tolist())
        starred = f"* {model['blocks'][0]['norm'][model['trained_n_iter']]['mean']:.3g}"
        assert starred in shown
    out = tmp_path / "new" / "folder"
    assert main(["analyze", "convergence", str(four), str(run), "--out", str(out)]) == 0
    written = json.loads((out / "convergence_compared.json").read_text())
    assert (written["images"], written["n_iter"]) == (16, 10)
    assert [model["trained_n_iter"] for model in written["models"]] == [4, 2]


def test_iterations_of_several_runs_go_beyond_the_largest_n_of_theirs(run, other_runs):
    runs = [load_run(str(run)), load_run(str(other_runs["four"]))]
    runs[1].model.blocks[0].mlp_tokens.n_iter = 12
    one, other = compare_convergence(runs, images=2, names=["a", "b"])
    assert (one.n_iter, other.n_iter, other.stop, other.name) == (13, 13, 12, "b")


def test_every_run_that_is_compared_must_be_finite_on_the_images(run):
    good, bad = load_run(str(run)), load_run(str(run))
    bad.model.blocks[0].mlp_tokens.fc_in.weight.data.fill_(1e38)
    for runs in ([good, bad], [bad, good]):
        with pytest.raises(InputError, match="is not finite, from block 0"):
            compare_convergence(runs, images=2)


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        ("deep", ["has 1 block and", "has 2 blocks"]),
        ("large", ["takes images of 8x8 pixels in 1 channel", "of 16x16 pixels"]),
        ("split", ["do not see the same images"]),
        ("classes", ["trained on digits (0, 1", "(dark, light)"]),
    ],
)
def test_runs_that_cannot_be_compared_are_named_in_one_line(other, parts, run, other_runs, capsys, tmp_path):
    words = ["analyze", "convergence", str(run), str(other_runs[other]), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("imixer: ") and str(run) in line and str(other_runs[other]) in line
    assert all(part in line for part in parts), line
    assert not (tmp_path / "out").exists()


def test_a_mixer_among_the_runs_is_refused(run, mixer_run, capsys):
    assert main(["analyze", "convergence", str(run), str(mixer_run)]) == 2
    assert "nothing to iterate" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["energy", "contraction", "inverse", "iterations", "features", "weights", "ood"])
def test_other_measurements_take_one_run(what, run, mixer_run, capsys):
    assert main(["analyze", what, str(run), str(mixer_run)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"analyze {what} measures one run, and 2 are given" in line and str(mixer_run) in line


def test_where_nothing_can_be_written_is_said_in_one_line(run, other_runs, capsys, tmp_path):
    (tmp_path / "file").touch()
    words = ["analyze", "convergence", str(run)]
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        assert main([*words, str(other_runs["four"]), "--out", str(out)]) == 2
        assert "cannot be made" in capsys.readouterr().err.splitlines()[-1]
    assert main([*words, "--out", "elsewhere"]) == 2
    assert "out is elsewhere" in capsys.readouterr().err


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

"""Each setting is what it says, and the model is left as it was."""

import json

import pytest
import timm
import torch

import imixer  # noqa: F401
from imixer.analysis.iterations import NUMBERS, TOLERANCES, Setting, compare_iterations, default_settings
from imixer.cli import main
from imixer.data.image_data import IGNORED
from imixer.errors import InputError

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6)


def create(**kwargs):
    torch.manual_seed(0)
    model = timm.create_model("imixer_t2_8", num_blocks=2, embed_dim=16, num_classes=10, **kwargs).eval()
    torch.nn.init.normal_(model.head.weight)  # timm starts it at 0
    return model


@pytest.mark.parametrize("kwargs", [dict(), dict(num_layers=4), dict(legacy=True), dict(norm="batch")], ids=str)
def test_numbers_and_tolerances_lead_to_the_same_place(kwargs):
    model = create(**kwargs)
    before = model(IMAGES)
    settings = [Setting(), Setting(n_iter=2), Setting(n_iter=0), Setting(tolerance=1e-1), Setting(tolerance=1e-5)]
    found = compare_iterations(model, [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])], settings, repeats=2)
    same, trained, none, loose, tight = found.results
    assert found.trained == "n = 2" and found.batch_size == 4
    assert same.change.max() == trained.change.max() == 0 < none.change.max()
    assert none.evaluations.shape == (2, 6) and (none.evaluations == 0).all() and (trained.evaluations == 2).all()
    assert loose.converged == tight.converged == 1
    assert (loose.evaluations >= 1).all() and (loose.evaluations <= tight.evaluations).all()
    assert loose.evaluations.sum() < tight.evaluations.sum()
    assert all(len(o.latency) == 2 and len(o.correct) == 6 for o in found.results)
    torch.testing.assert_close(model(IMAGES), before, rtol=0, atol=0)

    if not kwargs:
        model.n_iter = 50
        logits = model(IMAGES)
        solved = ((logits - before).norm(dim=1) / before.norm(dim=1)).detach()
        torch.testing.assert_close(tight.change, solved, rtol=1e-2, atol=1e-5)
        assert tight.accuracy == float((logits.argmax(1) == LABELS).double().mean())


def test_images_are_judged_on_their_own():
    model = create()
    alone = [
        compare_iterations(model, [(IMAGES[i : i + 1], LABELS[i : i + 1])], [Setting(tolerance=1e-4)], repeats=2)
        for i in range(6)
    ]
    together = compare_iterations(model, [(IMAGES, LABELS)], [Setting(tolerance=1e-4)], repeats=2)
    counts = torch.cat([a.results[0].evaluations for a in alone], 1)
    assert ((counts - together.results[0].evaluations).abs() <= 1).all()


@pytest.mark.parametrize(
    ("kwargs", "n", "own"),
    [(dict(n_iter=3), [], []), (dict(n_iter=12), [12], []), (dict(solver="anderson", n_iter=12), [], [Setting()])],
    ids=str,
)
def test_the_models_own_setting_is_always_among_those_that_are_compared(kwargs, n, own):
    model = create(**kwargs)
    settings = default_settings(model)
    numbers = [Setting(n_iter=each) for each in (*NUMBERS, *n)]
    assert settings == [*numbers, *(Setting(tolerance=t) for t in TOLERANCES), *own]
    as_trained = own[0] if own else Setting(n_iter=kwargs["n_iter"])
    (found,) = compare_iterations(model, [(IMAGES, LABELS)], [as_trained], repeats=2).results
    assert found.change.max() == 0
    if own:
        assert found.evaluations is None
    else:
        assert (found.evaluations == kwargs["n_iter"]).all() and found.evaluations.shape == (2, 6)


class Segmenting(torch.nn.Module):
    """A model whose logits of an image are those of each of its 2 x 2 pixels."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Module()
        self.backbone.model = create()

    def forward(self, images):
        return self.backbone.model(images)[:, :, None, None].expand(-1, -1, 2, 2)


def test_images_whose_pixels_are_all_ignored_are_no_part_of_the_accuracy():
    model = Segmenting().eval()
    masks = model(IMAGES).argmax(1)  # all right
    masks[1:3], masks[3, 0] = IGNORED, IGNORED
    (found,) = compare_iterations(
        model, [(IMAGES[:3], masks[:3]), (IMAGES[3:], masks[3:])], [Setting()], repeats=2
    ).results
    assert (found.accuracy, found.accuracy_error, found.without_pixels) == (1, 0, 2)
    assert found.correct.isnan().tolist() == [False, True, True, False, False, False]


def test_a_mixer_has_nothing_to_iterate():
    with pytest.raises(InputError, match="nothing to iterate"):
        compare_iterations(timm.create_model("mixer_t2_8"), [(IMAGES, LABELS)], [Setting(n_iter=1)])


def test_analyze_iterations_writes_a_table_and_a_figure(run, capsys):
    assert main(["analyze", "iterations", str(run)]) == 0
    written = json.loads((run / "analysis" / "iterations.json").read_text())
    assert written["images"] == 360
    rows = written["settings"]
    assert [row["n_iter"] for row in rows] == [*range(9), *[None] * 5]
    assert [row["tolerance"] for row in rows[9:]] == [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]
    assert rows[2]["same_answer"] == 1 and rows[2]["logit_change"]["mean"] == 0
    assert (run / "analysis" / "iterations.png").exists()
    assert "ms per image" in capsys.readouterr().out

    assert main(["evaluate", str(run)]) == 0  # and the accuracy is the run's
    assert rows[2]["accuracy"] == pytest.approx(json.loads((run / "evaluation.json").read_text())["top1"], abs=1e-6)


@pytest.mark.parametrize(("words", "named"), [(["--images", "0"], "images"), (["--require", "observed"], "require")])
def test_bad_input_is_refused_in_one_line(words, named, run, capsys):
    assert main(["analyze", "iterations", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error

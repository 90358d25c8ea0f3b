"""An attack stays where it may, does no less with more room, and goes through the model as it is."""

import json

import pytest
import timm
import torch
from torch import nn

import imixer  # noqa: F401
from imixer.analysis.images import Pixels
from imixer.analysis.robustness import adversarial
from imixer.analysis.robustness.adversarial import pgd, score_attack
from imixer.analysis.robustness.attack import Attack
from imixer.cli import main

PLAIN = Pixels(torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
PIXELS = torch.randint(256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255


def model(**kwargs):
    torch.manual_seed(0)
    made = timm.create_model("imixer_t2_8", num_blocks=2, embed_dim=16, num_classes=4, **kwargs).eval()
    nn.init.normal_(made.head.weight)  # timm starts it at 0
    return made


def generator():
    return torch.Generator().manual_seed(0)


def start():
    return 2 * torch.rand(PIXELS.shape, generator=generator()) - 1


class Never(nn.Module):
    """Recognises class 0 in everything, with a gradient that goes on pushing."""

    def forward(self, x):
        total = x.sum((1, 2, 3))
        return torch.stack([total + 1e6, total * torch.tensor([1.0, -1.0]).repeat(len(x))[: len(x)]], 1)


@pytest.mark.parametrize("step_size", [0.01, 0.5, 10.0])
def test_it_never_leaves_the_ball_or_the_pixels(step_size):
    labels = torch.zeros(len(PIXELS), dtype=torch.long)
    goal = dict(steps=5, step_size=step_size, start=start())
    reached, survives = pgd(Never(), PIXELS, labels, 0.1, **goal)
    assert survives.all()
    assert (reached - PIXELS).abs().max() <= 0.1 + 1e-6
    assert reached.min() >= 0 and reached.max() <= 1
    assert (reached != PIXELS).any()


def test_without_room_nothing_changes():
    m = model()
    labels = m(PIXELS).argmax(1)
    labels[:5] = (labels[:5] + 1) % 4
    reached, survives = pgd(m, PIXELS, labels, 0.0, steps=3, step_size=0.1, start=start())
    assert torch.equal(reached, PIXELS)
    assert survives.tolist() == [False] * 5 + [True] * 11


def test_it_does_more_harm_than_chance():
    m = model()
    labels = m(PIXELS).argmax(1)
    _, survives = pgd(m, PIXELS, labels, 0.1, steps=10, step_size=0.025, start=start())
    noise = (0.1 * torch.randn(20, *PIXELS.shape, generator=generator()).sign() + PIXELS).clamp(0, 1)
    by_chance = torch.stack([m(x).argmax(1) == labels for x in noise]).all(0)  # the best of twenty tries
    assert survives.sum() < by_chance.sum()
    assert not (survives & ~by_chance).any()


@pytest.mark.parametrize(
    "kwargs",
    [{}, dict(gradient="recompute"), dict(solver="anderson", gradient="implicit"), dict(solver="picard")],
    ids=str,
)
def test_accuracy_falls_from_the_clean_one_and_never_rises_with_epsilon(kwargs):
    m = model(**kwargs)
    answers = m(PIXELS).argmax(1).detach()
    labels = torch.where(torch.arange(16) < 2, (answers + 1) % 4, answers)
    batches = [(PIXELS[:10], labels[:10]), (PIXELS[10:], labels[10:])]
    found = score_attack(m, batches, PLAIN, Attack([255, 2, 8], steps=5), total=16)
    assert found.epsilons == (0, 2, 8, 255)
    assert found.accuracy[0] == 14 / 16
    assert (found.accuracy.diff() <= 0).all() and found.accuracy[-1] < 0.5
    assert not (found.survives[1:] & ~found.survives[:-1]).any()
    assert all(p.grad is None for p in m.parameters())


def test_an_image_starts_alike_whatever_is_recognised_before_it_and_in_whatever_batch(monkeypatch):
    starts = []

    def watched(*args, start, **options):
        starts.append(start)
        return pgd(*args, start=start, **options)

    def score(wrong, sizes):
        labels = torch.zeros(16, dtype=torch.long)
        labels[wrong] = 1
        starts.clear()
        batches = zip(PIXELS.split(sizes), labels.split(sizes), strict=True)
        score_attack(Never(), list(batches), PLAIN, Attack([8], steps=1), total=16)
        return torch.cat(starts)

    monkeypatch.setattr(adversarial, "pgd", watched)
    whole = score([], (16,))
    assert whole.shape == PIXELS.shape and len(whole.unique()) > 3000 and whole.abs().max() <= 1
    for wrong, sizes in (([0, 5], (16,)), ([], (10, 6)), ([0, 5, 9], (1, 15))):
        assert torch.equal(score(wrong, sizes), whole[[i for i in range(16) if i not in wrong]])


def test_evaluate_adversarial_begins_with_the_accuracy_of_evaluate(run, capsys):
    assert main(["evaluate", str(run), "--adversarial", "--epsilon", "16", "4", "--steps", "3"]) == 0
    written = json.loads((run / "adversarial.json").read_text())
    rows = written["accuracy"]
    assert [row["epsilon"] for row in rows] == [0, 4, 16]
    assert rows[0]["accuracy"] == pytest.approx(json.loads((run / "evaluation.json").read_text())["top1"], abs=1e-6)
    assert rows[0]["accuracy"] >= rows[1]["accuracy"] >= rows[2]["accuracy"]
    assert "16/255" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--adversarial --epsilon 0", "epsilon is [0"),
        ("--adversarial --epsilon 1 300", "epsilon is [1"),
        ("--adversarial --epsilon nan", "epsilon"),
        ("--adversarial --steps 0", "steps is 0"),
        ("--adversarial --step_size 0", "step_size is 0"),
        ("--adversarial --images 0", "images is 0"),
        ("--steps 3", "--adversarial"),
        ("--images 3", "--corruptions or --adversarial"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, named, run, capsys):
    assert main(["evaluate", str(run), *words.split()]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error

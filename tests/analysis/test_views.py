"""Tables and figures show what was measured: their cells and curves, of results made by hand."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from imixer.analysis.attribution import Attribution
from imixer.analysis.contraction import BlockContraction
from imixer.analysis.convergence import BlockConvergence, Convergence
from imixer.analysis.energy import MixingEnergy
from imixer.analysis.features import Features
from imixer.analysis.inverse import BlockInverse
from imixer.analysis.iterations import Setting, SettingResult, SettingsComparison
from imixer.analysis.ood.measure import Detection, OutOfDistribution
from imixer.analysis.ood.scores import SCORES
from imixer.analysis.recall.figures import draw_memory_study, draw_recall
from imixer.analysis.recall.measure import Recall
from imixer.analysis.recall.study import LOOK_UP, SETS, RecallShare
from imixer.analysis.recall.tables import memory_table, recall_table, show_memory_study, show_recall
from imixer.analysis.robustness.adversarial import AttackScores
from imixer.analysis.robustness.attack import Attack
from imixer.analysis.robustness.corruptions import AT_ANY_SIZE, SEVERITIES, CorruptionScores
from imixer.analysis.views import (
    adversarial,
    attribution,
    contraction,
    convergence,
    corruptions,
    energy,
    features,
    inverse,
    iterations,
    ood,
    weights,
)
from imixer.analysis.weights import TokenMixing
from imixer.console import PlainConsole
from imixer.hopfield.memory import AssociativeMemory, Retrieval
from imixer.implicit.certificate import Certificate, OnData, WorstCase
from imixer.plotting import AMBER, BLUE, COLORS, GREEN, ORANGE, PINK, SKY
from imixer.tables import markdown


def cells(table):
    """The headings of a table, and its rows, as text."""
    columns = [list(map(str, column.cells)) for column in table.columns]
    return [str(column.header) for column in table.columns], list(zip(*columns, strict=True))


def said(show, *measurement):
    """All that is printed of a measurement, its white space made blanks."""
    console = PlainConsole(file=io.StringIO(), width=400)
    show(*measurement, console)
    return " ".join(console.file.getvalue().split())


def lines(axes):
    """x, y, colour, line style and marker of each curve with a label."""
    return {
        line.get_label(): (
            list(map(float, line.get_xdata())),
            pytest.approx(list(map(float, line.get_ydata()))),
            line.get_color(),
            line.get_linestyle(),
            line.get_marker(),
        )
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def bars(axes):
    """x, y, lower and upper end, colour, line style and marker of each curve with error bars."""
    found = {}
    for container in axes.containers:
        line, _, (ends,) = container.lines
        low, high = np.array(ends.get_segments())[:, :, 1].T
        look = (line.get_color(), line.get_linestyle(), line.get_marker())
        numbers = (line.get_xdata(), line.get_ydata(), low, high)
        found[container.get_label()] = (*(pytest.approx(np.asarray(n, float)) for n in numbers), *look)
    return found


def spread(*samples):
    """Mean, and mean minus and plus standard deviation, of each sample."""
    mean = np.array([float(s.double().mean()) for s in samples])
    std = np.array([float(s.double().std()) for s in samples])
    return mean, mean - std, mean + std


# contraction


@pytest.fixture
def nested():
    """Two blocks, in each of which one contraction lies inside another."""
    made = []
    for block, verdict in ((0, "guaranteed"), (3, "violated")):
        shift = 0.01 * block
        worst = WorstCase(
            sigmas=((0.5 + shift, 0.61 + shift), (0.3 + shift, 0.42 + shift)),
            estimates=((0.49 + shift, 0.6 + shift), (0.29 + shift, 0.41 + shift)),
            coeff=0.9,
            lipschitz=(1.128904, 1.0),
            bounds=(0.71 + shift, 0.26 + shift),
            computed_bounds=(0.72 if verdict == "guaranteed" else 1.02, 0.27),
        )
        norms = torch.tensor([[0.1, 0.3], [0.05, 0.15]]) + (1 if verdict == "violated" else 0)
        settled = torch.tensor([[True, block == 0], [True, True]])
        converged = torch.tensor([[True], [block == 0]])
        data = OnData(torch.zeros(2, 1, 4), converged, torch.zeros(2, 1).bool(), norms[..., None], settled[..., None])
        certificate = Certificate(worst, data)
        left = torch.tensor([0.01, 0.03]) + shift
        start = torch.tensor([0.2, 0.4]) + shift
        made.append(BlockContraction(block, "n = 2", certificate, norms, settled, start, left, ("Mish",)))
    return made


def test_the_table_of_contractions(nested):
    header, rows = cells(contraction.table(nested))
    assert header == [
        *("block", "sigma of W1, W2", "estimated", "bound", "norm on images", "largest"),
        *("n for 1e-02, 1e-04, 1e-06\nby bound | by images", "error left, n = 2", "verdict"),
    ]
    assert rows[0] == (
        "0",
        "0.50000, 0.61000\n0.30000, 0.42000",
        "0.49000, 0.60000\n0.29000, 0.41000",
        "0.7100\n0.2600",
        "0.2 +- 0.14\n0.1 +- 0.071",
        "0.300\n0.150",
        "14, 27, 41 | 4, 8, 12",
        "2 +- 1.4 %",
        "guaranteed",
    )
    assert rows[1][0] == "3" and rows[1][-1] == "violated"
    assert rows[1][6].endswith("| -, -, -") and rows[1][5] == "1.300\n1.150"


def test_what_is_said_of_contractions(nested):
    text = said(contraction.show, nested)
    assert "2 held-out images; ceiling c = 0.9; Lipschitz constants of the activations 1.1289, 1.0000" in text
    assert "block 3: no fixed point found for 1 of 2 images by iterating" in text
    assert "block 3: the norm of 1 of 2 images is a lower bound" in text and "block 0:" not in text
    assert "no bound: the largest slope of Mish is not known here" in text


def test_the_figure_of_contractions(nested):
    matrices, slopes, errors = contraction.draw(nested).axes
    found = lines(matrices)
    for label, values, color, ls, marker in (
        ("$W_1$ of $F^2$", [0.5, 0.53], BLUE, "-", "o"),
        ("$W_2$ of $F^2$", [0.61, 0.64], ORANGE, "--", "s"),
        ("$W_1$ of $F^3$", [0.3, 0.33], GREEN, "-", "^"),
        ("$W_2$ of $F^3$", [0.42, 0.45], PINK, "--", "v"),
    ):
        assert ([0, 3], values, color, ls, marker) == found.pop(label)
    ceiling = found.pop("ceiling c = 0.9")
    assert ceiling[1] == [0.9, 0.9] and not found
    found = lines(slopes)
    assert found["bound, for any input"] == ([0, 3], [0.71, 0.74], ORANGE, "--", "s")
    assert found["a contraction below 1"][1] == [1, 1]
    largest = [line for line in slopes.lines if line.get_label() == "largest"]
    assert [list(line.get_ydata()) for line in largest] == [pytest.approx([0.3, 1.3]), pytest.approx([0.15, 1.15])]
    found = bars(slopes)
    for level, (name, color, marker) in enumerate((("$F^2$", BLUE, "o"), ("$F^3$", GREEN, "^"))):
        expected = spread(*(block.norms[level] for block in nested))
        assert found[f"images of {name}, mean and std"] == ([0, 3], *expected, color, "-", marker)
    found = bars(errors)
    assert found["before, x = G(v)"] == ([0, 3], *spread(*(b.start for b in nested)), "0.45", "-", "s")
    assert found["after, n = 2"] == ([0, 3], *spread(*(b.left for b in nested)), BLUE, "-", "o")
    assert errors.get_yscale() == "log" and "2 images" in slopes.get_title()
    assert {axes.get_xlabel() for axes in (matrices, slopes, errors)} == {"block"}


def test_a_bound_that_says_nothing_is_not_drawn(nested):
    for block in nested:
        object.__setattr__(block.certificate.worst, "bounds", (float("inf"), 2.0))
    assert lines(contraction.draw(nested).axes[1])["bound: above 10"][0] == []


# convergence


def followed(trained, name="", shift=0.0):
    """Three iterations of two blocks on two images."""
    norms = torch.tensor([[0.4, 0.8], [0.1, 0.3], [0.02, 0.04]]) + shift
    cosines = torch.tensor([[0.9, 0.92], [0.99, 0.97], [0.999, 0.998]]) - shift
    first = BlockConvergence(0, norms, cosines, S=16, C=8, D=4)
    second = BlockConvergence(2, norms + 0.5, cosines - 0.5, S=4, C=12, D=3)  # of another stage
    return Convergence(trained, (first, second), seed=5, name=name)


def test_the_table_of_convergence():
    header, rows = cells(convergence.table(followed(1)))
    assert header == ["block", "a = 0", "a = 1", "a = 2", "rate"]
    assert rows[0][:4] == ("0", "0.6\n0.91000", "0.2\n0.98000", "0.03\n0.99850")
    rate = torch.tensor([0.05, 0.05]).sqrt()
    assert rows[0][4] == f"{rate[0]:.3g} +- 0"
    assert rows[1][1] == "1.1\n0.41000"
    assert "trained with n = 1" in said(convergence.show, followed(1))
    assert "trained to a tolerance" in said(convergence.show, followed(None))


def test_the_table_of_several_models():
    models = [followed(1, "one"), followed(2, "two", 0.001)]
    header, rows = cells(convergence.comparison_table(models))
    assert header == ["model", "block", "a = 0", "a = 1", "a = 2", "rate"]
    assert [row[:2] for row in rows] == [("one", "0"), ("two", "0"), ("one", "2"), ("two", "2")]
    assert rows[0][2:5] == ("0.6\n0.91000", "* 0.2\n0.98000", "0.03\n0.99850")
    assert rows[1][2:5] == ("0.601\n0.90900", "0.201\n0.97900", "* 0.031\n0.99750")


def test_the_figure_of_convergence():
    norms, cosines = convergence.draw(followed(1)).axes
    for axes, name in ((norms, "norms"), (cosines, "cosines")):
        blocks = followed(1).blocks
        assert [line.get_label() for line in axes.lines[:2]] == ["0", "2"]
        for line, block, color, offset in zip(axes.lines[:2], blocks, COLORS[:2], (-0.1, 0.1), strict=True):
            mean, low, high = spread(*getattr(block, name))
            assert line.get_ydata() == pytest.approx(mean) and line.get_color() == color
            assert line.get_xdata() == pytest.approx(np.arange(3) + offset)
            _, ends = axes.collections[2 * blocks.index(block) :][:2]
            assert np.array(ends.get_segments())[:, :, 1] == pytest.approx(np.stack([low, high], 1))
        assert list(axes.lines[-1].get_xdata()) == [0.5, 0.5]  # what comes after, the model does not do
    assert (norms.get_yscale(), cosines.get_yscale(), norms.get_title()) == ("log", "linear", "trained with n = 1")


def test_numbers_of_several_models_are_those_of_the_curves():
    numbers = convergence.comparison_numbers([followed(1, "one")])
    block = numbers["models"][0]["blocks"][1]
    assert (numbers["seed"], numbers["images"], block["block"]) == (5, 2, 2)
    norm = block["norm"][0]
    assert (norm["mean"], norm["min"], norm["max"]) == pytest.approx((1.1, 0.9, 1.3))
    assert block["cosine"][0]["min"] == pytest.approx(0.4)
    for block, sizes in zip(numbers["models"][0]["blocks"], ((16, 8, 4), (4, 12, 3)), strict=True):
        assert (block["tokens"], block["channels"], block["width"]) == sizes


def test_sizes_of_stages_are_those_of_each_block():
    first = followed(1, "one")
    wide = replace(first, blocks=tuple(replace(block, D=9) for block in first.blocks))
    for draw, models, part in (
        (convergence.draw_norms, [first], "of each block."),
        (convergence.draw_norms, [first, wide], "of each block and model."),
        (convergence.draw_first_block, [first, wide], "of each model."),
        (convergence.draw_first_block, [first, first], r"D_S C = 4 \cdot 8$ entries"),
    ):
        assert part in draw(models)._supxlabel.get_text()


# energy


@pytest.fixture
def mixings():
    made = []
    for block in (0, 1):
        for mixing, shift in (("tokens", 0.0), ("channels", 10.0)):
            before = torch.tensor([4.0, 6.0]) + shift + block
            after = torch.tensor([1.0, 2.0]) + shift + block + (9 if block and shift else 0)
            asymmetry = {"x1-x2": 0.1 + 0.2 * block, **({"x2-x3": 0.3 + 0.2 * block} if mixing == "tokens" else {})}
            conditions = () if block == 0 else ("x1: no convex Lagrangian",)
            first = MixingEnergy(block, mixing, {}, before, before - 0.5, 0.0, ()) if block == 0 else None
            made.append(MixingEnergy(block, mixing, asymmetry, before, after, 0.25, conditions, first))
    return made


def test_the_table_of_energies(mixings):
    header, rows = cells(energy.table(mixings))
    assert header == ["block", "mixing", "asymmetry of the couplings", "energy before", "after", "change",
                      "change untrained", "falls for", "descent"]  # fmt: skip
    assert rows == [
        ("0", "tokens", "x1-x2 0.10  x2-x3 0.30", "5 +- 1.4", "1.5 +- 0.71", "-3.5 +- 0.71", "-0.5 +- 0", "100%",
         "guaranteed"),
        ("0", "channels", "x1-x2 0.10", "15 +- 1.4", "11.5 +- 0.71", "-3.5 +- 0.71", "-0.5 +- 0", "100%",
         "guaranteed"),
        ("1", "tokens", "x1-x2 0.30  x2-x3 0.50", "6 +- 1.4", "2.5 +- 0.71", "-3.5 +- 0.71", "", "100%", "observed"),
        ("1", "channels", "x1-x2 0.30", "16 +- 1.4", "21.5 +- 0.71", "5.5 +- 0.71", "", "0%", "violated"),
    ]  # fmt: skip
    assert "descent is not guaranteed: no convex Lagrangian" in said(energy.show, mixings)
    assert "not guaranteed" not in said(energy.show, mixings[:2])


def test_the_numbers_of_energies(mixings):
    row = energy.numbers(mixings)["mixings"][3]
    assert (row["energy_before"]["mean"], row["energy_after"]["mean"], row["change"]["mean"]) == (16, 21.5, 5.5)
    assert (row["share_falling"], row["rest_residual"]) == (0, 0.25)
    assert row["violated_conditions"] == ["x1: no convex Lagrangian"] and "untrained" not in row
    assert energy.numbers(mixings)["mixings"][0]["untrained"]["change"]["mean"] == -0.5


def test_the_figure_of_energies(mixings):
    changes, asymmetries = energy.draw(mixings).axes
    found = bars(changes)
    for mixing, color, offset in (("tokens", BLUE, -0.06), ("channels", ORANGE, 0.06)):
        expected = spread(*(m.after - m.before for m in mixings if m.mixing == mixing))
        dotted = lines(changes)[f"{mixing}, untrained"]
        assert dotted[1] == [-0.5] and dotted[2:4] == (color, ":")
        assert found[f"mixing of {mixing}"] == (np.array([0, 1]) + offset, *expected, color, "-", "o")
    assert lines(asymmetries) == {
        "tokens, x1-x2": ([0, 1], [0.1, 0.3], BLUE, "-", "o"),
        "tokens, x2-x3": ([0, 1], [0.3, 0.5], BLUE, "--", "s"),
        "channels, x1-x2": ([0, 1], [0.1, 0.3], ORANGE, "-", "o"),
    }


def test_every_synapse_of_a_deep_network_has_its_curve(mixings):
    names = [f"x{i}-x{i + 1}" for i in range(1, 8)]
    deep = [replace(mixing, asymmetry=dict.fromkeys(names, 0.5)) for mixing in mixings]
    found = lines(energy.draw(deep).axes[1])
    assert list(found) == [f"{mixing}, {name}" for mixing in ("tokens", "channels") for name in names]
    assert [found[f"tokens, {name}"][3] for name in names] == ["-", *["--"] * 6]


# attribution


@pytest.fixture
def explained():
    weights = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    picture = torch.rand(4, 6, 1)
    return Attribution("seven.png", picture, "seven", 0.25, predicted="one", block=1, map=weights)


def test_what_is_said_of_an_attribution(explained):
    text = said(attribution.show, explained)
    assert "seven.png: seven, probability 25.0 %, while the model says one" in text
    assert "heaviest of the 2 x 3 tokens after block 1: row 1, column 2" in text
    nothing = replace(explained, predicted="seven", map=torch.zeros(2, 3))
    assert "no token after block 1 speaks for seven" in said(attribution.show, nothing)
    assert "while" not in said(attribution.show, nothing)


def test_the_figure_of_an_attribution(explained):
    alone, over, _ = attribution.draw(explained).axes
    assert (alone.get_title(), over.get_title()) == ("seven.png", "seven, 25 %")
    picture, weights = over.images
    assert np.asarray(picture.get_array()) == pytest.approx(explained.picture[..., 0].numpy())
    assert np.asarray(weights.get_array()) == pytest.approx(explained.map.numpy())
    assert weights.get_extent() == picture.get_extent() == [0, 6, 4, 0]


# features


@pytest.fixture
def pictures():
    torch.manual_seed(0)
    x, maps = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 5, 2, 3, dtype=torch.float64)
    return Features(block=1, name="seven.png", picture=torch.rand(4, 6, 1), x=x, maps=maps)


def test_the_table_of_features(pictures):
    x, maps = torch.zeros(3, 1, 4), torch.zeros(3, 1, 2, 2)
    x[1:, 0, 0], maps[1:, 0, 0, 0] = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])
    header, rows = cells(features.table(Features(1, "seven.png", torch.zeros(4, 4, 1), x, maps)))
    assert header == ["iteration", "x", "H(x)"]
    assert rows == [("0 -> 1", "75", "50"), ("1 -> 2", "25", "50")]
    assert "seven.png, block 1" in said(features.show, pictures)


def test_the_figure_of_features(pictures):
    picture, *axes = features.draw(pictures, channels=2).axes
    assert np.asarray(picture.images[0].get_array()) == pytest.approx(pictures.picture[..., 0].numpy())
    assert (picture.get_title(), picture.get_xlabel()) == ("block 1", "seven.png")
    expected = []
    for channel in pictures.channels(2):
        for values in (pictures.x[:, channel].unflatten(-1, (2, 2)), pictures.maps[:, channel]):
            end = float(values.abs().max())
            expected += [(value, end) for value in values]
            expected += [(value, float(value.abs().max())) for value in values.diff(dim=0)]
    for each, (values, end) in zip(axes, expected, strict=True):
        (image,) = each.images
        assert np.asarray(image.get_array()) == pytest.approx(values.numpy())
        assert image.get_clim() == pytest.approx((-end, end)) and image.get_cmap().name == "RdBu_r"
    assert [each.get_title() for each in axes[:5]] == ["$a = 0$", "$a = 1$", "$a = 2$", r"$0 \to 1$", r"$1 \to 2$"]
    first = pictures.channels(1)[0]
    assert f"channel {first}\n$x^a$" in axes[0].get_ylabel() and f"channel {first}\n$H(x^a)$" in axes[5].get_ylabel()


def test_of_many_iterations_eight_are_drawn(pictures):
    many = replace(pictures, x=torch.randn(100, 5, 4), maps=torch.randn(100, 5, 2, 3))
    _, *axes = features.draw(many, channels=1).axes
    shown = [0, 14, 28, 42, 57, 71, 85, 99]
    assert [each.get_title() for each in axes[:9]] == [*(f"$a = {a}$" for a in shown), r"$0 \to 14$"]
    assert np.asarray(axes[1].images[0].get_array()).tolist() == many.states[14, many.channels(1)[0]].tolist()
    assert len(axes) == 2 * (8 + 7) and len(features.numbers(many)["changes_of_x"]) == 99


# inverse


@pytest.fixture
def trips():
    made = []
    for block in (0, 1):
        errors = [torch.tensor([1.0, 3.0]) * 10.0**-power * (1 + block) for power in (2, 13, 1, 11)]
        of_G = dict(rank=7, tokens=16, condition=12.5, visible=torch.tensor([0.4, 0.6]))
        made.append(BlockInverse(block, *errors, **of_G, converged=torch.tensor([True, block == 0])))
    return made


def test_the_table_of_inverses(trips):
    header, rows = cells(inverse.table(trips))
    assert header == [
        *("block", "G(v), run's x", "G(v), fixed point", "v, run's x", "v, fixed point"),
        *("rank of G / tokens", "condition of G", "of v that G sees"),
    ]
    assert rows[0] == (
        *("0", "0.02 +- 0.014", "2e-13 +- 1.4e-13", "0.2 +- 0.14", "2e-11 +- 1.4e-11"),
        *("7 / 16", "12.5", "50.0 +- 14.1 %"),
    )
    numbers = inverse.numbers(trips)["blocks"][1]
    names = ["G_from_the_runs_x", "G_from_the_fixed_point", "v_from_the_runs_x", "v_from_the_fixed_point"]
    means = [numbers[f"error_of_{name}"]["mean"] for name in names]
    assert means == pytest.approx([4e-2, 4e-13, 4e-1, 4e-11], rel=1e-6)
    assert [row["fixed_points_found"] for row in inverse.numbers(trips)["blocks"]] == [1, 0.5]


def test_fixed_points_that_were_not_found_are_said_of_each_block(trips):
    text = said(inverse.show, trips)
    assert "block 1: no fixed point found for 1 of 2 images" in text and "block 0:" not in text


def test_the_figure_of_inverses(trips):
    (axes,) = inverse.draw(trips).axes
    found = bars(axes)
    for label, name, color, ls, marker in (
        ("v, from the run's x", "error_v_run", ORANGE, "-", "s"),
        ("G(v), from the run's x", "error_run", BLUE, "-", "o"),
        ("v, from the fixed point", "error_v_solved", ORANGE, "--", "s"),
        ("G(v), from the fixed point", "error_solved", BLUE, "--", "o"),
    ):
        x, mean, low, high, *look = found.pop(label)
        expected = spread(*(getattr(block, name) for block in trips))
        assert [0, 1] == x and look == [color, ls, marker]
        for got, wanted in zip((mean, low, high), expected, strict=True):
            assert got.expected / expected[0] == pytest.approx(wanted / expected[0], rel=1e-6)
    assert not found and axes.get_yscale() == "log"


# iterations


@pytest.fixture
def settings():
    def result(setting, correct, same, evaluations, latency, converged=None):
        truths = torch.tensor([True] * correct + [False] * (4 - correct))
        alike = torch.tensor([True] * same + [False] * (4 - same))
        change = torch.tensor([0.01, 0.03, 0.01, 0.03]) * (5 - same)
        return SettingResult(setting, truths, alike, change, torch.tensor(evaluations), converged, latency)

    results = (
        result(Setting(n_iter=1), 1, 2, [[1] * 4] * 2, (1.0, 2.0, 3.0, 5.0, 9.0)),
        result(Setting(n_iter=2), 3, 4, [[2] * 4] * 2, (2.0, 4.0, 6.0, 10.0, 18.0)),
        result(Setting(tolerance=1e-2), 2, 3, [[1, 2, 3, 4], [5, 6, 7, 8]], (3.0, 6.0, 9.0, 15.0, 27.0), 0.75),
    )
    return SettingsComparison("n = 2", results, 4, "cpu, 1 thread")


def test_the_table_of_iterations(settings):
    made = iterations.table(settings)
    header, rows = cells(made)
    assert header == [
        *("solved", "accuracy %", "same answer %", "logit change %", "evaluations per block", "ms per image"),
    ]
    assert rows == [
        ("n = 1", "25.00 +- 21.65", "50.00", "6 +- 3.5", "1", "3.000 (2.000-5.000)"),
        ("n = 2", "75.00 +- 21.65", "100.00", "2 +- 1.2", "2", "6.000 (4.000-10.000)"),
        ("tolerance 0.01", "50.00 +- 25.00", "75.00", "4 +- 2.3", "2.5, 6.5", "9.000 (6.000-15.000)"),
    ]
    assert [cell.style for cell in made.columns[0].cells] == ["", "bold", ""]
    assert "tolerance 0.01: 25.00% of the inverses not met in 200 evaluations" in said(iterations.show, settings)


@pytest.fixture
def solved(settings):
    """The settings beside the model's own solver, which does not tell its evaluations."""
    own = replace(settings.results[1], setting=Setting(), evaluations=None)
    return replace(settings, trained="anderson to 0.001", results=(*settings.results, own))


def test_the_models_own_solver_has_a_row_and_no_number_of_evaluations(solved):
    made = iterations.table(solved)
    *_, (name, accuracy, same, _, evaluations, _) = cells(made)[1]
    assert (name, accuracy, same, evaluations) == ("as trained", "75.00 +- 21.65", "100.00", "-")
    assert [cell.style for cell in made.columns[0].cells] == ["", "", "", "bold"]
    *counted, own = iterations.numbers(solved)["settings"]
    assert own["evaluations_per_block"] is None and own["accuracy"] == 0.75
    assert [row["evaluations_per_block"][0]["mean"] for row in counted] == [1, 2, 2.5]
    accuracy, latency = iterations.draw(solved).axes
    assert lines(accuracy)["as trained"][1] == [75, 75] and lines(latency)["as trained"][1] == [6, 6]
    assert set(bars(accuracy)) == {"n iterations", "to a tolerance"}


def test_images_without_a_pixel_that_counts_are_no_part_of_the_accuracy(settings):
    shares = torch.tensor([0.5, torch.nan, 1.0, torch.nan])
    of_masks = replace(settings, results=tuple(replace(r, correct=shares, miou=0.5) for r in settings.results))
    numbers = iterations.numbers(of_masks)
    assert (numbers["images"], numbers["images_without_pixels_that_count"]) == (4, 2)
    assert numbers["settings"][0]["accuracy"] == 0.75
    assert numbers["settings"][0]["accuracy_standard_error"] == pytest.approx(0.25)
    assert "2 of 4 images have no pixel that counts" in said(iterations.show, of_masks)
    assert "pixel" not in said(iterations.show, settings)


def test_the_figure_of_iterations(settings):
    accuracy, latency = iterations.draw(settings).axes
    x = {"n iterations": [1, 2], "to a tolerance": [4.5]}
    look = {"n iterations": (BLUE, "-", "o"), "to a tolerance": (ORANGE, "--", "s")}
    error = 100 * (0.25 * 0.75 / 4) ** 0.5
    ends = [25 - error, 75 - error], [25 + error, 75 + error]
    assert bars(accuracy) == {
        "n iterations": (x["n iterations"], [25, 75], *ends, *look["n iterations"]),
        "to a tolerance": (x["to a tolerance"], [50], [25], [75], *look["to a tolerance"]),
    }
    assert bars(latency) == {
        "n iterations": (x["n iterations"], [3, 6], [2, 4], [5, 10], *look["n iterations"]),
        "to a tolerance": (x["to a tolerance"], [9], [6], [15], *look["to a tolerance"]),
    }
    assert accuracy.get_ylabel() == "accuracy in %" and latency.get_ylabel() == "ms per image"
    assert [(text.get_text(), text.xy) for text in latency.texts] == [("1e-02", (4.5, 9.0))]


# weights


@pytest.fixture
def matrices():
    """Of three neurons on a grid of 1 x 2 tokens the last is strongest, the first next."""
    reads = torch.tensor([[2.0, 0.0], [0.5, 0.0], [3.0, 4.0]])
    writes = torch.tensor([[2.0, 0.0], [0.0, 1.0], [4.0, -3.0]])
    return [TokenMixing(block, *(m.double().view(3, 1, 2) * (1 + block) for m in (reads, writes))) for block in (0, 4)]


def test_the_table_of_weights(matrices):
    header, rows = cells(weights.table(matrices))
    assert header == ["block", "neurons", "effective", "energy of the strongest 8", "cosine of read and written"]
    energies = torch.tensor([16, 0.25, 625])
    effective = float(energies.sum() ** 2 / energies.square().sum())
    assert rows[0] == ("0", "3", f"{effective:.1f}", "100.0%", "0.333 +- 0.58")
    assert rows[1][0] == "4"
    assert weights.numbers(matrices)["blocks"][0]["strongest"] == [2, 0, 1]
    assert "1 x 2 tokens" in said(weights.show, matrices)


def test_the_figure_of_weights(matrices):
    figure = weights.draw(matrices)
    for half, name, end in zip(figure.subfigs, ("reads", "writes"), (4, 4), strict=True):
        axes = iter(half.axes)
        for mixing in matrices:
            for number, neuron in enumerate((2, 0, 1)):
                each = next(axes)
                (image,) = each.images
                assert np.asarray(image.get_array()).tolist() == getattr(mixing, name)[neuron].tolist()
                assert image.get_clim() == (-end * (1 + mixing.block), end * (1 + mixing.block))
                label = f"block {mixing.block}\n±{end * (1 + mixing.block)}"
                assert each.get_ylabel() == ("" if number else label)
    assert [half._suptitle.get_text().split()[0] for half in figure.subfigs] == ["read:", "written"]


def test_weights_of_a_later_stage_have_its_own_grid_and_fewer_neurons(matrices):
    fewer = TokenMixing(7, torch.eye(2).double().view(2, 2, 1), torch.eye(2).double().view(2, 2, 1))
    mixings = [matrices[0], fewer]
    assert "1 x 2, 2 x 1 tokens" in said(weights.show, mixings)
    assert [row["grid"] for row in weights.numbers(mixings)["blocks"]] == [[1, 2], [2, 1]]
    for order in (mixings, mixings[::-1]):
        for half in weights.draw(order).subfigs:
            assert [axes.images[0].get_array().shape for axes in half.axes] == [
                tuple(mixing.reads.shape[1:]) for mixing in order for _ in mixing.reads
            ]


# out of distribution


@pytest.fixture
def scored():
    in_dist = {"max_softmax": torch.tensor([0.9, 0.8, 0.7]), "residual": torch.tensor([-1.0, -2.0, -torch.inf])}
    out_dist = {
        "noise": {"max_softmax": torch.tensor([0.75, 0.2]), "residual": torch.tensor([-1.5, -3.0])},
        "/data/c$10": {"max_softmax": torch.tensor([0.95, 0.1]), "residual": torch.tensor([-0.5, -4.0])},
    }

    def detection(first, place):
        """Four numbers and their intervals, from a first one on."""
        tenths = [(first + k) / 10 for k in range(4)]
        return Detection(*((tenth + place / 100, tenth - 0.05, tenth + 0.05) for tenth in tenths))

    detections = {
        name: {"max_softmax": detection(1, place), "residual": detection(5, place)}
        for place, name in enumerate(out_dist)
    }
    return OutOfDistribution(in_dist, out_dist, detections)


def test_the_table_of_other_images(scored):
    header, rows = cells(ood.table(scored))
    assert header == ["out", "score", "AUROC %", "AUPR in %", "AUPR out %", "FPR at 95 % TPR"]
    first = ("10.0 (5.0-15.0)", "20.0 (15.0-25.0)", "30.0 (25.0-35.0)", "40.0 (35.0-45.0)")
    assert rows[0] == ("noise", "max softmax", *first)
    assert rows[1][:3] == ("", "fixed point residual", "50.0 (45.0-55.0)")
    assert rows[2][:3] == ("/data/c$10", "max softmax", "11.0 (5.0-15.0)")
    text = said(ood.show, scored)
    assert "3 held-out images" in text and f"max softmax: {SCORES['max_softmax'].formula}" in text
    assert "has no energy score, Hopfield energy, mean, Hopfield energy, last" in text
    numbers = ood.numbers(scored)["ood_datasets"]["noise"]
    assert numbers["images"] == 2
    assert numbers["detection"]["residual"]["fpr95"] == pytest.approx(dict(estimate=0.8, lower=0.75, upper=0.85))


def test_the_figure_of_other_images(scored):
    above, below = ood.draw(scored).subfigs
    noise, other = above.axes
    assert (noise.get_title(), other.get_title()) == ("against noise", r"against c\$10")
    assert (noise.get_xlabel(), noise.get_ylabel()) == ("share of out accepted", "share of in accepted")
    # from the highest threshold to the lowest: in 0.9, 0.8, out 0.75, in 0.7, out 0.2
    assert lines(noise) == {
        "max softmax": ([0, 0, 0, 0.5, 0.5, 1], [0, 1 / 3, 2 / 3, 2 / 3, 1, 1], BLUE, "-", "None"),
        "fixed point residual": ([0, 0, 0.5, 0.5, 1, 1], [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1], ORANGE, "--", "None"),
    }
    softmax, residual = below.axes
    assert (softmax.get_xlabel(), residual.get_xlabel()) == ("max softmax", "fixed point residual")
    assert [patch.get_label() for patch in softmax.patches] == ["in", "noise", r"c\$10"]
    for patch, values in zip(softmax.patches, ([0.9, 0.8, 0.7], [0.75, 0.2], [0.95, 0.1]), strict=True):
        every = np.concatenate([scored.in_dist["max_softmax"], *(s["max_softmax"] for s in scored.out_dist.values())])
        ends = np.linspace(*np.percentile(every, [0.5, 99.5]), 5)  # of two images, no more bins
        density, _ = np.histogram(np.clip(np.float32(values), ends[0], ends[-1]), ends, density=True)
        assert patch.get_xy()[:, 1].max() == pytest.approx(density.max())
        filled = {round(x, 6) for x, y in patch.get_xy() if y}
        assert filled == {round(x, 6) for i in np.flatnonzero(density) for x in ends[i : i + 2]}
    assert [patch.get_edgecolor()[:3] for patch in softmax.patches[1:]] == [rgb(BLUE), rgb(ORANGE)]


def rgb(color):
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))


# robustness


def test_the_table_and_numbers_of_attacks():
    survives = torch.tensor([[True, True, True, False], [True, True, False, False], [True, False, False, False]])
    scores = AttackScores(Attack([8, 2], steps=5), survives)
    assert cells(adversarial.table(scores)) == (
        ["epsilon", "step", "accuracy", ""],
        [
            ("0/255", "-", "75.00%", "+- 21.65%"),
            ("2/255", "1/255", "50.00%", "+- 25.00%"),
            ("8/255", "4/255", "25.00%", "+- 21.65%"),
        ],
    )
    assert "accuracy of 4 held-out images under PGD, 5 steps" in said(adversarial.show, scores)
    row = adversarial.numbers(scores)["accuracy"][1]
    assert row == {"epsilon": 2, "step_size": 1, "accuracy": 0.5, "standard_error": 0.25}


def test_the_table_and_numbers_of_corruptions():
    names = ("gaussian_noise", "fog")
    correct = torch.zeros(2, len(SEVERITIES), 4, dtype=torch.bool)
    for severity in range(4):
        correct[0, severity, severity:] = True  # 4, 3, 2, 1, 0 of 4
    correct[1, :, 0] = True
    scores = CorruptionScores(names, (1, 8, 9), torch.tensor([True, True, True, False]), correct)
    header, rows = cells(corruptions.table(scores))
    assert header == ["corruption", "", *(f"severity {s}" for s in range(1, 6)), "mean"]
    assert rows == [
        ("noise", "gaussian noise", "100.0", "75.0", "50.0", "25.0", "0.0", "50.0"),
        ("weather", "fog", *["25.0"] * 6),
    ]
    text = said(corruptions.show, scores)
    (error, its_error), (rise, its_rise) = scores.mean_error, scores.mean_rise
    assert f"mean corruption error {error:.2%} +- {its_error:.2%}" in text and (error, rise) == (0.625, 0.375)
    assert f"clean 75.00% mean corruption error 62.50% +- {its_error:.2%}, above the clean error by 37.50%" in text
    assert "left out: shot noise, impulse noise" in text
    numbers = corruptions.numbers(scores)
    assert numbers["input_size"] == [1, 8, 9] and numbers["images"] == 4
    assert numbers["accuracy_by_severity"]["gaussian_noise"] == [1, 0.75, 0.5, 0.25, 0]
    assert numbers["mean_error_above_clean"] == {"mean": 0.375, "standard_error": its_rise}
    assert set(names) < set(AT_ANY_SIZE)


# recall


@pytest.fixture
def recalled():
    torch.manual_seed(0)
    patterns = torch.rand(3, 2, 2) * 2 - 1
    states = torch.rand(3, 2, 2, 2) * 2 - 1
    retrieval = Retrieval(
        states=states,
        energies=torch.tensor([[-1.0, -2.0], [-3.0, -2.5], [-4.0, -2.5]]),
        steps=torch.tensor([2, 1]),
        converged=torch.tensor([False, True]),
        nearest=torch.tensor([2, 0]),
        overlap=torch.tensor([0.9, 0.8]),
        tolerance=1e-6,
        merged=torch.tensor([False, False]),
    )
    return Recall(
        memory=AssociativeMemory(patterns),
        patterns=patterns,
        names=("a 7", "=b", "a 9"),
        own=torch.tensor([2, 1]),
        before=torch.tensor([0.51, 0.62]),
        after=torch.tensor([0.97, 0.33]),
        retrieved=torch.tensor([True, False]),
        looked_up=torch.tensor([False, True]),
        retrieval=retrieval,
    )


def test_the_table_of_queries(recalled, tmp_path):
    header, rows = cells(recall_table(recalled))
    assert header == ["query", "made from", "overlap before", "after", "steps", "retrieved", "by look-up"]
    assert rows == [
        ("1", "2: a 9", "0.510", "0.970", "2, not at rest", "yes", "no"),
        ("2", "1: =b", "0.620", "0.330", "1", "no", "yes"),
    ]
    text = said(show_recall, recalled, tmp_path)
    assert "modern memory of 3: retrieved 50% +- 22% of 2 queries" in text and "1 came to rest" in text
    assert "0.565 +- 0.078 before, 0.650 +- 0.453 after" in text


def test_the_figure_of_queries(recalled):
    figure = draw_recall(recalled)
    pictures, panel = figure.subfigs
    way = recalled.retrieval
    frames = [recalled.patterns[recalled.own], way.states[0], way.states[1], way.retrieved]
    shown = [np.asarray(axes.images[0].get_array()) for axes in pictures.axes]
    expected = [frame[query].numpy() for frame in frames for query in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))
    assert [axes.get_ylabel() for axes in pictures.axes[::2]] == ["stored", "query", "step 1", "retrieved"]
    assert [axes.get_title() for axes in pictures.axes[:2]] == ["1: a 9", "2: =b"]
    assert [axes.get_xlabel() for axes in pictures.axes[-2:]] == ["right\n0.97", "missed\n0.33"]
    (energies,) = panel.axes
    assert lines(energies) == {
        "1": ([0, 1, 2], [-1, -3, -4], BLUE, "-", "o"),
        "2": ([0, 1], [-2, -2.5], ORANGE, "-", "s"),
    }
    assert [line.get_markerfacecolor() for line in energies.lines] == [BLUE, "white"]
    assert "1 of 2 retrieved" in figure._suptitle.get_text()


@pytest.fixture
def shares():
    made = []
    for place, (patterns, memories) in enumerate(SETS.items()):
        for varied, xs in (("load", (5, 20)), ("noise", (0.0, 0.3)), ("half hidden", (5, 20))):
            for number, memory in enumerate([*memories, LOOK_UP]):
                for k, x in enumerate(xs):
                    mean = 0.01 * (
                        1 + k + 2 * number + 20 * place + {"load": 0, "noise": 30, "half hidden": 50}[varied]
                    )
                    held = f"{varied} of {patterns}"
                    made.append(RecallShare(patterns, varied, f"x of {varied}", x, held, memory, mean, 0.02, 3, True))
    return made


def test_the_table_of_memories(shares, tmp_path):
    grid = memory_table(shares, "digits, gray")
    assert grid.header == (
        *("digits, gray", "5 stored", "20 stored", "noise 0.0", "noise 0.3", "half of 5", "half of 20"),
    )
    assert grid.rows[0] == ("modern", *(f"{n} +- 2" for n in (41, 42, 71, 72, 91, 92)))
    assert grid.rows[-1] == (LOOK_UP, *(f"{n} +- 2" for n in (47, 48, 77, 78, 97, 98)))
    assert [row[0] for row in grid.rows] == [*SETS["digits, gray"], LOOK_UP]
    assert "| modern | 41 ± 2 | 42 ± 2 |" in markdown(grid)
    rose = RecallShare("random signs", "noise", "x", 0.3, "", "classical", 0, 0, 3, False)
    with_energy = sum(share.memory != LOOK_UP for share in shares)
    text = said(show_memory_study, [*shares, rose], tmp_path)
    assert f"the energy rose in 1 of {with_energy + 1} cells; classical, random signs, noise 0.3" in text
    assert "over 3 draws" in text and "digits, gray 5 stored 20 stored" in text


def test_the_figure_of_memories(shares):
    axes = iter(draw_memory_study(shares).axes)
    colors = dict(zip([*SETS["random signs"]], (BLUE, ORANGE, GREEN, PINK, AMBER), strict=True))
    colors |= {"modern, by distance": SKY, "hierarchical, 400": "#7F4FC9", LOOK_UP: "black"}
    for varied in ("load", "noise", "half hidden"):
        for patterns, memories in SETS.items():
            panel = next(axes)
            found = bars(panel)
            assert list(found) == [*memories, LOOK_UP]
            for number, (memory, (x, mean, low, high, color, *_)) in enumerate(found.items()):
                here = [s for s in shares if (s.patterns, s.varied, s.memory) == (patterns, varied, memory)]
                wanted = np.array([s.mean for s in here])
                assert color == colors[memory]
                assert wanted == mean and wanted - 0.02 == low and wanted + 0.02 == high
                apart = {"noise": np.array([s.x for s in here]) + 0.006 * 0.3 * number}
                assert apart.get(varied, np.array([s.x for s in here]) * 1.035**number) == x
            assert panel.get_title() == f"{patterns}: {varied} of {patterns}"
            assert (panel.get_xlabel(), panel.get_xscale()) == (
                f"x of {varied}",
                "linear" if varied == "noise" else "log",
            )


def test_numbers_are_json_without_what_json_cannot_hold(
    nested, mixings, trips, settings, matrices, scored, pictures, explained
):
    measured = [
        *((contraction, nested), (energy, mixings), (inverse, trips), (iterations, settings), (weights, matrices)),
        *((ood, scored), (features, pictures), (convergence, followed(1)), (attribution, explained)),
    ]
    for view, measurement in measured:
        assert json.loads(json.dumps(view.ANALYSIS.numbers(measurement)))


@pytest.mark.parametrize(("images", "bins"), [(1, 4), (28, 6), (360, 14), (10_000, 30)])
def test_few_other_images_get_few_bins(images, bins):
    assert ood._bins(images) == bins

"""How many patterns memories hold, against errors that are counted and theory that is written out."""

import json

import pytest
import torch

from imixer.analysis.recall.capacity import MEMORIES, Capacity, measure_capacity, wrong_bits
from imixer.analysis.recall.figures import draw_capacity
from imixer.analysis.recall.run import recall_capacity
from imixer.analysis.recall.tables import capacity_table


def signs(K, N):
    return torch.randint(0, 2, (K, N), generator=torch.Generator().manual_seed(0)).double() * 2 - 1


@pytest.mark.parametrize(("kind", "order"), [("polynomial", 2), ("polynomial", 3), ("exponential", None)])
def test_wrong_bits_are_those_of_the_published_rule(kind, order):
    """sign(sum of F(+1 + the others) - F(-1 + the others)), as Krotov & Hopfield and Demircigil et al. have it."""
    xi = signs(32, 12)
    F = torch.exp if order is None else lambda h: h.clamp(min=0) ** order
    wrong = 0
    for state in xi:
        for i in range(12):
            others = xi @ state - xi[:, i] * state[i]
            field = (F(others + xi[:, i]) - F(others - xi[:, i])).sum()
            wrong += float(field * state[i]) < -1e-6
    assert wrong > 0
    share = wrong_bits(xi, kind, {} if order is None else {"order": order})
    assert share == pytest.approx(wrong / (32 * 12), abs=1e-9)


def test_theory_is_that_of_the_papers():
    assert MEMORIES["order 2"].theory(1000) == pytest.approx(2 * 138.5, rel=0.01)  # 0.138 N, twice as it is rectified
    assert MEMORIES["order 3"].theory(100) == pytest.approx(MEMORIES["order 2"].theory(100) * 100 / 3)
    assert MEMORIES["order 4"].theory(100) == pytest.approx(MEMORIES["order 2"].theory(100) * 100**2 / 15)
    assert MEMORIES["exponential"].theory(20) == 2**10


def test_what_is_measured_is_near_theory_and_grows_with_the_order():
    measured = {c.memory: c for c in measure_capacity(draws=1, lengths=(16,))}
    assert 0.5 < measured["order 2"].mean / measured["order 2"].theory < 2
    assert measured["order 2"].mean < measured["order 3"].mean < measured["order 4"].mean


CAPACITIES = [
    Capacity(name, N, mean, 0.5, theory, 3)
    for name, N, mean, theory in [
        ("order 2", 12, 3.0, 3.3), ("order 2", 24, 7.0, 6.6),
        ("exponential", 8, 15.0, 16.0), ("exponential", 10, 30.0, 32.0)
    ]
]  # fmt: skip


def test_the_table_and_the_figure_show_what_was_measured():
    assert capacity_table(CAPACITIES).rows[0] == ("order 2", "12", "3.0 +- 0.5", "3.3", "0.91")
    left, right = draw_capacity(CAPACITIES).axes
    theory = {line.get_label(): list(line.get_ydata()) for axes in (left, right) for line in axes.lines}
    assert theory["order 2, theory"] == [3.3, 6.6] and theory["2^(N/2), large N"] == [16.0, 32.0]
    assert [axes.get_yscale() for axes in (left, right)] == ["log", "log"]


def test_a_run_writes_table_figure_and_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("imixer.analysis.recall.run.measure_capacity", lambda **_: CAPACITIES)
    _, folder = recall_capacity(out=str(tmp_path / "out"))
    assert {"recall.png", "recall.md", "recall.csv", "recall.json"} <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "recall.json").read_text())[1]["mean"] == 7.0

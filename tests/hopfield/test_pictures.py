"""Figures of trajectories, descents and retrievals show the numbers they are made of."""

import pytest
import torch
from PIL import Image

from imixer.hopfield import AssociativeMemory, chain, descent, energy_transformer, integrate
from imixer.hopfield.pictures import plot_energy


@pytest.fixture
def way():
    torch.manual_seed(0)
    network = chain([3, 20], ["tanh", "relu"])
    start = network.initial_state(x1=torch.randn(2, 3))
    with torch.no_grad():
        return network, integrate(network, start, 1.0, frames=5, held={"x1": torch.tensor([True, False, False])})


def test_a_trajectory_draws_its_neurons_in_time_and_clamped_ones_dashed(way):
    _, trajectory = way
    x1, x2 = trajectory.plot(sample=1).axes
    assert x1.get_title() == "x1" and x2.get_title() == "x2, 12 of 20"
    assert [line.get_linestyle() for line in x1.lines] == ["--", "-", "-"]
    for i, line in enumerate(x1.lines):
        assert list(line.get_xdata()) == trajectory.times.tolist()
        assert list(line.get_ydata()) == trajectory.states["x1"][:, 1, i].tolist()
    assert list(x2.lines[-1].get_ydata()) == trajectory.states["x2"][:, 1, -1].tolist()


def test_a_descent_draws_its_energy_under_its_verdict(way):
    network, trajectory = way
    judged = descent(network, trajectory)
    (axes,) = judged.plot().axes
    assert axes.get_title(loc="left") == str(judged)
    for sample, line in enumerate(axes.lines):
        assert list(line.get_xdata()) == trajectory.times.tolist()
        assert list(line.get_ydata()) == judged.energy[:, sample].tolist()


def test_rises_are_marked_where_they_are():
    energy = torch.tensor([[3.0, 1.0], [2.0, 1.5], [1.0, 1.0]])
    (axes,) = plot_energy(torch.tensor([0.0, 1.0, 2.0]), energy, [(1, 1, 0.5)], "it rises").axes
    assert axes.collections[0].get_offsets().tolist() == [[1.0, 1.5]]


@pytest.mark.parametrize("shape", [(16,), (4, 4), (3, 4, 4)])
def test_a_retrieval_is_saved_as_an_animation_of_its_frames(shape, tmp_path):
    torch.manual_seed(0)
    patterns = torch.randn(3, *shape)
    retrieval = AssociativeMemory(patterns, "modern", beta=0.5).retrieve(patterns + torch.randn(3, *shape), steps=3)
    retrieval.animate(tmp_path / "way.gif")
    with Image.open(tmp_path / "way.gif") as gif:
        assert gif.n_frames == len(retrieval.states)
    with pytest.raises(ValueError, match=r"an animation is a GIF, and way\.mp4 does not end in \.gif"):
        retrieval.animate(tmp_path / "way.mp4")
    with pytest.raises(ValueError, match="frames_per_second is 0; give a positive"):
        retrieval.animate(tmp_path / "way.gif", 0)


def test_a_network_draws_itself_in_a_terminal():
    lines = chain([8, 12, 20], ["layer_norm", "gelu", "relu"], tied=False).draw().text.splitlines()
    assert lines[0].split() == ["x1", "8", "layer_norm", "τ", "=", "1,", "α", "=", "1"]
    assert [line.split() for line in lines[1:3]] == [
        ["↓", "ξ", "12", "×", "8", "not", "symmetric"],
        ["↑", "ξ̃", "8", "×", "12", "not", "symmetric"],
    ]
    assert [line.split()[0] for line in lines[3:]] == ["x2", "↓", "↑", "x3"]
    tied = chain([8, 12], ["layer_norm", "gelu"]).draw().text
    assert "↕  ξ 12 × 8  symmetric" in tied
    text = energy_transformer(5, 8, num_heads=2, head_features=4).draw().text.splitlines()
    assert text[1] == "tokens-tokens: attention, symmetric, on the layer itself"
    assert text[2] == "tokens-tokens (2): ReLU(ξ 32 × 8), symmetric, on the layer itself"

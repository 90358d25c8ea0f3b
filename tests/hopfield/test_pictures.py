"""Figures of trajectories, descents and retrievals show the numbers they are made of."""

import math

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


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_batch_can_be_drawn(batch):
    network = chain([3, 4], ["tanh", "relu"])
    torch.manual_seed(0)
    with torch.no_grad():
        path = integrate(network, network.initial_state(x1=torch.randn(*batch, 3)), 1.0, frames=4)
    last = math.prod(batch) - 1
    drawn = path.plot(sample=last).axes[0].lines
    expected = path.states["x1"].reshape(4, -1, 3)[:, last]
    assert [list(line.get_ydata()) for line in drawn] == [expected[:, i].tolist() for i in range(3)]
    with pytest.raises(ValueError, match=f"sample is {last + 1}, and there are {last + 1}; give 0 to {last}"):
        path.plot(sample=last + 1)


def test_a_trajectory_fits_a_line(way):
    shown = repr(way[1])
    assert shown.startswith("Trajectory(5 frames to time 1, residual ") and "x2 (5, 2, 20)" in shown
    assert "\n" not in shown


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


@pytest.mark.parametrize("name", ["missing/way.gif", "folder.gif"])
def test_a_path_that_cannot_be_written_is_refused_before_anything_is_drawn(name, tmp_path):
    (tmp_path / "folder.gif").mkdir()
    (tmp_path / "folder.svg").mkdir()
    retrieval = AssociativeMemory(torch.randn(3, 16)).retrieve(torch.randn(2, 16))
    with pytest.raises(ValueError, match=r"\.gif cannot be written: .*; give a path in a folder of yours"):
        retrieval.animate(tmp_path / name)
    with pytest.raises(ValueError, match=r"\.svg cannot be written: .*; give a path in a folder of yours"):
        chain([3, 4], ["tanh", "relu"]).draw().save((tmp_path / name).with_suffix(".svg"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder.gif", "folder.svg"]


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

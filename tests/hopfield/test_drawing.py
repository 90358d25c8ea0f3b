"""A network draws itself: every layer and every coupling, its ways told apart, and nothing over anything else."""

from itertools import combinations
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imixer.hopfield import (
    AttentionSynapse,
    BilinearSynapse,
    ConvSynapse,
    Drawing,
    EnergySynapse,
    HopfieldNetwork,
    LinearSynapse,
    Neurons,
    chain,
    three_layer,
    two_layer,
)
from imixer.hopfield.lagrangians import Elementwise

SVG = "{http://www.w3.org/2000/svg}"


def parse(drawing: Drawing) -> ElementTree.Element:
    return ElementTree.fromstring(drawing.svg)


def texts(drawing: Drawing) -> list[str]:
    return [text.text for text in parse(drawing).iter(f"{SVG}text")]


def coupling_groups(drawing: Drawing) -> list[tuple[str, str, int]]:
    """Label, colour and arrowheads of every coupling."""
    found = []
    for group in parse(drawing).iter(f"{SVG}g"):
        if group.find(f"{SVG}rect") is None:
            heads = [path for path in group.iter(f"{SVG}path") if path.get("fill")]
            text = group.find(f"{SVG}text")
            assert {head.get("fill") for head in heads} == {text.get("fill")}
            found.append((text.text, text.get("fill"), len(heads)))
    return found


def boxes_of_text(drawing: Drawing) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom, for letters of 0.6 em."""
    found = []
    for text in parse(drawing).iter(f"{SVG}text"):
        x, y, size = (float(text.get(name)) for name in ("x", "y", "font-size"))
        half = 0.3 * size * len(text.text)
        found.append((x - half, y - 0.8 * size, x + half, y + 0.2 * size))
    return found


def assert_legible(drawing: Drawing) -> None:
    left, top, width, height = map(float, parse(drawing).get("viewBox").split())
    boxes = boxes_of_text(drawing)
    for a, b, c, d in boxes:
        assert left <= a and c <= left + width and top <= b and d <= top + height
    for (a, b, c, d), (e, f, g, h) in combinations(boxes, 2):
        assert c <= e or g <= a or d <= f or h <= b, "two texts overlap"
    for rect, other in combinations(parse(drawing).iter(f"{SVG}rect"), 2):
        assert float(rect.get("x")) + float(rect.get("width")) < float(other.get("x"))


def test_a_box_says_what_a_layer_is():
    drawing = three_layer((16, 8), (32, 8), (64, 8), axis=-2, tau_x=0.1, tau_h=0.01, decay=0.0, field=True).draw()
    assert texts(drawing)[:12] == [
        "v", "16 × 8", "unit_layer_norm", "τ = 1, α = 0, b",
        "x", "32 × 8", "gelu", "τ = 0.1, α = 1, b",
        "h", "64 × 8", "gelu", "τ = 0.01, α = 1, b",
    ]  # fmt: skip
    own = Elementwise(lambda x: torch.sqrt(1 + x.square()), convex=True, lipschitz=1.0)
    assert "Elementwise" in texts(chain([3], [own]).draw())


def test_a_symmetric_coupling_is_one_line_with_two_heads_another_a_line_for_each_way():
    (tied,) = coupling_groups(two_layer(8, 20).draw())
    assert tied[0] == "ξ 20 × 8" and tied[2] == 2
    there, back = coupling_groups(two_layer(8, 20, tied=False).draw())
    assert there[0] == "ξ 20 × 8" and back[0] == "ξ̃ 8 × 20"
    assert there[2] == back[2] == 1 and len({tied[1], back[1]}) == 2 and there[1] == tied[1]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_way_points_where_it_leads(order):
    neurons = {"a": Neurons(3), "b": Neurons(3)}
    root = parse(HopfieldNetwork(neurons, [(order, LinearSynapse(3, 3, tied=False))]).draw())
    edges = {"b": float(list(root.iter(f"{SVG}rect"))[1].get("x"))}
    first = next(iter(root.iter(f"{SVG}rect")))
    edges["a"] = float(first.get("x")) + float(first.get("width"))
    tips = [float(path.get("d").split()[0][1:]) for path in root.iter(f"{SVG}path") if path.get("fill")]
    assert tips == [edges[order[1]], edges[order[0]]]  # there, and back


@pytest.mark.parametrize(("shape", "circles"), [((3,), 3), ((9,), 3 + 3), ((3, 4), 12), ((3, 9), 3 * 6),
                                                ((5, 6), 9 + 7 * 3), ((2, 2, 3), 6)])  # fmt: skip
def test_neurons_are_circles_and_dots_stand_for_many(shape, circles):
    root = parse(HopfieldNetwork({"v": Neurons(shape)}, []).draw())
    assert len(list(root.iter(f"{SVG}circle"))) == circles


def test_couplings_of_every_kind_and_between_any_layers_are_drawn():
    class Own(BilinearSynapse):
        up = down = lambda self, g: g

    network = HopfieldNetwork(
        {
            "image": Neurons((1, 5, 5)),
            "maps": Neurons((2, 3, 3)),
            "a": Neurons((4, 6)),
            "b": Neurons((4, 6)),
        },
        [
            (("image", "maps"), ConvSynapse(1, 2, 3)),
            (("a",), AttentionSynapse(6)),
            (("b", "a"), AttentionSynapse(6)),
            (("a", "b"), Own()),
            (("image", "b"), LinearSynapse(25, 24, None, tied=False)),
            (("maps", "a", "b"), EnergySynapse(lambda *g: sum(x.flatten(1).sum(1) for x in g))),
        ],
    )
    drawn = {(label, heads) for label, _, heads in coupling_groups(network.draw())}
    assert drawn == {("conv 3 × 3", 2), ("attention", 2), ("own", 2), ("ξ 24 × 25", 1), ("ξ̃ 25 × 24", 1), ("energy", 3)}
    assert_legible(network.draw())


@given(data=st.data())
@settings(max_examples=40)
def test_any_network_is_drawn_whole_and_without_overlap(networks, data):
    network = data.draw(networks(tied=False))
    drawing = network.draw()
    assert set(network.neurons) <= set(texts(drawing))
    ways = sum(1 if network.synapse(name).symmetric else 2 for name in network.synapses)
    assert len(coupling_groups(drawing)) == ways
    assert_legible(drawing)


def test_names_are_escaped_and_long_ones_have_room():
    network = HopfieldNetwork({"<v & w>": Neurons(3), "a layer with a rather long name": Neurons(4)}, [])
    assert texts(network.draw())[::4] == ["<v & w>", "a layer with a rather long name"]
    assert_legible(network.draw())


def test_a_drawing_is_shown_by_a_notebook_and_saved_as_svg_only(tmp_path):
    drawing = two_layer(3, 4).draw()
    drawing.save(tmp_path / "network.svg")
    assert (tmp_path / "network.svg").read_text(encoding="utf-8") == drawing.svg == str(drawing)
    assert drawing._repr_svg_() == drawing.svg
    with pytest.raises(ValueError, match=r"a drawing is SVG, and network\.png does not end in \.svg"):
        drawing.save(tmp_path / "network.png")

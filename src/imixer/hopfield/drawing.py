"""A network as a picture, its layers in a row, its couplings as arrows: SVG for browsers and notebooks, text else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path

from imixer.hopfield.lagrangians import LAGRANGIANS
from imixer.hopfield.neurons import Neurons
from imixer.hopfield.synapses import Synapse

# They stand out from white and from black, and colour-blind eyes tell them apart.
INK, BLUE, ORANGE = "#808088", "#2b87c8", "#d55e00"

_FONT, _SMALL = 14.0, 12.0
_MARGIN = 12.0
_PITCH, _RADIUS, _SLOTS = 16.0, 5.0, 4  # of the neurons in a box
_BOX = 168.0  # height of a box
_LEVEL = 34.0  # between couplings above each other
_PORT = 18.0  # between couplings that end at the same box


@dataclass(frozen=True)
class Drawing:
    """A picture of a network. A notebook shows it; `save` writes it.

    Attributes:
        svg: The SVG document.
        text: The same for a terminal: a line per layer and coupling, neighbours below each other.
    """

    svg: str
    text: str

    def save(self, path: str | PathLike[str]) -> None:
        """Write the picture to a file.

        Raises:
            ValueError: If the file's name does not end in .svg, or it cannot be written.
        """
        checked_path(path, ".svg", "a drawing is SVG").write_text(self.svg, encoding="utf-8")

    def __str__(self) -> str:
        return self.svg

    def _repr_svg_(self) -> str:
        return self.svg


def checked_path(path: str | PathLike[str], suffix: str, kind: str) -> Path:
    """Return a path that a picture can be written to, before the picture is drawn.

    Args:
        path: The file. An existing one is left as it is.
        suffix: What its name must end in.
        kind: What to say if it does not, such as `a drawing is SVG`.

    Raises:
        ValueError: If the name ends in something else, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{kind}, and {path.name} does not end in {suffix}")
    there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}; give a path in a folder of yours") from error
    if not there:
        path.unlink()
    return path


@dataclass(frozen=True)
class _Arrow:
    """A coupling, or one of its two ways.

    Attributes:
        layers: Places in the row of the layers it joins, each once, from the left.
        ends: Those of them that have an arrowhead.
        label: What it says.
        title: What it says under the mouse.
        color: Its colour.
        way: 0 if it is a symmetric coupling, otherwise 1 for the way there and 2 for the way back.
    """

    layers: tuple[int, ...]
    ends: tuple[int, ...]
    label: str
    title: str
    color: str
    way: int


def draw(
    neurons: Mapping[str, Neurons], connections: Sequence[tuple[str, tuple[str, ...], Synapse]]
) -> Drawing:  # fmt: skip
    """Draw layers in a row and their couplings as arrows, see `HopfieldNetwork.draw`.

    Args:
        neurons: Layer name -> neurons.
        connections: Of each synapse its name, the layers that it joins, and itself.
    """
    return Drawing(_Picture(neurons, connections).svg(), _text_drawing(neurons, connections))


def _text_drawing(neurons: Mapping[str, Neurons], connections: Sequence[tuple[str, tuple[str, ...], Synapse]]) -> str:
    """Draw layers below each other, with the couplings of neighbours between and all others at the end."""
    boxes = [_Box(name, layer) for name, layer in neurons.items()]
    place = {name: i for i, name in enumerate(neurons)}
    widths = [max(len(column) for column in columns) for columns in zip(*(box.lines for box in boxes), strict=True)]
    longest = max(map(len, neurons))
    below: dict[int, list[str]] = {i: [] for i in range(len(boxes))}
    rest: list[str] = []
    for name, layers, synapse in connections:
        joined = sorted({place[layer] for layer in layers})
        kind = "symmetric" if synapse.symmetric else "not symmetric"
        if len(joined) == 2 and joined[1] == joined[0] + 1:
            arrows = "↕" if synapse.symmetric else "↓↑" if place[layers[0]] == joined[0] else "↑↓"
            ways = zip(arrows, synapse.labels, strict=True)
            below[joined[0]] += [f"{'':{longest}}  {arrow}  {label}  {kind}" for arrow, label in ways]
        else:
            others = " and ".join(synapse.labels)
            rest.append(f"{name}: {others}, {kind}" + (", on the layer itself" if len(joined) == 1 else ""))
    lines = []
    for i, box in enumerate(boxes):
        cells = "  ".join(f"{line:{width}}" for line, width in zip(box.lines, widths, strict=True))
        lines += [f"{box.name:{longest}}  {cells}".rstrip(), *below[i]]
    return "\n".join([*lines, *rest])


class _Picture:
    """The places of everything. y counts down from the top edge of the boxes."""

    def __init__(
        self, neurons: Mapping[str, Neurons], connections: Sequence[tuple[str, tuple[str, ...], Synapse]]
    ) -> None:
        self.boxes = [_Box(name, layer) for name, layer in neurons.items()]
        place = {name: i for i, name in enumerate(neurons)}
        self.straight: list[_Arrow] = []
        self.rails: list[_Arrow] = []
        self.loops: list[list[_Arrow]] = [[] for _ in self.boxes]
        taken: set[tuple[int, ...]] = set()
        for name, layers, synapse in connections:
            arrows = _arrows(name, [place[layer] for layer in layers], synapse)
            joined = arrows[0].layers
            if len(joined) == 1:
                self.loops[joined[0]] += arrows
            elif len(joined) == 2 and joined[1] == joined[0] + 1 and joined not in taken:
                taken.add(joined)
                self.straight += arrows
            else:
                self.rails += arrows
        self.rails.sort(key=lambda arrow: arrow.layers[-1] - arrow.layers[0])
        self._spread()

    def _spread(self) -> None:
        """Give every box its width and place, so that all labels have room."""
        self.loop_reach = [self._reaches(loops) for loops in self.loops]
        for i, box in enumerate(self.boxes):
            ports = sum(i in rail.layers for rail in self.rails)
            reach = max(self.loop_reach[i], default=0.0)
            widest = max((_width(loop.label, _SMALL) for loop in self.loops[i]), default=0.0)
            box.width = max(box.width, _PORT * (ports + 1), 2 * reach + 16, widest)
        left = _MARGIN
        for i, box in enumerate(self.boxes):
            box.left = left
            labels = [arrow.label for arrow in (*self.straight, *self.rails) if arrow.layers[0] == i]
            left += box.width + max([64.0, *(_width(label, _SMALL) + 36 for label in labels)])
        self.right = self.boxes[-1].left + self.boxes[-1].width + _MARGIN

    @staticmethod
    def _reaches(loops: Sequence[_Arrow]) -> list[float]:
        """Compute how far each loop under a box reaches to either side: beyond the label of the one inside it."""
        reaches, reach = [], 22.0
        for loop in loops:
            reaches.append(reach)
            reach = max(reach + 14, _width(loop.label, _SMALL) / 2 + 8)
        return reaches

    def svg(self) -> str:
        above = _LEVEL * len(self.rails) + _MARGIN + 4 * bool(self.rails)
        below = _LEVEL * max(map(len, self.loops)) + _MARGIN
        width, height = self.right, above + _BOX + below
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 {-above:g} {width:g} {height:g}" font-family="sans-serif" font-size="{_SMALL:g}" fill="none">'
        ]
        parts += [part for box in self.boxes for part in box.parts()]
        parts += [part for arrow in self.straight for part in self._straight(arrow)]
        parts += [part for level, rail in enumerate(self.rails) for part in self._rail(level, rail)]
        parts += [part for i, loops in enumerate(self.loops) for k, loop in enumerate(loops) for part in
                  self._loop(i, k, loop)]  # fmt: skip
        return "\n".join([*parts, "</svg>\n"])

    def _straight(self, arrow: _Arrow) -> list[str]:
        a, b = arrow.layers
        start, end = self.boxes[a].left + self.boxes[a].width, self.boxes[b].left
        y = _BOX / 2 + (0, -9, 9)[arrow.way]
        parts = [_path([(start, y), (end, y)], arrow.color)]
        parts += [_head(end, y, 1, 0, arrow.color)] if b in arrow.ends else []
        parts += [_head(start, y, -1, 0, arrow.color)] if a in arrow.ends else []
        text = _text((start + end) / 2, y + (18 if arrow.way == 2 else -8), arrow.label, arrow.color)
        return _group(arrow, [*parts, text])

    def _rail(self, level: int, rail: _Arrow) -> list[str]:
        y = -_LEVEL * (level + 1) + 8
        ports = {i: self._port(i, rail) for i in rail.layers}
        first, last = ports[rail.layers[0]], ports[rail.layers[-1]]
        parts = [_path([(first, 0), (first, y), (last, y), (last, 0)], rail.color)]
        parts += [_path([(ports[i], y), (ports[i], 0)], rail.color) for i in rail.layers[1:-1]]
        parts += [_head(ports[i], 0, 0, 1, rail.color) for i in rail.ends]
        box, following = self.boxes[rail.layers[0]], self.boxes[rail.layers[0] + 1]
        middle = (box.left + box.width + following.left) / 2  # where no coupling comes down
        return _group(rail, [*parts, _text(middle, y - 6, rail.label, rail.color)])

    def _port(self, i: int, rail: _Arrow) -> float:
        """Compute where a coupling ends on top of box i, such that it crosses few others."""
        ends = [other for other in self.rails if i in other.layers]

        def order(other: _Arrow) -> tuple[int, int]:
            level = self.rails.index(other)
            if other.layers[-1] == i:  # comes from the left
                return 0, level
            return (2, -level) if other.layers[0] == i else (1, level)

        place = sorted(ends, key=order).index(rail)
        return self.boxes[i].middle + _PORT * (place - (len(ends) - 1) / 2)

    def _loop(self, i: int, k: int, loop: _Arrow) -> list[str]:
        middle, reach = self.boxes[i].middle, self.loop_reach[i][k]
        y = _BOX + _LEVEL * (k + 1) - 16
        start, end = middle - reach, middle + reach
        parts = [_path([(start, _BOX), (start, y), (end, y), (end, _BOX)], loop.color)]
        parts += [_head(end, _BOX, 0, -1, loop.color)]
        parts += [_head(start, _BOX, 0, -1, loop.color)] if loop.way == 0 else []
        return _group(loop, [*parts, _text(middle, y + 14, loop.label, loop.color)])


class _Box:
    """A layer."""

    def __init__(self, name: str, layer: Neurons) -> None:
        self.name, self.layer = name, layer
        kinds = {cls: known for known, cls in LAGRANGIANS.items()}
        self.lines = [
            " × ".join(map(str, layer.shape)),
            kinds.get(type(layer.lagrangian), type(layer.lagrangian).__name__),
            f"τ = {layer.tau:g}, α = {layer.decay:g}" + ("" if layer.field is None else ", b"),
        ]
        texts = [_width(name, _FONT), *(_width(line, _SMALL) for line in self.lines)]
        self.width = max(96.0, max(texts) + 20)
        self.left = 0.0

    @property
    def middle(self) -> float:
        return self.left + self.width / 2

    def parts(self) -> list[str]:
        outline = (
            f'<rect x="{self.left:g}" y="0" width="{self.width:g}" height="{_BOX:g}" rx="10" stroke="{INK}" '
            'stroke-width="1.5"/>'
        )
        name = _text(self.middle, 22, self.name, INK, size=_FONT, bold=True)
        lines = [_text(self.middle, 120 + 18 * i, line, INK) for i, line in enumerate(self.lines)]
        about = f"<title>{escape(f'{self.name}: {self.layer}')}</title>"
        return ["<g>", about, outline, name, *self._neurons(), *lines, "</g>"]

    def _neurons(self) -> list[str]:
        """Draw a column of circles for a vector, a grid for the last two axes of anything else; dots for many."""
        rows, columns = self.layer.shape[-2:] if len(self.layer.shape) > 1 else (self.layer.shape[0], 1)
        slots = [min(size, _SLOTS) for size in (rows, columns)]
        top, left = 66 - _PITCH * (slots[0] - 1) / 2, self.middle - _PITCH * (slots[1] - 1) / 2
        parts = []
        for i in range(slots[0]):
            for j in range(slots[1]):
                left_out = (rows > _SLOTS and i == _SLOTS - 2, columns > _SLOTS and j == _SLOTS - 2)
                x, y = left + _PITCH * j, top + _PITCH * i
                if not any(left_out):
                    parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{_RADIUS:g}" stroke="{INK}" stroke-width="1.2"/>')
                    continue
                step = (0, 4) if left_out == (True, False) else (4, 0) if left_out == (False, True) else (4, 4)
                parts += [
                    f'<circle cx="{x + k * step[0]:g}" cy="{y + k * step[1]:g}" r="1" fill="{INK}"/>'
                    for k in (-1, 0, 1)
                ]
        return parts


def _arrows(name: str, layers: Sequence[int], synapse: Synapse) -> list[_Arrow]:
    """Make one arrow for a symmetric coupling, two for one whose ways differ."""
    joined, title, labels = tuple(sorted(set(layers))), f"{name}: {synapse}", synapse.labels
    if synapse.symmetric:
        return [_Arrow(joined, joined, labels[0], title, BLUE, 0)]
    ends = (layers[-1],), (layers[0],)
    ways = [1, 2] if layers[0] <= layers[-1] else [2, 1]
    return [
        _Arrow(joined, end, label, title, color, way)
        for end, label, color, way in zip(ends, labels, (BLUE, ORANGE), ways, strict=True)
    ]


def _group(arrow: _Arrow, parts: Sequence[str]) -> list[str]:
    return ["<g>", f"<title>{escape(arrow.title)}</title>", *parts, "</g>"]


def _path(points: Sequence[tuple[float, float]], color: str) -> str:
    line = " L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M{line}" stroke="{color}" stroke-width="1.5" stroke-linejoin="round"/>'


def _head(x: float, y: float, dx: int, dy: int, color: str) -> str:
    """Draw an arrowhead whose tip is at (x, y), pointing along (dx, dy)."""
    back = (x - 9 * dx, y - 9 * dy)
    corners = [(x, y), (back[0] - 4 * dy, back[1] + 4 * dx), (back[0] + 4 * dy, back[1] - 4 * dx)]
    return f'<path d="M{" L".join(f"{a:g} {b:g}" for a, b in corners)} Z" fill="{color}"/>'


def _text(x: float, y: float, text: str, color: str, *, size: float = _SMALL, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" text-anchor="middle"'
    return f'<text {place} fill="{color}" font-size="{size:g}"{weight}>{escape(text)}</text>'


def _width(text: str, size: float) -> float:
    """Estimate how wide a text is; sans-serif letters are seldom wider on average."""
    return 0.62 * size * len(text)

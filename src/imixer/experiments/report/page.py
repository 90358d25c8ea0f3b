"""Render sections of text, tables, charts and pictures as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

import imixer
from imixer.escaping import printable_lines, slug, unlike

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of a few sentences."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Notes:
    """A list of remarks on what stands above, in faint print."""

    lines: Sequence[str]
    kind: ClassVar[str] = "notes"


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class HtmlTable:
    """A table of the page. The first cell of a row names it.

    Args:
        caption: What it shows.
        header: Title of each column.
        rows: The rows.
        text: Number of leading columns that hold text. The others hold numbers.
        cards: On a phone, show each row as a list of titles and cells, instead of a table to be pushed sideways.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int = 1
    cards: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Chart:
    """A Plotly figure.

    Args:
        caption: What it shows.
        id: Its id in the page.
        figure: The figure.
    """

    caption: str
    id: str
    figure: go.Figure
    kind: ClassVar[str] = "chart"

    @property
    def json(self) -> str:
        """The figure, safe inside a script element."""
        return str(self.figure.to_json()).replace("</", "<\\/")


@dataclass(frozen=True)
class PictureFile:
    """A picture.

    Args:
        caption: What it shows.
        file: PNG, which the page holds a copy of.
    """

    caption: str
    file: Path
    kind: ClassVar[str] = "picture"

    @property
    def data(self) -> str:
        """The file in base64."""
        return base64.b64encode(self.file.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Fold:
    """A long text that opens on demand."""

    summary: str
    text: str
    kind: ClassVar[str] = "fold"


Item = Paragraph | Notes | Heading | HtmlTable | Chart | PictureFile | Fold


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        title: Its title.
        items: What it holds, in order.
        short: Text of the links to it. Default: its title.
    """

    title: str
    items: list[Item] = field(default_factory=list)
    short: str = ""

    @property
    def link(self) -> str:
        """Text of the links to it."""
        return self.short or self.title


def _anchors(sections: Sequence[Section]) -> list[str]:
    """Name the targets of the links to sections: small letters and digits between hyphens, no two alike."""
    return unlike([slug(section.link.lower(), kept="a-z0-9", filler="-") for section in sections])


def render(title: str, sections: Sequence[Section]) -> str:
    """Render the page.

    Args:
        title: Its title.
        sections: Its sections. Those without items are left out.

    Returns:
        HTML.
    """
    sections = [section for section in sections if section.items]
    charts = any(isinstance(item, Chart) for section in sections for item in section.items)
    loader = jinja2.FileSystemLoader(_FOLDER)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, finalize=_shown, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html").render(
        title=title,
        sections=list(zip(_anchors(sections), sections, strict=True)),
        charts=charts,
        plotly=get_plotlyjs() if charts else "",
        css=jinja2.utils.markupsafe.Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        js=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        version=imixer.__version__,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _shown(value: Any) -> Any:
    """Make text printable; leave our own pages and scripts as they are."""
    plain = isinstance(value, str) and not isinstance(value, jinja2.utils.markupsafe.Markup)
    return printable_lines(value) if plain else value

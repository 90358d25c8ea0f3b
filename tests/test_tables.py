"""Tables hold what they are given, each cell in its column, whatever is in it."""

import io
import re

import pytest
from rich.console import Console

from imixer.escaping import for_latex, for_markdown
from imixer.tables import Grid, latex, markdown, on_screen, plus_minus, verdict_markup

NASTY = r"50 % of a_b & $c #1 {x} ~ ^2 \end{tabular} <i> | -3.5 +- 0.1"
GRID = Grid(("name", "top-1 %"), (("plain", "1.00 +- 0.50"), (NASTY, "[-1.20, 0.30]")), text=1)


def unescaped(text):
    """Characters that LaTeX would take for its own, once escapes and the math of our own are gone."""
    text = re.sub(r"\\text(backslash|asciitilde|asciicircum)\{\}", "", text)
    text = re.sub(r"\$(\\pm|<|>|-|\|)\$", "", text)
    return re.findall(r"[\\&%$#_{}~^<>|]", re.sub(r"\\[&%$#_{}]", "", text))


def test_latex_escapes_everything():
    assert unescaped(NASTY) != []
    assert unescaped(for_latex(NASTY)) == []
    assert for_latex("-3.5 +- 0.1 [-1.20, 0.30] cifar-10") == r"$-$3.5 $\pm$ 0.1 [$-$1.20, 0.30] cifar-10"


def test_latex_is_balanced_and_regular():
    text = latex(GRID, NASTY, "table1-smoke")
    assert re.findall(r"\\(begin|end)\{(\w+)\}", text) == [
        ("begin", "table"),
        ("begin", "tabular"),
        ("end", "tabular"),
        ("end", "table"),
    ]
    bare = re.sub(r"\\[{}]", "", text)
    depth = 0
    for sign in re.findall(r"[{}]", bare):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    assert depth == 0
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 3
    assert all(len(re.findall(r"(?<!\\)&", row)) == 1 for row in rows)
    assert r"\begin{tabular}{@{}lr@{}}" in text and r"\label{tab:table1-smoke}" in text
    assert "\n\n" not in text  # which would end a caption


def test_markdown_is_regular():
    lines = markdown(GRID).splitlines()
    assert lines[1] == "|---|---:|"
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)
    assert "1.00 ± 0.50" in lines[2] and r"a\_b" in lines[3] and r"\<i\>" in lines[3]


@pytest.mark.parametrize("escape", [for_latex, for_markdown])
def test_text_becomes_one_line(escape):
    assert escape("a\n\n b\tc") == "a b c"


def test_every_cell_stands_under_its_header_wherever_it_is_shown():
    grid = Grid(("row", "kind", "first", "second"), (("a", "x", "1", "2"), ("b", "y", "3", "4")), text=2)
    assert markdown(grid).splitlines() == [
        "| row | kind | first | second |",
        "|---|---|---:|---:|",
        "| a | x | 1 | 2 |",
        "| b | y | 3 | 4 |",
    ]
    assert [line for line in latex(grid, "caption", "label").splitlines() if line.endswith(r"\\")] == [
        r"row & kind & first & second \\",
        r"a & x & 1 & 2 \\",
        r"b & y & 3 & 4 \\",
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(on_screen(grid, "a title"))
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == [
        "a title",
        " row  kind  first  second",
        " a    x         1       2",
        " b    y         3       4",
    ]


def test_a_mean_has_its_spread_where_there_is_one():
    assert plus_minus(88.564, 0.2049) == "88.56 +- 0.20"
    assert plus_minus(88.564, None) == "88.56"
    assert plus_minus(1.5, 0.25, digits=4) == "1.5000 +- 0.2500"
    assert plus_minus(1.5, 0.0, digits=1) == "1.5 +- 0.0"


def test_verdicts_differ_in_colour():
    verdicts = ("guaranteed", "observed", "undecided", "violated")
    assert len({str(verdict_markup(verdict).style) for verdict in verdicts}) == 4
    assert [verdict_markup(verdict).plain for verdict in verdicts] == list(verdicts)

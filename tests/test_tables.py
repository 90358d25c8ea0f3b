"""Markdown and LaTeX hold what they are given, whatever is in it."""

import re

import pytest

from imixer.escaping import for_latex, for_markdown
from imixer.tables import Grid, latex, markdown

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

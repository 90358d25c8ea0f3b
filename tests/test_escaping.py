"""Text from outside stays text, whatever it is written into."""

import ast
import csv
import html
import io
import random
import re
import shlex
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.panel import Panel
from rich.table import Table

import imixer
from imixer.cli.terminal import new_console
from imixer.console import PlainConsole
from imixer.escaping import (
    few_names,
    for_csv,
    for_figure,
    for_latex,
    for_legend,
    for_markdown,
    for_plotly,
    from_csv,
    middle_cut,
    one_line,
    printable,
    shell_word,
)

NAMES = [
    r"$\foo$",
    "$a$ and $b",
    r"\$x$",
    r"a\$\bar$",
    "$",
    "[bold]b[/bold]",
    "[/red]",
    "[link=https://example.org]x[/link]",
    "trailing\\",
    ":smile:",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;https://example.org\x07link",
    "\x9b2J",
    "tab\tnew\nline\r",
    "\u202eturned\u2066",
    "\udcff\udc80 of no encoding",
    "=1+1",
    "+cmd|' /C calc'!A0",
    "@SUM(A1)",
    "-2+3",
    "'=already",
    "'plain",
    " =1",
    'a,b;"c"',
    "</script><script>alert(1)</script>",
    "<b>bold</b> &amp; %{x} <extra></extra>",
    "|pipe| [x](https://example.org) *y* _z_ `q` ~~s~~",
    "_hidden",
    "%50 #1 {x} ^2 ~ & \\input{x}",
    "",
    " ",
    "名前 é",
    "x" * 300,
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_terminal_obeys_nothing_and_can_encode_everything(name):
    shown = printable(name)
    shown.encode("utf-8")
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert "\n" not in one_line(name)
    if name.isprintable():
        assert shown == name


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_figure_shows_a_name_and_no_formula(name):
    figure = Figure()
    axes = figure.subplots()
    text = axes.set_title(for_figure(name))
    axes.set_xticks([0, 1], [for_figure(name, 18), "x"])
    axes.plot([0, 1], label=for_legend(name, 18))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend()
    figure.draw_without_rendering()
    shown, is_math = text._preprocess_math(text.get_text())
    assert not is_math and shown == one_line(name)
    assert (len(handles), labels) == (1, [for_legend(name, 18)]) or not name.strip()


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_rich_shows_a_name_and_no_markup(name):
    for console in (PlainConsole(file=io.StringIO(), width=400), new_console()):
        console.file = io.StringIO()
        console.width = 400
        table = Table(name, title=f"{name}.", box=None)
        table.add_row(name)
        console.print(table)
        console.print(f"<{name}>", Panel(name))
        shown = console.file.getvalue()
        assert "\x1b" not in shown and "\x9b" not in shown
        for line in filter(str.strip, name.splitlines()):
            assert printable(line.strip().expandtabs()) in re.sub(r"\s+", " ", shown) or set(name) & set("\t\r\x07")


def test_own_colours_still_show():
    from imixer.tables import verdict_markup

    console = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(verdict_markup("guaranteed"))
    assert "\x1b[32mguaranteed\x1b[0m" in console.file.getvalue()


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_spreadsheet_computes_nothing_and_the_name_comes_back(name):
    file = io.StringIO()
    csv.writer(file).writerow([for_csv(name), "end"])
    file.getvalue().encode("utf-8")
    cell, end = next(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert end == "end" and not re.match(r"\s*[=+\-@]", cell)
    if name.isascii() or name.isprintable():
        assert from_csv(cell) == name


def test_numbers_stay_numbers_in_a_csv_file():
    for cell in (-1.5, 3, None, True, "-1.5", "+2", "-1e-3", "-inf"):
        assert for_csv(cell) == cell


def test_random_names_come_back_from_a_csv_file():
    letters = random.Random(0)
    for _ in range(2000):
        name = "".join(letters.choice("'=+-@ab1 \t") for _ in range(letters.randrange(6)))
        assert from_csv(for_csv(name)) == name


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_plotly_shows_a_name_and_no_tags_or_templates(name):
    shown = for_plotly(name)
    assert "<" not in shown and "%{" not in shown
    assert html.unescape(shown) == one_line(name)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_markdown_and_latex_show_a_name_in_one_line(name):
    marked = for_markdown(name)
    assert "\n" not in marked and not re.search(r"(?<!\\)(?:\\\\)*[|<>*_`\[\]]", marked)
    for_latex(name).encode("utf-8")
    assert "\\input" not in for_latex(name)


def test_no_letter_is_an_order_to_latex():
    for letter in "&%$#_{}":
        assert for_latex(f"a{letter}b") == f"a\\{letter}b"
    for letter in "\\~^<>|":
        assert for_latex(letter) != letter
    assert for_latex("1+-2") == r"1$\pm$2"


def test_long_names_are_cut_in_the_middle():
    assert middle_cut("short", 5) == "short"
    assert middle_cut("a_long_name_of_one_kind_1", 11) == "a_lon…ind_1"
    for width in range(1, 40):
        cut = middle_cut("b" * 15 + "m" + "e" * 15, width)
        assert len(cut) == min(width, 31) and "..." not in cut
    a, b = (for_figure(f"{'averyverylongsharedprefix' * 3}{i}", 18) for i in (1, 2))
    assert a != b and a.startswith("avery")


def test_nothing_else_cuts_or_escapes():
    """One module for all: no markup, no textwrap.shorten, no console with a language of its own."""
    for file in Path(imixer.__file__).parent.rglob("*.py"):
        if file.name == "escaping.py" or "hopfield" in file.parts:
            continue
        text = file.read_text(encoding="utf-8")
        assert "textwrap.shorten" not in text, file
        assert not re.search(r"\[/(bold|red|green|yellow|dim|italic)?\]", text), file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module == "rich.markup":
                raise AssertionError(file)


def test_the_first_five_of_many_names_are_listed_with_their_number():
    assert few_names(["cat", "dog"]) == "cat, dog"
    assert few_names(list("abcde")) == "a, b, c, d, e"
    assert few_names(list("abcdef")) == "a, b, c, d, e, ... (6)"
    assert few_names(["x" * 50]) == "x" * 20 + "…" + "x" * 19


def test_a_path_in_a_command_is_one_word():
    for path in ("runs/first", "my runs/a'b", "$run$ [i]"):
        assert shlex.split(f"imixer evaluate {shell_word(path)}") == ["imixer", "evaluate", path]

"""The report, in a real browser."""

import json
import re
import shutil

import pytest
from PIL import Image

from imixer.cli import main
from imixer.errors import InputError
from imixer.experiments.report import charts
from imixer.experiments.report.collect import differing_settings, find_experiments, find_runs
from imixer.experiments.report.html_report import write_report
from imixer.training.finished_run import load_run
from imixer.training.run.directory import short_names
from imixer.training.run.summary import runs_below


@pytest.fixture(scope="module")
def runs(run, train_quick, tmp_path_factory):
    """Two runs beside each other, one of them evaluated and analysed."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(run, folder / "first")
    train_quick(folder / "second", "--seed", "1", "--model.n_iter", "1")
    assert main(["evaluate", str(folder / "first")]) == 0
    digit, label = load_run(str(run)).data().val[0]
    (folder / "test" / f"{label}").mkdir(parents=True)
    digit.save(folder / "test" / f"{label}" / "0.png")
    assert main(["evaluate", str(folder / "first"), "--test", str(folder / "test")]) == 0
    assert main(["predict", str(folder / "first")]) == 0
    assert main(["analyze", "energy", str(folder / "first")]) == 0
    assert main(["analyze", "convergence", str(folder / "first")]) == 0
    assert main(["analyze", "weights", str(folder / "first")]) == 0
    return folder


@pytest.fixture(scope="module")
def report(runs):
    return write_report([str(runs)], str(runs / "report.html"))


@pytest.fixture
def open_page(browser, report):
    """Open the report; at the end nothing may have gone wrong, and nothing been asked of a network."""
    problems, contexts = [], []

    def opened(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(0)  # however slow the machine is
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        page.goto(report.as_uri())
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length == charts.length")
        return page

    yield opened
    assert problems == []
    for context in contexts:
        context.close()


def test_every_chart_and_picture_is_there(open_page, runs):
    page = open_page()
    charts = page.locator("[data-chart]").count()
    # curves of all; of each that has it: convergence, iterations, energy, confusion, classes, test set twice
    assert charts == 1 + 2 + 1 + 1 + 2 + 1 + 2
    assert page.locator(".js-plotly-plot .main-svg:first-child").count() == charts
    widths = page.eval_on_selector_all("img", "pictures => pictures.map(picture => picture.naturalWidth)")
    charted = {"learning_curves", "confusion_matrix", "convergence", "energy", "test_confusion_matrix"}
    drawn = [file for name in ("first", "second") for file in (runs / name).rglob("*.png") if file.stem not in charted]
    assert len(widths) == len(drawn) > 0 and min(widths) > 100
    titles = page.locator("h2").all_inner_texts()
    assert " ".join(titles) == "Summary Learning curves Convergence Energy Classes Pictures Settings Environment"
    row = page.locator("#summary tbody tr").nth(0).inner_text()
    assert re.search(r"first\s+\d+\.\d\d%\s+\d+\.\d\d% \(\d\)\s+\d+\.\d\d%\s.*imixer_t2_8\s+digits", row)
    assert "model.n_iter" in page.locator("#settings table").inner_text()


MARKS = [
    ("curves", ".xy .point", r"epoch 1: \d"),
    ("iterations-0", ".xy .point", r"block 0a = 0: .* ± "),
    ("energy-0", ".xy .point", r"block 0: .* ± .*falls on \d+% of the images: (guaranteed|observed|violated)"),
    ("classes-0", ".point path", r"\d: \d+\.\d% of \d+ images"),
    ("confusion-0", ".hm", r"\d taken for \d: \d+ images, \d+\.\d%"),
]


def test_pointing_at_a_mark_tells_its_number(open_page):
    page = open_page(viewport={"width": 1280, "height": 900})
    for chart, mark, told in MARKS:
        marks = page.locator(f"[data-chart={chart}] {mark}").first
        marks.scroll_into_view_if_needed()
        box = marks.bounding_box()
        page.mouse.move(box["x"] + 3, box["y"] + 3)
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector(f"[data-chart={chart}] .hovertext")
        assert re.search(told, page.locator(f"[data-chart={chart}] .hovertext").first.text_content()), chart


def test_a_damaged_confusion_matrix_is_named(runs, tmp_path):
    shutil.copytree(runs / "second", tmp_path / "run")
    file = tmp_path / "run" / "confusion_matrix.csv"
    for damaged in ("true,0,1\n0,3,1\n", file.read_text() + "\n"):
        file.write_text(damaged)
        with pytest.raises(InputError, match="a row and a column for each class"):
            write_report([str(tmp_path / "run")])


def test_a_link_to_a_run_stands_for_it_unless_it_is_there_itself(runs, tmp_path):
    (tmp_path / "links" / "row").mkdir(parents=True)
    for name in ("first", "second"):
        (tmp_path / "links" / "row" / name).symlink_to(runs / name)
    (tmp_path / "links" / "row" / "nowhere").symlink_to("gone")
    (tmp_path / "links" / "up").symlink_to(tmp_path)
    assert [each.name for each in find_runs([str(tmp_path / "links")])] == ["first", "second"]
    assert [each.path for each in find_runs([str(tmp_path / "links" / "row" / "first")])] == [
        tmp_path / "links" / "row" / "first"
    ]
    assert len(find_runs([str(runs), str(tmp_path / "links")])) == len(find_runs([str(runs)]))
    shutil.copytree(runs / "first", tmp_path / "links" / "zuletzt")
    (tmp_path / "links" / "again").symlink_to("zuletzt")
    assert runs_below(tmp_path / "links")[-1].name == "zuletzt" and len(runs_below(tmp_path / "links")) == 3


def test_the_keyboard_reaches_everything(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    wanted = page.evaluate("document.querySelectorAll('a, figure, summary, [role=region]').length")
    seen = set()
    for _ in range(wanted * 2):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.outerHTML.slice(0, 300)"))
    for kind in ("<a", "<figure", "<summary", "<div"):
        assert any(each.startswith(kind) for each in seen), kind


def test_a_phone_needs_no_sideways_scrolling(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_on_a_phone_the_accuracy_stands_first_below_the_name_of_the_run(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, is_mobile=True)
    cells = page.locator("#summary tbody tr").nth(0).locator("th, td")
    tops = [cells.nth(place).bounding_box()["y"] for place in range(cells.count())]
    assert tops == sorted(set(tops))  # one below the other
    boxes = [cells.nth(place).bounding_box() for place in range(cells.count())]
    assert all(0 <= box["x"] and box["x"] + box["width"] <= 390 for box in boxes)
    assert [cells.nth(place).get_attribute("data-title") for place in (1, 2, 3)] == [
        "accuracy",
        "best epoch",
        "test set",
    ]
    assert boxes[1]["y"] < 844  # seen without a move of the finger


def test_dark_mode_turns_page_and_charts(open_page):
    def colors(scheme):
        page = open_page(color_scheme=scheme)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return ground, page.evaluate("charts[0]._fullLayout.font.color")

    assert colors("light") == ("rgb(255, 255, 255)", "#1b1b1b")
    assert colors("dark") == ("rgb(22, 24, 28)", "#e8e8e8")


def test_it_prints_with_all_settings_open_and_no_chart_cut_off(open_page):
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="light")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.set_viewport_size({"width": 680, "height": 1000})  # what Letter leaves between wide margins
    assert page.evaluate("[...document.querySelectorAll('details')].every(each => each.open)")
    within = "charts.every(chart => chart.querySelector('.main-svg').getBoundingClientRect().right <= 680)"
    page.wait_for_function(within)  # Plotly promises
    assert len(page.pdf()) > 50_000
    page.set_viewport_size({"width": 1280, "height": 900})
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function("charts[0]._fullLayout.width > 1000")


def test_it_is_one_file_that_names_no_other(report):
    text = report.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", text.partition("<script>")[0])


def test_what_a_setting_says_is_not_taken_for_html(train_quick, tmp_path):
    run = train_quick(tmp_path / "run <b>x")
    text = write_report([str(run)], str(tmp_path / "r.html")).read_text()
    assert "run &lt;b&gt;x" in text
    assert "<b>x" not in text.partition("<script type")[0]


def test_the_command_writes_beside_the_run(runs, capsys):
    assert main(["report", str(runs / "second")]) == 0
    assert (runs / "second" / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out


def test_runs_are_found_named_and_compared(runs):
    found = find_runs([str(runs), str(runs / "first")])
    assert [run.name for run in found] == ["first", "second"]
    assert dict(differing_settings(found)) == {"seed": [0, 1], "model.n_iter": [None, 1]}
    nested = [runs / "a" / "seed-0", runs / "b" / "seed-0"]
    assert short_names(nested) == ["a/seed-0", "b/seed-0"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [(["nowhere"], "no run and no folder of runs at nowhere"), (["."], r"\. holds no run")],
)
def test_what_is_no_run_is_refused(tmp_path, monkeypatch, paths, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        write_report(paths)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_and_impossible_places_are_named(runs, tmp_path):
    shutil.copytree(runs / "second", tmp_path / "run")
    with pytest.raises(InputError, match="is a folder"):
        write_report([str(tmp_path / "run")], str(tmp_path))
    with pytest.raises(InputError, match="cannot be written"):
        write_report([str(tmp_path / "run")], str(tmp_path / "no" / "report.html"))
    (tmp_path / "run" / "metrics.csv").write_text("epoch,val_acc\n1,many\n")
    with pytest.raises(InputError, match=r"metrics\.csv is damaged"):
        write_report([str(tmp_path / "run")])


@pytest.fixture
def reproduced(tmp_path):
    """A table and two figures, as `imixer reproduce` writes them."""

    def write(name, title="Table 1: sizes"):
        folder = tmp_path / name
        folder.mkdir()
        rows = [["S", "Mixer", "88.08 +- 0.51"]]
        grid = {"caption": "Results", "header": ["size", "model", "top-1 %"], "rows": rows, "text": 2}
        shown = {"tables": [grid], "sentences": ["nothing +- is decided"], "notes": ["paper: what it reports"]}
        table = {"title": title, "conditions": "Scale smoke", "shown": shown}
        (folder / "table1.json").write_text(json.dumps(table))
        measured = [{"mean": mean, "std": 0.1, "min": 0.2, "max": 0.9} for mean in (0.5, 0.4, 0.3)]
        blocks = [{"block": 0, "norm": measured, "cosine": measured}]
        figure = {
            "title": "Figure 3: iterations",
            "conditions": "Scale smoke, digits",
            "notes": ["large markers"],
            "models": [{"name": f"n = {n}", "trained_n_iter": n, "blocks": blocks} for n in (1, 2)],
            "panels": [{"block": 0, "measure": measure} for measure in ("norm", "cosine")],
            "statements": [{"text": "Blocks converge.", "verdict": "not decidable"}],
        }
        (folder / "fig3.json").write_text(json.dumps(figure))
        (folder / "fig7.json").write_text("{}")
        Image.new("RGB", (120, 80)).save(folder / "fig7.png")
        return folder

    return write


def test_tables_and_figures_of_reproduce_are_shown_in_their_order(reproduced):
    folder = reproduced("smoke")
    text = write_report([str(folder)]).read_text()
    assert (
        text.index("Table 1: sizes")
        < text.index("nothing ± is decided.")
        < text.index("88.08 ± 0.51")
        < text.index("Figure 3")
    )
    assert "Blocks converge. Here: not decidable" in text and "Scale smoke, digits" in text
    assert text.count('data-chart="iterations-compared-1"') == text.count("<img") == 1
    assert '<td class="text">Mixer</td><td>88.08' in text
    (folder / "table1.json").write_text("{")
    with pytest.raises(InputError, match="`imixer reproduce table1`, with the options that it had, writes it again"):
        write_report([str(folder)])


def test_the_chart_of_a_figure_has_a_line_per_model_in_each_panel(reproduced):
    (found,) = [each for each in find_experiments(str(reproduced("smoke"))) if each.name == "fig3"]
    figure = charts.compared_iterations(found.curves)
    assert [title.text for title in figure.layout.annotations] == [
        "iMLP-0: Norm<sub>a</sub>",
        "iMLP-0: cos<sub>a</sub>",
    ]
    assert [line.name for line in figure.data] == ["n = 1", "n = 2"] * 2
    for line in figure.data:
        assert list(line.y) == [0.5, 0.4, 0.3] and list(line.x) == [0, 1, 2]
        assert list(line.marker.symbol).index("diamond") == int(line.name[-1])
    assert (figure.layout.yaxis.type, figure.layout.yaxis2.type) == ("log", None)


def test_every_link_leads_to_one_place_also_with_two_scales(reproduced):
    smoke, cpu = reproduced("smoke"), reproduced("cpu", "Table 1: larger")
    text = write_report([str(smoke), str(cpu)]).read_text()
    links = re.findall(r'<li><a href="#([^"]+)"', text)
    assert links == [f"{scale}-{name}" for scale in ("smoke", "cpu") for name in ("table1", "fig3", "fig7")]
    assert [text.count(f'id="{link}"') for link in links] == [1] * len(links)


@pytest.mark.parametrize("names", [("repro_1", "repro-1"), ("опыт_а", "опыт_б")])
def test_names_that_look_alike_in_a_link_have_their_own_sections_and_charts(reproduced, names):
    text = write_report([str(reproduced(name)) for name in names]).read_text()
    ids = re.findall(r'<(?:section|h2|script)[^>]* id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and sum(each.startswith("iterations-compared") for each in ids) == 2
    assert set(re.findall(r'<li><a href="#([^"]+)"', text)) <= set(ids)


def test_an_unfinished_run_is_told_as_such(runs, tmp_path):
    shutil.copytree(runs / "second", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "result.json").unlink()
    assert "Not finished" in write_report([str(tmp_path / "run")]).read_text()

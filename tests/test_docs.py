"""What the documents say is so."""

import ast
import csv
import functools
import http.server
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from statistics import fmean, stdev

import pytest
import timm
import yaml
from scipy.stats import ttest_ind
from timm.models.mlp_mixer import MixerBlock

import imixer
from imixer.extras import MODULES
from imixer.hopfield.lagrangians.registry import LAGRANGIANS
from imixer.training.run.directory import RunDirectory

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
KATEX = ROOT / "docs/assets/katex"


def pages(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))(test)


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_code_samples_run(tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)  # one writes files
    request.addfinalizer(lambda: logging.getLogger("imixer").setLevel(logging.NOTSET))  # one sets it
    ran = 0
    for page in PAGES:
        if page.name in ("other_tools.md", "your_own.md"):  # with the tools themselves: tests/elsewhere; and below
            continue
        scope: dict = {}
        for sample in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            if "self." in sample or "local-dir:" in sample:  # an excerpt, or for a trained run: checked below
                continue
            exec(sample, scope)
            ran += 1
    assert ran >= 3


def test_the_page_of_ones_own_leads_from_ten_lines_to_a_trained_model():
    samples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/your_own.md").read_text(), re.DOTALL)
    assert len([line for line in samples[0].splitlines() if line]) <= 10
    scope: dict = {}
    for sample in samples:
        exec(sample, scope)
    assert scope["own"].verdict == scope["certificate"].verdict == scope["verdict"].verdict == "guaranteed"
    assert 0 < scope["own"].data.norms.max() <= scope["own"].worst.bound < 1
    assert scope["verdict"].bounded == "known"
    assert scope["accuracy"] > 0.9
    assert scope["F"].lipschitz_bound() <= 0.9 + 1e-5


def test_the_readmes_excerpt_is_in_the_source():
    source = re.sub(r"\s+", " ", (ROOT / "src/imixer/models/imlp.py").read_text())
    excerpt = next(s for s in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "self." in s)
    for line in excerpt.splitlines():
        code = line.split("#")[0].strip()
        assert code in source, code


@pytest.mark.parametrize("package", ["implicit", "hopfield", "models"])
def test_what_an_api_page_says_is_imported_from_a_package_is(package):
    page = (ROOT / f"docs/api/{package}.md").read_text(encoding="utf-8")
    elsewhere = {f"imixer.{package}", *re.findall(rf"`(imixer\.{package}\.[\w.]+)`", page)}
    for path in re.findall(r"^::: (\S+)$", page, re.MULTILINE):
        name = path.rpartition(".")[2]
        assert any(hasattr(importlib.import_module(place), name) for place in elsewhere), path


@pytest.mark.parametrize("page", sorted(set(re.findall(r"docs/results/\w+\.md", README))))
def test_every_figure_of_the_readme_stands_on_the_page_it_leads_to(page):
    known = [float(number) for number in re.findall(r"\d+\.\d+", (ROOT / page).read_text(encoding="utf-8"))]
    figures = [row.split("|")[2] for row in README.splitlines() if f"[more]({page})" in row]
    for number in re.findall(r"\d+\.\d+", " ".join(figures)):
        digits = len(number.partition(".")[2])
        assert any(abs(value - float(number)) <= 0.501 * 10**-digits for value in known), f"{number} is not in {page}"


def test_the_table_of_models_is_complete_and_right():
    text = (ROOT / "docs/models.md").read_text()
    for name in timm.list_models("imixer*"):
        model = timm.create_model(name, num_classes=10, device="meta")
        row = next(line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line)
        assert f"{sum(p.numel() for p in model.parameters()):,}" in row
        assert f"| {model.embed_dim} | {sum(isinstance(block, MixerBlock) for block in model.blocks)} |" in row


def test_every_file_of_a_run_directory_is_explained():
    text = (ROOT / "docs/training.md").read_text()
    run = RunDirectory(Path("run"))
    for name, member in vars(RunDirectory).items():
        if isinstance(member, property) and isinstance(getattr(run, name), Path):
            path = getattr(run, name).relative_to("run").as_posix()
            assert f"`{path}" in text, path


def rows(page):
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) >= 3 and cells[-2].startswith("`imixer.") and cells[-1].startswith("`"):
            yield cells[0], cells[-2].strip("`"), cells[-1].strip("`")


def resolve(dotted):
    module, attributes = dotted, []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            attributes.insert(0, name)
    for name in attributes:
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(("paper", "dotted", "line"), list(rows("docs/theory.md")), ids=str)
def test_the_theorys_equations_are_where_it_says(paper, dotted, line):
    source = re.sub(r"\s+", " ", inspect.getsource(resolve(dotted)))
    assert line in source, f"{dotted} has no line `{line}`"


def test_the_theory_has_one_row_for_every_equation_of_the_paper_in_order():
    labels = [paper for paper, _, _ in rows("docs/theory.md")]
    assert [label for label in labels if label.startswith("(")] == [f"({n})" for n in range(1, 43)]
    assert labels.count("Algorithm 1") == 1


@pages
def test_no_page_cites_what_no_reader_has(page):
    assert not re.search(r"DESIGN|section 3\.3", page.read_text())


def test_no_code_cites_what_no_reader_has():
    for folder in ("src", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"\bDESIGN\b|section 3\.3", file.read_text()), file


@pages
def test_no_text_is_taken_for_html(page):
    text = re.sub(r"```.*?```|`[^`]*`|(?m:^    .*$)", "", page.read_text(), flags=re.DOTALL)
    assert re.findall(r"<[A-Za-z/!].*", text) == []


def in_nav(entries):
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            (inside,) = entry.values()
            yield from in_nav(inside if isinstance(inside, list) else [inside])


def test_the_sites_navigation_has_every_page_once_and_nothing_else():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    docs = ROOT / "docs"
    assert sorted(in_nav(nav)) == sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))


def test_the_front_pages_claim_no_more_than_the_results():
    assert "**Nothing here is decided.**" in (ROOT / "docs/results/cpu.md").read_text()
    for page in (README, (ROOT / "docs/index.md").read_text()):
        (claim,) = re.findall(r"whether an iMixer beats an MLP-Mixer[^.]*", page)
        assert "is undecided" in " ".join(claim.replace("[", "").split())


def test_the_laptop_page_says_what_its_runs_say():
    """Means, spreads and the interval, computed anew from the table of runs by scipy."""
    with (ROOT / "docs/results/laptop.csv").open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    page = (ROOT / "docs/results/laptop.md").read_text()
    by_row: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        by_row.setdefault((run["experiment"], run["row"]), []).append(float(run["accuracy"]))
        assert f"{float(run['accuracy']):.2f} %" in page, run
    for experiment, row in ("laptop", "imixer"), ("laptop", "mixer"):
        accuracies = by_row[experiment, row]
        assert f"**{fmean(accuracies):.2f} ± {stdev(accuracies):.2f} %**" in page
    difference = ttest_ind(by_row["laptop", "mixer"], by_row["laptop", "imixer"], equal_var=False)
    interval = difference.confidence_interval()
    assert f"[{interval.low:.2f}, {interval.high:.2f}] and p = {difference.pvalue:.2f}" in " ".join(page.split())


def test_the_index_of_results_names_every_result():
    results = ROOT / "docs/results"
    linked = re.findall(r"\]\((\w+\.md)\)", (results / "index.md").read_text())
    assert sorted([*linked, "index.md"]) == sorted(page.name for page in results.glob("*.md"))


def test_the_api_pages_document_what_their_index_links_to():
    api = ROOT / "docs/api"
    linked = re.findall(r"\[`(\w+)`\]\((\w+\.md)#([\w.]+)\)", (api / "index.md").read_text())
    documented = [
        (dotted.rpartition(".")[2], page.name, dotted)
        for page in api.glob("*.md")
        for dotted in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    assert sorted(linked) == sorted(documented)


def test_the_api_pages_document_what_exists():
    for page in (ROOT / "docs/api").glob("*.md"):
        for dotted in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            resolve(dotted)


# Classes that calls return or raise: nobody chooses them.
RETURNED = {
    *("Certificate", "Descent", "Drawing", "MixerStart", "MixerWeights", "NotConvergedError", "Retrieval"),
    *("Solution", "Trajectory"),
}


@pytest.mark.parametrize("package", ["hopfield", "hopfield.lagrangians", "implicit", "models"])
def test_a_class_says_when_to_choose_it_or_to_write_a_subclass(package):
    module = importlib.import_module(f"imixer.{package}")
    exported = {name: getattr(module, name) for name in module.__all__ if name not in RETURNED}
    classes = {name: one for name, one in exported.items() if inspect.isclass(one)}
    assert [n for n, one in classes.items() if not re.search(r"\b(Choose|Write a subclass)\b", one.__doc__)] == []


def test_a_lagrangian_of_one_neuron_says_whether_descent_can_be_guaranteed():
    said = {True: "g never falls: descent can be guaranteed", False: "observed at best"}
    own = [one for one in LAGRANGIANS.values() if one.__module__.endswith(".elementwise")]
    assert len(own) == 10
    for one in own:
        assert said[one().convex] in " ".join(one.__doc__.split()), one


@pytest.mark.parametrize("package", ["hopfield", "hopfield.lagrangians", "implicit", "models"])
def test_the_api_pages_document_all_that_a_package_exports(package):
    module = importlib.import_module(f"imixer.{package}")
    page = (ROOT / f"docs/api/{package.split('.')[0]}.md").read_text()
    documented = [resolve(dotted) for dotted in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    for name in module.__all__:
        exported = getattr(module, name)
        assert inspect.ismodule(exported) or any(exported is one for one in documented), name


def shown_in(figure):
    """The texts of an SVG file, the number of its shapes and their colours, none of which fonts or versions move.

    Matplotlib writes the shapes of letters, and each text beside them as a comment.
    """
    content = figure.read_text(encoding="utf-8")
    texts = re.findall(r"<!--(.*?)-->|<text[^>]*>(.*?)</text>", content, re.DOTALL)
    drawn = re.sub(r"<defs>.*?</defs>", "", content, flags=re.DOTALL)  # letters and markers, before they are placed
    shapes = len(re.findall(r"<(?:path|rect|circle|line|image)\b", drawn))
    return ["".join(text).strip() for text in texts], shapes, re.findall(r"#[0-9a-f]{6}\b", drawn)


def test_the_figures_of_idea_theory_and_laptop_are_drawn_by_their_script(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    monkeypatch.setattr(figures, "IMAGES", tmp_path)
    figures.main()
    images = ROOT / "docs/images"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for kind in ("idea_*", "paper_fig*", "laptop_*")
                                                          for path in images.glob(f"{kind}.svg")}  # fmt: skip
    for drawn in tmp_path.iterdir():
        texts, shapes, colours = shown_in(drawn)
        assert len(texts) > 3 and shapes > 2 and len(colours) > 2, drawn.name
        assert shown_in(images / drawn.name) == (texts, shapes, colours), f"{drawn.name}: python docs/figures.py"


def test_every_word_of_the_glossary_says_where_it_is_used():
    entries = re.split(r"^### (.*)$", (ROOT / "docs/glossary.md").read_text(), flags=re.MULTILINE)[1:]
    assert len(entries) > 80  # a word and its text, in turn
    for word, text in zip(entries[::2], entries[1::2], strict=True):
        assert re.search(r"\]\(\w+\.md#?", text), word


def equations(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for displayed, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", text, re.DOTALL):
        yield displayed or inline


def test_every_equation_can_be_typeset(browser):
    page = browser.new_page()
    page.add_script_tag(path=KATEX / "katex.min.js")
    typeset = "equation => katex.renderToString(equation, {throwOnError: true, strict: 'error'}).length"
    numbers = {}
    for source in PAGES:
        for equation in equations(source):
            assert page.evaluate(typeset, equation) > 0  # raises if KaTeX does
            numbers[source.stem] = numbers.get(source.stem, 0) + 1
    page.close()
    assert all(numbers[name] > 25 for name in ("theory", "idea", "implicit", "models"))


def test_what_typesets_equations_comes_with_the_site():
    css = (KATEX / "katex.min.css").read_text()
    fonts = re.findall(r"url\(([^)]+)\)", css)
    assert sorted(fonts) == sorted(f"fonts/{font.name}" for font in (KATEX / "fonts").iterdir())
    assert (KATEX / "LICENSE").exists()
    settings = (ROOT / "mkdocs.yml").read_text()
    for kind in ("extra_css", "extra_javascript"):
        (files,) = re.findall(rf"^{kind}: \[(.*?)\]", settings, re.MULTILINE)
        assert all((ROOT / "docs" / file).exists() for file in files.split(", "))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the built site, without API and results, which take longest and have no equations."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    settings |= {"docs_dir": str(ROOT / "docs"), "plugins": ["search"], "exclude_docs": "*.py\napi/\nresults/"}
    del settings["nav"], settings["validation"]
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-f", folder / "mkdocs.yml", "-d", folder / "site"]
    subprocess.run(command, check=True, capture_output=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder / "site")
    handler.func.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["theory", "idea", "implicit"])
def test_the_site_shows_equations_and_asks_no_network(browser, site, name):
    page = browser.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if not request.url.startswith(site) else None)
    page.set_default_timeout(0)  # however slow the machine is
    page.goto(f"{site}/{name}.html", wait_until="networkidle")
    page.wait_for_function("[...document.querySelectorAll('.arithmatex')].every(each => each.querySelector('.katex'))")
    page.evaluate("document.fonts.ready.then(() => null)")
    marked, typeset = page.locator(".arithmatex").count(), page.locator(".arithmatex .katex").count()
    assert marked == typeset >= len(list(equations(ROOT / f"docs/{name}.md"))) > 25
    assert page.locator(".katex-error").count() == 0
    assert page.evaluate("document.fonts.check('16px KaTeX_Math')")
    assert not any("$" in text for text in page.locator("article p, article td").all_inner_texts())
    page.close()
    assert problems == []


@pytest.fixture(scope="module")
def project():
    return pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]


def distribution(requirement):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def requirements_of(names, extras):
    """The lines of some extras, those of the extras that they name in their turn included."""
    lines = []
    for line in (line for name in names for line in extras[name]):
        more = re.fullmatch(r"imixer\[(.*)\]", line)
        lines += requirements_of(more[1].split(","), extras) if more else [line]
    return lines


def test_an_extra_installs_what_its_message_names_and_nothing_that_is_not_imported(project):
    provided = importlib.metadata.packages_distributions()
    for extra, modules in MODULES.items():
        own = [distribution(line) for line in project["optional-dependencies"][extra] if "imixer" not in line]
        named = [{distribution(one) for one in provided.get(module, [module])} for module in modules]
        if extra == "robust" and "imagecorruptions" not in provided:
            continue
        assert len(own) == len(modules), extra
        assert all(any(one in names for names in named) for one in own), extra
        assert all(set(own) & names for names in named), extra


def test_torch_has_no_ceiling(project):
    assert not [line for line in project["dependencies"] if "<" in line or "~" in line]


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "docs"])
def test_every_package_that_is_imported_is_declared(folder, project):
    extras = project["optional-dependencies"]
    own = {"src": ["all", "peers", "wandb", "mlflow"], "tests": [*extras]}.get(folder, ["train", "bench"])
    declared = {distribution(line) for line in project["dependencies"] + requirements_of(own, extras)}
    provided = importlib.metadata.packages_distributions()
    beside = {"imixer", "triton", *(file.stem for file in (ROOT / folder).rglob("*.py"))}
    for file in (ROOT / folder).rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) and not node.level else set()
        for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - beside:
            assert declared & {distribution(one) for one in provided.get(name, [name])}, f"{file}: {name}"


def test_the_version_stands_in_one_place(project):
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    assert importlib.metadata.version("imixer") == imixer.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "version" not in citation
    assert f"\n## {imixer.__version__} - " in (ROOT / "CHANGELOG.md").read_text()


def test_the_tested_versions_satisfy_what_is_declared(project):
    requirements = pytest.importorskip("packaging.requirements")
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {distribution(line): line.partition("==")[2] for line in lines}
    extras = project["optional-dependencies"]
    for line in project["dependencies"] + requirements_of(["test"], extras):
        required = requirements.Requirement(line)
        assert required.specifier.contains(tested[distribution(line)]), line


def test_the_files_that_contributors_are_sent_to_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = {
        name
        for name in re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", text)
        if "NAME" not in name and not name.startswith("RUN/")
    }
    assert len(named) > 40
    for name in named - {"views/", "run/", "device/", "sources/"}:  # said of the folder in whose row they stand
        assert (ROOT / name).exists() or (ROOT / "src/imixer" / name).exists(), name


def test_the_names_that_contributors_are_sent_to_stand_in_their_files():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = [each for each in re.findall(r"`([\w.]+)` (?:in|of) `([\w/]+\.py)`", text) if "NAME" not in each[0]]
    assert len(named) > 20
    for name, file in named:
        source = next(path for path in (ROOT / file, ROOT / "src/imixer" / file) if path.exists()).read_text()
        last = name.rpartition(".")[2]
        assert re.search(rf"^ *(?:(?:def|class) {last}\b|{last}\b.* = )", source, re.MULTILINE), f"{name} in {file}"


def test_a_step_of_a_walk_calls_what_its_file_calls():
    """In `NAME in FILE calls OTHER of THAT_FILE`, FILE names OTHER."""
    steps = re.findall(r"^\d+\. .*", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    called = [
        (caller, name)
        for step in steps
        for caller, rest in re.findall(r"` in `([\w/]+\.py)`(.*)", step)
        for name in re.findall(r"`(\w+)` of `[\w/]+\.py`", rest)
    ]
    assert ("analysis/contraction.py", "worst_case") in called
    for caller, name in called:
        assert re.search(rf"\b{name}\(", (ROOT / "src/imixer" / caller).read_text()), f"{name} in {caller}"


def test_a_walk_takes_at_most_ten_steps():
    walks = (ROOT / "CONTRIBUTING.md").read_text().partition("## Three walks")[2].split("\n### ")[1:]
    assert [len(re.findall(r"^\d+\. ", walk, re.MULTILINE)) <= 10 for walk in walks] == [True] * 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", ["quickstart", "own_data", "photos"])
def test_a_guide_works_as_written(page, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    text = (ROOT / f"docs/{page}.md").read_text()
    for language, sample in re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL):
        command = ["bash", "-ec", sample] if language == "bash" else [sys.executable, "-c", sample]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)

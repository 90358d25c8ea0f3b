"""What the documents say is so."""

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import yaml

import imixer  # noqa: F401  (registers the models)
from imixer.training.run.directory import RunDirectory

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def pages(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))(test)


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_code_samples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one writes files
    ran = 0
    for page in PAGES:
        scope: dict = {}
        for sample in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            if "self." in sample or "local-dir:" in sample:  # an excerpt, or for a trained run: checked below
                continue
            exec(sample, scope)
            ran += 1
    assert ran >= 3


def test_the_readmes_excerpt_is_in_the_source():
    source = re.sub(r"\s+", " ", (ROOT / "src/imixer/models/imlp.py").read_text())
    excerpt = next(
        s for s in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL) if "self." in s
    )
    for line in excerpt.splitlines():
        code = line.split("#")[0].strip()
        assert code in source, code


def test_the_table_of_models_is_complete_and_right():
    text = (ROOT / "docs/models.md").read_text()
    for name in timm.list_models("imixer*"):
        model = timm.create_model(name, num_classes=10, device="meta")
        row = next(line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line)
        assert f"{sum(p.numel() for p in model.parameters()):,}" in row
        assert f"| {model.embed_dim} | {len(model.blocks)} |" in row


def test_every_file_of_a_run_directory_is_explained():
    text = (ROOT / "docs/training.md").read_text()
    run = RunDirectory(Path("run"))
    for name, member in vars(RunDirectory).items():
        if isinstance(member, property) and name != "finished":
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


@pytest.mark.parametrize("package", ["hopfield", "hopfield.lagrangians", "implicit", "models"])
def test_the_api_pages_document_all_that_a_package_exports(package):
    module = importlib.import_module(f"imixer.{package}")
    page = (ROOT / f"docs/api/{package.split('.')[0]}.md").read_text()
    documented = [resolve(dotted) for dotted in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    for name in module.__all__:
        exported = getattr(module, name)
        assert inspect.ismodule(exported) or any(exported is one for one in documented), name


def test_the_figures_of_the_idea_and_the_theory_are_drawn_by_their_script(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    monkeypatch.setattr(figures, "IMAGES", tmp_path)
    figures.main()
    images = ROOT / "docs/images"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for kind in ("idea_*", "paper_fig*")
                                                          for path in images.glob(f"{kind}.svg")}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", ["quickstart", "own_data"])
def test_a_guide_works_as_written(page, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    text = (ROOT / f"docs/{page}.md").read_text()
    for language, sample in re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL):
        command = ["bash", "-ec", sample] if language == "bash" else [sys.executable, "-c", sample]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)

"""What the documents say is so."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import timm

import imixer  # noqa: F401  (registers the models)
from imixer.training.run_directory import RunDirectory

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def pages(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))(test)


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_code_samples_run():
    ran = 0
    for page in PAGES:
        scope: dict = {}
        for sample in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            if "self." in sample:  # an excerpt, checked below
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


def test_the_theory_covers_every_equation_of_the_paper():
    covered = set()
    for paper, _, _ in rows("docs/theory.md"):
        numbers = [int(n) for n in re.findall(r"\((\d+)\)", paper)]
        if numbers:
            covered |= set(range(numbers[0], numbers[-1] + 1))
    assert covered == set(range(1, 43))

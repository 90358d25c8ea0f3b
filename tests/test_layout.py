"""Arrows between the packages go one way."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import imixer

SOURCE = Path(imixer.__file__).parent
BASE = {
    "errors",
    "escaping",
    "inverse_options",
    "notices",
    "plotting",
    "progress",
    "reading",
    "tables",
    "verdict",
    "writing",
}  # what every package but the theory may use
MAY_IMPORT = {
    "hopfield": {"errors", "verdict"},
    "implicit": {"verdict"},
    "models": {"implicit", *BASE},
    "data": BASE,
    "recipes": BASE,
    "training": {"models", "data", "recipes", "implicit", *BASE},
    "sweep": {"training", "data", "recipes", *BASE},
    "analysis": {"training", "models", "data", "implicit", "hopfield", *BASE},
    "cli": {"experiments", "analysis", "sweep", "training", "recipes", *BASE},
    "experiments": {"analysis", "sweep", "training", "models", "data", "recipes", "implicit", "hopfield", *BASE},
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("imixer.")}
    return {name for name in found if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").exists()}


@pytest.mark.parametrize("package", sorted(p.parent.name for p in SOURCE.glob("*/__init__.py")))
def test_no_arrow_turns_back(package):
    for file in (SOURCE / package).rglob("*.py"):
        assert imports(file) - {package} <= MAY_IMPORT[package], file


THIRD_PARTY = {"implicit": {"torch"}, "hopfield": {"torch", "torchdiffeq", "rich"}}


@pytest.mark.parametrize(
    ("package", "file"),
    [(package, file) for package in THIRD_PARTY for file in sorted((SOURCE / package).rglob("*.py"))],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_the_theory_needs_torch_and_little_else(package, file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert name.split(".")[0] in THIRD_PARTY[package] | {"imixer"} | sys.stdlib_module_names


def test_no_file_imports_itself_by_way_of_others():
    """Types count too. Packages' faces (`__init__.py`) are left out: they only hand names on."""
    files = {".".join(file.relative_to(SOURCE.parent).with_suffix("").parts): file for file in SOURCE.rglob("*.py")}
    files = {name: file for name, file in files.items() if file.name != "__init__.py"}

    def imported(name):
        for node in ast.walk(ast.parse(files[name].read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                yield from (n for n in (node.module, *(f"{node.module}.{a.name}" for a in node.names)) if n in files)

    order = TopologicalSorter({name: set(imported(name)) for name in files})
    assert len(list(order.static_order())) == len(files)

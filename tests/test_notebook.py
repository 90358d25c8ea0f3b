"""The notebooks run as they are, from their first cell to their last."""

import ast
import importlib
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

import imixer

FOLDER = Path(__file__).parents[1] / "notebooks"
PROMISED = {
    "idea": [
        "Picard: ",
        "Anderson: ",
        "n = 8: a 1, ",
        "descent guaranteed",
        "came back to [0, 1, 2] and the energy rose in no step: True",
    ],
    "implicit_layer": [
        "CheckpointedUnroll: differs from Implicit by ",
        "held: guaranteed; ",
        "free: violated; ",
        "told apart: 100% of the points, norm of W at most 0.90",
    ],
    "memory": [
        "noise came back to [0, 1, 2] and halves to [0, 1, 2]",
        "exponential  retrieved of 4: 100%  16: 100%  64: 100%  256: 100%",
        "descent guaranteed",
        "the spoilt letters are NOT",
        "learnt two letters: error 0.0",
    ],
}


def cells_of(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]


def test_there_are_these_notebooks_and_no_others():
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == {*PROMISED}


@pytest.mark.parametrize("name", PROMISED)
def test_a_notebook_is_ten_cells_without_stored_output(name):
    cells = cells_of(name)
    assert len(cells) == len({cell["id"] for cell in cells}) == 10
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


@pytest.mark.parametrize("name", PROMISED)
def test_its_first_code_installs_imixer_only_where_it_is_missing(name):
    first, *others = ("".join(cell["source"]) for cell in cells_of(name) if cell["cell_type"] == "code")
    (guarded,) = (node for node in ast.parse(first).body if isinstance(node, ast.If))
    assert ast.unparse(guarded.test) == "importlib.util.find_spec('imixer') is None"
    assert "pip" in ast.unparse(guarded)
    assert first.count("subprocess.run") == 1
    assert not any("pip" in code for code in others)


@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.parametrize(("in_checkout", "source"), [(True, ".."), (False, "imixer")])
@pytest.mark.parametrize("code", [0, 1])
def test_a_hosted_notebook_takes_imixer_by_name_and_says_what_to_do_where_pip_cannot(
    name, in_checkout, source, code, tmp_path, monkeypatch
):
    (tmp_path / "src/imixer" if in_checkout else tmp_path).mkdir(parents=True, exist_ok=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    first, *_ = ("".join(cell["source"]) for cell in cells_of(name) if cell["cell_type"] == "code")
    asked = []

    def run(command, **_):
        asked.append(command)
        return SimpleNamespace(returncode=code)

    importing = SimpleNamespace(
        util=SimpleNamespace(find_spec=lambda name: None), invalidate_caches=importlib.invalidate_caches
    )
    scope = {"importlib": importing, "subprocess": SimpleNamespace(run=run), "sys": sys, "Path": Path}
    body = [node for node in ast.parse(first).body if isinstance(node, (ast.Assign, ast.If))]
    with pytest.raises(SystemExit, match="give its path as PACKAGE") if code else nullcontext():
        exec(compile(ast.Module(body, []), name, "exec"), scope)
    assert [command[-3:] for command in asked] == [["install", "--quiet", source]]


@pytest.mark.parametrize("name", PROMISED)
def test_a_notebook_imports_the_core_alone(name):
    code = "\n".join("".join(cell["source"]) for cell in cells_of(name) if cell["cell_type"] == "code")
    imported = set()
    for node in ast.walk(ast.parse(code)):
        imported |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        imported |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    assert {module.split(".")[0] for module in imported} - sys.stdlib_module_names <= {"imixer", "timm", "torch"}


@pytest.mark.parametrize("name", PROMISED)
def test_every_cell_runs_and_says_what_the_text_promises(name, tmp_path):
    code = "\n".join("".join(cell["source"]) for cell in cells_of(name) if cell["cell_type"] == "code")
    env = {**os.environ, "PYTHONPATH": str(Path(imixer.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for promised in PROMISED[name]:
        assert promised in ran.stdout

"""The notebook runs as it is, from its first cell to its last."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import imixer

NOTEBOOK = Path(__file__).parents[1] / "notebooks/idea.ipynb"


@pytest.fixture(scope="module")
def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def test_the_notebook_is_ten_cells_without_stored_output(cells):
    assert len(cells) == 10
    assert len({cell["id"] for cell in cells}) == 10
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


def test_its_first_code_installs_imixer_only_where_it_is_missing(cells):
    first = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (guarded,) = (node for node in ast.parse(first).body if isinstance(node, ast.If))
    assert ast.unparse(guarded.test) == "importlib.util.find_spec('imixer') is None"
    assert "pip" in ast.unparse(guarded)
    assert first.count("subprocess.run") == 1


def test_every_cell_runs_and_the_last_says_what_the_text_promises(cells, tmp_path):
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    env = {**os.environ, "PYTHONPATH": str(Path(imixer.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for promised in ("Picard: ", "Anderson: ", "n = 8: a 1, ", "descent guaranteed", "came back to [0, 1, 2] and"):
        assert promised in ran.stdout
    assert ran.stdout.rstrip().endswith("the energy rose in no step: True")

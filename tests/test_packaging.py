"""What is built can be installed: no file that imixer reads is left out, and it works outside of its repository."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import imixer

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/imixer"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build a wheel and a source distribution, without a network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    assert packed == {f"imixer/{file.relative_to(PACKAGE).as_posix()}" for file in files}
    for needed in ("py.typed", "recipes/digits.yaml", "weights/imixer_n2_8.digits/model/model.safetensors"):
        assert f"imixer/{needed}" in packed


def test_the_source_distribution_has_what_builds_tests_and_tells(built):
    with tarfile.open(built[1]) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("pyproject.toml", "Makefile", "constraints.txt", "LICENSE", "README.md", "mkdocs.yml"):
        assert needed in packed
    for folder in ("src", "tests", "docs", "notebooks", "benchmarks"):
        files = (f for f in (ROOT / folder).rglob("*") if f.is_file() and "__pycache__" not in f.parts)
        missing = {file.relative_to(ROOT).as_posix() for file in files} - packed
        assert not missing


def test_the_wheel_says_what_it_is_and_where_it_is_told_of(built):
    told = metadata(built[0])
    assert told["Version"] == imixer.__version__
    assert told["Requires-Python"] == ">=3.10"
    assert told["License-Expression"] == "Apache-2.0"
    assert all("https://" in url for url in told.get_all("Project-URL"))
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)} <= {*told.get_all("Classifier")}
    assert {"train", "export", "cluster", "all", "test", "docs"} <= {*told.get_all("Provides-Extra")}


def test_the_wheel_makes_a_model_and_loads_packaged_weights_outside_of_the_repository(built, tmp_path):
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(tmp_path / "installed")
    code = """
import imixer, imixer.hopfield, imixer.implicit, timm, torch
print(imixer.__file__)
model = timm.create_model("imixer_n2_8.digits", pretrained=True).eval()
print(tuple(model(torch.zeros(1, *model.pretrained_cfg["input_size"])).shape))
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    where, shape = ran.stdout.splitlines()[-2:]
    assert Path(where).is_relative_to(tmp_path)
    assert shape == "(1, 10)"


def test_the_workflow_runs_targets_that_exist_on_the_pythons_that_are_declared():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    weekly = jobs["weekly"]
    commands = [step["run"] for job in jobs.values() if job is not weekly for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands:
        program, *words = command.split()
        assert (program == "make" and {*words} <= {*targets}) or (ROOT / program).exists(), command
    assert {"make test-lowest", "make test-newest", ".ci/run"} <= {*commands}
    declared = re.findall(r"Programming Language :: Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert jobs["newest"]["strategy"]["matrix"]["python"] == declared
    assert jobs["lowest"]["strategy"]["matrix"]["python"][0] == declared[0]
    assert weekly["if"] == "github.event_name == 'schedule'"
    assert weekly["steps"][-1]["run"] == "make ${{ matrix.target }}"
    others = {name for name in targets if name.startswith("test-")} - {"test-lowest", "test-newest"}
    assert set(weekly["strategy"]["matrix"]["target"]) == others


# What `make test` installs, or else a document, a GPU or a version of Python brings.
THERE = {
    *("entmax", "hatchling", "imagecorruptions", "onnx", "onnxruntime", "onnxscript", "packaging", "playwright", "ray"),
    *("mkdocs", "scipy", "starlette", "tomllib", "torchvision", "triton", "uvicorn"),
}
INSTALLED_FIRST = {
    "test-elsewhere": {"accelerate", "captum", "openvino", "peft", "pytorch_grad_cam", "torchao", "transformers"},
    "test-dense": {"anomalib", "omegaconf", "segmentation_models_pytorch"},
    "test-loggers": {"mlflow"},
    "test-remote": {"aiohttp", "moto", "s3fs"},
}


def test_a_test_that_is_skipped_without_a_package_is_run_by_a_target_that_installs_it():
    makefile = (ROOT / "Makefile").read_text()
    recipes = dict(re.findall(r"^(test-[\w-]+):.*\n((?:\t.*\n)+)", makefile, re.MULTILINE))
    assert "coming-from" in recipes["test-coming-from"] and "test_coming_from.py" in recipes["test-coming-from"]
    for file in (ROOT / "tests").rglob("test_*.py"):
        name = file.relative_to(ROOT)
        for module in set(re.findall(r'importorskip\("(\w+)', file.read_text())) - THERE:
            target = next(target for target, modules in INSTALLED_FIRST.items() if module in modules)
            assert {str(path) for path in (name, *name.parents)} & {*recipes[target].split()}, f"{name}: {module}"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_removes_no_run_but_that_of_the_demo_whatever_the_environment_says():
    def removed(*words):
        env = {**os.environ, "RUN": "precious", "MAKEFLAGS": ""}
        ran = subprocess.run(["make", "-n", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        lines = [line.split() for line in ran.stdout.splitlines()]
        return [word for line in lines if line[:2] == ["rm", "-rf"] for word in line[2:]]

    assert removed("demo") == ["runs/demo"] and removed("demo", "RUN=mine") == []
    assert removed("demo", "RUN=runs/demo 2") == removed("demo", "RUN=runs/demo") == []
    assert removed("clean") and not [word for word in removed("clean") if word.startswith(("runs", "precious"))]

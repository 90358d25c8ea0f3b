"""Without the extras there are models, implicit layers and Hopfield networks, and a line that says what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import imixer
from imixer.cli import main
from imixer.extras import MODULES, MissingExtraError, require_extra

OF_THE_CORE = {"torchvision", "PIL", "yaml", "scipy", "filelock", "jinja2"}  # which its packages need themselves
BARE = f"""
import importlib.machinery, sys

class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = {sorted({m for ms in MODULES.values() for m in ms} - OF_THE_CORE)}
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
"""


def bare(code):
    """Run code in a Python that has the core alone."""
    env = {**os.environ, "PYTHONPATH": str(Path(imixer.__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", BARE + code], env=env, capture_output=True, text=True)


def test_models_memories_and_implicit_layers_work_with_the_core_alone():
    ran = bare("""
import imixer, imixer.implicit, imixer.hopfield, imixer.models.export, imixer.models.probe, timm, torch
from imixer.hopfield import AssociativeMemory, integrate, two_layer
from imixer.implicit import Picard, solve

for name, options in [("imixer_t2_8", {}), ("imixer_n2_8.digits", {"pretrained": True})]:
    model = timm.create_model(name, **options).eval()
    print(model(torch.zeros(1, *model.pretrained_cfg["input_size"])).shape[-1])
print(float(solve(lambda x: x / 2, torch.ones(1, 1), solver=Picard(rtol=1e-6)).value))
memory = AssociativeMemory(torch.eye(4))
network = two_layer(4, 6)
integrate(network, network.initial_state(v=torch.ones(1, 4)), 0.1, frames=2)
try:
    integrate(network, network.initial_state(v=torch.ones(1, 4)), 0.1, progress=True)
except ImportError as error:
    print(error)
""")
    assert ran.returncode == 0, ran.stderr
    *_, classes, solved, line = ran.stdout.splitlines()
    assert classes == "10" and float(solved) == pytest.approx(2, abs=1e-3)
    assert line.startswith("progress=True needs jsonargparse, ") and line.endswith('; pip install "imixer[train]"')


def test_the_command_without_its_packages_says_in_one_line_what_installs_them():
    ran = bare("""
from imixer.cli import main
print([main(words) for words in (["train"], ["--help"], ["no\\nsense"], [], ["--version"])])
try:
    import imixer.training.train
except ImportError as error:
    print(error)
""")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.splitlines()
    assert [line.split(" needs ")[0] for line in lines] == [
        "imixer: imixer train", "imixer: imixer --help", "imixer: imixer no sense", "imixer: imixer"
    ]  # fmt: skip
    assert all(line.endswith('not installed here; pip install "imixer[train]"') for line in lines)
    version, codes, of_python = ran.stdout.splitlines()
    assert (version, codes) == (f"imixer {imixer.__version__}", "[2, 2, 2, 2, 0]")
    assert of_python.startswith("imixer.training needs ")


@pytest.mark.parametrize("module", MODULES["train"])
def test_each_package_of_the_command_is_named_if_it_alone_is_missing(module, without, capsys):
    without(module)
    assert main(["recipes"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f'imixer: imixer recipes needs {module}, not installed here; pip install "imixer[train]"'


@pytest.mark.parametrize("extra", MODULES)
def test_an_extra_is_named_by_name(extra, without):
    without(*MODULES[extra])
    with pytest.raises(MissingExtraError, match=rf'^it needs .*; pip install "imixer\[{extra}\]"$'):
        require_extra(extra, "it")


@pytest.mark.parametrize(
    "before",
    [
        "",
        'assert importlib.util.find_spec("timm").loader.get_source("timm")',  # as Transformers does when it is imported
        'importlib.util.find_spec("timm"); importlib.util.find_spec("timm")',
        """
sys.modules["timm.version"] = None  # with which the first import fails
try:
    import timm
except ImportError:
    del sys.modules["timm.version"]
""",
    ],
)
def test_timm_knows_our_models_however_it_was_looked_for_before_its_import(before):
    code = f"""
import imixer, importlib.util, sys
from imixer.registration import _After
{before}
import timm
print(timm.is_model("imixer_t2_8"), any(isinstance(each, _After) and each.theirs == "timm" for each in sys.meta_path))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(imixer.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["True", "False"]

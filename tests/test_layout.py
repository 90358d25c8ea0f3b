"""Arrows between the packages go one way."""

import ast
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import imixer
from imixer.extras import MODULES

SOURCE = Path(imixer.__file__).parent
CORE_BASE = {
    "dtypes",
    "errors",
    "escaping",
    "extras",
    "inverse_options",
    "notices",
    "reading",
    "timing",
    "verdict",
    "writing",
}  # what every package but the theory may use
BASE = CORE_BASE | {
    "console",
    "plotting",
    "progress",
    "reading_yaml",
    "tables",
}  # of those, what needs the extra `train`
MAY_IMPORT = {
    "hopfield": {"dtypes", "errors", "extras", "verdict"},
    "implicit": {"dtypes", "errors", "timing", "verdict"},
    "weights": CORE_BASE,
    "models": {"implicit", "weights", *CORE_BASE},
    "data": BASE,
    "recipes": BASE,
    "training": {"models", "data", "recipes", "weights", "implicit", *BASE},
    "sweep": {"analysis", "training", "data", "recipes", *BASE},  # analysis: detectors of anomalies are trials, too
    "analysis": {"training", "models", "data", "implicit", "hopfield", *BASE},
    "cli": {"experiments", "analysis", "sweep", "training", "recipes", "weights", *BASE},
    "gpu_check": {"cli", "experiments", "sweep", "training", "models", "data", "implicit", *BASE},
    "experiments": {
        *{"analysis", "sweep", "training", "models", "data", "recipes", "weights", "implicit", "hopfield"},
        *BASE,
    },
}


def modules(file: Path) -> set[str]:
    """The files of imixer that a file imports, by their dotted names below it, and the packages that they are in."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    found = {name.removeprefix("imixer.") for name in found if name.startswith("imixer.")}
    paths = {name: SOURCE / name.replace(".", "/") for name in found}
    return {name for name, path in paths.items() if path.is_dir() or path.with_suffix(".py").exists()}


def imports(file: Path) -> set[str]:
    return {name.split(".")[0] for name in modules(file)}


@pytest.mark.parametrize("package", sorted(p.parent.name for p in SOURCE.glob("*/__init__.py")))
def test_no_arrow_turns_back(package):
    for file in (SOURCE / package).rglob("*.py"):
        assert imports(file) - {package} <= MAY_IMPORT[package], file


@pytest.mark.parametrize("file", sorted(SOURCE.glob("*.py")), ids=lambda file: file.name)
def test_a_single_file_needs_no_package(file):
    needs = {
        "__main__.py": {"cli"},
        "inverse_options.py": {"implicit"},  # the types of solvers and gradients
    }
    assert {name for name in imports(file) if (SOURCE / name).is_dir()} == needs.get(file.name, set())


def test_the_files_of_a_run_need_nothing_of_the_loop_above_them():
    for file in (SOURCE / "training/run").rglob("*.py"):
        of_training = {name for name in modules(file) if name.startswith("training.")}
        assert {name for name in of_training if not f"{name}.".startswith("training.run.")} == set(), file


THIRD_PARTY = {
    "implicit": {"torch"},
    "hopfield": {"torch", "torchdiffeq", "scipy"},
    "weights": set(),
    "models": {"torch", "timm", "safetensors"},
}
THEIRS = {  # what single files need besides
    "hugging_face.py": {"transformers"},  # imported after Transformers, if anybody imports that
    "dtypes.py": {"torch"},
    "timing.py": {"torch"},
    "fused_kernels.py": {"triton"},  # imported where there is Triton, which comes with torch for GPUs
}
CORE = [(package, file) for package in THIRD_PARTY for file in sorted((SOURCE / package).rglob("*.py"))]
CORE += [("", SOURCE / f"{name}.py") for name in sorted({"__init__", "registration", "timm", *CORE_BASE})]


def needed(tree: ast.AST) -> set[str]:
    """What is imported from elsewhere, but for what only functions import: each of these asks for its extra first."""
    names = set()
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            continue
        names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        left += ast.iter_child_nodes(node)
    return {name.split(".")[0] for name in names} - {"imixer"} - set(sys.stdlib_module_names)


@pytest.mark.parametrize(("package", "file"), CORE, ids=lambda value: value.name if isinstance(value, Path) else value)
def test_the_core_needs_torch_timm_and_little_else(package, file):
    theirs = THEIRS.get(file.name, set())
    assert needed(ast.parse(file.read_text())) <= THIRD_PARTY.get(package, set()) | theirs


@pytest.mark.parametrize(("package", "file"), CORE, ids=lambda value: value.name if isinstance(value, Path) else value)
def test_a_function_of_the_core_that_imports_an_extra_asks_for_it_first(package, file):
    tree, by_module = ast.parse(file.read_text()), {m: extra for extra, all_of in MODULES.items() for m in all_of}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        body = ast.Module(function.body, [])
        extras = {by_module[name] for name in needed(body) if name in by_module}
        asked = {
            node.args[0].value
            for node in ast.walk(body)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require_extra"
        }
        assert extras <= asked, f"{file.name}: {function.name}"


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


# Names that two classes share on purpose, each with its reason.
SHARED_CLASSES = {
    "GELU1Lip",  # the Lagrangian and the activation of one function
}
# Names that two functions share on purpose, each with its reason.
SHARED_FUNCTIONS = {
    "main",  # of a module that is run by itself
    "posterize",  # of a picture on the host, and of a batch on the device
}
# Rooms whose functions are parts with names of their own, such as `draw` of every view.
FUNCTIONS_BY_ROLE = ("cli", "gpu_check", "analysis/views")
# Rooms whose files are called like what they are about: a command like what it runs, a view like its measurement.
MIRRORS = ("cli", "analysis/views")
# Names that files of two rooms share on purpose: the room says of what.
SHARED_FILES = {
    "__main__.py",  # of the command, and of the check of a GPU
    "batches.py",  # on the host, and on the device
    "checkpoints.py",  # published weights, and the states of a run
    "config.py",  # of the data, and of a run
    "contraction.py",  # the map F, and what is measured of it
    "figures.py",  # of a run, and of a memory
    "images.py",  # of a run, and to be stored
    "measure.py",  # images of another kind, and retrieval
    "plotting.py",  # of all figures, and of those over depth
    "registry.py",  # what there is to choose from, by name
    "scores.py",  # of a classifier, and of images of another kind
    "statistics.py",  # of measurements, and of a data set
    "tables.py",  # of any cells, and of a memory's
    "weights.py",  # to begin with, and what is measured of them
}


def places(names: dict[str, list[str]], shared: set[str]) -> dict[str, list[str]]:
    return {name: where for name, where in names.items() if len(where) > 1 and name not in shared}


def test_no_two_classes_have_one_name():
    classes = defaultdict(list)
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(str(file.relative_to(SOURCE)))
    assert places(classes, SHARED_CLASSES) == {}


def test_no_two_public_functions_have_one_name():
    functions = defaultdict(list)
    for file in sorted(SOURCE.rglob("*.py")):
        if file.parent.relative_to(SOURCE).as_posix() not in FUNCTIONS_BY_ROLE:
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    functions[node.name].append(str(file.relative_to(SOURCE)))
    assert places(functions, SHARED_FUNCTIONS) == {}


# Fields whose name stands in files that are there.
WRITTEN = {"experiments/trained_contraction.py": "found"}


def test_no_name_says_only_that_something_was_found():
    for file in sorted(SOURCE.rglob("*.py")):
        tree, name = ast.parse(file.read_text()), str(file.relative_to(SOURCE))
        stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        given = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert "found" not in (stored | given) - {WRITTEN.get(name)}, name


def test_no_two_files_have_one_name():
    files = defaultdict(list)
    for file in sorted(SOURCE.rglob("*.py")):
        room = file.parent.relative_to(SOURCE).as_posix()
        if room not in MIRRORS and file.name != "__init__.py":
            files[file.name].append(f"{room}/{file.name}")
    assert places(files, SHARED_FILES) == {}

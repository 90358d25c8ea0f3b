"""Whatever lists analyses has them from the registry: the command line, the report, the documentation."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imixer.analysis.registry import ANALYSES, ROBUSTNESS_EVALUATIONS, figure_titles
from imixer.analysis.views import contraction
from imixer.cli import analysis_options, analyze, evaluate

ROOT = Path(__file__).parents[2]
EVERY = {**ANALYSES, **ROBUSTNESS_EVALUATIONS}


def help_of(command):
    return " ".join(command.build().format_help().split())


def test_every_analysis_is_a_choice_with_its_summary():
    (what,) = (action for action in analyze.build()._actions if action.dest == "what")
    assert list(what.choices) == list(ANALYSES)
    for name, analysis in ANALYSES.items():
        assert f"`{name}`: {analysis.summary}" in what.help
    for name, analysis in ROBUSTNESS_EVALUATIONS.items():
        assert f"--{name} Also measure {analysis.summary}" in help_of(evaluate)


def test_every_option_of_a_measurement_is_one_of_the_command_and_no_other():
    for command, analyses in ((analyze, ANALYSES), (evaluate, ROBUSTNESS_EVALUATIONS)):
        wanted = {option for each in analyses.values() for option in analysis_options.options_of_analysis(each)}
        shown = {action.dest for action in command.build()._actions}
        own = {
            "help",
            "run",
            "model",
            "what",
            "device",
            "checkpoint",
            "data",
            "out",
            "test",
            "batch_size",
            "anomaly",
            *analyses,
        }
        assert wanted - {"data"} == shown - own


@pytest.mark.parametrize("name", EVERY)
def test_options_are_explained(name):
    for option in analysis_options.options_of_analysis(EVERY[name]).values():
        assert len(option.help) > 10 and option.help.endswith((".", ")."))


def test_the_help_of_an_option_is_that_of_the_docstring_with_the_default_of_the_signature():
    options = analysis_options.options_of(contraction.measure)
    assert list(options) == ["images", "data"]
    assert options["images"].help == "Held-out images to measure on, evenly spread. Default: 64."
    assert options["images"].type == int | None
    assert analysis_options.options_of(contraction.judge)["require"].help.endswith(
        "at least on the images (`observed`)."
    )
    (epsilon,) = (action for action in evaluate.build()._actions if action.dest == "epsilon")
    assert epsilon.nargs == "+"
    text = help_of(analyze)
    assert "For `energy`, `contraction`, `inverse`: held-out images to measure on, evenly spread. Default: 64." in text
    assert "For --adversarial: largest changes of a pixel in an attack, of 255. Default: 1 2 4 8." in help_of(evaluate)


@pytest.mark.parametrize("name", [name for name, analysis in EVERY.items() if analysis.compare])
def test_what_compares_runs_takes_the_same_options(name):
    alone, several = (inspect.signature(each.measure) for each in (EVERY[name], EVERY[name].compare))
    assert list(alone.parameters)[1:] == list(several.parameters)[1:]


def test_no_two_files_of_analyses_have_one_name():
    every = [*EVERY.values(), *(analysis.compare for analysis in EVERY.values() if analysis.compare)]
    drawings = [drawing.name for analysis in every for drawing in analysis.drawings]
    assert sorted(figure_titles()) == sorted(drawings)
    assert len({analysis.name for analysis in every}) == len(every)


@pytest.mark.parametrize("name", EVERY)
def test_the_documents_tell_of_every_analysis(name):
    command = f"imixer analyze {name}" if name in ANALYSES else f"--{name}"
    assert command in (ROOT / "docs/training.md").read_text()
    measured = inspect.getsource(EVERY[name].measure)
    (module, *_) = re.findall(r"from (imixer\.analysis\.(?!images)\S+) import", measured)
    assert module.rpartition(".")[0] in (ROOT / "docs/api/analysis.md").read_text()


def test_the_registry_waits_for_no_torch():
    heavy = ["torch", "timm", "matplotlib", "numpy"]
    code = f"import sys, imixer.analysis.registry; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""Tests pass or fail by what is computed: on every machine, in every order, however slow it is."""

import ast
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from imixer.data.randomness import seed_globally

HERE = Path(__file__).parent
FILES = sorted(HERE.rglob("*.py"))
CLOCKS = {"perf_counter", "process_time", "perf_counter_ns", "thread_time"}
GENEROUS_S = 1200


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""), node


def test_examples_have_no_deadline_and_are_the_same_everywhere():
    profile = hypothesis.settings()
    assert profile.deadline is None and profile.derandomize and profile.database is None
    assert hypothesis.HealthCheck.too_slow in profile.suppress_health_check


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(HERE).as_posix())
def test_no_test_asserts_seconds_or_has_a_short_limit(file):
    for name, call in calls(file):
        options = {option.arg: option.value for option in call.keywords}
        assert name not in CLOCKS, f"line {call.lineno}: what is to be fast is for benchmarks/"
        if name == "settings":
            assert not {"deadline", "derandomize"} & set(options), f"line {call.lineno}: the profile has it"
        if name in ("run", "check_output", "communicate", "wait"):
            assert "timeout" not in options, f"line {call.lineno}: pytest's limit ends what hangs"
        if name == "timeout":
            assert ast.literal_eval(call.args[0]) >= GENEROUS_S
    for statement in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Assert)):
        assert "monotonic" not in {getattr(node, "attr", None) for node in ast.walk(statement)}


def test_what_hangs_is_ended_late(pytestconfig):
    assert float(pytestconfig.getini("timeout")) >= GENEROUS_S


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_begins_with_the_same_random_numbers(turn):
    drawn = torch.rand(1).item(), np.random.random(), random.random()
    seed_globally(0)
    assert drawn == (torch.rand(1).item(), np.random.random(), random.random())

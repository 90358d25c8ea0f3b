"""The page "Coming from ..." runs, and both sides give the same numbers.

Without a library, ours is compared with what theirs gave once, in float64 on a CPU: torchdeq 0.1.0, jaxopt 0.8.5,
HAMUX 0.2.2, diffrax 0.7.2 with jax 0.10.2, and ml-jku/hopfield-layers at f56f929.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import imixer

PAGE = (Path(__file__).parents[2] / "docs/coming_from.md").read_text()
COMPARED = ("x", "gradient", "answer", "energy", "velocity", "visible")
EXACT = {"torchdeq": 1e-8, "jaxopt": 1e-9, "hflayers": 1e-12, "hamux": 1e-12, "diffrax": 1e-9}
REFERENCE = {  # sum, largest absolute value, sum weighted by 1, 2, 3, ...
    "torchdeq": {
        "x": [-0.7432762610091, 1.4593106481493, -38.181352500663],
        "gradient": [1.759355470268, 15.875162585658, 219.6423500111],
    },
    "jaxopt": {
        "x": [-0.74327626101046, 1.4593106481478, -38.181352500741],
        "gradient": [1.7593554702589, 15.875162585603, 219.64235003869],
    },
    "hflayers": {"answer": [0.085787678469521, 0.91590250408558, 11.143270668105]},
    "hamux": {
        "energy": [0.052291187978195, 0.052291187978195, 0.052291187978195],
        "velocity": [0.16037788727658, 1.1929620305068, 4.810842008633],
    },
    "diffrax": {"visible": [-0.59076055228828, 1.0, -10.948526163316]},
}


def blocks(text):
    return dict(re.findall(r"```python title=\"([^\"]+)\"\n(.*?)```", text, re.DOTALL))


GIVEN, *_ = blocks(PAGE).values()
SECTIONS = {name: blocks(text) for name, text in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.M)}
SECTIONS = {name.lower(): both for name, both in SECTIONS.items()}


def results(code):
    scope: dict = {}
    exec(GIVEN + code, scope)
    return {name: np.asarray(as_array(scope[name])) for name in COMPARED if name in scope}


def as_array(value):
    return value.detach() if hasattr(value, "detach") else value


def told(values):
    return [values.sum(), np.abs(values).max(), (values.ravel() * np.arange(1, values.size + 1)).sum()]


@pytest.mark.parametrize("library", SECTIONS)
def test_our_call_gives_what_theirs_gave(library):
    ours = results(SECTIONS[library]["imixer"])
    assert ours.keys() == REFERENCE[library].keys()
    for name, numbers in REFERENCE[library].items():
        np.testing.assert_allclose(told(ours[name]), numbers, rtol=0, atol=1e3 * EXACT[library], err_msg=name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", SECTIONS)
def test_their_call_gives_the_same_today(library):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    ours, theirs = (results(SECTIONS[library][side]) for side in ("imixer", library))
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=0, atol=10 * EXACT[library], err_msg=name)


def test_the_page_has_a_section_for_each_and_says_when_to_stay():
    assert list(SECTIONS) == ["torchdeq", "jaxopt", "hflayers", "hamux", "diffrax"]
    assert [set(both) for both in SECTIONS.values()] == [{name, "imixer"} for name in SECTIONS]


def test_every_name_of_ours_in_a_table_exists():
    for name in re.findall(r"^\|[^|]*\| `([A-Z]\w+)`", PAGE, re.MULTILINE):
        assert any(hasattr(package, name) for package in (imixer.hopfield, imixer.implicit)), name

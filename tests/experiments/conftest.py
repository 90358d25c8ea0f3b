from dataclasses import replace

import pytest

from imixer.experiments.scales import SCALES


@pytest.fixture(autouse=True)
def _elsewhere(elsewhere):
    """See what every test here leaves behind."""


@pytest.fixture
def tiny(monkeypatch):
    """Let the scale `smoke` take seconds, and figures be coarse."""
    monkeypatch.setattr("imixer.plotting.PRINT_DPI", 50)
    smoke = SCALES["smoke"]
    over = smoke.overrides | {"epochs": 2, "model.num_blocks": 1}
    scale = replace(smoke, embed_dim={"S": 16, "B": 24, "L": 32}, overrides=over, trials=2)
    monkeypatch.setitem(SCALES, "smoke", scale)
    return scale

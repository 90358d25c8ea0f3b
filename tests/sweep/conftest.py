import pytest

TINY = """
set: {epochs: 2, schedule.warmup_epochs: 1, model: {num_blocks: 1, embed_dim: 16}}
grid: {model.n_iter: [1, 2]}
seeds: 2
"""


@pytest.fixture(autouse=True)
def _elsewhere(elsewhere):
    """See what every test here leaves behind."""


@pytest.fixture
def tiny(elsewhere):
    """Write a sweep of two cells with two seeds, or another text, to `tiny.yaml`."""

    def write(text=TINY):
        (elsewhere / "tiny.yaml").write_text(text)
        return "tiny.yaml"

    return write

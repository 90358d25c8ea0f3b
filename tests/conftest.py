from pathlib import Path

import pytest


@pytest.fixture
def golden() -> Path:
    """Reference numbers of the authors' implementation, see its README."""
    return Path(__file__).parent / "golden"

"""All tests of this folder need a GPU; elsewhere they are skipped."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    for item in items:
        if "tests/cuda/" in item.path.as_posix():
            item.add_marker(pytest.mark.cuda)
            item.add_marker(missing)

"""All tests of this folder need a GPU; elsewhere they are skipped."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    for item in items:
        if "tests/cuda/" in item.path.as_posix():
            item.add_marker(pytest.mark.cuda)
            item.add_marker(missing)


@pytest.fixture(autouse=True)
def exact_products():
    """Float32 products without TF32, as the CPU makes them."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before

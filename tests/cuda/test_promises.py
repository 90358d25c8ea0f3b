"""A GPU keeps all promises. Those that a CPU can try are tried there by the dry run of `imixer.gpu_check`."""

import pytest
import torch

from imixer.gpu_check.checks import PROMISES
from imixer.gpu_check.promise import Place


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.name)
def test_it_holds(promise, tmp_path):
    promise.attempt(Place(torch.device("cuda"), tmp_path))

"""What a step frees is there for the next one."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from imixer.training.allocator import keep_freed_memory
{call}
def step():
    blocks = [torch.ones(2**20 * k) for k in (2, 5, 1, 40, 3, 12)]  # 4 to 160 MiB
for _ in range(20):  # until the heap has found its shape, which takes up to a dozen
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(call: str, **environment: str) -> int:
    script = FAULTS.format(call=call)
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    told = subprocess.run(
        [sys.executable, "-c", script], env=theirs | environment, capture_output=True, text=True, check=True
    )
    return int(told.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
class TestWithGlibc:
    def test_a_step_finds_the_pages_of_the_last_one(self) -> None:
        gives_back = "import ctypes; ctypes.CDLL(None).mallopt(-3, 2**17)"  # as glibc begins
        assert page_faults(gives_back) > 1000
        assert page_faults(f"{gives_back}; assert keep_freed_memory()") < 100

    def test_a_users_own_setting_is_left_alone(self) -> None:
        assert page_faults("assert not keep_freed_memory()", MALLOC_MMAP_THRESHOLD_="1048576") > 1000


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from imixer.training.allocator import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()

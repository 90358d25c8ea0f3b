"""Where fused token mixing is chosen, and that it compiles for GPUs that are not here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imixer.implicit import fused
from imixer.implicit.fused import fused_mode, may_fuse


def test_all_of_its_tests_pass_by_the_interpreter():
    pytest.importorskip("triton")
    file = Path(__file__).with_name("test_fused.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"})
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-4000:]


def test_it_is_off_until_a_device_is_proven():
    assert not fused.PROVEN
    assert not may_fuse(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="measured"), fused_mode("sometimes"):
        pass


class OnCuda(torch.Tensor):
    is_cuda = True


@pytest.mark.parametrize("faster", [True, False])
def test_on_a_proven_device_a_measurement_chooses_once_per_shape(monkeypatch, faster):
    measured = []

    def ms(taken):
        return lambda *a: measured.append(1) or taken

    monkeypatch.setattr(fused, "PROVEN", frozenset({"GPU"}))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(fused, "find_spec", lambda name: name)
    monkeypatch.setattr(fused, "_faster", {})
    monkeypatch.setattr(fused, "fused_ms", ms(1.0 if faster else 3.0))
    monkeypatch.setattr(fused, "step_by_step_ms", ms(2.0))
    monkeypatch.setattr(fused._TokenMixing, "apply", lambda v, n, *weights: v)
    assert may_fuse(torch.zeros(1, 2, 3).as_subclass(OnCuda))
    weights = [torch.zeros(s) for s in ((4, 3), (4,), (5, 4), (5,), (4, 5), (4,), (3, 4), (3,))]
    for v in (torch.zeros(1, 2, 3), torch.ones(1, 2, 3), torch.zeros(2, 2, 3)):
        assert (fused.token_mixing(v, weights, 1) is not None) == faster
    assert len(measured) == 4  # two shapes, each way
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another GPU")
    assert not may_fuse(torch.zeros(1, 2, 3).as_subclass(OnCuda))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["forward_kernel", "backward_kernel"])
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_that_are_not_here(kernel, capability):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from imixer.implicit import fused_kernels

    source = getattr(fused_kernels, kernel)
    d = 64
    constants = fused._blocks(torch.zeros(1, dtype=torch.bfloat16), d) | {"KEEP": True, "WIDEN": False}
    warps = constants.pop("num_warps")
    constants = {name: value for name, value in constants.items() if name in source.arg_names}
    numbers = {"R", "S", "D", "H", "S_OUT", "channels", "n_iter"}

    def kind(name):
        number = (
            name in numbers or name.startswith("last_") or name.endswith(("_step", "_sample", "_channel", "_token"))
        )
        return "constexpr" if name in constants else "i32" if number else "*bf16"

    signature = {name: kind(name) for name in source.arg_names}
    places = {(source.arg_names.index(name),): value for name, value in constants.items()}
    made = triton.compile(
        ASTSource(source, signature, places), target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}
    )
    assert made.asm["cubin"]
    assert made.metadata.shared <= 99 * 1024  # what the smallest of these GPUs lets a program have


def test_tensors_on_a_processor_are_left_alone_though_the_kernel_is_on(monkeypatch):
    monkeypatch.setattr(fused, "find_spec", lambda name: name)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with fused_mode("on"):
        assert not may_fuse(torch.zeros(1, 2, 3))
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert may_fuse(torch.zeros(1, 2, 3))

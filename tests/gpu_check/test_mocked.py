"""What a GPU would be asked, tried with one that is made up."""

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import imixer.models  # noqa: F401
from imixer.data.batches import loading_options
from imixer.data.config import DataConfig
from imixer.data.device.resident import free_memory
from imixer.implicit import Picard
from imixer.implicit.spectral import advance
from imixer.timing import peak_memory, wait_for

GPU = torch.device("cuda")


def test_memory_that_torch_keeps_of_an_earlier_run_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 50)
    assert free_memory(GPU) == 750


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_memory_is_pinned_for_a_gpu_that_trains_and_for_no_other(device, pinned, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading_options(DataConfig(), 0, torch.device(device))["pin_memory"] is pinned


def test_a_gpu_is_waited_for_before_its_memory_is_read(monkeypatch):
    order = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: order.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: order.append("read") or 7)
    assert peak_memory(lambda: order.append("work"), GPU) == 7
    assert order == ["reset", "work", "wait", "read"]
    wait_for(torch.device("cpu"))
    assert order[-1] == "read"


@pytest.mark.parametrize(
    "options",
    [{}, {"n_iter": 4}, {"num_layers": 4}, {"tied": True}, {"legacy": True}, {"norm": "batch"}, {"sigma": "exact"}],
    ids=str,
)
def test_building_and_a_training_forward_ask_a_gpu_for_no_number_and_leave_nothing_on_the_cpu(options):
    """A fake tensor has a device and no numbers: whoever asks for one waits, and is told so."""
    with FakeTensorMode(), torch.device("cuda"):
        model = timm.create_model("imixer_t2_8", num_blocks=2, **options).train()
        for _ in range(2):
            loss = model(torch.empty(4, 3, 8, 8)).square().mean()  # the way back needs a real one's streams
        devices = {t.device.type for t in [*model.parameters(), *model.buffers(), loss]}
        assert devices == {"cuda"}


def test_power_iterations_of_one_shape_run_together_on_a_gpu(monkeypatch):
    together = []
    monkeypatch.setattr("imixer.implicit.spectral._advance_together", lambda layers: together.append(len(layers)))
    with FakeTensorMode(), torch.device("cuda"):
        model = timm.create_model("imixer_t2_8", num_blocks=3).train()
        advance(model._spectral_layers())
    assert sum(together) == 2 * 3 and len(together) == len({m.weight.shape for m in model._spectral_layers()})


def test_a_gpu_is_looked_at_every_eighth_step():
    assert Picard()._look_every(GPU) == 8 and Picard()._look_every(torch.device("cpu")) == 1

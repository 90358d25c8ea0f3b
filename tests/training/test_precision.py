"""`precision: auto`: a measurement decides, and says so."""

import json

import pytest
import torch

from imixer.errors import InputError
from imixer.training import devices, precision
from imixer.training.devices import resolve_precision
from imixer.training.precision import Measurement, measure_precision
from imixer.training.run.config import TrainConfig


@pytest.mark.parametrize(("float32_ms", "bf16_ms", "precision"), [(10, 2, "bf16"), (10, 9.5, "32"), (2, 120, "32")])
def test_bfloat16_must_be_clearly_faster(monkeypatch, caplog, float32_ms, bf16_ms, precision):
    caplog.set_level("INFO", "imixer")
    monkeypatch.setattr(devices, "measure_precision", lambda device, tf32: Measurement(float32_ms, bf16_ms))
    config = resolve_precision(TrainConfig(precision="auto"))
    assert config == TrainConfig(precision=precision)
    (line,) = caplog.messages
    assert f"precision auto: {precision}, " in line
    assert f"{bf16_ms:.1f} ms in bf16 and {float32_ms:.1f} ms in float32" in line


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_nothing_is_measured_where_the_precision_is_given(monkeypatch, caplog, precision):
    monkeypatch.setattr(devices, "measure_precision", lambda device, tf32: pytest.fail("measured"))
    assert resolve_precision(TrainConfig(precision=precision)).precision == precision
    assert not caplog.messages


def test_both_are_really_timed_and_once_for_all_runs_of_a_process():
    measured = measure_precision(torch.device("cpu"), True)
    assert measured.float32_ms > 0 and measured.bf16_ms > 0
    assert measure_precision(torch.device("cpu"), True) is measured


def test_processes_that_could_disagree_are_refused(monkeypatch):
    monkeypatch.setattr(devices, "started_by_launcher", lambda: True)
    with pytest.raises(InputError, match="precision is auto"):
        resolve_precision(TrainConfig(precision="auto"))


def test_a_run_is_written_down_with_what_was_decided(monkeypatch, train_quick, tmp_path):
    monkeypatch.setattr(devices, "measure_precision", lambda device, tf32: Measurement(1.0, 2.0))
    run = train_quick(tmp_path / "run", "--precision", "auto")
    assert "precision: '32'" in (run / "config.yaml").read_text()
    assert json.loads((run / "environment.json").read_text())["precision"] == "32"


def test_float32_is_measured_as_each_run_of_a_process_multiplies_it(monkeypatch):
    set_to, measured = [], []
    monkeypatch.setattr(precision, "set_float32_products", lambda device, tf32: set_to.append(tf32))
    monkeypatch.setattr(precision, "_best_ms", lambda work, device: measured.append(set_to[-1]) or 1.0)
    measure_precision.cache_clear()
    try:
        for tf32 in (True, False, True):
            resolve_precision(TrainConfig(precision="auto", accelerator="cpu", tf32=tf32))
    finally:
        measure_precision.cache_clear()
    assert measured == [True, True, False, False]  # in float32 and in bfloat16, each once


@pytest.mark.parametrize(
    ("accelerator", "there", "device"), [("auto", True, "mps"), ("cpu", True, "cpu"), ("auto", False, "cpu")]
)
def test_precision_is_measured_on_the_device_that_trains(accelerator, there, device, monkeypatch):
    measured = []

    def measure(device, tf32):
        measured.append(device.type)
        return Measurement(1.0, 2.0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)
    monkeypatch.setattr("imixer.training.devices.measure_precision", measure)
    assert resolve_precision(TrainConfig(precision="auto", accelerator=accelerator)).precision == "32"
    assert measured == [device]

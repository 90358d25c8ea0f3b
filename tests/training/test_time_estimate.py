"""How long training will take is measured before it starts, and leaves no trace in it."""

import io
import random

import numpy as np
import pytest
import torch
from rich.console import Console

from imixer.data.batches import build_batches
from imixer.data.config import DataConfig
from imixer.data.sampler import BatchShard
from imixer.data.sources.digits import open_digits
from imixer.training import time_estimate
from imixer.training.model import build_model
from imixer.training.preview import show_preview
from imixer.training.run.config import ModelConfig, ScheduleConfig, TrainConfig
from imixer.training.tasks.losses import ClassificationLoss
from imixer.training.time_estimate import StepTime, TimeEstimate, estimate_time

CPU = torch.device("cpu")
DATA = DataConfig(batch_size=16)
MODEL = ModelConfig(name="imixer_n2_8", num_blocks=1, embed_dim=16, drop_rate=0.1)
CONFIG = TrainConfig(data=DATA, model=MODEL, epochs=4, schedule=ScheduleConfig(cooldown_epochs=2))


def estimated(config=CONFIG):
    data = open_digits(config.data)
    built = build_model(config.model, config.data, native_size=data.native_size, in_chans=1, num_classes=10)
    batches, _ = build_batches(
        data, config.data, built.input_size, smoothing=0.1, seed=0, device=CPU, shard=BatchShard(), held_out_batch=16
    )
    before = {name: value.clone() for name, value in built.model.state_dict().items()}
    estimate = estimate_time(config, built, ClassificationLoss(), batches, CPU, steps=100, held_out=360)
    return estimate, built, before


def test_neither_the_model_nor_any_generator_is_touched():
    generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    torch.manual_seed(3)
    _, built, before = estimated()
    after = built.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in built.model.parameters())
    torch.manual_seed(3)
    build_model(CONFIG.model, DATA, native_size=(8, 8), in_chans=1, num_classes=10)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    estimated()
    assert torch.equal(torch.rand(1), drawn)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == generators[:2]


@pytest.mark.parametrize(
    ("workers", "step", "validation"),
    [(0, 16 * (1 + 3) + 4, 360 * (1 + 1)), (2, 16 * 3 + 4, 360 * 1), (1, 16 * 3 + 4, 360 * 1)],
)
def test_steps_loading_and_validation_are_added_up(monkeypatch, workers, step, validation):
    """An image takes 1 s to load, and 3 s to compute, 1 s of it forward; the optimizer takes 4 s."""
    monkeypatch.setattr(time_estimate, "_measure_model", lambda *_: StepTime(image=3.0, optimizer=4.0))
    monkeypatch.setattr(time_estimate, "_measure_loading", lambda _: 1.0)
    config = TrainConfig(
        data=DataConfig(batch_size=16, workers=workers), model=MODEL, epochs=4, schedule=CONFIG.schedule
    )
    estimate, _, _ = estimated(config)
    assert estimate.step == pytest.approx(step)
    assert estimate.total == pytest.approx(100 * step + 6 * validation)


def test_where_a_copy_does_not_tell_there_is_no_estimate():
    assert estimated(TrainConfig(data=DATA, model=MODEL, compile=True))[0] is None
    assert estimated(TrainConfig(data=DATA, model=MODEL, devices=2))[0] is None


@pytest.mark.parametrize(("seconds", "said"), [(0.0224, "22.4 ms"), (0.99996, "1.00 s"), (1.0649, "1.06 s")])
def test_the_panel_tells_the_time(seconds, said):
    data = open_digits(DATA)
    built = build_model(MODEL, DATA, native_size=(8, 8), in_chans=1, num_classes=10)
    stream = io.StringIO()
    show_preview(data, CONFIG, built, Console(file=stream, width=200), estimate=TimeEstimate(seconds, 75.0))
    assert f"time      about 1:15 for the training, at {said} a step, measured just now" in stream.getvalue()

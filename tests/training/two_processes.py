"""One of several processes of a small training: `torchrun two_processes.py FOLDER STRATEGY`. Alone, it is all of them.

Writes what it saw and computed to FOLDER/<rank>.pt.
"""

import sys
from pathlib import Path

import timm
import torch
from torch.distributed.tensor import DTensor

import imixer.models  # noqa: F401
from imixer.data.batches import build_batches
from imixer.data.config import DataConfig
from imixer.data.sources.open import open_data
from imixer.training.devices import build_fabric, largest_over_processes, placed, share
from imixer.training.run.config import ModelConfig, OptimConfig, ScheduleConfig, TrainConfig
from imixer.training.scores import Scores
from imixer.training.train_state import TrainState

STEPS = 3


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main(folder, strategy):
    config = placed(
        TrainConfig(
            data=DataConfig(batch_size=48, val_fraction=0.1994),
            model=ModelConfig(name="imixer_t2_8", num_blocks=2, embed_dim=16),
            optim=OptimConfig(opt="sgd", lr=0.1),
            schedule=ScheduleConfig(warmup_epochs=0),
            epochs=1,
            accelerator="cpu",
            strategy=strategy,
        )
    )
    fabric = build_fabric(config)
    fabric.launch()
    torch.manual_seed(0)
    model = timm.create_model("imixer_t2_8", num_blocks=2, embed_dim=16, in_chans=1, num_classes=10).double()
    data = open_data(config.data)
    training, held_out = build_batches(
        data,
        config.data,
        (1, 8, 8),
        smoothing=0.1,
        seed=0,
        device=fabric.device,
        share=share(fabric, config),
        held_out_batch=179,  # two batches in one process, one in the other
    )
    train_state = TrainState(fabric, config, model, len(training))
    gradients = []
    move = train_state._optimizer.register_step_pre_hook(
        lambda *_: gradients.append({name: whole(p.grad).clone() for name, p in model.named_parameters()})
    )
    for step, (images, labels) in zip(range(STEPS), training.epoch(0), strict=False):
        loss, refused = train_state.gradient([(images.double(), labels)], step)
        assert not refused
        train_state.move(step)
    move.remove()
    rounds = largest_over_processes(fabric, len(held_out))[0]
    scores = Scores(10).score(lambda images: train_state.ready()(images.double()), held_out, rounds)
    torch.save(
        {
            "seen": torch.cat(list(training.order.epoch(0))),
            "held_out": list(held_out._loader.dataset.numbers),
            "gradients": gradients,
            "v": {name: v for name, v in model.named_buffers() if name.endswith(".v")},
            "scores": scores,
            "loss": loss,
        },
        Path(folder) / f"{fabric.global_rank}.pt",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Train in processes that are killed, but for the last: `kill_and_resume.py WHOLE RUN KILLS LONGEST SEED [FLAGS...]`.

Flags behind `--` are for resuming only.

WHOLE is trained by a process that nobody kills. Each of RUN's goes up to LONGEST steps further, and is killed at a
random moment of a step: how fast the machine is does not matter. Printed are the kills.

The modules are imported once and each process is forked, so that a kill costs no start of Python.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import sklearn.datasets  # noqa: F401
import torch

import imixer.training.tasks.classification
import imixer.training.tasks.segmentation
import imixer.training.worker
from imixer.cli import main
from imixer.training.progress_bar import TrainingProgress


def train(run, flags):
    cut = flags.index("--") if "--" in flags else len(flags)
    flags, later = flags[:cut], flags[cut + 1 :]
    if not (run / "config.yaml").is_file():  # killed before there was anything
        shutil.rmtree(run, ignore_errors=True)
        return main(["train", "--out", str(run), *flags])
    return main(["train", "--resume", str(run), *later])


def attempt(run, flags, steps=None, chance=None):
    """Train in a process of its own, killed within two steps after so many."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        begun = None

        def step(self, done, loss):
            nonlocal begun
            begun = done if begun is None else begun
            if steps is not None:
                os.write(writing, b".")
                while done - begun >= steps + 1:
                    time.sleep(1)  # until the kill

        TrainingProgress.step = step
        os._exit(train(run, flags))
    os.close(writing)
    told = [time.monotonic()]
    with os.fdopen(reading, "rb", buffering=0) as said:
        while (steps is None or len(told) <= steps) and said.read(1):
            told.append(time.monotonic())
        if steps is not None:
            time.sleep(chance.uniform(0, 2) * ((told[-1] - told[-2]) if len(told) > 1 else 0.05))
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status == (0 if steps is None else signal.SIGKILL), status


if __name__ == "__main__":
    whole, path, kills, longest, seed, *flags = sys.argv[1:]
    torch.set_num_threads(1)
    for task in (imixer.training.tasks.classification, imixer.training.tasks.segmentation):
        task.drawn = lambda path, draw: True
    attempt(Path(whole), flags)
    chance = random.Random(int(seed))
    for _ in range(int(kills)):
        attempt(Path(path), flags, chance.randint(0, int(longest) - 2), chance)
    attempt(Path(path), flags)
    print(kills)

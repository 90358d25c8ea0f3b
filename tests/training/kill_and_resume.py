"""Train in processes of which all but the last are killed: `kill_and_resume.py RUN KILLS SEED LONGEST [FLAGS...]`.

Each lives for a random time of up to LONGEST seconds. Printed are the kills, and the seconds of all together.

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

import imixer.training.worker  # noqa: F401
from imixer.cli import main


def train(run, flags):
    if not (run / "config.yaml").is_file():  # killed before there was anything
        shutil.rmtree(run, ignore_errors=True)
        return main(["train", "--out", str(run), *flags])
    return main(["train", "--resume", str(run)])


def attempt(run, flags, patience):
    """Whether the run ended before patience did."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(train(run, flags))
    began = time.monotonic()
    while time.monotonic() - began < patience:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, status
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


if __name__ == "__main__":
    path, kills, seed, longest, *flags = sys.argv[1:]
    torch.set_num_threads(1)
    chance = random.Random(int(seed))
    done, began = 0, time.monotonic()
    while done < int(kills) and not attempt(Path(path), flags, chance.uniform(0.05, float(longest))):
        done += 1
    if not (Path(path) / "model").exists():
        attempt(Path(path), flags, float("inf"))
    print(done, time.monotonic() - began)

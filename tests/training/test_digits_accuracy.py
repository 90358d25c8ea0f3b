"""What `imixer train` promises: 97 % of the held-out digits. The time is printed, since it is the machine's."""

import json
import subprocess
import sys
import time

import pytest

SEEDS = range(5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_run_recognises_97_percent_of_the_digits(tmp_path):
    accuracies = []
    for seed in SEEDS:
        out = tmp_path / str(seed)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "imixer", "train", "--seed", str(seed), "--out", str(out)], check=True)
        wall = time.perf_counter() - began
        subprocess.run([sys.executable, "-m", "imixer", "evaluate", str(out)], check=True)
        accuracies.append(json.loads((out / "evaluation.json").read_text())["top1"])
        print(f"seed {seed}  accuracy {accuracies[-1]:.2%}  {wall:.0f} s")
    assert sum(accuracies) / len(accuracies) >= 0.97

"""What `imixer train` promises: 97 % of the held-out digits. How long that takes is for `benchmarks/waiting.py`."""

import json
import subprocess
import sys

import pytest

SEEDS = range(5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_default_run_keeps_its_promise(tmp_path):
    accuracies = []
    for seed in SEEDS:
        out = str(tmp_path / str(seed))
        subprocess.run([sys.executable, "-m", "imixer", "train", "--seed", str(seed), "--out", out], check=True)
        subprocess.run([sys.executable, "-m", "imixer", "evaluate", out], check=True)
        accuracies.append(json.loads((tmp_path / str(seed) / "evaluation.json").read_text())["top1"])
        print(f"seed {seed}  accuracy {accuracies[-1]:.2%}")
    assert sum(accuracies) / len(accuracies) >= 0.97

"""What `imixer train` promises: 97 % of the held-out digits, in well under 90 seconds on two cores."""

import json
import subprocess
import sys
import time

import pytest

LIMIT_S = 90
SEEDS = range(5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_run_keeps_its_promise(tmp_path):
    table = []
    for seed in SEEDS:
        out = str(tmp_path / str(seed))
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "imixer", "train", "--seed", str(seed), "--out", out], check=True)
        wall = time.perf_counter() - began
        subprocess.run([sys.executable, "-m", "imixer", "evaluate", out], check=True)
        table.append((seed, json.loads((tmp_path / str(seed) / "evaluation.json").read_text())["top1"], wall))
    for seed, accuracy, wall in table:
        print(f"seed {seed}  accuracy {accuracy:.2%}  {wall:.0f} s")
    assert sum(accuracy for _, accuracy, _ in table) / len(table) >= 0.97
    assert max(wall for *_, wall in table) < LIMIT_S

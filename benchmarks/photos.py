"""Accuracy of the recipe `photos` and of timm's training script, from random weights, at equal processor time.

    python benchmarks/photos.py --cifar10 FOLDER --timm CLONE [--seeds 3] [--steps 300] [--out photos] [--markdown FILE]

Two sets of small pictures are written as files in class folders: `pictures`, pieces of ten sample pictures of
scikit-learn and scikit-image in gray, 14 of each to train on and 20 held out, which do not overlap; and `cifar10`, 100
images of each class of CIFAR-10 to train on and 50 of its test images. The recipe trains on each with its defaults, but
for the size of the model, which it would choose by the time that steps take here: given is what one idle core gets.
timm's script then has as many epochs as fit into the processor time that the recipe took, start and validation
included: with a small model on images as large and batches as large as the recipe's, and its other defaults; and with
its defaults as they are, a ResNet-50 at 224x224, if `--as_it_is` is given. `--steps` shortens the recipe, and all with
it. Scores are those of the last epoch; none is selected.
"""

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from skimage import data as pictures
from sklearn.datasets import load_sample_image

from imixer.tables import Grid, markdown, plus_minus

MODEL = ["--model.embed_dim", "[32, 64, 128]", "--model.num_blocks", "[1, 2, 1]", "--minutes", "1000"]
BATCH = {"pictures": 32, "cifar10": 64}  # which the recipe chooses
RECIPE, TIMM_SMALL, TIMM = "recipe photos", "timm, resnet18 at 32x32", "timm, as it is"
PIECE, TRAINED, HELD_OUT = 40, 14, 20  # pixels, and pieces of each picture


def write_pictures(folder: Path) -> None:
    """Cut sample pictures into pieces, in an order that is always the same."""
    rng = np.random.default_rng(0)
    names = ("brick", "grass", "gravel", "astronaut", "chelsea", "coffee", "rocket", "moon")
    arrays = {name: getattr(pictures, name)() for name in names}
    arrays |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    for name, array in arrays.items():
        image = Image.fromarray(array).convert("L")
        corners = [
            (x, y) for y in range(0, image.height - PIECE + 1, PIECE) for x in range(0, image.width - PIECE + 1, PIECE)
        ]
        for number, place in enumerate(rng.permutation(len(corners))[: TRAINED + HELD_OUT]):
            x, y = corners[place]
            part = folder / ("train" if number < TRAINED else "val") / name
            part.mkdir(parents=True, exist_ok=True)
            image.crop((x, y, x + PIECE, y + PIECE)).save(part / f"{place:03}.png")


def write_cifar10(folder: Path, source: Path) -> None:
    """Write the first images of each class of CIFAR-10 as files."""
    for part, pattern, wanted in (("train", "train-*.parquet", 100), ("val", "test-*.parquet", 50)):
        table = pq.read_table(min(source.glob(pattern)))
        left = dict.fromkeys(range(10), wanted)
        for number, (image, label) in enumerate(zip(*(table.column(place) for place in (0, 1)), strict=True)):
            if left[name := label.as_py()] > 0:
                left[name] -= 1
                (folder / part / str(name)).mkdir(parents=True, exist_ok=True)
                (folder / part / str(name) / f"{number:05}.png").write_bytes(image.as_py()["bytes"])


def processor_seconds(command: list[str], log: Path) -> float:
    """Run a command in a process of its own, on one thread, and return the processor time that it and its took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as stream:
        subprocess.run(command, check=True, stdout=stream, stderr=stream, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train_recipe(images: Path, seed: int, out: Path, options: list[str]) -> dict[str, float]:
    words = ["--data.name", str(images), "--seed", str(seed), "--out", str(out), "--logger", "csv", *MODEL]
    words += options
    seconds = processor_seconds([sys.executable, "-m", "imixer", "train", *words], out.with_suffix(".log"))
    last = json.loads((out / "result.json").read_text())["last"]
    return {"accuracy": 100 * last["val_acc"], "seconds": seconds, "epochs": last["epoch"]}


def train_timm(script: Path, images: Path, seed: int, out: Path, options: list[str], epochs: int) -> dict[str, float]:
    words = ["--data-dir", str(images), "--num-classes", "10", "--seed", str(seed), "--device", "cpu", "-j", "1"]
    words += ["--output", str(out.parent), "--experiment", out.name, "--epochs", str(epochs), *options]
    if epochs <= 5:
        words += ["--warmup-epochs", "0"]  # the default, 5, would be all there is
    seconds = processor_seconds([sys.executable, str(script), *words], out.with_suffix(".log"))
    with (out / "summary.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return {"accuracy": float(rows[-1]["eval_top1"]), "seconds": seconds, "epochs": len(rows)}


def train_timm_for(
    seconds: float, script: Path, images: Path, seed: int, out: Path, options: list[str]
) -> dict[str, float]:
    """Train for as many epochs as fit into the processor time, told by trainings of one and of three."""
    speed = out.parent / f"{images.name}-{out.name.rpartition('-')[0]}-speed.json"
    if not speed.exists():
        times = [train_timm(script, images, 0, out.with_name(f"{out.name}-try-{n}"), options, n) for n in (1, 3)]
        each = (times[1]["seconds"] - times[0]["seconds"]) / 2
        speed.write_text(json.dumps([times[0]["seconds"] - each, each]))
    start, each = json.loads(speed.read_text())
    return train_timm(script, images, seed, out, options, max(1, round((seconds - start) / each)))


def measured(file: Path, work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Read a result, or compute and write it."""
    if not file.exists():
        file.write_text(json.dumps(work()))
    return json.loads(file.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description="The recipe photos beside timm's training script.")
    parser.add_argument("--cifar10", type=Path, required=True, help="folder with the parquet files of CIFAR-10")
    parser.add_argument("--timm", type=Path, required=True, help="clone of timm's repository")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps of the recipe, instead of those that it chooses")
    parser.add_argument("--out", type=Path, default=Path("photos"))
    parser.add_argument("--as_it_is", action="store_true", help="also timm's defaults as they are, which takes longest")
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    args.out = args.out.absolute()
    sets = {name: args.out / "images" / name for name in BATCH}
    if not sets["pictures"].exists():
        write_pictures(sets["pictures"])
    if not sets["cifar10"].exists():
        write_cifar10(sets["cifar10"], args.cifar10)
    shorter = [] if args.steps is None else ["--steps", str(args.steps)]
    scores: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        for name, images in sets.items():
            folder = args.out / name
            folder.mkdir(exist_ok=True)
            recipe = folder / f"recipe-{seed}"
            ours = measured(recipe.with_suffix(".json"), partial(train_recipe, images, seed, recipe, shorter))
            scores.setdefault((name, RECIPE), []).append(ours)
            small = ["--model", "resnet18", "--img-size", "32", "-b", str(BATCH[name])]
            lines = {TIMM_SMALL: small} | ({TIMM: []} if args.as_it_is else {})
            for line, options in lines.items():
                out = folder / f"{'small' if options else 'default'}-{seed}"
                work = partial(train_timm_for, ours["seconds"], args.timm / "train.py", images, seed, out, options)
                scores.setdefault((name, line), []).append(measured(out.with_suffix(".json"), work))
            print(name, seed, {line: runs[-1] for (which, line), runs in scores.items() if which == name}, flush=True)
    rows = []
    for (name, line), runs in scores.items():
        accuracies = [run["accuracy"] for run in runs]
        spread = plus_minus(fmean(accuracies), stdev(accuracies) if len(runs) > 1 else None)
        each = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies)
        took = [f"{fmean(run[key] for run in runs):.0f}" for key in ("epochs", "seconds")]
        rows.append((name, line, spread, each, *took))
    grid = Grid(("images", "trained by", "top-1, %", "each seed", "epochs", "processor s"), tuple(rows), text=2)
    print(markdown(grid))
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    if args.markdown:
        args.markdown.write_text(markdown(grid), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

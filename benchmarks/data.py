"""Images per second of `data.pipeline device` against `data.pipeline timm`, with the paper's augmentation.

    python benchmarks/data.py [--sizes 32 224] [--batch 64] [--repeats 7] [--step] [--markdown FILE]

Both make training batches of random 32x32 images in one process, in turn, so that a drift of the machine's speed falls
on both. torch has one thread and timm no loader processes: on a CPU, figures are per core. Figures are medians over the
repeats after a warm-up; the ratio is the median of the ratios of neighbouring measurements. With `--step`, on a GPU,
also the share of iMixer S/16's training steps that the device pipeline adds, against steps on one batch that stays.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL
import timm
import torch
from rich.console import Console
from step import cpu_name, show
from torch import Tensor, nn

import imixer.models  # noqa: F401
from imixer.data.batches import build_training
from imixer.data.config import DataConfig
from imixer.data.device import build_resident
from imixer.data.sampler import BatchShard
from imixer.gpu_check.noise import noise_data
from imixer.timing import wait_for

SOURCE, CLASSES, STEP_TARGET, SPEED_TARGET = 32, 10, 0.05, 5.0


def paper(batch: int) -> DataConfig:
    return DataConfig(
        batch_size=batch,
        crop="resized",
        interpolation="bicubic",
        hflip=0.5,
        auto_augment="rand-m9-mstd0.5-inc1",
        random_erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
    )


def pipelines(
    size: int, batch: int, device: torch.device
) -> dict[str, Callable[[int], Iterator[tuple[Tensor, Tensor]]]]:
    """By name, what gives the batches of an epoch."""
    data = noise_data(max(2048, 2 * batch), 1, (SOURCE, SOURCE), CLASSES)
    common = {"num_classes": CLASSES, "smoothing": 0.1, "seed": 0, "device": device, "shard": BatchShard()}
    shape = (3, size, size)
    return {
        "device": build_resident(data, paper(batch), shape, held_out_batch=batch, **common)[0].epoch,
        "timm": build_training(data, paper(batch), shape, **common).epoch,
    }


def endless(epoch: Callable[[int], Iterator[tuple[Tensor, Tensor]]]) -> Iterator[tuple[Tensor, Tensor]]:
    number = 0
    while True:
        yield from epoch(number)
        number += 1


def images_per_second(batches: Iterator[tuple[Tensor, Tensor]], seconds: float) -> float:
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        images, _ = next(batches)
        count += len(images)
    wait_for(images.device)
    return count / (time.perf_counter() - start)


def step_share(size: int, batch: int, repeats: int, device: torch.device) -> float:
    """By how much longer training steps take on fresh batches than on one that stays, as a share of the former."""
    batches = endless(pipelines(size, batch, device)["device"])
    model = timm.create_model("imixer_s16_224", num_classes=CLASSES, img_size=size).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def seconds(source: Callable[[], tuple[Tensor, Tensor]], steps: int = 20) -> float:
        wait_for(device)
        start = time.perf_counter()
        for _ in range(steps):
            images, targets = source()
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        wait_for(device)
        return (time.perf_counter() - start) / steps

    kept = next(batches)
    seconds(lambda: next(batches))
    return statistics.median(1 - seconds(lambda: kept) / seconds(lambda: next(batches)) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--step", action="store_true", help="measure the share of training steps, on a GPU")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    args = parser.parse_args()
    if args.step and args.device == "cpu":
        parser.error("--step is for a GPU")

    torch.set_num_threads(1)
    device = torch.device(args.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu_name()}, one core"
    title = f"Training batches of {args.batch} from {SOURCE}x{SOURCE}. {where}; torch {torch.__version__}, "
    title += f"timm {timm.__version__}, Pillow {PIL.__version__}"
    header = ["size", "device images/s", "min-max", "timm images/s", "min-max", "ratio", "min-max", "target 5"]
    header += ["share of a step", "target 0.05"] if args.step else []
    rows: list[list[str]] = []
    console = Console()
    for size in args.sizes:
        batches = {name: endless(epoch) for name, epoch in pipelines(size, args.batch, device).items()}
        for each in batches.values():
            images_per_second(each, args.seconds)
        speeds: dict[str, list[float]] = {name: [] for name in batches}
        for _ in range(args.repeats):
            for name, each in batches.items():
                speeds[name].append(images_per_second(each, args.seconds))
        ratios = [a / b for a, b in zip(speeds["device"], speeds["timm"], strict=True)]
        row = [str(size)]
        for values in speeds.values():
            row += [f"{statistics.median(values):.0f}", f"{min(values):.0f}-{max(values):.0f}"]
        ratio = statistics.median(ratios)
        row += [f"{ratio:.1f}", f"{min(ratios):.1f}-{max(ratios):.1f}", "met" if ratio >= SPEED_TARGET else "missed"]
        if args.step:
            share = step_share(size, args.batch, args.repeats, device)
            row += [f"{share:.3f}", "met" if share < STEP_TARGET else "missed"]
        rows.append(row)
        console.print(" | ".join(row), highlight=False, soft_wrap=True)
    show(title, header, rows, 110, args.markdown)


if __name__ == "__main__":
    main()

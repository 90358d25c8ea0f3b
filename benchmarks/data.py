"""Images per second of `data.pipeline device` against `data.pipeline timm`, with the paper's augmentation.

    python benchmarks/data.py [--sizes 32 224] [--batch 64] [--repeats 7] [--step] [--markdown FILE]
    python benchmarks/data.py --streaming [--images 2048] [--repeats 7] [--markdown FILE]

Both make training batches of random 32x32 images in one process, in turn, so that a drift of the machine's speed falls
on both. torch has one thread and timm no loader processes: on a CPU, figures are per core. Figures are medians over the
repeats after a warm-up; the ratio is the median of the ratios of neighbouring measurements. With `--step`, on a GPU,
also the share of iMixer S/16's training steps that the device pipeline adds, against steps on one batch that stays.

With `--streaming`, images per second of streamed shards against the same JPEG images as local files, whole epochs in
turn, decoded and cropped only. The cache holds a fifth of the images, so that each epoch fetches them all anew. Shards
on an object server are measured too, if the extra `object-server` is installed: a process of its own serves them.
"""

import argparse
import io
import os
import socket
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from PIL import Image
from rich.console import Console
from step import cpu_name, show
from torch import Tensor, nn

import imixer.models  # noqa: F401
from imixer.data.batches import build_training
from imixer.data.config import DataConfig
from imixer.data.device import build_resident
from imixer.data.sampler import BatchShard
from imixer.data.sources.open import open_dataset
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


STREAMED_SIDE, SHARDS = 224, 4


def write_images(root: Path, count: int) -> int:
    """Write the same images as files in class folders, parquet shards and tar shards; return their bytes."""
    coarse = torch.rand(count, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    encoded = []
    for each in coarse:
        pixels = nn.functional.interpolate(each[None], STREAMED_SIDE, mode="bicubic").clamp(0, 1).mul(255).byte()
        stream = io.BytesIO()
        Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(stream, "JPEG")
        encoded.append(stream.getvalue())
    for folder in ("parquet", "tar", *(f"files/train/{label}" for label in range(CLASSES))):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        numbers = range(shard * count // SHARDS, (shard + 1) * count // SHARDS)
        write_shards(root, f"train-{shard}", numbers, encoded)
        for number in numbers:
            (root / f"files/train/{number % CLASSES}/{number}.jpg").write_bytes(encoded[number])
    write_shards(root, "val-0", range(2 * CLASSES), encoded)
    for number in range(2 * CLASSES):
        (root / f"files/val/{number % CLASSES}").mkdir(parents=True, exist_ok=True)
        (root / f"files/val/{number % CLASSES}/{number}.jpg").write_bytes(encoded[number])
    return sum(map(len, encoded))


def write_shards(root: Path, name: str, numbers: range, encoded: list[bytes]) -> None:
    table = pa.table({"image": [encoded[i] for i in numbers], "label": [i % CLASSES for i in numbers]})
    pq.write_table(table, root / f"parquet/{name}.parquet", row_group_size=64)
    with tarfile.open(root / f"tar/{name}.tar", "w") as archive:
        for i in numbers:
            for suffix, content in (("jpg", encoded[i]), ("cls", str(i % CLASSES).encode())):
                info = tarfile.TarInfo(f"{i:06}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@contextmanager
def object_server(root: Path) -> Iterator[list[str]]:
    """Serve the shards from a process of its own; yield their URLs, none where there is no server installed."""
    if find_spec("moto") is None or find_spec("s3fs") is None:
        yield []
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "key"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        store = fsspec.filesystem("s3")
        store.mkdir("shards")
        for kind in ("parquet", "tar"):
            for file in (root / kind).iterdir():
                store.put_file(str(file), f"shards/{kind}/{file.name}")
        yield ["s3://shards/parquet", "s3://shards/tar"]
    finally:
        server.terminate()
        server.wait()


def streaming_rows(images: int, repeats: int, batch: int) -> tuple[list[str], list[list[str]], str]:
    """Measure whole epochs of local files and of streamed shards, in turn."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        size = write_images(root, images)
        with object_server(root) as urls:
            epochs = {}
            for name in [str(root / "files"), str(root / "parquet"), str(root / "tar"), *urls]:
                cache = {"cache_gb": size / 5e9, "cache_dir": str(root / "cache")}
                config = DataConfig(
                    name=name, streaming="always", batch_size=batch, crop="center", check="off", **cache
                )
                shape, common = (3, STREAMED_SIDE, STREAMED_SIDE), {"num_classes": CLASSES, "smoothing": 0.0}
                data = open_dataset(config)
                batches = build_training(data, config, shape, **common, seed=0, device=torch.device("cpu"))
                epochs[name] = batches.epoch
            speeds: dict[str, list[float]] = {name: [] for name in epochs}
            for repeat in range(repeats + 1):
                for name, epoch in epochs.items():
                    start = time.perf_counter()
                    count = sum(len(each) for each, _ in epoch(repeat))
                    speeds[name].append(count / (time.perf_counter() - start))
    rows = []
    files, *_ = speeds.values()
    for name, values in speeds.items():
        ratios = [value / of_files for value, of_files in zip(values[1:], files[1:], strict=True)]
        shown = name if "://" in name else Path(name).name
        row = [shown, f"{statistics.median(values[1:]):.0f}", f"{min(values[1:]):.0f}-{max(values[1:]):.0f}"]
        rows.append([*row, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}"])
    title = f"Epochs of {images:,} JPEG images of {STREAMED_SIDE}x{STREAMED_SIDE}, {size / 1e6:.0f} MB, "
    title += f"through a cache of {size / 5e6:.0f} MB"
    return ["images in", "images/s", "min-max", "of files", "min-max"], rows, title


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--step", action="store_true", help="measure the share of training steps, on a GPU")
    parser.add_argument("--images", type=int, default=2048, help="of each epoch with --streaming")
    parser.add_argument("--streaming", action="store_true", help="measure streamed shards against local files")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    args = parser.parse_args()
    if args.step and args.device == "cpu":
        parser.error("--step is for a GPU")

    torch.set_num_threads(1)
    if args.streaming:
        header, rows, title = streaming_rows(args.images, args.repeats, args.batch)
        title += (
            f". {cpu_name()}, one core; torch {torch.__version__}, Pillow {PIL.__version__}, pyarrow {pa.__version__}"
        )
        show(title, header, rows, 100, args.markdown)
        return
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

"""Runs on streamed images: killed and resumed, in any number of loader processes, here and on an object server."""

import csv
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imixer.cli import main
from imixer.training.progress_bar import TrainingProgress

pytestmark = pytest.mark.usefixtures("undrawn")

MODEL = ["--model.embed_dim", "16", "--model.num_blocks", "1", "--data.image_size", "8", "--data.batch_size", "8"]
MODEL += ["--schedule.warmup_epochs", "1"]
SECRET = "secret-that-nobody-may-see"


def write_shard(file, first, images=40):
    encoded = []
    for number in range(first, first + images):
        stream = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        encoded.append(stream.getvalue())
    labels = [number % 2 for number in range(images)]
    pq.write_table(pa.table({"image": encoded, "label": labels}), file, row_group_size=5)


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        write_shard(tmp_path / f"shards/train-{shard}.parquet", 40 * shard)
    return tmp_path / "shards"


@pytest.fixture
def bucket(shards, monkeypatch):
    """The URL of the shards on a local object server, and its client."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="pets")
    for file in sorted(shards.iterdir()):
        client.upload_file(str(file), "pets", f"data/{file.name}")
    yield "s3://pets", client
    server.stop()


def flags(name, tmp_path, *more):
    cache = ["--data.streaming", "always", "--data.cache_gb", "6e-6", "--data.cache_dir", str(tmp_path / "cache")]
    return [*MODEL, "--data.name", str(name), *cache, *more]


def trained(name, out, tmp_path, *more):
    assert main(["train", "--out", str(out), *flags(name, tmp_path, "--epochs", "2", *more)]) == 0
    return out


def assert_same(run, other):
    times = {"images_per_s", "seconds"}
    both = [
        [{k: v for k, v in row.items() if k not in times} for row in csv.DictReader((each / "metrics.csv").open())]
        for each in (run, other)
    ]
    assert both[0] == both[1]
    assert (run / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()


def stopped(name, out, tmp_path, monkeypatch, at):
    def interrupt(self, done, loss):
        if done == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "step", interrupt)
        assert main(["train", "--out", str(out), *flags(name, tmp_path, "--epochs", "2")]) == 143
    return out


def killed(name, tmp_path, kills=2):
    whole, run = tmp_path / "whole", tmp_path / "killed"
    script = Path(__file__).with_name("kill_and_resume.py")
    command = [sys.executable, str(script), str(whole), str(run), str(kills), "8", "7", *flags(name, tmp_path)]
    command += ["--epochs", "2", "--checkpoints.every_steps", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same(run, whole)
    return run


def test_a_streamed_run_that_is_killed_ends_the_same(shards, tmp_path):
    killed(shards, tmp_path)


def test_a_streamed_run_is_the_same_in_loader_processes_and_resumed_with_others(shards, tmp_path, monkeypatch):
    whole = trained(shards, tmp_path / "whole", tmp_path, "--data.workers", "2")
    run = stopped(shards, tmp_path / "run", tmp_path, monkeypatch, at=11)
    assert main(["train", "--resume", str(run), "--data.workers", "1"]) == 0
    assert_same(run, whole)


def test_another_cache_size_is_refused_when_a_run_is_resumed(shards, tmp_path, monkeypatch, capsys):
    run = stopped(shards, tmp_path / "run", tmp_path, monkeypatch, at=3)
    assert main(["train", "--resume", str(run), "--data.cache_gb", "1"]) == 2
    assert "data.cache_gb" in capsys.readouterr().err


def test_a_run_on_an_object_server_is_the_same_as_on_local_files_and_keeps_no_credentials(bucket, shards, tmp_path):
    url, _ = bucket
    run = killed(url, tmp_path)
    assert_same(run, trained(shards, tmp_path / "local", tmp_path))
    written = [file for file in [*run.rglob("*"), *(tmp_path / "cache").rglob("*")] if file.is_file()]
    assert not any(SECRET.encode() in file.read_bytes() for file in written)


@pytest.mark.parametrize(("harm", "part"), [("replace", "was replaced"), ("remove", "is not there; put it back")])
def test_an_object_that_changes_in_the_middle_ends_the_run_in_one_line(
    bucket, tmp_path, monkeypatch, capsys, harm, part
):
    url, client = bucket

    def change(self, done, loss):
        if done == 2:
            for shard in range(2):
                if harm == "replace":
                    write_shard(tmp_path / "other.parquet", 100)
                    client.upload_file(str(tmp_path / "other.parquet"), "pets", f"data/train-{shard}.parquet")
                else:
                    client.delete_object(Bucket="pets", Key=f"data/train-{shard}.parquet")

    monkeypatch.setattr(TrainingProgress, "step", change)
    assert main(["train", "--out", str(tmp_path / "run"), *flags(url, tmp_path, "--epochs", "2")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert part in last and "s3://pets/data/train-" in last


def test_a_bucket_without_permission_and_one_that_is_not_there_are_one_line(bucket, tmp_path, monkeypatch, capsys):
    url, _ = bucket
    assert main(["train", *flags("s3://nobody", tmp_path)]) == 2
    assert "s3://nobody" in capsys.readouterr().err.strip().splitlines()[-1]

    import s3fs

    def forbid(*args, **kwargs):
        raise PermissionError(f"Forbidden: https://host/x?X-Amz-Signature={SECRET}")

    monkeypatch.setattr(s3fs.S3FileSystem, "find", forbid)
    assert main(["train", *flags(url, tmp_path)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no permission to read s3://pets" in last and SECRET not in last


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"s3://key:{SECRET}@pets/data", "give credentials where"),
        ("nothing://pets", "no protocol that fsspec knows"),
        ("memory://nothing", "nothing is at memory://nothing"),
    ],
)
def test_urls_that_cannot_be_used_are_refused_in_one_line(name, part, tmp_path, capsys):
    assert main(["train", *flags(name, tmp_path)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert part in last and SECRET not in last

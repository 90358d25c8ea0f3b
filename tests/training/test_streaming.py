"""Runs on streamed images: killed and resumed, in any number of loader processes, here and on an object server."""

import csv
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.data.sources.open import open_dataset
from imixer.training.model import build_model
from imixer.training.progress_bar import TrainingProgress
from imixer.training.run.config import ModelConfig, TrainConfig
from imixer.training.whitening import whiten_stem

pytestmark = pytest.mark.usefixtures("undrawn")

MODEL = ["--model.embed_dim", "16", "--model.num_blocks", "1", "--data.image_size", "8", "--data.batch_size", "8"]
MODEL += ["--schedule.warmup_epochs", "1"]
SECRET = "secret-that-nobody-may-see"


def image(number):
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_shard(file, first, images=40):
    """Write images of noise with their labels, 5 to a group."""
    numbers = range(first, first + images)
    if file.suffix == ".parquet":
        table = pa.table({"image": [image(number) for number in numbers], "label": [number % 2 for number in numbers]})
        pq.write_table(table, file, row_group_size=5)
        return
    with tarfile.open(file, "w") as archive:
        for number in numbers:
            for name, content in ((f"{number}.png", image(number)), (f"{number}.cls", b"%d" % (number % 2))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(request, tmp_path):
    """A folder of two shards: parquet, or of the kind that a test is parametrized by."""
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        write_shard(tmp_path / f"shards/train-{shard}.{getattr(request, 'param', 'parquet')}", 40 * shard)
    return tmp_path / "shards"


class Server(ThreadingHTTPServer):
    """A server of the files in a folder, with ranges and ETags, which fails as often as it is told to."""

    daemon_threads = True

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), Answers)
        self.root, self.failures, self.url = root, [], f"http://127.0.0.1:{self.server_port}/pets"


class Answers(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, name = self.server, self.path.rpartition("/")[2]
        file = server.root / name
        if self.path.startswith("/pets/") and server.failures:
            self.send_error(server.failures.pop(0))
        elif self.path == "/pets":
            links = "".join(f'<a href="{each.name}">x</a>' for each in sorted(server.root.iterdir()))
            self.answer(200, links.encode(), {"Content-Type": "text/html"})
        elif not file.is_file():
            self.send_error(404)
        else:
            text = file.read_bytes()
            kind = {"ETag": hashlib.sha256(text).hexdigest(), "Content-Type": "application/octet-stream"}
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(text))
            part = {"Content-Range": f"bytes {first}-{min(end, len(text)) - 1}/{len(text)}"} if asked else {}
            self.answer(206 if asked else 200, text[first:end], kind | part)

    def answer(self, status, text, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text)

    def log_message(self, *args):
        pass


@pytest.fixture
def web(shards, monkeypatch):
    """A server of the shards on this machine."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("imixer.data.sources.storage._PAUSE_S", 0.01)
    server = Server(shards)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def tell(endpoint, command, text):
    """Give a command to the object server itself."""
    urlopen(Request(f"{endpoint}/moto-api/{command}", text.encode(), {"Content-Type": "text/plain"})).close()


@pytest.fixture
def bucket(shards, monkeypatch):
    """The URL of the shards on an object server on this machine, and its client."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # which know the server of the test before

    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    tell(endpoint, "reset", "")  # what another server of this process held
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


def test_the_filters_of_a_stem_are_computed_of_few_groups(shards, tmp_path):
    config = TrainConfig(
        model=ModelConfig(stem="whitened", num_blocks=1, embed_dim=16),
        data=DataConfig(str(shards), streaming="always", cache_gb=6e-6, cache_dir=str(tmp_path / "cache")),
    )
    data = open_dataset(config.data)
    seen = Seen(data.train)
    built = build_model(config.model, config.data, native_size=(8, 8), in_chans=data.in_chans, num_classes=2)
    assert whiten_stem(built.model, config, replace(data, train=seen), built.input_size)
    groups = data.windows.groups[seen.numbers]
    assert len(data.windows.sizes) > 8 >= len(np.unique(groups))
    assert len(np.unique(groups)) == 1 + (np.diff(groups) != 0).sum()  # each is fetched once


class Seen:
    """Images that note which of them were asked for."""

    def __init__(self, images):
        self.images, self.numbers = images, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        self.numbers.append(number)
        return self.images[number]


def stopped(name, out, tmp_path, monkeypatch, at):
    def interrupt(self, done, loss):
        if done == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "step", interrupt)
        assert main(["train", "--out", str(out), *flags(name, tmp_path, "--epochs", "2")]) == 143
    return out


def killed(name, tmp_path, *later, kills=2):
    """Train twice, once killed and resumed with further flags, and require that both ends are the same."""
    whole, run = tmp_path / "whole", tmp_path / "killed"
    script = Path(__file__).with_name("kill_and_resume.py")
    command = [sys.executable, str(script), str(whole), str(run), str(kills), "8", "7", *flags(name, tmp_path)]
    command += ["--epochs", "2", "--checkpoints.every_steps", "3", "--", *later]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same(run, whole)
    return run


@pytest.mark.parametrize("shards", ["tar"], indirect=True)
def test_a_run_on_a_server_that_is_killed_and_resumed_in_loader_processes_ends_the_same(web, tmp_path):
    killed(web.url, tmp_path, "--data.workers", "1", kills=1)


@pytest.mark.parametrize("shards", ["parquet", "tar"], indirect=True)
def test_a_streamed_run_is_the_same_in_loader_processes_and_resumed_with_others(shards, tmp_path, monkeypatch):
    whole = trained(shards, tmp_path / "whole", tmp_path, "--data.workers", "2")
    run = stopped(shards, tmp_path / "run", tmp_path, monkeypatch, at=11)
    assert main(["train", "--resume", str(run), "--data.workers", "1"]) == 0
    assert_same(run, whole)


@pytest.mark.parametrize("shards", ["parquet", "tar"], indirect=True)
def test_a_run_goes_on_with_the_same_shards_elsewhere(web, shards, tmp_path, monkeypatch):
    run = stopped(web.url, tmp_path / "run", tmp_path, monkeypatch, at=3)
    assert main(["train", "--resume", str(run), "--data.name", str(shards)]) == 0
    assert_same(run, trained(shards, tmp_path / "whole", tmp_path))


def test_two_processes_train_on_the_order_of_one(shards, tmp_path):
    runs = [trained(shards, tmp_path / f"{n}", tmp_path, "--accelerator", "cpu", "--devices", n) for n in ("1", "2")]
    one, two = (next(csv.DictReader((run / "metrics.csv").open())) for run in runs)
    assert float(one["train_loss"]) == pytest.approx(float(two["train_loss"]), rel=1e-5)


@pytest.mark.parametrize("shards", ["parquet", "tar"], indirect=True)
def test_the_cache_stays_within_its_bound_while_processes_read_and_fetch(web, tmp_path, bytes_in_cache):
    largest, ended = [0], threading.Event()
    (tmp_path / "cache").mkdir()

    def watch():
        while not ended.wait(0.002):
            largest.append(bytes_in_cache(tmp_path / "cache"))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        trained(web.url, tmp_path / "run", tmp_path, "--data.workers", "2")
    finally:
        ended.set()
        watching.join()
    assert 2000 < max(largest) <= 6000
    assert len(list((tmp_path / "cache").rglob("*.index"))) == 2 * bool(list(web.root.glob("*.tar")))


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("shards", ["parquet", "tar"], indirect=True)
def test_objects_that_were_replaced_between_sessions_are_refused_in_one_line(web, tmp_path, monkeypatch, capsys):
    run = stopped(web.url, tmp_path / "run", tmp_path, monkeypatch, at=3)
    (file,) = web.root.glob("train-1.*")
    write_shard(file, 1040)  # as many, with the same labels
    assert main(["train", "--resume", str(run)]) == 2
    line = last_line(capsys)
    assert f"the objects at {web.url} were replaced since {run} was trained on them; put those back, or" in line
    file.unlink()
    assert main(["train", "--resume", str(run)]) == 2
    assert "were replaced" in last_line(capsys)


def test_files_that_were_replaced_between_sessions_are_refused_in_one_line(shards, tmp_path, monkeypatch, capsys):
    run = stopped(shards, tmp_path / "run", tmp_path, monkeypatch, at=3)
    write_shard(shards / "train-1.parquet", 1040)
    assert main(["train", "--resume", str(run)]) == 2
    assert "other stored images" in last_line(capsys)


@pytest.mark.parametrize("shards", ["parquet", "tar"], indirect=True)
@pytest.mark.parametrize(
    ("harm", "part"),
    [
        ("replace", "was replaced after the data were opened"),
        ("remove", "is not there; put it back"),
        ("forbid", "no permission to read"),
        ("break", "look whether the network and the server are up"),
    ],
)
@pytest.mark.parametrize("workers", ["0", "1"])
def test_what_happens_to_objects_in_the_middle_ends_the_run_in_one_line(
    web, tmp_path, monkeypatch, capsys, harm, part, workers
):
    def happen(self, done, loss):
        if done != 2:
            return
        for file in web.root.iterdir():
            if harm == "replace":
                write_shard(file, 1040)
            elif harm == "remove":
                file.unlink()
        web.failures += {"forbid": [403] * 999, "break": [503] * 999}.get(harm, [])

    monkeypatch.setattr(TrainingProgress, "step", happen)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # for which it waits at the end
    words = ["train", "--out", str(tmp_path / "run"), *flags(web.url, tmp_path, "--epochs", "2")]
    assert main([*words, "--data.workers", workers]) == 2
    line = last_line(capsys)
    assert part in line and f"{web.url}/train-" in line


def test_a_server_that_fails_for_a_moment_is_asked_again(web, tmp_path):
    web.failures += [503, 503, 500]
    trained(web.url, tmp_path / "run", tmp_path)
    assert not web.failures


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_forbids_its_files_is_named_with_what_to_do(web, tmp_path, capsys, status):
    web.failures += [status] * 999
    assert main(["train", *flags(web.url, tmp_path)]) == 2
    assert f"no permission to read {web.url}/train-0.parquet; give credentials" in last_line(capsys)


def test_another_cache_size_is_refused_when_a_run_is_resumed(shards, tmp_path, monkeypatch, capsys):
    run = stopped(shards, tmp_path / "run", tmp_path, monkeypatch, at=3)
    assert main(["train", "--resume", str(run), "--data.cache_gb", "1"]) == 2
    assert "data.cache_gb" in capsys.readouterr().err


@pytest.mark.parametrize("shards", ["parquet", "tar"], indirect=True)
def test_a_run_on_an_object_server_is_killed_and_ends_as_on_local_files_and_keeps_no_credentials(
    bucket, shards, tmp_path
):
    url, _ = bucket
    run = killed(url, tmp_path, "--data.workers", "1")
    assert_same(run, trained(shards, tmp_path / "local", tmp_path))
    written = [file for file in [*run.rglob("*"), *(tmp_path / "cache").rglob("*")] if file.is_file()]
    assert not any(SECRET.encode() in file.read_bytes() for file in written)


@pytest.mark.parametrize("shards", ["parquet", "tar"], indirect=True)
def test_a_bucket_that_is_changed_between_a_kill_and_the_next_session_is_refused(
    bucket, shards, tmp_path, monkeypatch, capsys
):
    url, client = bucket
    run = stopped(url, tmp_path / "run", tmp_path, monkeypatch, at=3)
    (file,) = shards.glob("train-1.*")
    write_shard(file, 1040)
    client.upload_file(str(file), "pets", f"data/{file.name}")
    assert main(["train", "--resume", str(run)]) == 2
    assert f"the objects at s3://pets were replaced since {run} was trained on them" in last_line(capsys)


@pytest.mark.parametrize("shards", ["parquet", "tar"], indirect=True)
@pytest.mark.parametrize(("harm", "part"), [("replace", "was replaced"), ("remove", "is not there; put it back")])
def test_an_object_that_changes_in_the_middle_ends_the_run_in_one_line(
    bucket, shards, tmp_path, monkeypatch, capsys, harm, part
):
    url, client = bucket

    def change(self, done, loss):
        for file in sorted(shards.iterdir()) if done == 2 else ():
            if harm == "replace":
                write_shard(file, 1040)
                client.upload_file(str(file), "pets", f"data/{file.name}")
            else:
                client.delete_object(Bucket="pets", Key=f"data/{file.name}")

    monkeypatch.setattr(TrainingProgress, "step", change)
    assert main(["train", "--out", str(tmp_path / "run"), *flags(url, tmp_path, "--epochs", "2")]) == 2
    line = last_line(capsys)
    assert part in line and "s3://pets/data/train-" in line


def test_a_bucket_that_is_not_there_is_one_line(bucket, tmp_path, capsys):
    assert main(["train", *flags("s3://nobody", tmp_path)]) == 2
    assert "s3://nobody is not there; put it back, or correct data.name" in last_line(capsys)


def test_a_bucket_without_permission_is_one_line_with_what_to_do(bucket, tmp_path, monkeypatch, capsys):
    url, _ = bucket
    import boto3

    user = boto3.client("iam")
    user.create_user(UserName="stranger")
    key = user.create_access_key(UserName="stranger")["AccessKey"]
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    tell(endpoint, "reset-auth", "0")  # from now on it asks who one is
    try:
        for name, value in (("ID", key["AccessKeyId"]), ("KEY", key["SecretAccessKey"])):
            monkeypatch.setenv("AWS_ACCESS_KEY_ID" if name == "ID" else "AWS_SECRET_ACCESS_KEY", value)
        assert main(["train", *flags(url, tmp_path)]) == 2
        line = last_line(capsys)
        assert "no permission to read s3://pets; give credentials where the s3:// library looks for them" in line
        assert key["SecretAccessKey"] not in line
    finally:
        tell(endpoint, "reset-auth", "inf")


def test_a_bucket_without_credentials_is_one_line_with_what_to_do(bucket, tmp_path, monkeypatch, capsys):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert main(["train", *flags("s3://pets", tmp_path)]) == 2
    assert "no permission to read s3://pets; give credentials" in last_line(capsys)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"s3://key:{SECRET}@pets/data", "give credentials where"),
        ("nothing://pets", "no protocol that fsspec knows"),
        ("memory://nothing", "nothing is at memory://nothing; correct the URL"),
        ("memory://", "memory:// names no place; give one, such as memory://NAME/FOLDER"),
        ("s3:/bucket/pets", "write s3://bucket/pets for a URL"),
        ("s3:bucket/pets", "write s3://bucket/pets for a URL"),
        ("s3//bucket/pets", "write s3://bucket/pets for a URL"),
        ("S3://bucket/pets", "write s3://bucket/pets for a URL"),
        ("hf:datasets/user/pets", "write hf://datasets/user/pets for a URL"),
        ("hf://dataset/user/pets", "no such URL: "),
        ("memory://pets-{0..9}.tar", "give the folder's URL, without a pattern"),
    ],
)
def test_urls_that_cannot_be_used_are_refused_in_one_line(name, part, tmp_path, capsys):
    assert main(["train", *flags(name, tmp_path)]) == 2
    line = last_line(capsys)
    assert part in line and SECRET not in line


def test_a_url_of_a_folder_on_this_machine_is_that_folder(shards, tmp_path):
    assert_same(trained(shards, tmp_path / "one", tmp_path), trained(f"file://{shards}", tmp_path / "two", tmp_path))


def test_objects_that_are_packed_as_a_whole_are_refused(tmp_path, capsys):
    import fsspec

    fsspec.filesystem("memory").pipe("/packed/pets.tar.gz", b"x")
    assert main(["train", *flags("memory://packed", tmp_path)]) == 2
    assert "memory://packed/pets.tar.gz is compressed as a whole; put it there as a plain tar" in last_line(capsys)

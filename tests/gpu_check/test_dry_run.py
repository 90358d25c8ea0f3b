"""The GPU check does all its parts on a CPU, and what is cut off has left its numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from imixer.experiments.experiment import Row
from imixer.experiments.scales import SCALES
from imixer.gpu_check import speed
from imixer.gpu_check.__main__ import main
from imixer.gpu_check.checks import PROMISES, promises_on
from imixer.gpu_check.journal import Bench, Journal, last_attempts
from imixer.gpu_check.part_list import PARTS, Part
from imixer.gpu_check.part_process import run_parts
from imixer.gpu_check.promise import Place, at_most, relative_distance
from imixer.gpu_check.results_page import draw_page
from imixer.gpu_check.trainings import train_rows
from imixer.sweep.trial import record_failure

SLOW_HERE = [each for each in promises_on("cpu", slow=True) if each.slow]


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The folder of a dry run, with what it printed and its exit code."""
    folder = tmp_path_factory.mktemp("gpu") / "out"
    command = [sys.executable, "-m", "imixer.gpu_check", "--dry-run", "--minutes", "60", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return folder, done


def test_every_part_of_the_dry_run_finishes(dry_run):
    folder, done = dry_run
    assert done.returncode == 0, done.stdout + done.stderr
    records = Journal(folder / "results.jsonl").records()
    assert [(r["part"], r["ended"]) for r in records if "ended" in r] == [(part.name, "finished") for part in PARTS]


def test_the_page_has_every_part_and_the_comparison_of_its_trainings(dry_run):
    page = (dry_run[0] / "gpu.md").read_text()
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == [part.title for part in PARTS]
    for said in (
        "Each row is compared to the first row",
        "share waiting",
        "MFU percent",
        "calls a step",
        "| TF32 |",
        "| tiny, odd | 2 5 7 9 20 2 | bfloat16 | yes |",
    ):
        assert said in page
    assert str(dry_run[0]) not in page.replace(f"--out {dry_run[0]}", "")


def test_every_promise_that_a_cpu_can_try_is_tried(dry_run):
    records = Journal(dry_run[0] / "results.jsonl").records()
    tried = {r["row"]["promise"]: r["row"]["holds"] for r in records if r.get("table") == "Promises"}
    assert tried == {each.name: True for each in promises_on("cpu", slow=False)}


@pytest.mark.slow
@pytest.mark.parametrize("promise", SLOW_HERE, ids=lambda promise: promise.name)
def test_what_takes_longer_holds_on_a_cpu_too(promise, tmp_path):
    promise.attempt(Place(torch.device("cpu"), tmp_path))


def test_no_two_promises_have_one_name():
    assert len({each.name for each in PROMISES}) == len(PROMISES)


def test_what_is_expected_to_be_zero_proves_nothing():
    with pytest.raises(AssertionError, match="nothing to compare"):
        relative_distance(torch.zeros(3), torch.zeros(3))
    with pytest.raises(AssertionError):
        at_most(float("nan"), 1.0)
    assert relative_distance([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 0.0])]) == pytest.approx(4 / 3)


def bench(folder, part="hardware"):
    """A bench with a clock that stands, so that the same fits into its time on a machine of any speed."""
    journal = Journal(folder / "results.jsonl")
    return Bench(part, torch.device("cpu"), True, folder, None, journal, deadline=60, clock=lambda: 0.0)


def test_a_part_that_is_cut_off_or_dies_leaves_its_numbers_and_spoils_no_other(tmp_path, monkeypatch):
    drawn = []
    parts = [Part(name, name, 1, f"tests_{name}") for name in BEHAVIOURS]
    journal = Journal(tmp_path / "results.jsonl")

    def monotonic():
        """Let an hour, the limit of a part, pass as soon as the one that hangs has begun."""
        hangs = any(record.get("part") == "hangs" and "note" in record for record in journal.records())
        return time.monotonic() + 3600 * hangs

    clock = SimpleNamespace(monotonic=monotonic, time=time.time, sleep=time.sleep)
    monkeypatch.setattr("imixer.gpu_check.part_process.time", clock)
    monkeypatch.setattr("imixer.gpu_check.part_process.PARTS", parts)
    monkeypatch.setattr("imixer.gpu_check.part_process.processes", lambda: FORK)
    monkeypatch.setattr(Part, "load", lambda self: BEHAVIOURS[self.name])

    def make(part, deadline):
        (tmp_path / part.name).mkdir()
        made = bench(tmp_path / part.name, part.name)
        made.journal = journal
        return made

    run_parts(parts, make, 60 * len(parts), lambda: drawn.append(1))
    records = journal.records()
    ended = {r["part"]: r["ended"] for r in records if "ended" in r}
    assert ended == {
        "hangs": "cut off",
        "dies": "failed: its process ended with exit code 7",
        "raises": "failed: ValueError: of this part",
        "skips": "at its limit",
        "works": "finished",
    }
    assert {r["part"] for r in records if "note" in r} == set(BEHAVIOURS)
    assert len(drawn) >= len(parts)


def hang(bench):
    bench.note("begun")
    while True:
        time.sleep(0.1)


def die(bench):
    bench.note("begun")
    os._exit(7)


def fail(bench):
    bench.note("begun")
    raise ValueError("of this part")


def skip(bench):
    bench.deadline = 0
    assert bench.skipped("the rest")


BEHAVIOURS = {"hangs": hang, "dies": die, "raises": fail, "skips": skip, "works": lambda bench: bench.note("done")}


class Fork:
    """What starts processes that know this test."""

    def Process(self, **options):
        import multiprocessing

        return multiprocessing.get_context("fork").Process(**options)


FORK = Fork()


def test_the_page_says_how_far_each_part_came():
    records = [
        {"begun": {"command": "c", "date": "d", "dry_run": False}},
        {"part": "hardware", "table": "Versions", "row": {"what": "device", "value": "A | B"}},
        {"part": "hardware", "ended": "finished", "seconds": 3.4},
        {"part": "speed", "begins": 0},
        {"part": "speed", "table": "T", "row": {"model": "m", "images_per_s": 12345.6, "memory_MiB": None}},
        {"part": "speed", "table": "T", "row": {"model": "n", "images_per_s": 0.01234}},
    ]
    lines = draw_page(records).splitlines()
    assert lines[0] == r"# Minutes on A \| B"
    assert "| Versions, device, peaks | finished | 3 |" in lines
    assert "| Training steps | cut off |  |" in lines and "| Waiting for data | not begun |  |" in lines
    at = lines.index("| model | images per s | memory MiB |")
    assert lines[at + 1 : at + 4] == ["|---|---:|---:|", "| m | 12,346 |  |", "| n | 0.0123 |  |"]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    journal = Journal(tmp_path / "results.jsonl")
    journal.append({"part": "a", "row": {"x": float("nan")}})
    with journal.path.open("a") as file:
        file.write('{"part": "b", "ro')
    assert journal.records() == [{"part": "a", "row": {"x": None}}]
    journal.append({"part": "c"})
    assert journal.records() == [{"part": "a", "row": {"x": None}}, {"part": "c"}]


def test_of_a_part_that_was_tried_again_the_last_attempt_that_measured_something_counts():
    begins, first, second = ({"part": "speed", **more} for more in ({"begins": 0}, {"table": "T"}, {"table": "U"}))
    other = {"part": "data", "ended": "finished"}
    assert last_attempts([begins, first, other, begins, second]) == [begins, second, other]
    assert last_attempts([begins, first, begins]) == [begins, first]
    assert last_attempts([begins, begins]) == [begins]


def test_a_measurement_that_fails_is_said_and_makes_the_exit_code_1(tmp_path, monkeypatch, capsys):
    def without_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("imixer.gpu_check.speed._time", without_memory)
    made = bench(tmp_path, "speed")
    speed.run(made)
    rows = [r["row"] for r in made.journal.records() if "row" in r]
    assert len(rows) == len(speed.TINY_CASES) and {row["holds"] for row in rows} == {False}
    assert rows[0]["what"] == "iMixer at 8x8, eager" and "out of memory" in rows[0]["why_not"]
    assert "CUDA out of memory" in draw_page(made.journal.records())
    monkeypatch.setattr("imixer.gpu_check.part_process.run_parts", lambda *args: None)
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # which a dry run sets, and this process has other tests
    made.journal.append({"begun": {"dry_run": True, "parts": ["speed"]}})
    assert main(["--resume", str(tmp_path), "--minutes", "1"]) == 1
    assert "speed: iMixer at 8x8, eager: OutOfMemoryError: CUDA out of memory" in capsys.readouterr().out


def test_trainings_that_fail_are_said_with_their_reason_once(tmp_path, monkeypatch):
    """One says why itself, the other one's process is killed."""

    def work(trial, folder):
        if trial.cell.name == "killed":
            os._exit(9)
        record_failure(folder / trial.name, "no memory")

    monkeypatch.setattr("imixer.gpu_check.side_by_side.run_trial", work)
    monkeypatch.setattr("imixer.gpu_check.side_by_side.processes", lambda: FORK)
    made = bench(tmp_path, "pairs")
    scale = SCALES["smoke"]
    rows = [
        Row("killed", {"model": "killed"}, scale.imixer(), scale.data),
        Row("says", {"model": "says"}, scale.mixer(), scale.data),
    ]
    train_rows(made, "title", rows, scale, seeds=2, at_once=2)
    failed = {r["row"]["what"]: r["row"]["why_not"] for r in made.journal.records() if r.get("table") == "Failed"}
    killed = "its process ended with exit code 9"
    assert failed == {
        f"{name}, seed {seed}": why for name, why in (("killed", killed), ("says", "no memory")) for seed in (0, 1)
    }
    assert sum(r.get("table") == "Failed" for r in made.journal.records()) == 4


def test_a_dry_run_does_not_go_on_in_the_page_of_a_gpu(tmp_path, capsys):
    Journal(tmp_path / "results.jsonl").append({"begun": {"dry_run": False, "parts": ["speed"]}})
    before = (tmp_path / "results.jsonl").read_bytes()
    assert main(["--resume", str(tmp_path), "--dry_run"]) == 2
    assert "is no dry run" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_bytes() == before


@pytest.fixture
def on_gpu(monkeypatch):
    """A call that believes in a GPU, whose parts are done by a function that writes into the journal."""

    def call(*words, parts=lambda bench: None, device="A100"):
        seen = []

        def run_parts(chosen, bench, minutes, draw):
            for part in chosen:
                seen.append(bench(part, 0.0))
                parts(seen[-1])

        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("imixer.gpu_check.part_process.name_device", lambda: device)
        monkeypatch.setattr("imixer.gpu_check.part_process.run_parts", run_parts)
        return main([*words, "--parts", "speed"]), seen

    return call


def test_a_resumed_call_finds_the_data_and_refuses_another_gpu(tmp_path, on_gpu, capsys):
    (tmp_path / "cifar").mkdir()
    folder = str(tmp_path / "out")
    code, (bench,) = on_gpu("--out", folder, "--data_dir", str(tmp_path / "cifar"))
    assert code == 0 and bench.data_dir == str(tmp_path / "cifar")
    code, (bench,) = on_gpu("--resume", folder)
    assert code == 0 and bench.data_dir == str(tmp_path / "cifar")
    assert on_gpu("--resume", folder, device="H100") == (2, [])
    assert "was begun on A100, and this is H100" in capsys.readouterr().err
    assert on_gpu("--resume", folder, device=None)[0] == 0  # the first part will say why it has no name
    (tmp_path / "cifar").rename(tmp_path / "moved")
    assert on_gpu("--resume", folder) == (2, [])
    assert "which is gone; give it anew" in capsys.readouterr().err
    assert on_gpu("--resume", folder, "--data_dir", str(tmp_path / "moved"))[0] == 0
    code, (bench,) = on_gpu("--resume", folder)
    assert code == 0 and bench.data_dir == str(tmp_path / "moved")


def test_a_resumed_call_finds_the_data_of_the_folder_where_the_first_was_made(tmp_path, on_gpu, monkeypatch):
    for name in ("here/data", "elsewhere/data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert on_gpu("--out", str(tmp_path / "out"))[0] == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, (bench,) = on_gpu("--resume", str(tmp_path / "out"))
    assert code == 0 and bench.data_dir == str(tmp_path / "here/data")


def test_a_part_that_fails_when_it_is_resumed_is_told_though_the_page_has_an_earlier_attempt(tmp_path, on_gpu, capsys):
    def measure(bench):
        bench.journal.append({"part": "speed", "begins": 0.0})
        bench.row("Steps", ms=1.0)
        bench.journal.append({"part": "speed", "ended": "at its limit", "seconds": 1.0})

    def fail(bench):
        bench.journal.append({"part": "speed", "begins": 1.0})
        bench.journal.append({"part": "speed", "ended": "failed: it died", "seconds": 1.0})

    folder = str(tmp_path / "out")
    assert on_gpu("--out", folder, parts=measure)[0] == 0
    capsys.readouterr()
    assert on_gpu("--resume", folder, parts=fail)[0] == 1
    assert capsys.readouterr().out.count("speed: failed: it died") == 1


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks into /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_call_that_is_killed_in_training_leaves_nothing_running_and_can_be_resumed(number, code, tmp_path):
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "imixer.gpu_check", "--minutes", "60"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--dry-run", "--parts", "pairs", "--out", str(folder)], env=env)
    try:
        while not (logs := [log for log in folder.rglob("seed-*.log") if log.read_text().startswith("process ")]):
            assert process.poll() is None
            time.sleep(0.02)
        trial = int(logs[0].read_text().split()[1])
        process.send_signal(number)
        assert process.wait() == code
    finally:
        process.kill()
    while is_running(trial):
        time.sleep(0.1)
    assert "| Training: iMixer and Mixer of as many multiply-adds | cut off |" in (folder / "gpu.md").read_text()
    done = subprocess.run([*command, "--resume", str(folder)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (folder / "gpu.md").read_text()
    assert "| Training: iMixer and Mixer of as many multiply-adds | finished |" in page
    assert "| Versions, device, peaks | not begun |" in page and "Each row is compared to the first row" in page


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is full")
def test_a_full_disk_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "results.jsonl").write_text("")

    def full(self, record):
        with open("/dev/full", "w") as file:
            file.write("a record")

    monkeypatch.setattr(Journal, "append", full)
    assert main(["--dry-run", "--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("imixer: ") and "No space left" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0"], "minutes is 0"),
        (["--minutes", "nan"], "minutes is 'nan'"),
        (["--parts", "sped"], "no part 'sped'; did you mean speed"),
        (["--data_dir", "nowhere"], "data_dir is nowhere"),
        (["--out", "."], "out: . exists"),
        (["--resume", "nowhere"], "resume is nowhere, which has no results.jsonl"),
        (["--resume", ".", "--out", "a"], "out is a, and resume writes into ."),
        (["--what"], "--what"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, said, capsys, elsewhere):
    assert main(["--dry-run", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("imixer: ") and said in error and error.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_it_names_the_dry_run(capsys, elsewhere):
    assert main([]) == 2
    assert "--dry_run" in capsys.readouterr().err and list(elsewhere.iterdir()) == []


def test_what_the_server_of_processes_imports_asks_for_no_device():
    """A process that is forked after CUDA was asked for anything cannot use it."""
    code = (
        "import torch\n"
        "def refuse(*a, **k): raise SystemExit('asked for a device')\n"
        "for name in ('is_available', 'device_count', 'init', '_lazy_init'): setattr(torch.cuda, name, refuse)\n"
        "import importlib, imixer.training.train, imixer.experiments.reproduce\n"
        "from imixer.gpu_check.part_list import PARTS\n"
        "for part in PARTS: importlib.import_module(part.path)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_results_are_lines_of_json_as_they_come(dry_run):
    lines = (dry_run[0] / "results.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)

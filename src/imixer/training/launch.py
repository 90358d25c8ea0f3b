"""Start one process per device of this machine, and watch over them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from imixer.errors import InputError
from imixer.escaping import shell_word
from imixer.training.stop_signals import Interrupted

_REPORTS = "IMIXER_REPORTS"
_RUN = "run"
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # by torch, as long as processes run
_GRACE_S = 600  # for a step and a checkpoint, after SIGTERM
_PERIOD_S = 0.2


def launch(
    module: str, *words: str, devices: int, saved: str = "before the first checkpoint, nothing is saved"
) -> Path:
    """Run `python -m MODULE WORDS...` once per device, and wait. When one process dies, the others are ended.

    Each process finds its rank in the environment variables that `torchrun` would set.

    Args:
        module: The module to run. It calls `report_run` with its run, and `report_error` with why it ends.
        *words: The arguments of the module.
        devices: The number of processes.
        saved: What is said of the run where it is stopped and no process says it.

    Returns:
        The run's directory.

    Raises:
        InputError: If a process reports one, or dies.
        Interrupted: On SIGTERM or Ctrl-C, which the processes get too.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it in our own words
    before = {number: signal.getsignal(number) for number in _HANDLED}
    with tempfile.TemporaryDirectory() as reports:
        processes = start_processes(
            name="imixer",
            entrypoint=sys.executable,
            args=dict.fromkeys(range(devices), ("-m", module, *words)),
            envs=_environments(devices, reports),
            logs_specs=DefaultLogsSpecs(),
        )
        try:
            result = processes.wait(period=_PERIOD_S)
        except SignalException as asked:
            processes.close(death_sig=asked.sigval, timeout=_GRACE_S)
            said = _errors(reports) or saved
            raise Interrupted(said, asked.sigval) from asked
        finally:
            processes.close(timeout=_GRACE_S)
            for number, handler in before.items():
                signal.signal(number, handler)
        run = Path(reports) / _RUN
        path = Path(run.read_text(encoding="utf-8")) if run.exists() else None
        assert result is not None  # as it waits without a limit
        if result.is_failed():
            raise InputError(_errors(reports) or _death(result.failures, path))
        assert path is not None  # all went well
        return path


def report_run(path: Path) -> None:
    """Report the directory of the run to `launch`, from a process that it started. Elsewhere do nothing."""
    if folder := os.environ.get(_REPORTS):
        (Path(folder) / _RUN).write_text(str(path), encoding="utf-8")


def report_error(message: str) -> None:
    """Report to `launch` why a process ends that it started."""
    (Path(os.environ[_REPORTS]) / f"error-{os.environ['RANK']}").write_text(message, encoding="utf-8")


def _environments(devices: int, reports: str) -> dict[int, dict[str, str]]:
    common = os.environ | {
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "TORCHELASTIC_RUN_ID": "imixer",
        _REPORTS: reports,
    }
    # the processes share the cores
    common.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    return {rank: common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(devices)}


def _errors(reports: str) -> str | None:
    """Read the error of the first process that reported one."""
    files = sorted(Path(reports).glob("error-*"), key=lambda path: path.stat().st_mtime)
    return next((file.read_text(encoding="utf-8") for file in files), None)


def _death(failures: dict[int, ProcessFailure], run: Path | None) -> str:
    """Describe the end of the process that died first; one that was killed takes others along."""
    first = min(failures.values(), key=lambda failure: (failure.exitcode in (1, -signal.SIGTERM), failure.timestamp))
    code = first.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    more = (
        f"; `imixer train --resume {shell_word(run)}` continues from the latest checkpoint"
        if run and run.is_dir()
        else ""
    )
    return f"process {first.local_rank} of the run {how}, and the others were stopped{more}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""One process of a run on several devices, which `launch` starts: `python -m imixer.training.worker CONFIG [RUN]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from imixer.errors import InputError, user_line
from imixer.notices import notices_on_stderr
from imixer.training.launch import report_error
from imixer.training.run.parsing import load_config
from imixer.training.stop_signals import Interrupted
from imixer.training.train import resume, train

_PEER_GONE = ("Connection closed by peer", "Connection reset by peer")


def main(config: str, run: str = "") -> int:
    """Train as one of several processes.

    Args:
        config: The file of the configuration.
        run: The directory of a run to resume. Default: a new run.

    Returns:
        The exit code, as of the command line.
    """
    try:
        settings = load_config(Path(config))
        with notices_on_stderr():
            if run:
                resume(run, settings)
            else:
                train(settings)
        return 0
    except InputError as error:
        report_error(str(error))
        return 2
    except Interrupted as error:
        report_error(str(error))
        return error.exit_code
    except (OSError, MemoryError, RuntimeError) as error:
        if any(sign in str(error) for sign in _PEER_GONE):
            return 1  # the launcher tells of the process that died
        if (line := user_line(error)) is None:
            raise
        report_error(line)
        return 2


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: torch would wait for processes that are gone

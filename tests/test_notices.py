"""What is no result is logged: shown by the commands, and in the hands of whoever uses the library."""

import io
import logging
import subprocess
import sys
import warnings
from contextlib import redirect_stderr

import torch

from imixer.notices import notices_on_stderr
from imixer.plotting import drawn
from imixer.progress import announce
from imixer.training.third_party_warnings import silence


def fail(path):
    raise OSError("no fonts")


def test_the_commands_show_notices_as_they_are_each_once(capsys):
    logging.getLogger().addHandler(handler := logging.StreamHandler())  # as a library may have done
    with notices_on_stderr(), notices_on_stderr():
        announce("drawing 100% of [it]")
    logging.getLogger().removeHandler(handler)
    assert capsys.readouterr().err == "drawing 100% of [it] ...\n"


def test_notices_follow_stderr_where_it_leads(capsys):
    log = io.StringIO()
    with notices_on_stderr():
        with redirect_stderr(log):
            announce("in the log")
        announce("on the screen")
    assert (log.getvalue(), capsys.readouterr().err) == ("in the log ...\n", "on the screen ...\n")


def test_after_a_command_logging_is_as_it_was():
    before = logging.getLogger("imixer").__dict__ | {"_cache": None}
    with notices_on_stderr():
        pass
    assert logging.getLogger("imixer").__dict__ | {"_cache": None} == before


def test_a_user_of_the_library_can_take_the_warnings(tmp_path, caplog, capsys):
    assert not drawn(tmp_path / "a.png", fail)
    assert caplog.messages == [f"warning: {tmp_path}/a.png was not drawn (OSError: no fonts); all else is written"]
    caplog.clear()
    caplog.set_level(logging.ERROR, "imixer")
    assert not drawn(tmp_path / "a.png", fail)
    assert caplog.messages == [] and capsys.readouterr().err == ""


def test_without_any_setup_warnings_show_and_notices_do_not(tmp_path):
    code = (
        "from pathlib import Path; from imixer.plotting import drawn; from imixer.progress import announce\n"
        "announce('drawing'); drawn(Path('a.png'), lambda path: 1 / 0)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stderr
    assert said.splitlines() == [
        "warning: a.png was not drawn (ZeroDivisionError: division by zero); all else is written"
    ]


def test_what_torch_says_to_itself_is_not_shown():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        silence()
        torch.jit.script(torch.nn.Identity())
        warnings.warn("what a user should see", FutureWarning, stacklevel=1)
    assert [str(each.message) for each in shown] == ["what a user should see"]

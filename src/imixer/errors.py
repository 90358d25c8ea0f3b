"""The one exception that means: the user can mend this."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line that names the thing, its value, and the remedy. The command line prints it
    without a traceback and exits with 2.
    """

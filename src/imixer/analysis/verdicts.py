"""Verdicts on the screen."""

from rich.text import Text

_STYLES = {"guaranteed": "green", "observed": "cyan", "undecided": "magenta", "violated": "yellow"}


def styled(verdict: str) -> Text:
    """Give a verdict its colour."""
    return Text(verdict, _STYLES[verdict])

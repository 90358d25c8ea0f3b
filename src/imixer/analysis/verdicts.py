"""Verdicts on the screen."""

_STYLES = {"guaranteed": "green", "observed": "cyan", "undecided": "magenta", "violated": "yellow"}


def styled(verdict: str) -> str:
    """A verdict in its colour, for rich."""
    return f"[{_STYLES[verdict]}]{verdict}[/]"

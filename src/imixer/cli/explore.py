"""Explore a run and associative memories on a local page: `imixer explore`."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from imixer.analysis.explore.loopback import DEFAULT_PORT, listen, url_of
from imixer.cli.command import Command, chosen_run, run_parser
from imixer.cli.terminal import announce_loading
from imixer.escaping import one_line
from imixer.extras import require_extra


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = run_parser(
        "Serve a page to this machine on which to try a run on images, and associative memories on digits. Nothing is "
        "written. Ctrl-C ends it."
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="Port of the page; 0 takes any that is free.")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address of this machine to itself.")
    parser.add_argument(
        "--open",
        action=ActionYesNo(yes_prefix="", no_prefix="no-"),
        default=True,
        help="Open the page in a browser, where there is a screen.",
    )
    parser.add_argument(
        "--patterns", type=int, default=100, help="Training images to store, among which the nearest are found."
    )
    return parser


def run(args: Namespace) -> None:
    """Run the command."""
    path = chosen_run(args.run, args.model)
    require_extra("explore", "imixer explore")
    with listen(args.host, args.port) as opened:  # before anything takes time
        announce_loading("the run")
        from imixer.analysis.explore.explorer import Explorer
        from imixer.analysis.explore.server import serve
        from imixer.training.finished_run import load_run

        explorer = Explorer(load_run(path, args.device, args.checkpoint), data_path=args.data, patterns=args.patterns)
        url = url_of(opened)
        print(one_line(f"{explorer.run.name} is at {url} and memories at {url}memory; Ctrl-C ends it"), flush=True)
        if args.open and _has_screen():
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        serve(explorer, opened)
    print("stopped", flush=True)


def _has_screen() -> bool:
    """Say whether a browser would open a window, instead of taking the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


COMMAND = Command("Explore a run and memories on a local page.", build, run)

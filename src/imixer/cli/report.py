"""Write an HTML report about runs: `imixer report`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from imixer.cli.command import Command, new_parser
from imixer.cli.terminal import announce_loading
from imixer.escaping import one_line


def build() -> ArgumentParser:
    """Build the parser of the command."""
    parser = new_parser(
        "Write one HTML file about runs, with tables, charts and pictures. It needs no server or network."
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="Run directories, or folders that hold some, such as those of `sweep`.",
    )
    parser.add_argument("--out", metavar="FILE", type=str | None, help="Default: report.html in the first path.")
    return parser


def run(args: Namespace) -> None:
    """Run the command."""
    announce_loading("the runs", library="Plotly")
    from imixer.experiments.report.html_report import write_report

    print(one_line(f"written: {write_report(args.paths, args.out)}"))


COMMAND = Command("Write an HTML report about runs.", build, run)

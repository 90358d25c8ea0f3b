"""Check, measure and train on a GPU within minutes: `python -m imixer.gpu_check`."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from imixer.errors import InputError, did_you_mean
from imixer.escaping import one_line, shell_word
from imixer.extras import require_extra
from imixer.writing import check_output_folder

MINUTES = 8.0
PAGE, JOURNAL = "gpu.md", "results.jsonl"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check.

    Args:
        argv: Words after `python -m imixer.gpu_check`. Default: those of the process.

    Returns:
        The exit code: 0 if all parts ended well or at their limits, 1 if something does not hold or failed, 2 if the
        user can mend the error, 130 after Ctrl-C and 143 after SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        require_extra("train", "python -m imixer.gpu_check")
        return _check(words)
    except InputError as error:
        print(f"imixer: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that is gone
        print(f"imixer: {one_line(error)}; what was measured before is written", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("imixer: interrupted", file=sys.stderr)
        return 130
    except SystemExit as error:  # --help
        return error.code if isinstance(error.code, int) else 0


def _check(words: Sequence[str]) -> int:
    from jsonargparse import ArgumentParser

    from imixer.gpu_check.part_list import PARTS
    from imixer.training.run.parsing import parse

    names = [part.name for part in PARTS]
    parser = ArgumentParser(
        prog="python -m imixer.gpu_check", exit_on_error=False, allow_abbrev=False, description=__doc__
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="Minutes that all parts together may take.")
    parser.add_argument("--parts", nargs="+", metavar="PART", help=f"Parts to do: {', '.join(names)}. Default: all.")
    parser.add_argument("--out", metavar="DIR", help="Folder to make. Default: the next free gpu_check-<number>.")
    parser.add_argument(
        "--resume",
        metavar="DIR",
        help="Folder of an earlier call: do those of its parts that have not finished, and draw its page anew.",
    )
    parser.add_argument(
        "--data_dir", metavar="DIR", help="Folder with CIFAR-10, as for `imixer reproduce`. Default: data."
    )
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="Do all on the CPU, with tiny sizes.")
    args = parse(parser, words)
    if not 0 < args.minutes < 24 * 60:
        raise InputError(f"minutes is {args.minutes:g}; give more than 0, and less than a day")
    for name in args.parts or ():
        if name not in names:
            raise InputError(f"no part {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}")
    if args.data_dir is not None and not Path(args.data_dir).is_dir():
        raise InputError(
            f"data_dir is {args.data_dir}, which is no folder; give the one with the data sets, or leave it out"
        )
    if args.resume is not None and args.out is not None:
        raise InputError(f"out is {args.out}, and resume writes into {args.resume}; leave one of them out")
    if args.resume is not None and not (Path(args.resume) / JOURNAL).is_file():
        raise InputError(f"resume is {args.resume}, which has no {JOURNAL}; give the folder of an earlier call")
    return _run(words, args)


def _run(words: Sequence[str], args: Any) -> int:
    import torch

    from imixer.experiments.data_sets import DEFAULT_FOLDER
    from imixer.gpu_check.journal import Bench, Journal, last_attempts
    from imixer.gpu_check.part_list import PARTS, Part
    from imixer.gpu_check.part_process import name_device, run_parts
    from imixer.gpu_check.results_page import draw_page
    from imixer.training.stop_signals import interrupt
    from imixer.writing import write_text

    names: list[str] = args.parts or [part.name for part in PARTS]
    dry_run: bool = args.dry_run
    begun: dict[str, Any] = {}
    if args.resume is not None:
        earlier = Journal(Path(args.resume) / JOURNAL).records()
        calls = [record["begun"] for record in earlier if "begun" in record]
        for call in reversed(calls):  # the first says what was to be done, a later one where data lie now
            begun = begun | {name: value for name, value in call.items() if name != "data_dir" or not begun.get(name)}
        if dry_run and begun and not begun.get("dry_run"):
            raise InputError(
                f"dry_run is given, and {args.resume} is no dry run: its page is of a GPU; leave one of them out"
            )
        dry_run |= bool(begun.get("dry_run"))
        finished = {record["part"] for record in earlier if record.get("ended") == "finished"}
        names = args.parts or [name for name in begun.get("parts", names) if name not in finished]
    if not dry_run and not torch.cuda.is_available():
        raise InputError("torch sees no CUDA device here; add --dry_run to try the script itself on the CPU")
    data_dir: str | None = begun.get("data_dir") if args.data_dir is None else str(Path(args.data_dir).absolute())
    if data_dir is None and args.resume is None and Path(DEFAULT_FOLDER).is_dir():  # for a resumption from elsewhere
        data_dir = str(Path(DEFAULT_FOLDER).absolute())
    if data_dir is not None and not Path(data_dir).is_dir():
        raise InputError(f"{args.resume} was begun with data_dir {data_dir}, which is gone; give it anew")
    name = None if dry_run else name_device()
    if name and begun.get("device") and begun["device"] != name:
        raise InputError(f"{args.resume} was begun on {begun['device']}, and this is {name}; leave resume out")
    folder = _make_folder(args.out) if args.resume is None else Path(args.resume)
    device = torch.device("cpu" if dry_run else "cuda")
    journal = Journal(folder / JOURNAL)
    journal.append(
        {
            "begun": {
                "command": shlex.join(["python", "-m", "imixer.gpu_check", *words]),
                "date": time.strftime("%Y-%m-%d"),
                "dry_run": dry_run,
                "device": name,
                "data_dir": data_dir,
                "parts": names,
            }
        }
    )

    def bench(part: Part, deadline: float) -> Bench:
        earlier = (folder / f"{part.name}{'' if number == 1 else f'-{number}'}" for number in count(1))
        own = next(each for each in earlier if not each.exists())
        own.mkdir()
        return Bench(part.name, device, dry_run, own.absolute(), data_dir, journal, deadline)

    def draw() -> None:
        write_text(folder / PAGE, draw_page(journal.records()))

    if dry_run:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton
    print(f"{args.minutes:g} minutes; results as they come: {folder / PAGE}, {journal.path}", flush=True)
    written = len(journal.records())
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        draw()
        run_parts([part for part in PARTS if part.name in names], bench, args.minutes, draw)
    except KeyboardInterrupt as error:
        said = f"imixer: interrupted; what was measured is written, and --resume {shell_word(folder)} goes on"
        print(said, file=sys.stderr)
        return getattr(error, "exit_code", 130)
    finally:
        signal.signal(signal.SIGTERM, before)
    records = last_attempts(journal.records())
    ends = [record for record in records + journal.records()[written:] if "ended" in record]
    bad = [end for number, end in enumerate(ends) if end["ended"].startswith("failed") and end not in ends[:number]]
    bad += [record for record in records if record.get("row", {}).get("holds") is False]
    for record in bad:
        print(f"{record['part']}: {one_line(_what_is_bad(record))}")
    return int(bool(bad))


def _what_is_bad(record: dict[str, Any]) -> str:
    """Say which part, promise or measurement ended badly, and why."""
    if "ended" in record:
        return str(record["ended"])
    row = record["row"]
    name = next((str(row[title]) for title in ("promise", "what", "shape") if title in row), "")
    return f"{name}: {row['why_not']}" if row.get("why_not") else name


def _make_folder(out: str | None) -> Path:
    """Make the folder of the results, which must not exist."""
    candidates = [Path(out)] if out is not None else (Path(f"gpu_check-{number}") for number in count(1))
    for folder in candidates:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            check_output_folder(folder.parent, "out")  # which may be a link to nowhere
        except OSError as error:
            raise InputError(f"out: {folder} cannot be made, {error.strerror}") from error
        else:
            return folder
    raise InputError(f"out: {out} exists; give a folder that does not, and nothing is overwritten")


if __name__ == "__main__":
    sys.exit(main())

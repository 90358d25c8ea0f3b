"""An experiment as a table: on the screen, and as Markdown, LaTeX, CSV and JSON beside the paper's numbers."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any, Dict, List, Optional

from rich.console import Console

from imixer.escaping import for_csv, for_markdown
from imixer.experiments.comparison import CONFIDENCE
from imixer.experiments.outcome import Line, Reproduced
from imixer.experiments.paper import CONDITIONS
from imixer.experiments.table import Grid, latex, markdown, on_screen
from imixer.json_text import json_text
from imixer.training.atomic import write_text
from imixer.training.config import TrainConfig

_NUMBERS = ("top-1 %", "paper %", "trials", "difference", f"{CONFIDENCE:.0%} interval", "p", "parameters", "mult-adds")


def write_table(found: Reproduced, console: Console) -> None:
    """Write `<experiment>.md`, `.tex`, `.csv` and `.json` into the experiment's folder, and print the table.

    Args:
        found: The experiment.
        console: Where to print.
    """
    title, name = found.experiment.title, found.experiment.name
    grid, conditions, legend, remarks = _grid(found), _conditions(found), _legend(found), _remarks(found)
    caption = f"The paper's {title}" if title.startswith("Table") else title  # LaTeX gives it a number of its own
    records = [_record(found, line) for line in found.lines]
    notes = "\n".join(f"- {for_markdown(note)}" for note in [*legend, *remarks])
    texts = {
        "md": f"# {title}\n\n{for_markdown(conditions)}\n\n{markdown(grid)}\n{notes}\n",
        "tex": latex(
            grid, " ".join(f"{note}." for note in [caption, conditions, *legend]), f"{name}-{found.scale.name}"
        ),
        "csv": _csv(records),
        "json": json_text(_facts(found) | {"rows": records, "shown": _shown(grid, legend, remarks)}, non_finite="null")
        + "\n",
    }
    files = {found.folder / f"{name}.{suffix}": text for suffix, text in texts.items()}
    for file, text in files.items():
        write_text(file, text)
    console.print(on_screen(grid, title))
    for note in [conditions, *legend, *remarks]:
        console.print(note, markup=False, soft_wrap=True)
    console.print(f"written: {', '.join(map(str, files))}", markup=False, soft_wrap=True)


def _shown(grid: Grid, legend: List[str], remarks: List[str]) -> Dict[str, Any]:
    """The table as it is printed, for whoever shows it again."""
    return {"header": grid.header, "rows": grid.rows, "text": grid.text, "notes": [*legend, *remarks]}


def _grid(found: Reproduced) -> Grid:
    labels = tuple(found.lines[0].row.labels)
    rows = tuple((*line.row.labels.values(), *_numbers(found, line)) for line in found.lines)
    return Grid((*labels, *_NUMBERS), rows, len(labels))


def _numbers(found: Reproduced, line: Line) -> List[str]:
    compared, costs, paper = found.compared(line), line.costs, line.row.paper
    difference = interval = p = ""
    if line.row.baseline is None:
        difference = "baseline"
    elif compared is not None:
        difference = f"{compared.difference:+.2f}"
        if compared.low is not None and compared.high is not None and compared.p is not None:
            interval = f"[{compared.low:.2f}, {compared.high:.2f}]"
            p = "< 0.001" if compared.p < 0.001 else f"{compared.p:.3f}"
    return [
        "not run" if line.config is None else _spread(line.mean, line.std),
        _spread(paper.mean, paper.std) if paper else "",
        _count(line),
        difference,
        interval,
        p,
        f"{costs.parameters:,}" if costs else "",
        f"{costs.multiply_adds / 1e6:,.2f} M" if costs and costs.multiply_adds is not None else "",
    ]


def _spread(mean: Optional[float], std: Optional[float]) -> str:
    if mean is None:
        return "-"
    return f"{mean:.2f}" if std is None else f"{mean:.2f} +- {std:.2f}"


def _count(line: Line) -> str:
    done, planned = len(line.finished), len(line.runs)
    left = ", ".join(f"{count} {status}" for status, count in line.counts.items() if status != "finished")
    return f"{done} of {planned} ({left})" if left else f"{done or ''}"


def _conditions(found: Reproduced) -> str:
    """The scale, the data, the length and the number of trials."""
    configs = [line.config for line in found.lines if line.config]
    epochs = " or ".join(sorted({_length(config) for config in configs}))
    there = [data for data in found.data.values() if not data.missing]
    data = ", ".join(
        f"{data.name} ({data.training:,} training and {data.held_out:,} held-out images)" for data in there
    )
    side = found.scale.side
    return (
        f"Scale {found.scale.name}: {data}; {side}x{side} pixels; {epochs}; "
        f"{found.trials} {'trial' if found.trials == 1 else 'trials'} per row; {found.scale.summary}"
    )


def _length(config: TrainConfig) -> str:
    cooldown = config.schedule.cooldown_epochs
    return f"{config.epochs} epochs" + (f" and {cooldown} at the lowest learning rate" if cooldown else "")


def _legend(found: Reproduced) -> List[str]:
    """What the columns are."""
    return [
        "top-1: on the held-out images after the last epoch, mean +- standard deviation over the finished trials",
        f"paper: what it reports ({CONDITIONS})",
        f"difference: to {found.experiment.baseline}, in points, with confidence interval and p of Welch's test",
        "mult-adds: multiply-adds of one image's forward, normalisation baked in; none where they depend on the image",
    ]


def _remarks(found: Reproduced) -> List[str]:
    """What is missing and why, and what the trials ran on."""
    missing = [f"not run: {data.name}: {data.missing}" for data in found.data.values() if data.missing]
    failed = [f"failed: {run.path}: {run.outcome.error}" for run in found.failed]
    return [*missing, *failed, *(f"ran on: {_machine(each)}" for each in found.environments)]


def _machine(environment: Dict[str, Any]) -> str:
    hardware = ", ".join(environment["gpus"]) or f"{environment['cores']} cores of {environment['cpu']}"
    versions = ", ".join(f"{name} {environment[name]}" for name in ("python", "torch", "timm", "imixer"))
    return f"{hardware}; {versions}, commit {environment.get('commit') or 'unknown'}"


def _facts(found: Reproduced) -> Dict[str, Any]:
    return {
        "experiment": found.experiment.name,
        "title": found.experiment.title,
        "scale": found.scale.name,
        "conditions": _conditions(found),
        "trials": found.trials,
        "baseline": found.experiment.baseline,
        "confidence": CONFIDENCE,
        "paper_conditions": CONDITIONS,
        "data": {name: asdict(data) for name, data in found.data.items()},
        "environments": found.environments,
    }


def _record(found: Reproduced, line: Line) -> Dict[str, Any]:
    """A line with all its numbers. Accuracies in %, differences in points, times in seconds."""
    compared, costs, paper = found.compared(line), line.costs, line.row.paper
    return {
        "name": line.row.name,
        "labels": line.row.labels,
        "data": line.row.data,
        "mean": line.mean,
        "std": line.std,
        "finished": len(line.finished),
        "paper": asdict(paper) if paper else None,
        "baseline": line.row.baseline,
        "comparison": asdict(compared) if compared else None,
        "parameters": costs.parameters if costs else None,
        "multiply_adds": costs.multiply_adds if costs else None,
        "config": asdict(line.config) if line.config else None,
        "runs": [
            {
                "seed": run.seed,
                "path": str(run.path),
                "status": run.outcome.status,
                "epoch": run.outcome.epoch,
                "top1": None if run.outcome.val_acc is None else 100 * run.outcome.val_acc,
                "val_loss": run.outcome.val_loss,
                "seconds": run.outcome.seconds,
                "error": run.outcome.error,
            }
            for run in line.runs
        ],
    }


def _csv(records: List[Dict[str, Any]]) -> str:
    """The numbers of the records; those of the trials are in the JSON file."""
    rows = []
    for record in records:
        row = {name: value for name, value in record.items() if not isinstance(value, (dict, list))}
        groups = {"paper": ("mean", "std"), "comparison": ("difference", "low", "high", "p")}
        for group, names in groups.items():
            row.pop(group, None)
            row |= {f"{group}_{name}": (record[group] or {}).get(name) for name in names}
        row.pop("config", None)
        rows.append(record["labels"] | row | {"planned": len(record["runs"])})
    content = io.StringIO()
    writer = csv.DictWriter(content, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: for_csv(value) for name, value in row.items()} for row in rows)
    return content.getvalue()

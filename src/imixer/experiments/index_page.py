"""Write all experiments of a command as one Markdown page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from imixer.escaping import for_markdown
from imixer.experiments.experiment_result import ExperimentResult, judge_page
from imixer.experiments.sentences import describe_decided, summarise
from imixer.experiments.table_output import bullets, count_tests, machine, present, section
from imixer.writing import write_text


def write_index(page: Sequence[ExperimentResult], command: str) -> Path:
    """Write `index.md` beside the tables and figures.

    All comparisons of scores are judged together. The correction is for more of them than on the page of a single
    experiment, so that fewer may be decided. An experiment that compares by other measures keeps its own correction.

    Args:
        page: The experiments, in order. One at least.
        command: Command line that made the page.

    Returns:
        The file.
    """
    tabulated = [each for each in page if each.experiment.tabulated]
    judgements = judge_page(tabulated)
    scale = page[0].scale
    machines = dict.fromkeys(machine(environment) for each in page for environment in each.environments)
    said = [
        f"{each.experiment.title}: {sentence}"
        for each, own in zip(tabulated, judgements, strict=True)
        for sentence in describe_decided(each, own)
    ]
    measured = [each.experiment.name for each in page if each.experiment.measured]
    metrics = " and ".join(dict.fromkeys(each.experiment.metric for each in tabulated))
    summary = f"{for_markdown(summarise(judgements))}."
    if said:
        summary += f" What is decided, in points of {metrics} after the last epoch:"
    parts = [
        f"# The paper's tables and figures at the scale {scale.name}\n",
        f"`{command}`; {for_markdown('; '.join(machines) or 'nothing is finished')}.\n",
        f"{summary}\n" if tabulated else "",
        bullets(said),
        f"{' and '.join(measured)}: differences in measures of their own, each corrected for its own tests.\n"
        if measured
        else "",
    ]
    presented = {
        each.experiment.name: present(each, own, count_tests(judgements))
        for each, own in zip(tabulated, judgements, strict=True)
    }
    for each in page:
        shown = presented.get(each.experiment.name)
        parts.append(_own_page(each) if shown is None else section(shown))
    if presented:
        legend = dict.fromkeys(line for shown in presented.values() for line in shown.legend)
        parts.append(f"## How to read the tables\n\n{bullets(list(legend))}")
    file = page[0].folder / "index.md"
    write_text(file, "\n".join(part for part in parts if part))
    return file


def _own_page(result: ExperimentResult) -> str:
    """Write an experiment with a page of its own, or with a picture only, as a section."""
    title = for_markdown(result.experiment.title)
    picture = result.folder / f"{result.experiment.name}.png"
    own = picture.with_suffix(".md")
    if own.is_file() and (picture.is_file() or not result.experiment.figure):
        return re.sub(r"^#", "##", own.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if not picture.is_file():
        return f"## {title}\n\nNot {'drawn' if result.experiment.figure else 'measured'}: no trial is finished.\n"
    return f"## {title}\n\n![{title}]({picture.name})\n"

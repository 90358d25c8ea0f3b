"""Accuracy and latency against the number of iterations, on the screen."""

from rich.console import Console
from rich.table import Table

from imixer.analysis.iterations import MAX_STEPS, Comparison
from imixer.analysis.statistics import plus_minus


def report_iterations(found: Comparison, console: Console) -> None:
    """One row per setting.

    Args:
        found: What `compare_iterations` gave.
        console: Where to print.
    """
    first = found.outcomes[0]
    table = Table(
        title=f"Trained with {found.trained}; {len(first.correct)} held-out images; latency: median and quartiles of "
        f"{len(first.latency)}, batches of {found.batch_size}, {found.device}",
        title_justify="left",
    )
    table.add_column("solved")
    for name in ("accuracy %", "same answer %", "logit change %", "evaluations per block", "ms per image"):
        table.add_column(name, justify="right")
    for o in found.outcomes:
        low, middle, high = o.latency_quartiles
        counts = ", ".join(f"{float(block.double().mean()):.1f}" for block in o.evaluations)
        table.add_row(
            f"[bold]{o.setting}[/]" if str(o.setting) == found.trained else str(o.setting),
            f"{100 * o.accuracy:.2f} +- {100 * o.accuracy_error:.2f}",
            f"{100 * float(o.same.double().mean()):.2f}",
            plus_minus(100 * o.change),
            counts if o.setting.tolerance is not None else str(o.setting.n_iter),
            f"{middle:.3f} ({low:.3f}-{high:.3f})",
        )
    console.print(table)
    console.print(
        "accuracy: +- standard error. same answer, logit change (relative, mean +- std): against the model as trained. "
        "evaluations: of F, of each block, mean over images"
    )
    for o in found.outcomes:
        if o.converged is not None and o.converged < 1:
            console.print(f"{o.setting}: {1 - o.converged:.2%} of the inverses not met in {MAX_STEPS} evaluations")

"""Accuracy and latency against the number of iterations, drawn."""

from pathlib import Path

from matplotlib.figure import Figure  # without pyplot: no display, no global state

from imixer.analysis.iterations import Comparison

_STYLES = {"n iterations": ("#0072B2", "o", "-"), "to a tolerance": ("#D55E00", "s", "--")}


def draw_iterations(found: Comparison, path: Path) -> None:
    """Left: accuracy with its standard error. Right: median latency with its quartiles. Both against the evaluations of
    F per block and image, which are n, or the mean of what a tolerance takes.

    Args:
        found: What `compare_iterations` gave.
        path: PNG to write.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    accuracy, latency = figure.subplots(1, 2)
    for kind, (color, marker, ls) in _STYLES.items():
        outcomes = [o for o in found.outcomes if (o.setting.tolerance is None) == (kind == "n iterations")]
        if not outcomes:
            continue
        style = dict(color=color, marker=marker, ls=ls, capsize=3, label=kind)
        x = [float(o.evaluations.double().mean()) for o in outcomes]
        accuracy.errorbar(x, [100 * o.accuracy for o in outcomes], [100 * o.accuracy_error for o in outcomes], **style)
        low, middle, high = zip(*(o.latency_quartiles for o in outcomes), strict=True)
        below = [m - q for m, q in zip(middle, low, strict=True)]
        above = [q - m for m, q in zip(middle, high, strict=True)]
        latency.errorbar(x, middle, [below, above], **style)
        if kind == "to a tolerance":
            for axes, y in ((accuracy, [100 * o.accuracy for o in outcomes]), (latency, middle)):
                for x_i, y_i, o in zip(x, y, outcomes, strict=True):
                    axes.annotate(
                        f"{o.setting.tolerance:.0e}", (x_i, y_i), (4, -11), textcoords="offset points", fontsize=7
                    )
    images = len(found.outcomes[0].correct)
    accuracy.set(ylabel="accuracy in %", title=f"{images} held-out images, trained with {found.trained}")
    latency.set(ylabel="ms per image", title=f"Latency, batches of {found.batch_size}, {found.device}")
    latency.set_ylim(bottom=0)
    for axes in (accuracy, latency):
        axes.set_xlabel("evaluations of F per block")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)

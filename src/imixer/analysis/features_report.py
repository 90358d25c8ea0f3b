"""`imixer analyze features`: a run measured, written down and told on the screen."""

from pathlib import Path
from typing import Any, Tuple

from rich.console import Console
from rich.table import Table

from imixer.analysis.features import Features, features_of
from imixer.analysis.features_figure import draw_features
from imixer.analysis.record import record
from imixer.training.run_directory import open_run


def analyze_features(path: str, **options: Any) -> Tuple[Features, Path]:
    """`features_of` a run, written as `features.json`, `.png` and `.pdf` into its `analysis` folder.

    Args:
        path: The run's directory.
        options: Of `features_of`.

    Returns:
        The features and the folder.

    Raises:
        InputError: As there.
    """
    found = features_of(path, **options)
    written = {
        "image": found.name,
        "block": found.block,
        "n_iter": found.n_iter,
        "changes_of_x": found.changes_of_x.tolist(),
        "changes_of_maps": found.changes_of_maps.tolist(),
    }
    return found, record(open_run(path), "features", written, lambda path: draw_features(found, path))


def report_features(found: Features, console: Console) -> None:
    """One row per iteration.

    Args:
        found: What `features_at` gave.
        console: Where to print.
    """
    table = Table(title=f"{found.name}, block {found.block}: change in % of the last", title_justify="left")
    for name in ("iteration", "x", "H(x)"):
        table.add_column(name, justify="right")
    for a, (x, maps) in enumerate(zip(found.changes_of_x, found.changes_of_maps, strict=True)):
        table.add_row(f"{a} -> {a + 1}", f"{100 * float(x):.3g}", f"{100 * float(maps):.3g}")
    console.print(table)
    console.print("norms over all channels; H(x): what the block adds to its tokens")

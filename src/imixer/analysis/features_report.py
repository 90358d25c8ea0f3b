"""How far each iteration moves one image's features, on the screen."""

from rich.console import Console
from rich.table import Table

from imixer.analysis.features import Features


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

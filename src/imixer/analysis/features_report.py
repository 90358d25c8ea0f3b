"""`imixer analyze features`: a run measured, written down and told on the screen."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from imixer.analysis.analyze import Analysis
from imixer.analysis.features import Features, features_at
from imixer.analysis.features_figure import draw_features
from imixer.data.loading import load_image
from imixer.errors import InputError
from imixer.training.finite import require_finite_outputs
from imixer.training.reload import Reloaded


def _measure(
    reloaded: Reloaded,
    *,
    image: int | str = 0,
    block: int | None = None,
    n_iter: int | None = None,
    data: str | None = None,
) -> Features:
    name, pixels = _load(reloaded, image, data)
    require_finite_outputs(reloaded.model, pixels[None].to(reloaded.device), reloaded.run.path)
    return features_at(reloaded.model, pixels.to(reloaded.device), block=block, n_iter=n_iter, name=name)


def _load(reloaded: Reloaded, image: int | str, moved_to: str | None) -> tuple[str, Tensor]:
    if isinstance(image, str):
        return Path(image).name, reloaded.transform(load_image(image, reloaded.input_size[0]))
    val = reloaded.data(moved_to).val
    total = len(val)  # type: ignore[arg-type]  # torch's Dataset does not promise a length
    if not 0 <= image < total:
        raise InputError(f"image is {image}; give 0 to {total - 1}, or a file")
    return f"held-out {image}", reloaded.transform(val[image][0])


def _numbers(found: Features) -> dict[str, Any]:
    return {
        "image": found.name,
        "block": found.block,
        "n_iter": found.n_iter,
        "changes_of_x": found.changes_of_x.tolist(),
        "changes_of_maps": found.changes_of_maps.tolist(),
    }


def _show(found: Features, console: Console) -> None:
    """One row per iteration."""
    table = Table(title=f"{found.name}, block {found.block}: change in % of the last", title_justify="left")
    for name in ("iteration", "x", "H(x)"):
        table.add_column(name, justify="right")
    for a, (x, maps) in enumerate(zip(found.changes_of_x, found.changes_of_maps, strict=True)):
        table.add_row(f"{a} -> {a + 1}", f"{100 * float(x):.3g}", f"{100 * float(maps):.3g}")
    console.print(table)
    console.print("norms over all channels; H(x): what the block adds to its tokens")


ANALYSIS = Analysis("features", _measure, _numbers, draw_features, _show)

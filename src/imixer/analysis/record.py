"""Where a measurement of a run is written."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Dict

from imixer.training.run_directory import RunDirectory


def record(run: RunDirectory, name: str, numbers: Dict[str, Any], draw: Callable[[Path], None]) -> Path:
    """Write `<name>.json` and `<name>.png` into the run's `analysis` folder, over those of an earlier measurement.

    Args:
        run: The run.
        name: What was measured.
        numbers: What to write. Numbers that are not finite, which JSON lacks, become null.
        draw: Draws the figure into the file it is given.

    Returns:
        The folder.
    """
    folder = run.analysis
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(_finite(numbers), indent=2), encoding="utf-8")
    draw(folder / f"{name}.png")
    return folder


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

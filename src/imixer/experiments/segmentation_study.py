"""Define the experiments on classes of pixels: the recipe beside baselines, and what its inverses are worth."""

from __future__ import annotations

from typing import Any

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.scales import Scale
from imixer.recipes import load_recipe
from imixer.training.run.parsing import flatten

_RECIPE = "scenes"
_SHORT_EPOCHS = 4
_NO_INVERSE = {"model.n_iter": None, "model.hidden_ratio": None}
_BASELINES: dict[str, tuple[str, dict[str, Any]]] = {  # row -> in words, settings that differ
    "mixer": ("Mixer of as many multiply-adds", {"model.name": "mixer_t4_32", "model.tokens_dim": 96} | _NO_INVERSE),
    "unet": ("U-Net", {"model.name": "unet_16", "segment.head": "linear", "segment.levels": [0]}),
}
_SOLVED = {"model.solver": "anderson", "model.gradient": "implicit", "model.on_failure": "warn"}
_INVERSES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {  # row -> cells that differ, settings that differ
    "n=0": ({"n": "0"}, {"model.n_iter": 0}),
    "n=2": ({"n": "2"}, {"model.n_iter": 2}),
    "n=4": ({"n": "4"}, {"model.n_iter": 4}),
    "solved": ({"n": "solved"}, _SOLVED),
    "L=2": ({"L": "2", "n": "none", "h_r": "none"}, {"model.num_layers": 2}),
    "L=4": ({"L": "4"}, {"model.num_layers": 4}),
    "h_r=0.25": ({"h_r": "0.25"}, {"model.hidden_ratio": 0.25}),
    "h_r=1": ({"h_r": "1"}, {"model.hidden_ratio": 1.0}),
    "h_r=2": ({"h_r": "2"}, {"model.hidden_ratio": 2.0}),
}


def _settings() -> dict[str, Any]:
    # one precision for all rows, which a measurement before each training might choose otherwise
    return flatten(load_recipe(_RECIPE)) | {"logger": "csv", "precision": "bf16"}


def _baselines(scale: Scale) -> list[Row]:
    settings = _settings()
    others = {name: value for name, value in settings.items() if not name.startswith("model.")}
    rows = [Row("imixer", {"model": "iMixer"}, settings, scale.data)]
    for name, (words, changes) in _BASELINES.items():
        kept = others if name == "unet" else settings
        rows.append(Row(name, {"model": words}, kept | changes, scale.data, rows[0].name))
    return rows


def _inverses(scale: Scale) -> list[Row]:
    settings, cells = _settings() | {"epochs": _SHORT_EPOCHS}, {"L": "3", "n": "1", "h_r": "0.5"}
    default = Row("imixer", cells, settings, scale.data)
    changed = [
        Row(name, cells | differing, settings | changes, scale.data, default.name)
        for name, (differing, changes) in _INVERSES.items()
    ]
    return [default, *changed]


SEGMENTATION = Experiment(
    "segmentation",
    "Beyond the paper: classes of pixels, beside a Mixer and a U-Net of as many multiply-adds",
    "the recipe scenes",
    _baselines,
    scale="scenes",
    metric="mIoU",
    notes=("All settings but the model's are those of the recipe, which was tuned for the iMixer",),
    show_time=True,
)
SEGMENTATION_INVERSE = Experiment(
    "segmentation_inverse",
    f"Beyond the paper: what the inverse is worth for classes of pixels, after {_SHORT_EPOCHS} epochs",
    "the recipe scenes (L = 3, n = 1, h_r = 0.5)",
    _inverses,
    scale="scenes",
    metric="mIoU",
    notes=(
        "n = 0 leaves F out, whose weights are there and not trained; L = 2 has no F: both are Mixers",
        "solved: by Anderson acceleration, with the implicit gradient",
    ),
    show_time=True,
)

"""Define the experiments on the laptop recipe: what its iMLP, its convolutions and each of its pieces are worth."""

from __future__ import annotations

from typing import Any

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.scales import Scale
from imixer.recipes import load_recipe
from imixer.training.run.parsing import flatten

_RECIPE = "laptop/imixer_cifar10"
_CONTROLS: dict[str, tuple[str, str]] = {  # row -> in words, recipe
    "mixer": ("Mixer of as many multiply-adds", "laptop/mixer_cifar10"),
    "flat": ("iMixer without stages", "laptop/imixer_flat_cifar10"),
    "plain": ("iMixer on plain patches", "laptop/imixer_plain_cifar10"),
    "stem-only": ("the convolutions alone", "laptop/stem_only_cifar10"),
}
_PYRAMID = (
    "a whitened stem, 2, 4 and 2 blocks of 64, 128 and 192 channels on 16x16, 8x8 and 4x4 tokens, n = 1, h_r = 0.5"
)
_EQUAL_BUDGETS = "All rows have the same budget in multiply-adds, so that a cheaper model sees more images"
_PIECES_BUDGET = "0.05P"
_PIECES: dict[str, tuple[str, dict[str, Any]]] = {  # row -> in words, settings that differ
    "conv-stem": ("learned convolutions in the stem, not whitening", {"model.stem": "conv"}),
    "patch-stem": ("plain patches, no convolution before the first block", {"model.stem": "patch"}),
    "adamw": ("AdamW", {"optim.opt": "adamw", "optim.lr": 2e-3, "optim.betas": [0.9, 0.95]}),
    "cosine": ("cosine schedule", {"schedule.sched": "cosine"}),
    "random-flip": ("random flips", {"data.flip": "random"}),
    "no-shift": ("no shifts", {"data.crop": "center", "data.shift": None}),
    "no-policy": ("no RandAugment", {"data.auto_augment": None}),
    "paper-inverse": ("n = 2, h_r = 2", {"model.n_iter": 2, "model.hidden_ratio": 2.0}),
    "no-norm": ("no spectral norm", {"model.norm": "none"}),
}


def _controls(scale: Scale) -> list[Row]:
    default = Row("imixer", {"model": "iMixer"}, _settings(_RECIPE), "cifar10")
    controls = [
        Row(name, {"model": words}, _settings(recipe), "cifar10", default.name)
        for name, (words, recipe) in _CONTROLS.items()
    ]
    return [default, *controls]


def _pieces(scale: Scale) -> list[Row]:
    settings = _settings(_RECIPE) | {"budget": _PIECES_BUDGET}
    default = Row("recipe", {"changed": "nothing"}, settings, "cifar10")
    changed = [
        Row(name, {"changed": words}, settings | change, "cifar10", default.name)
        for name, (words, change) in _PIECES.items()
    ]
    return [default, *changed]


def _settings(recipe: str) -> dict[str, Any]:
    return flatten(load_recipe(recipe)) | {"logger": "csv"}


LAPTOP = Experiment(
    "laptop",
    "Beyond the paper: the laptop recipe and its controls, at equal budgets",
    "laptop/imixer_cifar10",
    _controls,
    scale="laptop",
    notes=(_EQUAL_BUDGETS,),
    show_time=True,
    models=_PYRAMID,
)
LAPTOP_PIECES = Experiment(
    "laptop_pieces",
    f"Beyond the paper: each piece of the laptop recipe, at {_PIECES_BUDGET}",
    f"laptop/imixer_cifar10 at {_PIECES_BUDGET}",
    _pieces,
    scale="laptop",
    notes=(
        _EQUAL_BUDGETS,
        "Settings were tuned for the recipe and not for the rows, which favours the recipe",
    ),
    models=_PYRAMID,
)

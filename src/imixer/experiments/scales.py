"""Define the scales of experiments, from minutes on digits to the paper's own recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from imixer.experiments.paper import HIDDEN_RATIO, N_ITER, PAPER_TABLE_4, Model, ModelSize
from imixer.recipes import load_recipe, recipes
from imixer.training.run.parsing import flatten

_PAPERS_SETS = tuple(dict.fromkeys(data for data, _ in PAPER_TABLE_4))
DATA_SETS = ("digits", "cifar10", *_PAPERS_SETS)  # on which any experiment can be done
_FIXED_SIZE_DATA = ("digits", "cifar10", "cifar100")  # which `data.pipeline: device` wants
# What an iMixer's name says already. Left out, it makes no second configuration of the same thing.
_PAPER_VALUES: dict[str, Any] = {"n_iter": N_ITER, "hidden_ratio": HIDDEN_RATIO, "norm": "spectral", "num_layers": 3}


@dataclass(frozen=True)
class Scale:
    """Size of the models, the data and the schedule of all experiments.

    Args:
        name: Name on the command line.
        summary: The models, in words.
        trials: Trials per row, unless the command says otherwise.
        data: Data set of all experiments but Table 4. `dataclasses.replace` gives the scale on another one.
        table4_data: Data sets of Table 4.
        recipe: Name of the recipe to start from. `{model}`, `{size}` and `{data}` in it are filled in.
        variant: Name of the model. `{model}` and `{size}` in it are filled in.
        image_size: Side of an image, in pixels.
        patch_size: Side of a patch, in pixels.
        embed_dim: Width C, by size.
        overrides: Settings that win over the recipe's, by dotted name.
        only_own: Whether it has none but the experiments that name it.
        data_given: Whether the data set was asked for, and is no default.
    """

    name: str
    summary: str
    trials: int
    data: str
    table4_data: tuple[str, ...]
    recipe: str
    variant: str
    image_size: int
    patch_size: int
    embed_dim: dict[ModelSize, int]
    overrides: dict[str, Any]
    only_own: bool = False
    data_given: bool = False

    def mixer(self, size: ModelSize = "S", data: str | None = None, mlp_ratio: float | None = None) -> dict[str, Any]:
        """Return the settings of an MLP-Mixer, by dotted name.

        Args:
            size: Its size.
            data: Its data set. Default: that of the scale.
            mlp_ratio: Width of the token mixing over C. Default: 0.5, as in the paper.
        """
        wider = {} if mlp_ratio is None else {"model.kwargs.mlp_ratio": [mlp_ratio, 4.0]}
        return self._settings("mixer", size, data) | wider

    def imixer(self, size: ModelSize = "S", data: str | None = None, **changes: Any) -> dict[str, Any]:
        """Return the settings of an iMixer, by dotted name.

        Args:
            size: Its size.
            data: Its data set. Default: that of the scale.
            **changes: Fields of `ModelConfig` that differ from the paper's iMixer.
        """
        changed = {name: value for name, value in changes.items() if _PAPER_VALUES.get(name) != value}
        return self._settings("imixer", size, data) | {f"model.{name}": value for name, value in changed.items()}

    def matching_ratio(self, size: ModelSize) -> float:
        """Return the width D of a Mixer's token mixing, over C, that makes its multiply-adds equal to an iMixer's.

        Per channel and block, the token mixing of a Mixer takes 2 S D multiply-adds and that of an iMixer
        2 S D_S + 2 n D_S N_h. Hence D = D_S + n D_S N_h / S, rounded.

        Args:
            size: Size of both.
        """
        S, D_S = (self.image_size // self.patch_size) ** 2, self.embed_dim[size] // 2
        return round(D_S + N_ITER * D_S * int(HIDDEN_RATIO * D_S) / S) / self.embed_dim[size]

    def _settings(self, model: Model, size: ModelSize, data: str | None) -> dict[str, Any]:
        data = data or self.data
        names = {"model": model, "size": size.lower(), "data": data}
        recipe = self.recipe.format(**names)
        if recipe not in recipes():  # the paper trains on all data sets alike
            recipe = self.recipe.format(**names | {"data": "cifar10"})
        settings = flatten(load_recipe(recipe)) | self.overrides
        settings |= {"data.name": data, "model.name": self.variant.format(**names)}
        if "{size}" not in self.variant:
            settings["model.embed_dim"] = self.embed_dim[size]
        if data not in _FIXED_SIZE_DATA:
            settings.pop("data.pipeline", None)
        return settings


SIZES: tuple[ModelSize, ...] = get_args(ModelSize)
_PAPERS_MODELS: dict[str, Any] = dict(
    recipe="paper/{model}_{size}16_{data}",
    variant="{model}_{size}16_224",
    image_size=224,
    patch_size=16,
    embed_dim={"S": 512, "B": 768, "L": 1024},
)
SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            name="smoke",
            summary="2 blocks, 2x2 patches; S, B and L have 32, 48 and 64 channels",
            trials=3,
            data="digits",
            table4_data=("digits",),
            recipe="smoke",
            variant="{model}_t2_8",
            image_size=8,
            patch_size=2,
            embed_dim={"S": 32, "B": 48, "L": 64},
            overrides={"logger": "csv"},
        ),
        Scale(
            name="digits",
            summary="the recipe digits: 2 blocks, 2x2 patches; S, B and L have 48, 64 and 96 channels",
            trials=5,
            data="digits",
            table4_data=("digits",),
            recipe="digits",
            variant="{model}_n2_8",
            image_size=8,
            patch_size=2,
            embed_dim={"S": 48, "B": 64, "L": 96},
            overrides={"logger": "csv"},
        ),
        Scale(
            name="cpu",
            summary="6 blocks, 4x4 patches; S, B and L have 48, 64 and 96 channels",
            trials=3,
            data="cifar10",
            table4_data=("cifar100", "stanford_cars"),
            recipe="cifar10/{model}_quick",
            variant="{model}_t4_32",
            image_size=32,
            patch_size=4,
            embed_dim={"S": 48, "B": 64, "L": 96},
            overrides={"epochs": 3, "precision": "auto", "data.pipeline": "device", "logger": "csv"},
        ),
        Scale(
            name="laptop",
            summary="a whitened stem, 6 blocks on 8x8 tokens; S, B and L have 128, 192 and 256 channels",
            trials=5,
            data="cifar10",
            table4_data=("cifar100",),
            recipe="laptop/tables/{model}_cifar10",
            variant="{model}_t4_32",
            image_size=32,
            patch_size=4,
            embed_dim={"S": 128, "B": 192, "L": 256},
            overrides={"logger": "csv"},
        ),
        Scale(
            name="gpu",
            summary="the paper's models and recipes, with a short schedule",
            trials=3,
            data="cifar10",
            table4_data=("cifar100", "stanford_cars", "food101"),
            overrides={
                "epochs": 10,
                "schedule.warmup_epochs": 1,
                "schedule.cooldown_epochs": 0,
                "precision": "bf16",
                "compile": True,
                "data.pipeline": "device",
            },
            **_PAPERS_MODELS,
        ),
        Scale(
            name="paper",
            summary="the paper's models and recipes",
            trials=10,
            data="cifar10",
            table4_data=_PAPERS_SETS,
            overrides={},
            **_PAPERS_MODELS,
        ),
        Scale(
            name="scenes",
            summary="a stem of convolutions, 4 blocks on 8x8 tokens, 96 channels",
            trials=5,
            data="scenes",
            table4_data=(),
            recipe="scenes",
            variant="{model}_t4_32",
            image_size=32,
            patch_size=4,
            embed_dim={"S": 96, "B": 96, "L": 96},
            overrides={"logger": "csv"},
            only_own=True,
        ),
    )
}

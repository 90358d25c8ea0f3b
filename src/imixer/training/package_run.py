"""Package a finished run: what is needed to use its model and to measure it, in float16, with a model card."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from imixer.errors import InputError, did_you_mean
from imixer.escaping import few_names, for_markdown, one_line, slug
from imixer.implicit import SpectralLinear
from imixer.models.variants import default_cfgs
from imixer.progress import announce
from imixer.reading import read_json
from imixer.tables import Grid, markdown
from imixer.training.evaluate import Evaluation, score
from imixer.training.finished_run import FinishedRun
from imixer.training.model_directory import load_model, read_model_config, write_model
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import save_config
from imixer.training.run.result import TrainingResult, read_result
from imixer.weights import is_packaged, require_room
from imixer.writing import make_folder, write_text

_CARD = "README.md"
_IMAGES = 64  # that the rounded model is compared on, of Gaussian noise


def package_name(run: FinishedRun) -> str:
    """Name the package of a run by its architecture and its data set.

    Raises:
        InputError: If it is packaged already.
    """
    _require_unpackaged(run)
    architecture = str(run.pretrained_cfg["architecture"])
    return f"{architecture}.{slug(Path(run.config.data.name).name, empty='data')}"


def package(run: FinishedRun, folder: Path, data: str | None = None) -> dict[str, float]:
    """Write a finished run as a folder that is a run again: small, in float16, and described by a card.

    Parameters are rounded to float16. Buffers, such as the vectors of power iteration and the filters of a whitened
    stem, keep their type: they are few, and were computed and not learned. What is scored and described is the rounded
    model.

    Args:
        run: The run, on a CPU.
        folder: The folder to make. Its name is that of the model in timm, ARCHITECTURE.TAG. The architecture may be
            another name for what the run has trained.
        data: The place where the run's data lie now. Default: where they lay in training.

    Returns:
        By name: how far logits moved by rounding; the accuracy before and after; and the largest spectral norm inside
        the inverses, if there are any.

    Raises:
        InputError: If the name is none, the architecture is not that of the run, a weight is too large for float16, the
            data cannot be opened, or the models that ship with the package would become too large together.
    """
    _require_unpackaged(run)
    architecture = _architecture(folder)
    config = read_model_config(run.directory.model)
    _require_same(run, config, architecture)
    rounded = _round_parameters(run.model)
    result = replace(read_result(run.directory), last=run.epoch_metrics(), best=None, skipped=())
    images = torch.randn(_IMAGES, *run.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        moved = float((run.model(images) - rounded(images)).abs().max())
    checked = {"max_abs_diff": moved, "val_acc": result.last["val_acc"]}
    if norms := [_norm(layer) for layer in _spectral_layers(rounded)]:
        checked["spectral_norm"] = max(norms)

    def fill(place: Path) -> None:
        target = RunDirectory(place)
        config["architecture"] = architecture
        config["pretrained_cfg"] |= {"tag": folder.name.partition(".")[2]}
        target.model.mkdir()
        write_model(target.model, config, _in_float16(rounded))
        save_config(run.portable_config(), target.config)
        replace(result, run=target, model=folder.name).write()
        packed = replace(run, model=load_model(target.model), checkpoint="last")  # of the package, which has no other
        scores = replace(score(packed, data=data), model=folder.name, skipped=())
        checked["top1"] = scores.top1
        scores.write(target.evaluation)
        card = _Card(folder.name, is_packaged(folder), run, result, scores, checked)
        write_text(place / _CARD, card.text())
        if is_packaged(folder):
            require_room(place)

    announce(f"rounding the model to float16, and evaluating it as {folder.name}")
    make_folder(folder, fill)
    return checked


def _require_unpackaged(run: FinishedRun) -> None:
    if run.packaged:
        raise InputError(f"{run.name} is packaged already; give the run that it was made of")


def _architecture(folder: Path) -> str:
    """Return the architecture in the name of a package, which timm must know, and imixer if it is to ship with it."""
    architecture, _, tag = folder.name.partition(".")
    known = list(default_cfgs) if is_packaged(folder) else timm.list_models()
    if not tag or architecture not in known:
        raise InputError(
            f"out: {folder.name} is no ARCHITECTURE.TAG, such as imixer_n2_8.digits, of an architecture that "
            f"{'imixer registers' if is_packaged(folder) else 'timm knows'}{did_you_mean(architecture, known)}"
        )
    return architecture


def _require_same(run: FinishedRun, config: dict[str, Any], architecture: str) -> None:
    """Refuse an architecture that makes another model of the run's arguments and weights."""
    if architecture == config["architecture"]:
        return
    args = config["model_args"] | {"num_classes": config["num_classes"]}
    images = torch.randn(2, *run.input_size, generator=torch.Generator().manual_seed(0))
    try:
        model = timm.create_model(architecture, **args).eval()
        model.load_state_dict(run.model.state_dict())
        with torch.inference_mode():
            same = torch.equal(model(images), run.model(images))
        why = "its logits are others"
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        same, why = False, one_line(error)[:120]
    if not same:
        raise InputError(
            f"out: {architecture} is not what {run.name} has trained, a {config['architecture']} ({why}); give a name "
            "of the same architecture"
        )


def _round_parameters(model: nn.Module) -> nn.Module:
    """Copy a model, with parameters that float16 can hold."""
    rounded = deepcopy(model)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            parameter.copy_(parameter.half())
            if not parameter.isfinite().all():
                raise InputError(f"{name} has values beyond {torch.finfo(torch.float16).max:,.0f}, the most of float16")
    return rounded


def _in_float16(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: tensor.half() if name in parameters else tensor for name, tensor in model.state_dict().items()}


def _spectral_layers(model: nn.Module) -> Iterator[SpectralLinear]:
    return (module for module in model.modules() if isinstance(module, SpectralLinear))


@torch.no_grad()
def _norm(layer: SpectralLinear) -> float:
    return float(torch.linalg.matrix_norm(layer.normalized_weight().double(), ord=2))


@dataclass(frozen=True)
class _Card:
    """The model card of a package.

    Args:
        name: The name of the model.
        ships: Whether it ships with imixer, so that timm knows it by this name.
        run: The run.
        result: The result of the run.
        scores: The scores of the rounded model.
        checked: What `package` returns.
    """

    name: str
    ships: bool
    run: FinishedRun
    result: TrainingResult
    scores: Evaluation
    checked: dict[str, float]

    def text(self) -> str:
        """Write the card as Markdown."""
        created = self.name if self.ships else "local-dir:FOLDER/model"
        given = f"--model {self.name}" if self.ships else "FOLDER"
        channels, height, width = self.run.input_size
        pixels = f"{height}x{width} pixels in {channels} {'channel' if channels == 1 else 'channels'}"
        data, classes = Path(self.run.config.data.name).name, self.run.class_names
        return f"""# {self.name}

Trained on {for_markdown(data)}: images of {pixels}, {len(classes)} classes:
{for_markdown(few_names(classes, 10))}.

```python
import imixer, timm

model = timm.create_model("{created}", pretrained=True).eval()
```

```bash
imixer predict {given} IMAGE...
```

{markdown(self._numbers())}
Parameters are stored in float16 and load as float32. The accuracy, like all scores in `evaluation.json`, is that of the
rounded model. `config.yaml` is the whole recipe: `imixer train --config config.yaml` trains it again.

The model knows its classes and nothing else. It gives one of them to any image, and its probabilities were measured on
images of the same kind only.
"""

    def _numbers(self) -> Grid:
        result, scores = self.result, self.scores
        versions = read_json(self.run.directory.environment)
        rows = [
            ("parameters", f"{result.parameters:,}"),
            (f"accuracy on {scores.images:,} held-out images", f"{scores.top1:.2%}"),
            (
                f"the same after epoch {result.last['epoch']} of {result.epochs}, in float32 or as it was trained",
                f"{self.checked['val_acc']:.2%}",
            ),
            ("cross entropy, calibration error (ECE)", f"{scores.loss:.4f}, {scores.ece:.2%}"),
        ]
        if "spectral_norm" in self.checked:
            ceiling = max(layer.coeff for layer in _spectral_layers(self.run.model))
            rows.append(
                ("largest spectral norm inside F, ceiling", f"{self.checked['spectral_norm']:.5f}, {ceiling:g}")
            )
        rows += [
            ("trained", f"{result.epochs} epochs in {result.seconds:,.0f} s on {result.device}"),
            ("seed", str(self.run.config.seed)),
            ("versions", ", ".join(f"{name} {versions.get(name)}" for name in ("imixer", "commit", "torch", "timm"))),
            ("license", "Apache-2.0"),
        ]
        return Grid(("of the model", ""), tuple(rows), text=2)

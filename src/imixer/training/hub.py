"""Hand a trained model over: a folder with a model card, and the Hugging Face Hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

import imixer
from imixer.errors import InputError, in_short
from imixer.escaping import few_names, for_markdown, middle_cut, one_line
from imixer.progress import announce
from imixer.reading import read_json
from imixer.tables import Grid, markdown
from imixer.training.best_weights import WhichWeights
from imixer.training.finished_run import FinishedRun, load_run
from imixer.training.model_directory import read_model_config, write_model
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import changed_settings, flatten
from imixer.training.run.result import TrainingResult, best_by, read_result
from imixer.weights import size_of
from imixer.writing import json_text, make_folder

_FIGURES = {
    "learning_curves.png": "Loss, {metric} and learning rate over the epochs",
    "confusion_matrix.png": "Held-out images: true against predicted class",
    "test_confusion_matrix.png": "Test set: true against predicted class",
}


@dataclass(frozen=True)
class _Kind:
    """How the hub speaks of a task; its score as a title, in words, in evaluations, and on the hub."""

    tag: str
    title: str
    metric: str
    name: str
    hub_metric: str
    sorts: str
    last_line: str
    prepared: str = ""


_KINDS = {
    "classify": _Kind(
        "image-classification",
        "Accuracy",
        "accuracy",
        "top1",
        "accuracy",
        "{kind} images of {size} pixels",
        'print(model.pretrained_cfg["label_names"][logits.argmax()])',
    ),
    "segment": _Kind(
        "image-segmentation",
        "Mean IoU",
        "mIoU",
        "miou",
        "mean_iou",
        "the pixels of {kind} images, seen at {size} pixels,",
        "classes = logits.argmax(1)[0]  # of each pixel, numbers into label_names",
        ' | {"crop_mode": "squash", "crop_pct": 1.0}',  # the whole image, as it was seen in training
    ),
}


def _kind(run: FinishedRun) -> _Kind:
    return _KINDS[run.config.task]


def write_hub_folder(run: FinishedRun, folder: Path, repo_id: str = "USER/NAME") -> None:
    """Write a folder with a model and its model card, as the Hugging Face Hub takes it.

    It holds `README.md` (the card), `config.json`, `model.safetensors`, `training.json` with the settings, and the
    figures of the run that show no image. No path of this machine and no image is in it. timm loads it as
    `local-dir:FOLDER`, once `imixer` is imported. The test set and the figures are those that `imixer evaluate` has
    written for these weights.

    Args:
        run: The run, or a packaged model.
        folder: The folder to make.
        repo_id: The repository that the card names.

    Raises:
        InputError: If the folder exists, or a file of the run is damaged.
    """
    make_folder(folder, lambda temporary: _fill(run, temporary, repo_id))


def push(
    path: str, repo_id: str, *, checkpoint: WhichWeights = "last", private: bool = False, endpoint: str | None = None
) -> str:
    """Push the model of a finished run to the Hugging Face Hub, with its model card.

    The repository is made if it is not there; otherwise a commit is added. Who pushes is known to `huggingface_hub`
    from `hf auth login` or `HF_TOKEN`. What is pushed is what `write_hub_folder` writes.

    Args:
        path: The run's directory.
        repo_id: The repository, `user/name`.
        checkpoint: Whose weights to take: those of the `last` epoch, or of the `best`.
        private: Whether a new repository is private.
        endpoint: The address of the hub. Default: that of `huggingface_hub`, which `HF_ENDPOINT` sets.

    Returns:
        The address of the repository.

    Raises:
        InputError: If the run cannot be loaded, the name is none of the hub's, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{middle_cut(one_line(repo_id), 80)!r} is no name of the hub; give user/name") from error
    if repo_id.count("/") != 1:
        raise InputError(f"{repo_id!r} does not say whose it is; give user/name")
    run = load_run(path, "cpu", checkpoint)
    run.require_known_to_others()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_hub_folder(run, folder, repo_id)
        announce(f"pushing {size_of(folder) / 1e6:.1f} MB to {repo_id}")
        try:
            api = HfApi(endpoint=endpoint)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add a model trained with imixer")
        except Exception as error:  # huggingface_hub, its HTTP client and the network each raise their own
            raise InputError(
                f"{repo_id} could not be pushed ({type(error).__name__}: {in_short(error, 160)}); "
                "`hf auth login` says who you are; `imixer export --format hub` writes the folder without the hub"
            ) from error
    return str(url)


def _fill(run: FinishedRun, folder: Path, repo_id: str) -> None:
    """Write all files of the hub's folder."""
    directory = run.directory
    write_model(folder, read_model_config(directory.model), run.model.state_dict())
    config = json_text({"imixer": imixer.__version__, **flatten(asdict(run.portable_config()))})
    (folder / "training.json").write_text(config, encoding="utf-8")
    figures = {}
    for name, caption in _FIGURES.items():
        source = (directory if name == "learning_curves.png" else run.outputs).path / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
            figures[name] = caption.format(metric=_kind(run).metric)
    (folder / "README.md").write_text(_card(run, repo_id, figures), encoding="utf-8")


def _card(run: FinishedRun, repo_id: str, figures: Mapping[str, str]) -> str:
    """Write the model card: what the model is, how good it is, how to load it, how it was trained."""
    name, data = run.config.model.name or "imixer", Path(run.config.data.name).name
    result, row = read_result(run.directory), run.epoch_metrics()
    task = _kind(run)
    scores = _scores(run, result, row)
    entries = [_index_entry(of, score, task) for of, score, _ in scores]
    metadata: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": task.tag,
        "tags": [task.tag, "timm", "imixer"],
        "metrics": [task.hub_metric],
        "model-index": [{"name": repo_id.rpartition("/")[2], "results": entries}],
    }
    parameters = sum(p.numel() for p in run.model.parameters())
    channels, height, width = run.input_size
    kind = "gray" if channels == 1 else "colour"
    rows = tuple((of, f"{score:.2%}", f"{images:,}") for of, score, images in scores)
    settings = tuple((each, str(value)) for each, value in changed_settings(run.portable_config()).items())
    names = few_names(run.class_names, 20)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n",
        f"# {for_markdown(name)}, trained on {for_markdown(data)}\n",
        f"It sorts {task.sorts.format(kind=kind, size=f'{height}x{width}')} into {len(run.class_names):,} classes: "
        f"{for_markdown(names)}. It has {parameters:,} parameters, and was trained with imixer {imixer.__version__}; "
        f"the weights are those after epoch {row['epoch']} of {result.epochs}.\n",
        f"## {task.title}\n",
        markdown(Grid(("images", task.metric, "number"), rows, text=1)),
        "## How to load it\n",
        "The model is one of timm's, once `imixer` is installed and imported.\n",
        f"```python\n{_snippet(repo_id, channels, task)}```\n",
        *_about_windows(run, f"{height}x{width}"),
        *_about_range(run),
        f"Lay an image with transparent pixels on {run.config.data.background} before the code above.\n",
        "From a copy of this folder, `local-dir:FOLDER` takes the place of `hf-hub:...`.\n",
        *(f"## {caption}\n\n![{caption}]({file})\n" for file, caption in figures.items()),
        "## How it was trained\n",
        "The settings that are not imixer's default; `training.json` has all.\n",
        markdown(Grid(("setting", "value"), settings, text=2)),
    ]
    return "\n".join(parts)


def _about_windows(run: FinishedRun, size: str) -> list[str]:
    """Say where the code before scales an image and the run did not."""
    if run.config.task != "segment" or run.config.masks.fit != "window":
        return []
    return [
        f"This model was trained on pieces of {size} pixels of images as they are. Cut an image into such pieces; the "
        "code above scales it instead.\n"
    ]


def _about_range(run: FinishedRun) -> list[str]:
    """Say where the code before reads an image and the run did otherwise."""
    if (values := run.config.data.value_range) is None:
        return []
    black, white = (f"{value:g}" for value in values)
    return [
        f"This model was trained on images in which {black} is black and {white} is white. Bring an image of more than "
        "8 bits to 0 to 255 by that before the code above.\n"
    ]


def _snippet(repo_id: str, channels: int, task: _Kind) -> str:
    mode = "L" if channels == 1 else "RGB"
    return f"""import imixer.models  # so that timm knows it
import timm, torch
from PIL import Image, ImageOps

model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model){task.prepared})
image = ImageOps.exif_transpose(Image.open("image.png"))
with torch.no_grad():
    logits = model(transform(image.convert("{mode}"))[None])
{task.last_line}
"""


def _scores(run: FinishedRun, result: TrainingResult, row: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """Collect how good these weights are: on what images, accuracy or mIoU, number of images."""
    of, score = f"held-out images, after epoch {row['epoch']} of {result.epochs}", float(row[best_by(row)])
    name = _kind(run).name
    measured = run.directory.evaluation
    if not run.directory.metrics.exists() and measured.is_file():  # of a package, whose weights are rounded
        score = float(read_json(measured, [name])[name])
    scores = [(of, score, result.held_out)]
    if (tested := _test_scores(run.outputs, name)) is not None:
        scores.append((f"test set {Path(str(tested['data'])).name}", float(tested[name]), int(tested["images"])))
    return scores


def _test_scores(outputs: RunDirectory, name: str) -> dict[str, Any] | None:
    if not outputs.test_evaluation.is_file():
        return None
    return read_json(outputs.test_evaluation, [name, "images", "data"])


def _index_entry(of: str, score: float, task: _Kind) -> dict[str, Any]:
    """Write a score as the hub's model index does."""
    return {
        "task": {"type": task.tag},
        "dataset": {"name": of, "type": "images"},
        "metrics": [{"type": task.hub_metric, "value": round(score, 6)}],
    }

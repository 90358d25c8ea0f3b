"""Hand a trained model over: a folder with a model card, and the Hugging Face Hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

import imixer
from imixer.errors import InputError
from imixer.escaping import few_names, for_markdown, middle_cut, one_line
from imixer.progress import announce
from imixer.reading import read_json, read_rows
from imixer.tables import Grid, markdown
from imixer.training.best_weights import WhichWeights
from imixer.training.finished_run import FinishedRun, load_run
from imixer.training.model_directory import save_weights
from imixer.training.run.config import TrainConfig
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import flatten
from imixer.training.run.result import best_row, read_result
from imixer.writing import json_text, make_folder

_FIGURES = {
    "learning_curves.png": "Loss, accuracy and learning rate over the epochs",
    "confusion_matrix.png": "Held-out images: true against predicted class",
    "test_confusion_matrix.png": "Test set: true against predicted class",
}


def export_hub(path: str, out: str | None = None, checkpoint: WhichWeights = "last") -> Path:
    """Write a folder with the model of a finished run and its model card, as the Hugging Face Hub takes it.

    It holds `README.md` (the card), `config.json`, `model.safetensors`, `training.json` with the settings, and the
    figures of the run that show no image. No path of this machine and no image is in it. timm loads it as
    `local-dir:FOLDER`, once `imixer` is imported.

    Args:
        path: The run's directory.
        out: The folder to make. Default: `hub` in the run.
        checkpoint: Whose weights to take: those of the `last` epoch, or of the `best`.

    Returns:
        The folder.

    Raises:
        InputError: If the run cannot be loaded, or the folder exists.
    """
    run = load_run(path, "cpu", checkpoint)
    folder = Path(out) if out else run.results.path / "hub"
    if folder.exists() or folder.is_symlink():
        raise InputError(f"out: {folder} exists, and nothing is overwritten; give another name or remove it")
    if not out:
        folder.parent.mkdir(exist_ok=True)
    if not folder.absolute().parent.is_dir():
        raise InputError(f"out: {folder} cannot be made, there is no folder {folder.absolute().parent}")
    make_folder(folder, lambda temporary: _fill(run, temporary, "USER/NAME"))
    return folder


def push(
    path: str, repo_id: str, *, checkpoint: WhichWeights = "last", private: bool = False, endpoint: str | None = None
) -> str:
    """Push the model of a finished run to the Hugging Face Hub, with its model card.

    The repository is made if it is not there; otherwise a commit is added. Who pushes is known to `huggingface_hub`
    from `hf auth login` or `HF_TOKEN`. What is pushed is what `export_hub` writes.

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
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _fill(run, folder, repo_id)
        size = sum(file.stat().st_size for file in folder.iterdir())
        announce(f"pushing {size / 1e6:.1f} MB to {repo_id}")
        try:
            api = HfApi(endpoint=endpoint)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add a model trained with imixer")
        except Exception as error:  # huggingface_hub, its HTTP client and the network each raise their own
            raise InputError(
                f"{repo_id} could not be pushed ({type(error).__name__}: {middle_cut(one_line(error), 160)}); "
                "`hf auth login` says who you are; `imixer export --format hub` writes the folder without the hub"
            ) from error
    return str(url)


def _fill(run: FinishedRun, folder: Path, repo_id: str) -> None:
    """Write all files of the hub's folder."""
    directory = run.directory
    shutil.copyfile(directory.model / "config.json", folder / "config.json")
    save_weights(run.model.state_dict(), folder)
    config = json_text({"imixer": imixer.__version__, **flatten(asdict(_without_paths(run.config)))})
    (folder / "training.json").write_text(config, encoding="utf-8")
    figures = {}
    for name, caption in _FIGURES.items():
        source = (directory if name == "learning_curves.png" else run.results).path / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
            figures[name] = caption
    (folder / "README.md").write_text(_card(run, repo_id, figures), encoding="utf-8")


def _without_paths(config: TrainConfig) -> TrainConfig:
    """Replace the paths of a configuration by their last part: others need not know this machine."""
    data = replace(config.data, name=Path(config.data.name).name, root=config.data.root and Path(config.data.root).name)
    model = replace(config.model, checkpoint=config.model.checkpoint and Path(config.model.checkpoint).name)
    return replace(config, data=data, model=model, out=None)


def _card(run: FinishedRun, repo_id: str, figures: Mapping[str, str]) -> str:
    """Write the model card: what the model is, how good it is, how to load it, how it was trained."""
    name, data = run.config.model.name or "imixer", Path(run.config.data.name).name
    scores = _scores(run)
    entries = [_index_entry(of, accuracy) for of, accuracy, _ in scores]
    metadata: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "imixer"],
        "metrics": ["accuracy"],
        "model-index": [{"name": repo_id.rpartition("/")[2], "results": entries}],
    }
    parameters = sum(p.numel() for p in run.model.parameters())
    channels, height, width = run.input_size
    kind = "gray" if channels == 1 else "colour"
    rows = tuple((of, f"{accuracy:.2%}", f"{images:,}") for of, accuracy, images in scores)
    settings = tuple(
        (each, str(value))
        for each, value in flatten(asdict(_without_paths(run.config))).items()
        if value != flatten(asdict(TrainConfig())).get(each)
    )
    names = few_names(run.class_names, 20)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n",
        f"# {for_markdown(name)}, trained on {for_markdown(data)}\n",
        f"It sorts {kind} images of {height}x{width} pixels into {len(run.class_names):,} classes: "
        f"{for_markdown(names)}. It has {parameters:,} parameters, and was trained with imixer {imixer.__version__}; "
        f"the weights are those of the {run.checkpoint} epoch.\n",
        "## Accuracy\n",
        markdown(Grid(("images", "accuracy", "number"), rows, text=1)),
        "## How to load it\n",
        "The model is one of timm's, once `imixer` is imported (`pip install imixer`).\n",
        f"```python\n{_snippet(repo_id, channels)}```\n",
        "From a copy of this folder, `local-dir:FOLDER` takes the place of `hf-hub:...`.\n",
        *(f"## {caption}\n\n![{caption}]({file})\n" for file, caption in figures.items()),
        "## How it was trained\n",
        "The settings that are not imixer's default; `training.json` has all.\n",
        markdown(Grid(("setting", "value"), settings, text=2)),
    ]
    return "\n".join(parts)


def _snippet(repo_id: str, channels: int) -> str:
    mode = "L" if channels == 1 else "RGB"
    return f"""import imixer.models  # so that timm knows it
import timm, torch
from PIL import Image

model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
    logits = model(transform(Image.open("image.png").convert("{mode}"))[None])
print(model.pretrained_cfg["label_names"][logits.argmax()])
"""


def _scores(run: FinishedRun) -> list[tuple[str, float, int]]:
    """Collect what is known of the accuracy of these weights: of what images, accuracy, number of images."""
    rows, _ = read_rows(run.directory.metrics, ("epoch", "val_acc"))
    epochs = [{name: float(row[name]) for name in ("epoch", "val_acc")} for row in rows]
    scores: list[tuple[str, float, int]] = []
    if epochs:
        row = best_row(epochs) if run.checkpoint == "best" else epochs[-1]
        of = f"held-out images, after epoch {row['epoch']:.0f} of {len(epochs)}"
        scores.append((of, row["val_acc"], read_result(run.directory).held_out))
    if (tested := _test_scores(run.results)) is not None:
        scores.append((f"test set {Path(str(tested['data'])).name}", float(tested["top1"]), int(tested["images"])))
    return scores


def _test_scores(results: RunDirectory) -> dict[str, Any] | None:
    if not results.test_evaluation.is_file():
        return None
    return read_json(results.test_evaluation, ["top1", "images", "data"])


def _index_entry(of: str, accuracy: float) -> dict[str, Any]:
    """Write an accuracy as the hub's model index does."""
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": of, "type": "images"},
        "metrics": [{"type": "accuracy", "value": round(accuracy, 6)}],
    }

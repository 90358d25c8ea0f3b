"""Say which extra of the package installs what is missing: all that is imported beyond the core, by extra.

The core is torch, timm, safetensors, numpy, scipy and torchdiffeq: models, implicit layers and Hopfield networks need
no more.
"""

from __future__ import annotations

from importlib.util import find_spec

from imixer.errors import InputError
from imixer.escaping import few_names, one_line

MODULES: dict[str, tuple[str, ...]] = {
    "train": (
        "jsonargparse",
        "lightning",
        "rich",
        "torchmetrics",
        "torchvision",
        "sklearn",
        "matplotlib",
        "PIL",
        "yaml",
        "pyarrow",
        "filelock",
        "fsspec",
        "huggingface_hub",
        "tensorboard",
        "plotly",
        "jinja2",
    ),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "cluster": ("ray",),
    "robust": ("imagecorruptions",),
    "data": ("datasets",),
    "explore": ("starlette", "uvicorn"),
    "remote": ("s3fs", "gcsfs", "aiohttp"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}  # extra -> what Python imports of the packages that pyproject.toml lists for it


class MissingExtraError(InputError, ImportError):
    """An error of a package that is not installed, with the command that installs it."""


def require_extra(extra: str, purpose: str) -> None:
    """Check that the packages of an extra are installed. None of them is imported.

    Args:
        extra: One of `MODULES`.
        purpose: What needs them, to begin the message with.

    Raises:
        MissingExtraError: If one of them is missing.
    """
    missing = [module for module in MODULES[extra] if not _is_installed(module)]
    if missing:
        raise MissingExtraError(
            f'{one_line(purpose)} needs {few_names(missing, most=3)}, not installed here; pip install "imixer[{extra}]"'
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # of a finder that refuses, or a module without a specification
        return False

"""Silence warnings of other libraries about what is as it should be."""

from __future__ import annotations

import logging
import os
import warnings

_LOUD = (
    "lightning.pytorch",
    "lightning.fabric",
    "lightning",
    "torch._inductor",
    "torch._dynamo",
    "timm",
    "huggingface_hub",
)


def silence() -> None:
    """Silence Lightning's tips, and warnings about what is as it should be. Errors still show."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torchmetrics|timm)\b.*")
    for message in (
        r".*LeafSpec.*",
        r".*pickle protocol.*",
        r".*torch\.jit\.script.* is deprecated.*",
        r".*lr_scheduler\.step\(\).*before.*optimizer\.step\(\).*",
    ):
        warnings.filterwarnings("ignore", message=message)

"""Look up what timm knows of a model's weights, by the name and the tag behind it, such as `resnet18.a1_in1k`."""

from __future__ import annotations

import timm
from timm.models import PretrainedCfg

from imixer.errors import did_you_mean


def find_pretrained_cfg(name: str) -> PretrainedCfg | None:
    """Return timm's record of a model and its weights.

    Args:
        name: The name of an architecture that timm knows, and a tag if need be.

    Returns:
        The record; None if there is none of the architecture, or it has no such tag.
    """
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:  # of a tag that the architecture does not have
        return None


def other_tags(name: str) -> str:
    """Name what to give instead of a tag that an architecture does not have, in a clause to append to a message."""
    architecture, _, tag = name.partition(".")
    if not tag:
        return "; give the name of another model"
    known = timm.list_pretrained(f"{architecture}.*")
    return did_you_mean(name, known, cutoff=0.4) or f"; leave the tag out, as in {architecture}"

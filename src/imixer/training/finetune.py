"""Freeze what fine-tuning leaves as it was, and count what is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from imixer.errors import InputError
from imixer.models import IMLP
from imixer.models.segmenter import Segmenter
from imixer.training.run.config import FinetunePart


def freeze(model: nn.Module, part: FinetunePart, name: str) -> None:
    """Freeze all parameters of a model but those of a part, which is then fine-tuned.

    Args:
        model: A timm model.
        part: `head`, the classifier, or of a segmentation all that follows its backbone; `last`, the last block, the
            norm after it and the head; `all`.
        name: What messages call the model.

    Raises:
        InputError: If the model has no classifier, or does not tell its blocks.
    """
    if part == "all":
        return
    trained = set(_head(model, name)) | (set(_last_block(model, name)) if part == "last" else set())
    for parameter_name, parameter in model.named_parameters():
        if parameter_name not in trained:
            parameter.requires_grad_(False)


def freeze_unused(model: nn.Module) -> None:
    """Freeze what the forward of an iMixer never reaches: F where n_iter is 0, or the inverse inside F there.

    It would get no gradient, which an optimizer and several devices wait for.

    Args:
        model: Any model; those without an iMLP stay as they are.
    """
    for module in model.modules():
        if isinstance(module, IMLP) and module.contraction is not None and module.n_iter == 0:
            reached = module.inversion.steps(0) or module.penalties.wanted  # which look at F though nothing is solved
            unused = module.contraction.inner if reached else module.contraction
            if unused is not None:
                unused.requires_grad_(False)


def trained_batch_norms(model: nn.Module) -> list[nn.Module]:
    """List the batch norms that take the statistics of what they see in training."""
    frozen = set(frozen_batch_norms(model))
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module not in frozen]


def frozen_batch_norms(model: nn.Module) -> list[nn.Module]:
    """List the batch norms whose parameters are frozen, of a model of which something else is trained.

    Their running statistics belong to the frozen weights, so they are to stay in evaluation mode.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.affine and not any(p.requires_grad for p in norm.parameters())]


def describe_parameters(model: nn.Module, part: FinetunePart | None) -> str:
    """Write how many parameters a model has, and how many of them are trained.

    Args:
        model: The model, frozen as far as it will be.
        part: The part that is fine-tuned. None for a training of the whole model.
    """
    trained = _count(p for p in model.parameters() if p.requires_grad)
    if part is None:
        return f"{trained:,} parameters"
    words = {"head": "the head", "last": "the last block and the head", "all": "all blocks"}[part]
    return f"{trained:,} of {_count(model.parameters()):,} parameters are trained: {words}"


def count_parameters(model: nn.Module, part: FinetunePart | None) -> int:
    """Count the parameters of a model that can be trained, those included that fine-tuning has frozen.

    Args:
        model: The model.
        part: The part that is fine-tuned. None for a training of the whole model.
    """
    return _count(p for p in model.parameters() if p.requires_grad or part is not None)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _head(model: nn.Module, name: str) -> list[str]:
    if isinstance(model, Segmenter):  # whose levels are mapped and normalised by what is as new as the classifier
        return [parameter for parameter, _ in model.named_parameters() if not parameter.startswith("backbone.")]
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    classifier = cfg.get("classifier") or ()
    modules = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    head = [p for p, _ in model.named_parameters() if any(p.startswith(f"{module}.") for module in modules)]
    if not head:
        raise InputError(f"finetune: timm does not know the classifier of {name}; give finetune all, or leave it out")
    return head


def _last_block(model: Any, name: str) -> list[str]:
    """Name the parameters of the last block, of the norm after it, and of all that timm counts to the classifier."""
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise InputError(f"finetune is last, but {name} does not tell its blocks; give finetune head or all")
    layers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    beside = {layers[parameter] for parameter in _head(model, name)}  # a norm before the classifier may be among them
    blocks = [number for number in layers.values() if number not in beside]
    if not blocks:
        raise InputError(f"finetune is last, but {name} does not tell its blocks; give finetune head or all")
    return [parameter for parameter, number in layers.items() if number == max(blocks) or number in beside]

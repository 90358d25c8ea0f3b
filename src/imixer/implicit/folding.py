"""An inference copy in which normalisation costs nothing."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from imixer.implicit.contraction import Contraction
from imixer.implicit.spectral import NormalizedLinear

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@torch.no_grad()
def fold(model: ModuleT) -> ModuleT:
    """Copy a model for inference, its normalisation baked into plain `nn.Linear` weights.

    The copy is in evaluation mode and gives what `model.eval()` gives. Its state dict has no normalisation buffers, and
    training it further would train without normalisation.

    Args:
        model: Any module with `Contraction` or `NormalizedLinear` inside. It is left as it is.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        if isinstance(module, Contraction):
            W1, W2 = module.weights()[:2]
            module.fc1, module.bn1 = _fold_batch_norm(_linear(W1, module.fc1.bias), module.bn1)
            module.fc2, module.bn2 = _fold_batch_norm(_linear(W2, module.fc2.bias), module.bn2)
    for module in list(folded.modules()):
        for name, child in module.named_children():
            if isinstance(child, NormalizedLinear):
                setattr(module, name, _linear(child.normalized_weight(), child.bias))
    return folded.requires_grad_(False)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    d_out, d_in = weight.shape
    plain = nn.Linear(d_in, d_out, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    plain.weight.copy_(weight)
    if bias is not None:
        plain.bias.copy_(bias)
    return plain.eval()


def _fold_batch_norm(layer: nn.Linear, bn: nn.Module) -> tuple[nn.Linear, nn.Module]:
    if not isinstance(bn, nn.BatchNorm1d):
        return layer, bn
    assert bn.running_var is not None and bn.running_mean is not None
    gain = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return _linear(layer.weight * gain[:, None], (layer.bias - bn.running_mean) * gain + bn.bias), nn.Identity()

"""An inference copy in which normalisation costs nothing."""

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import skip_init

from imixer.implicit.contraction import Contraction, layer_tensors
from imixer.implicit.low_rank import wrapped_by_lora
from imixer.implicit.spectral import NormalizedLinear
from imixer.implicit.transposed import TransposedLinear

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@torch.no_grad()
def fold(model: ModuleT) -> ModuleT:
    """Copy a model for inference, its normalisation baked into plain `nn.Linear` weights.

    The copy is in evaluation mode and gives what `model.eval()` gives. Its state dict has no normalisation buffers, and
    training it further would train without normalisation.

    Args:
        model: Any module that is, or has inside, a `Contraction` or `NormalizedLinear`. It is left as it is. A module
            that applies the transpose of another layer's weight offers `untie()`, after which it has a plain layer for
            that.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        if isinstance(module, Contraction):
            fc1 = plain_linear(module.fc1, module.features)
            if isinstance(module.fc2, TransposedLinear):
                fc2 = plain_transpose(module.fc2, layer_tensors(module.fc1, module.fc2)[1][0].t())
            else:
                fc2 = plain_linear(module.fc2, module.hidden_features)
            for name, layer in (("fc1", fc1), ("fc2", fc2)):
                bn = getattr(module, name.replace("fc", "bn"))
                layer, bn = _fold_batch_norm(layer, bn)
                # Not by setattr, which warns that nothing holds the new layer.
                module._modules[name], module._modules[name.replace("fc", "bn")] = layer, bn
        untie = getattr(module, "untie", None)
        if callable(untie):
            untie()
    normalised = [module for module in folded.modules() if isinstance(module, NormalizedLinear)]
    plain = {layer: plain_linear(layer, layer.in_features) for layer in normalised}  # a shared one stays shared
    for module in list(folded.modules()):
        for name, child in module._modules.items():  # by every name that a child has
            if isinstance(child, NormalizedLinear):
                module._modules[name] = plain[child]
    if isinstance(folded, NormalizedLinear):
        folded = cast(ModuleT, plain[folded])
    return folded.requires_grad_(False)


@torch.no_grad()
def plain_linear(layer: nn.Module, in_features: int) -> nn.Module:
    """Reduce a layer to the `nn.Linear` that it is in evaluation.

    A layer of another kind, such as a LoRA wrapper or one with hooks, is asked: the images of the unit vectors are its
    matrix, if it also does to random vectors what that matrix does.

    Args:
        layer: Any layer from (..., in_features). It is left as it is.
        in_features: Width of its input.

    Returns:
        An `nn.Linear`; or the layer itself if it is not affine, or does not compute in float64.
    """
    base = wrapped_by_lora(layer)
    if isinstance(base, NormalizedLinear):  # which knows what the LoRA adds
        layer = base
    if not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules()):
        if isinstance(layer, NormalizedLinear):
            return _linear(layer.normalized_weight(), layer.bias)
        if isinstance(layer, _Transposed):
            return _linear(layer.weight.t(), layer.layer.bias)
        if type(layer) is nn.Linear:
            return layer
    like = next(layer.parameters(), None)
    if like is None or not like.is_floating_point() or like.is_meta:
        return layer
    asked = copy.deepcopy(layer).eval().double()
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(2, in_features, generator=generator, dtype=torch.float64).to(like.device)
    try:
        bias = asked(torch.zeros_like(probes[:1]))[0]
        matrix = (asked(torch.eye(in_features, dtype=torch.float64, device=like.device)) - bias).t()
        images = asked(probes)
    except RuntimeError:  # something inside has a precision of its own
        return layer
    error = (images - probes @ matrix.t() - bias).abs().max()
    if not error <= 1e-5 * images.abs().max().clamp_min(torch.finfo(torch.float64).tiny):
        return layer
    return _linear(matrix.to(like.dtype), bias.to(like.dtype))


@torch.no_grad()
def plain_transpose(layer: TransposedLinear, weight: Tensor) -> nn.Module:
    """Reduce a `TransposedLinear` to the `nn.Linear` that it is, with a copy of the weight.

    Args:
        layer: The layer. It is left as it is.
        weight: The other layer's weight (in_features, out_features).

    Returns:
        An `nn.Linear`; or, if hooks keep the layer from being affine, a module that applies it.
    """
    return plain_linear(_Transposed(layer, weight), weight.shape[0])


class _Transposed(nn.Module):
    """A `TransposedLinear` with the weight that it is to transpose."""

    weight: Tensor

    def __init__(self, layer: TransposedLinear, weight: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x, weight=self.weight)
        return y


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    d_out, d_in = weight.shape
    # not drawn first, from torch's global generator
    plain: nn.Linear = skip_init(
        nn.Linear, d_in, d_out, bias=bias is not None, device=weight.device, dtype=weight.dtype
    )
    plain.weight.copy_(weight)
    if bias is not None:
        plain.bias.copy_(bias)
    return plain.eval()


def _fold_batch_norm(layer: nn.Module, bn: nn.Module) -> tuple[nn.Module, nn.Module]:
    if not isinstance(bn, _BatchNorm) or type(layer) is not nn.Linear:
        return layer, bn
    if bn.running_var is None or bn.running_mean is None:  # what it does depends on the batch
        return layer, bn
    gain = (1 if bn.weight is None else bn.weight) / torch.sqrt(bn.running_var + bn.eps)
    bias = ((0 if layer.bias is None else layer.bias) - bn.running_mean) * gain
    return _linear(layer.weight * gain[:, None], bias if bn.bias is None else bias + bn.bias), nn.Identity()

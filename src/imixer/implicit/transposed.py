"""The way back through a symmetric coupling."""

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.nn.utils import parametrize

from imixer.implicit.low_rank import wrapped_by_lora


class TransposedLinear(nn.Module):
    """Linear layer that applies the transpose of another layer's weight, given at each call. It has only a bias.

    Choose it as `fc2` of a tied F, so that a symmetric coupling is one parameter and stands once in a state dict.

    Args:
        out_features: Width of the output, the other layer's input.
    """

    def __init__(
        self, out_features: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply the transpose.

        Args:
            x: Input (..., in_features).
            weight: The other layer's weight (in_features, out_features).
            bias: Bias (out_features,) to add. Default: the layer's own.

        Returns:
            Output (..., out_features).
        """
        return fn.linear(x, weight.t(), self.bias if bias is None else bias)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        return f"out_features={len(self.bias)}"


def refuse_wrapped(name: str, layer: nn.Module, back: str) -> None:
    """Raise if a layer does more than multiply by its weight, which a `TransposedLinear` transposes.

    Args:
        name: What the layer is called.
        layer: The layer.
        back: What its transpose is called.

    Raises:
        ValueError: If it is no `nn.Linear` or has a forward of its own, as wrappers do, or if its weight is computed by
            a hook, as `torch.nn.utils.prune` does, or if `nn.DataParallel` has made a copy of it.
    """
    refuse_replica(layer, f"{back} is the transpose of {name}")
    layer = wrapped_by_lora(layer) or layer  # whose sum has a transpose
    plain = isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
    if not plain or not owns_weight(layer):
        raise ValueError(
            f"{name} is {type(layer).__name__}, and {back} its transpose: what is added to a layer from outside has no "
            f"transpose. Put the change into {name}.weight, see torch.nn.utils.parametrizations, or choose tied=False"
        )


def refuse_replica(module: nn.Module, asked: str) -> None:
    """Raise ValueError if a module is a copy by `nn.DataParallel`, and what is asked of it needs parameters."""
    if getattr(module, "_is_replica", False):
        raise ValueError(
            f"{asked}, and nn.DataParallel makes copies without parameters, which cannot have that; "
            "use torch.nn.parallel.DistributedDataParallel"
        )


def learns_in_replica(module: nn.Module) -> bool:
    """Tell whether a copy by `nn.DataParallel` is one of a module in training that has parameters to learn."""
    if not (module.training and getattr(module, "_is_replica", False)):
        return False
    former = (value for each in module.modules() for value in getattr(each, "_former_parameters", {}).values())
    return any(value is not None and value.requires_grad for value in former)


def owns_weight(layer: nn.Module) -> bool:
    """Tell whether `layer.weight` is a parameter or parametrized, not computed by a hook when the layer is called."""
    return "weight" in layer._parameters or parametrize.is_parametrized(layer, "weight")

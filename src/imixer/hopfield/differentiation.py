"""The gradient of a scalar function, in any mode of autograd that its caller is in."""

from collections.abc import Callable

import torch
from torch import Tensor


def gradients(function: Callable[..., Tensor], *x: Tensor) -> tuple[Tensor, ...]:
    """Differentiate the sum of what a function gives with respect to each of its arguments.

    Args:
        function: Any function of the arguments.
        x: The arguments.

    Returns:
        A gradient for each, of its shape. They can be differentiated further.
    """
    differentiate = torch.func.grad(lambda *x: function(*x).sum(), argnums=tuple(range(len(x))))
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return differentiate(*x)
    with torch.inference_mode(False), torch.no_grad():  # inside, torch 2.11 gives other numbers without a word
        return differentiate(*(each.clone() for each in x))

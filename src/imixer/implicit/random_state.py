"""The state of torch's global random generators, to draw the same again in a backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """State of the generators that a computation on one device may draw from.

    Attributes:
        cpu: Of the CPU.
        device: The accelerator, if any.
        accelerator: Of that.
    """

    cpu: Tensor
    device: torch.device | None
    accelerator: Tensor | None

    def differs(self, other: "RandomState") -> bool:
        """Tell whether something was drawn between the two."""
        pairs = [(self.cpu, other.cpu), (self.accelerator, other.accelerator)]
        return any(a is not None and b is not None and not torch.equal(a, b) for a, b in pairs)

    def set(self) -> None:
        """Make this the state."""
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            assert self.device is not None
            torch.get_device_module(self.device.type).set_rng_state(self.accelerator, self.device)


def random_state(x: Tensor) -> RandomState:
    """Get the state of the generators of the CPU and of the device of x.

    While a CUDA graph is captured the device's cannot be asked for: what is drawn there is drawn anew on every replay.
    """
    kind, accelerator = x.device.type, None
    if kind in ("cuda", "xpu") and not (kind == "cuda" and torch.cuda.is_current_stream_capturing()):
        accelerator = torch.get_device_module(kind).get_rng_state(x.device)
    return RandomState(torch.get_rng_state(), x.device, accelerator)


@contextmanager
def drawing_from(state: RandomState | None, x: Tensor) -> Iterator[None]:
    """Draw from a state, and go on afterwards as if nothing had been drawn; without a state, do nothing.

    Args:
        state: The state.
        x: A tensor on the device of the computation.
    """
    if state is None:
        yield
        return
    outside = random_state(x)
    state.set()
    try:
        yield
    finally:
        outside.set()


@dataclass
class Watched:
    """F, and the state of the random generators before its first and its last evaluation."""

    F: Callable[..., Tensor]
    first: RandomState | None = None
    last: RandomState | None = None

    def __call__(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """Evaluate F at x."""
        self.last = random_state(x)
        self.first = self.first or self.last
        return self.F(x, *tensors)


def drawing_as(state: RandomState | None, F: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let F draw the same in every evaluation; without a state, as it draws nothing, return F itself."""
    if state is None:
        return F

    def drawn(x: Tensor, *tensors: Tensor) -> Tensor:
        with drawing_from(state, x):
            return F(x, *tensors)

    return drawn

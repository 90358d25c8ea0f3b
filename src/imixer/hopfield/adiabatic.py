"""The adiabatic limit: with hidden layers infinitely fast, a chain of neurons becomes a rule for x1 alone."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from imixer.errors import check_n_iter, check_whole
from imixer.hopfield.network import HopfieldNetwork
from imixer.hopfield.neurons import Neurons, fits
from imixer.hopfield.synapses import BilinearSynapse

Solve = Literal["nested", "joint"]


class AdiabaticUpdate(nn.Module):
    """x1(t+1) = x1(t) + F1(x1(t)) - alpha x1(t), the limit tau_1 >> tau_2 >> ... >> tau_L of a chain.

    Choose it to compute with x1 alone, as a mixer block or a memory does; `integrate` follows all layers in time. The
    equation is a step of length tau_1; `forward` takes others.

        F^A = H^(A+1) . (1 - F^(A+1))^-1 . G^A,  F^(L-1) = H^L . G^(L-1),
        G^A = xi^(A+1,A) g^A,  H^(A+1) = xi^(A,A+1) g^(A+1)

    alpha is the decay of x1: 0 gives the residual block of a mixer, 1 gives F1(x1) alone, the step of an associative
    memory.

    Args:
        network: A chain of bilinear couplings, symmetric or not.
        layers: Names of its layers from the visible one on. Default: in the order of the network.
        n_iter: Fixed point iterations n of each inverse, or sweeps over the chain.
        solve: `nested` solves an inverse inside each step of an inverse, as the paper writes it: n^(L-2) evaluations
            of the innermost F. `joint` sweeps from xL to x2: n (L-1) updates of a layer, to the same fixed point.
            With L = 3 they are the same.
        top_down_bias: Layer name -> the part of its field that comes with what the next layer sends, as the bias of the
            way down does in an MLP. The iteration starts without that part; its fixed point is the same.

    Raises:
        ValueError: If the network is no chain, a hidden layer does not decay, n_iter is negative, solve is neither, or
            top_down_bias is no part of a field.

    Source: paper (11)-(14) for L = 2, (20)-(29) for L = 3, (33)-(42) for any.
    """

    def __init__(
        self,
        network: HopfieldNetwork,
        layers: Sequence[str] | None = None,
        *,
        n_iter: int = 2,
        solve: Solve = "nested",
        top_down_bias: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_n_iter(n_iter)
        if solve not in ("nested", "joint"):
            raise ValueError(f"solve is {solve!r}; choose nested or joint")
        self.network = network
        self.layers = list(network.neurons if layers is None else layers)
        self.n_iter = n_iter
        self.solve = solve
        wanted = ["-".join(pair) for pair in pairwise(self.layers)]
        if len(self.layers) < 2:
            raise ValueError(f"the network has one layer, {self.layers[0]}; a chain has two or more")
        if sorted(self.layers) != sorted(network.neurons) or sorted(wanted) != sorted(network.synapses):
            raise ValueError(
                f"a chain over {' - '.join(self.layers)} needs the synapses {', '.join(wanted) or '(none)'}; the "
                f"network has the layers {', '.join(network.neurons)} and the synapses {', '.join(network.synapses)}"
            )
        for name in wanted:
            if not isinstance(network.synapse(name), BilinearSynapse):
                raise ValueError(
                    f"synapse {name} is a {type(network.synapse(name)).__name__}; a chain needs bilinear ones"
                )
        for name in self.layers[1:]:
            if network.layer(name).decay == 0:
                raise ValueError(
                    f"layer {name} has decay 0, so it rests nowhere; give the hidden layers a positive one"
                )
        self._couplings = wanted
        for name, part in (top_down_bias or {}).items():
            if name not in self.layers[1:-1]:
                raise ValueError(f"top_down_bias names {name!r}; the layers between are {', '.join(self.layers[1:-1])}")
            if network.layer(name).field is None or not fits(part.shape, network.layer(name).shape):
                raise ValueError(f"top_down_bias gives layer {name} {tuple(part.shape)}, which is no part of its field")
            self.register_buffer(f"top_down_bias_{name}", part.detach().clone())

    def forward(self, x1: Tensor, steps: int = 1, dt: float | None = None) -> Tensor:
        """Take explicit Euler steps x1 <- x1 + (dt / tau_1) (F1(x1) - alpha x1) of the slow flow.

        Args:
            x1: (B, *shape).
            steps: How many, 0 or more.
            dt: Length of a step, in the time unit of tau_1. Default: tau_1, the paper's.

        Raises:
            ValueError: If steps is negative or not whole, or dt not positive and finite.

        Source: paper (14), (20), (26), (42), which have dt = tau_1 and alpha = 0; before that step (12).
        """
        check_whole(steps=steps)
        if steps < 0:
            raise ValueError(f"steps is {steps}; give 0 or more")
        if dt is not None and not (dt > 0 and math.isfinite(dt)):
            raise ValueError(f"dt is {dt}; a step must be positive and finite")
        alpha, ratio = self._neurons(1).decay, 1.0 if dt is None else dt / self._neurons(1).tau
        for _ in range(steps):
            x1 = (1 - ratio * alpha) * x1 + ratio * self.F1(x1)
        return x1

    def velocity(self, x1: Tensor) -> Tensor:
        """Compute dx1/dt of the slow flow, (F1(x1) - alpha x1) / tau_1, for x1 (B, *shape)."""
        return (self.F1(x1) - self._neurons(1).decay * x1) / self._neurons(1).tau

    def F1(self, x1: Tensor) -> Tensor:
        """Compute what x1 receives from the layers behind it, (B, *shape)."""
        if self.solve == "joint":
            return self._H(2, self._joint(x1)[0])
        return self._F(1, x1)

    def hidden(self, x1: Tensor) -> list[Tensor]:
        """Return the states x2, ..., xL at which the hidden layers rest for x1 (B, *shape), as far as n_iter leads."""
        if self.solve == "joint":
            return self._joint(x1)
        states = []
        x = x1
        for A in range(2, self.depth + 1):
            x = self._inverse(A, self._G(A - 1, x))
            states.append(x)
        return states

    def residual(self, x1: Tensor, hidden: Sequence[Tensor]) -> Tensor:
        """Measure how far hidden layers are from rest, (B,): the largest |inputs - alpha x| of any neuron."""
        x = [x1, *hidden]
        worst = x1.new_zeros(len(x1))
        for A in range(2, self.depth + 1):
            received = self._G(A - 1, x[A - 2])
            if A < self.depth:
                received = received + self._H(A + 1, x[A])
            rest_residual = (received - self._neurons(A).decay * x[A - 1]).abs().flatten(1).amax(1)
            worst = torch.maximum(worst, rest_residual)
        return worst

    @property
    def depth(self) -> int:
        """Number of layers L."""
        return len(self.layers)

    # Layers are counted from 1, as in the paper.

    def _F(self, A: int, x: Tensor) -> Tensor:
        """Apply F^A = H^(A+1) . (1 - F^(A+1))^-1 . G^A."""
        return self._H(A + 1, self._inverse(A + 1, self._G(A, x)))

    def _inverse(self, A: int, z: Tensor) -> Tensor:
        """Apply (1 - F^A)^-1 to z by n fixed point iterations; the last layer has no F."""
        decay = self._neurons(A).decay
        x = z / decay
        if A < self.depth:
            for _ in range(self.n_iter):
                x = (z + self._F(A, x)) / decay
        return x

    def _joint(self, x1: Tensor) -> list[Tensor]:
        """Return x2, ..., xL after n sweeps from the far end, starting from what comes up from x1."""
        z = self._G(1, x1)
        x = [x1, z / self._neurons(2).decay]
        for A in range(3, self.depth + 1):
            x.append(self._G(A - 1, x[-1]) / self._neurons(A).decay)
        for sweep in range(self.n_iter if self.depth > 2 else 0):
            for A in range(self.depth if sweep else self.depth - 1, 1, -1):  # xL is up to date at first
                received = z if A == 2 else self._G(A - 1, x[A - 2])
                if A < self.depth:
                    received = received + self._H(A + 1, x[A])
                x[A - 1] = received / self._neurons(A).decay
        return x[1:]

    def _G(self, A: int, x: Tensor) -> Tensor:
        """Compute what layer A + 1 receives from layer A, with its field but for the top-down bias."""
        given = self._coupling(A).up(self._neurons(A).activation(x))
        field, top_down = self._neurons(A + 1).field, self._top_down_bias(A + 1)
        if field is None:
            return given
        return given + (field if top_down is None else field - top_down)

    def _H(self, A: int, x: Tensor) -> Tensor:
        """Compute what layer A - 1 receives from layer A, with its top-down bias."""
        given = self._coupling(A - 1).down(self._neurons(A).activation(x))
        top_down = self._top_down_bias(A - 1)
        return given if top_down is None else given + top_down

    def _top_down_bias(self, A: int) -> Tensor | None:
        if A == 1:  # which has nothing below
            return self._neurons(1).field
        return getattr(self, f"top_down_bias_{self.layers[A - 1]}", None)

    def _neurons(self, A: int) -> Neurons:
        return self.network.layer(self.layers[A - 1])

    def _coupling(self, A: int) -> BilinearSynapse:
        return cast(BilinearSynapse, self.network.synapse(self._couplings[A - 1]))  # checked at construction

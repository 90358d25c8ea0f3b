"""A network of neurons and synapses on any graph: energy, velocity, and how the one falls along the other.

A state is a dict, layer name -> x of shape (..., *shape of the layer); the axes before are batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from imixer.hopfield.drawing import Drawing, draw
from imixer.hopfield.neurons import Neurons
from imixer.hopfield.synapses import Synapse

State = dict[str, Tensor]
Connection = tuple[Sequence[str], Synapse]


class HopfieldNetwork(nn.Module):
    """Layers of neurons, coupled by synapses, on any graph. `chain` builds the ones in a row.

        tau_A dx^A/dt = sum of what the synapses give A + b^A - alpha_A x^A                  (32)
        E = sum_A alpha_A [<x^A, g^A> - L^A] - <b^A, g^A> + sum of the synapses' energies    (6)

    Choose it for graphs other than a row, or for couplings of several kinds, such as attention beside memories.

    Args:
        neurons: Layer name -> neurons. Names may contain no dot, and be no method of a dictionary, such as `keys`.
        synapses: Pairs of the names a synapse joins, in its order, and the synapse:
            `[(("v", "h"), LinearSynapse(...))]`.

    Raises:
        ValueError: If a layer's name is impossible, or a synapse names a layer that is missing, or joins layers whose
            shapes do not fit; with its name.
    """

    def __init__(self, neurons: Mapping[str, Neurons], synapses: Sequence[Connection]) -> None:
        super().__init__()
        if not neurons:
            raise ValueError("a network needs at least one layer of neurons")
        self.neurons = nn.ModuleDict()
        for name, layer in neurons.items():
            try:
                self.neurons[name] = layer
            except KeyError as error:  # a dot, or an attribute of torch's dictionary, such as `keys`
                raise ValueError(f"a layer cannot have the name {name!r}: {error.args[0]}") from error
        self.synapses = nn.ModuleDict()
        self.connections: dict[str, tuple[str, ...]] = {}
        for names, synapse in synapses:
            self._connect(tuple(names), synapse)

    def _connect(self, layers: tuple[str, ...], synapse: Synapse) -> None:
        name = "-".join(layers if len(layers) > 1 else layers * 2)
        missing = [layer for layer in layers if layer not in self.neurons]
        if missing:
            raise ValueError(
                f"synapse {name} joins a layer {missing[0]!r}, but the layers are {', '.join(self.neurons)}"
            )
        try:
            synapse.connect(*(self.layer(layer).shape for layer in layers))
        except ValueError as error:
            raise ValueError(f"synapse {name}: {error}") from error
        unique, count = name, 1
        while unique in self.connections or unique in self.neurons:  # energies are of both, by name
            count += 1
            unique = f"{name} ({count})"
        self.connections[unique] = layers
        self.synapses[unique] = synapse

    def layer(self, name: str) -> Neurons:
        """Return the layer of that name."""
        return cast(Neurons, self.neurons[name])

    def synapse(self, name: str) -> Synapse:
        """Return the synapse of that name: its layers joined by dashes, as in `v-h`."""
        return cast(Synapse, self.synapses[name])

    @property
    def asymmetric(self) -> list[str]:
        """Names of the synapses that derive from no energy."""
        return [name for name in self.synapses if not self.synapse(name).symmetric]

    def initial_state(self, **given: Tensor) -> State:
        """Return a state with the given layers (..., *shape); the others, of the same batch, at zero.

        Raises:
            ValueError: If a layer is unknown, has another shape, or is not real and finite; with its name.
        """
        if not given:
            raise ValueError(f"give the state of at least one layer: {', '.join(self.neurons)}")
        for name, x in given.items():
            if name not in self.neurons:
                raise ValueError(f"no layer {name!r}; the layers are {', '.join(self.neurons)}")
            _require_numbers(name, x)
            shape = self.layer(name).shape
            if x.shape[x.dim() - len(shape) :] != shape:
                raise ValueError(f"layer {name}: the state has shape {tuple(x.shape)}; it must end in {shape}")
        name, x = next(iter(given.items()))
        batch = x.shape[: x.dim() - len(self.layer(name).shape)]
        state = {name: given[name] if name in given else x.new_zeros(*batch, *self.layer(name).shape)
                 for name in self.neurons}  # fmt: skip
        self.check(state)
        return state

    def check(self, state: State) -> None:
        """Refuse a state that lacks a layer, has a wrong shape, unequal batches, or values not real and finite.

        Raises:
            ValueError: With the name of the layer.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"the state is {type(state).__name__}; give a dict, layer name -> tensor")
        if set(state) != set(self.neurons):
            raise ValueError(f"the state has layers {', '.join(state)}; the network has {', '.join(self.neurons)}")
        batches = {}
        for name, x in state.items():
            _require_numbers(name, x)
            shape = self.layer(name).shape
            batches[name] = x.shape[: x.dim() - len(shape)]
            if x.shape != (*batches[name], *shape):
                raise ValueError(f"layer {name}: the state has shape {tuple(x.shape)}; it must end in {shape}")
            if not x.isfinite().all():
                raise ValueError(f"layer {name}: {int((~x.isfinite()).sum())} values of the state are not finite")
        if len(set(batches.values())) > 1:
            raise ValueError(
                f"the layers have unequal batches: {', '.join(f'{n} {tuple(b)}' for n, b in batches.items())}"
            )

    def activations(self, state: State) -> State:
        """Compute g^A for every layer, of the shapes of the state."""
        return {name: self.layer(name).activation(x) for name, x in state.items()}

    def inputs(self, state: State) -> State:
        """Compute what every layer receives, from its synapses and its field, of the shapes of the state.

        Source: paper (32), without the decay.
        """
        g, _ = self._flat_activations(state)
        received: State = {}
        for name, layers in self.connections.items():
            given = self.synapse(name).inputs(*(g[layer] for layer in layers))
            for layer, part in zip(layers, given, strict=True):
                received[layer] = received[layer] + part if layer in received else part
        for name, neurons in self._layers():
            total = received.get(name, torch.zeros_like(g[name]))
            received[name] = (total if neurons.field is None else total + neurons.field).view(state[name].shape)
        return received

    def velocity(self, state: State) -> State:
        """Compute dx^A/dt for every layer, of the shapes of the state.

        Source: paper (32); (3)-(4) for two layers, (15)-(17) for three.
        """
        received = self.inputs(state)
        return {name: (received[name] - layer.decay * state[name]) / layer.tau for name, layer in self._layers()}

    def energies(self, state: State, *, symmetrised: bool = False) -> dict[str, Tensor]:
        """Compute the energy of every layer and synapse, by name, per sample (...). They sum to the energy.

        Args:
            state: Of any batch.
            symmetrised: Take the symmetric part of couplings that are not symmetric. It is no Lyapunov function then.

        Raises:
            ValueError: If a coupling is not symmetric, and that is not asked for; with its name.
        """
        if not symmetrised:
            self.require_energy()
        g, batch = self._flat_activations(state)
        energies = {name: layer.energy(state[name], g[name].view(state[name].shape)) for name, layer in self._layers()}
        for name, layers in self.connections.items():
            energies[name] = self.synapse(name).energy(*(g[layer] for layer in layers)).view(batch)
        return energies

    def energy(self, state: State, *, symmetrised: bool = False) -> Tensor:
        """Compute the total energy per sample (...), the sum of `energies`.

        Source: paper (6).
        """
        return torch.stack(list(self.energies(state, symmetrised=symmetrised).values())).sum(0)

    def energy_rate(self, state: State, held: Mapping[str, Tensor] | None = None) -> Tensor:
        """Compute dE/dt per sample (...), exactly: -sum_A tau_A <dx^A/dt, M^A dx^A/dt>.

        Args:
            state: Of any batch.
            held: Layer name -> mask, true where neurons are clamped, and do not move.

        Raises:
            ValueError: If a coupling is not symmetric.

        Source: paper (7) is the inequality alone; the quadratic form is that of Krotov & Hopfield, arXiv 2008.06996.
        """
        self.require_energy()
        rate: Tensor | float = 0.0
        for name, free in self.velocity(state).items():
            layer = self.layer(name)
            moved = free if held is None or name not in held else free.masked_fill(held[name], 0)
            downhill = layer.lagrangian.hessian_product(state[name], free)  # -dE/dx / tau
            rate = rate - layer.tau * layer.total(moved * downhill)
        return torch.as_tensor(rate)

    def require_energy(self) -> None:
        """Refuse a network that derives from no energy.

        Raises:
            ValueError: With the name of the coupling that is not symmetric.
        """
        if self.asymmetric:
            raise ValueError(
                f"synapse {self.asymmetric[0]} is not symmetric, so the network has no energy; tie it, "
                "or ask for the energy of its symmetric part with symmetrised=True"
            )

    def draw(self) -> Drawing:
        """Draw the network: a box for every layer, an arrow for every coupling.

        A box has the layer's neurons, shape, Lagrangian, time constant, decay and field. A symmetric coupling is one
        line with two heads, another has a line for each way.

        Returns:
            An SVG picture, which a notebook shows and `save` writes to a file. Its `text` is for a terminal.
        """
        return draw(
            dict(self._layers()), [(name, joined, self.synapse(name)) for name, joined in self.connections.items()]
        )

    def violated_conditions(self, held: Mapping[str, Tensor] | None = None) -> list[str]:
        """List the conditions for an energy that falls which the network violates, each as `name: reason`.

        Args:
            held: Layer name -> mask, true where neurons are clamped.
        """
        conditions = [f"{name}: the coupling is not symmetric" for name in self.asymmetric]
        for name, layer in self._layers():
            kind = type(layer.lagrangian).__name__
            if not layer.lagrangian.convex:
                conditions.append(f"{name}: {kind} is not convex")
            elif not layer.lagrangian.proven:
                conditions.append(f"{name}: {kind} is convex where it was measured, which is no proof")
            mask = None if held is None else held.get(name)
            if mask is not None and not layer.lagrangian.elementwise and mask.any() and not mask.all():
                conditions.append(f"{name}: {kind} couples neurons of which some are clamped")
        return conditions

    def _layers(self) -> list[tuple[str, Neurons]]:
        return [(name, self.layer(name)) for name in self.neurons]

    def _flat_activations(self, state: State) -> tuple[State, tuple[int, ...]]:
        """Return activations (B, *shape) with one batch axis, as synapses take them, and the batch shape they had."""
        name, layer = self._layers()[0]
        batch = tuple(state[name].shape[: state[name].dim() - len(layer.shape)])
        count = math.prod(batch)
        return {name: g.reshape(count, *self.layer(name).shape) for name, g in self.activations(state).items()}, batch


def _require_numbers(name: str, x: object) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"layer {name}: the state is of {kind}; give a tensor of real floating numbers")

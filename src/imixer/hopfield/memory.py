"""Associative memories: patterns stored in the couplings of a network, and retrieved by letting its energy fall.

xi: patterns as rows, (K, N). m: overlap <xi, g> / N of the visible activation g with a pattern, in [-1, 1] if both are
of +-1.
"""

import copy
import math
import warnings
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn

from imixer.dtypes import at_least_float32
from imixer.errors import check_whole
from imixer.hopfield.adiabatic import AdiabaticUpdate
from imixer.hopfield.lagrangians.coupled import Attentive
from imixer.hopfield.lagrangians.masked import Masked
from imixer.hopfield.lagrangians.parts import holds
from imixer.hopfield.memory_kinds import BINARY, Kind, build, from_patches, to_patches
from imixer.hopfield.network import HopfieldNetwork, State
from imixer.hopfield.pictures import animate
from imixer.hopfield.synapses import BilinearSynapse, LinearSynapse

# What to do where patterns merge.
_REMEDIES: dict[Kind, str] = {
    "classical": "store fewer patterns, give rule='pseudo_inverse', or choose another kind",
    "polynomial": "raise the order",
    "exponential": "raise beta",
    "modern": "raise beta, or give alpha=2",
    "hierarchical": "raise beta",
}


@dataclass(frozen=True, repr=False)
class Retrieval:
    """The path of a memory from queries to patterns.

    Attributes:
        states: Visible activations (T, B, *shape), the query's first: one frame per step taken, none repeated.
        energies: Energy (T, B) of these states, hidden layers at rest.
        steps: Steps (B,) after which a query came to rest, or T - 1.
        converged: Whether it did, (B,).
        nearest: Index (B,) of the stored pattern of largest overlap with what was retrieved.
        overlap: That overlap (B,), a cosine; 0 if the state vanished.
        tolerance: Rise of the energy that rounding explains, (B,).
        merged: Whether a query came to rest between patterns, (B,): further from the nearest than a quarter of the way
            to that one's nearest neighbour.
    """

    states: Tensor
    energies: Tensor
    steps: Tensor
    converged: Tensor
    nearest: Tensor
    overlap: Tensor
    tolerance: Tensor
    merged: Tensor

    def __repr__(self) -> str:
        """Say in a line how it went."""
        low, high = (f"{float(value):.2f}" for value in (self.overlap.min(), self.overlap.max()))
        return (
            f"Retrieval({int(self.converged.sum())} of {len(self.converged)} queries at rest after "
            f"{int(self.steps.max())} steps, {int(self.merged.sum())} between patterns, overlap "
            f"{low if low == high else f'{low} to {high}'})"
        )

    @property
    def retrieved(self) -> Tensor:
        """Visible activations (B, *shape) where each query came to rest, whatever the rest of the batch still does."""
        return self.states[self.steps, torch.arange(self.states.shape[1], device=self.steps.device)]

    @property
    def largest_rise(self) -> float:
        """Largest rise of the energy in any step; 0 or below if it never rose."""
        return float(self.energies.diff(dim=0).max()) if len(self.energies) > 1 else 0.0

    @property
    def energy_decreases(self) -> bool:
        """Whether the energy of no query rose in any step by more than its tolerance."""
        return bool((self.energies.diff(dim=0) <= self.tolerance).all())

    def animate(self, path: str | PathLike[str], frames_per_second: int = 4) -> None:
        """Write the way from the queries to the patterns, and its energy, as an animated GIF; of many a dozen is shown.

        Args:
            path: File to write, which ends in .gif.
            frames_per_second: Steps shown in a second.

        Raises:
            ValueError: If the file's name does not end in .gif, it cannot be written, or the speed is not positive.
        """
        animate(self.states, self.energies, path, frames_per_second)


class AssociativeMemory(nn.Module):
    """A Hopfield network that stores patterns and retrieves them from corrupted or incomplete queries.

    Choose `modern` for real-valued patterns, `polynomial` or `exponential` for many of +-1, `classical` for the
    textbook's, `hierarchical` for images made of common parts.

    The kinds, and their options with the defaults. The first three store patterns of +-1, the others any.

    - `classical` (Hopfield 1982, 1984): x <- sum_mu xi_mu m_mu, g = tanh(steepness x).
      `steepness=10`: slope of the visible activation, which stands for the sign of the papers. `rule="hebbian"`: what
      patterns make of the couplings; `storkey` (1997) stores more, `pseudo_inverse` (1985) any that are independent,
      correlated ones too.
    - `polynomial` (Krotov & Hopfield 2016): x <- sum_mu xi_mu (max(m_mu, 0) / threshold)^(order - 1), g as above.
      `order=4` of the energy in the overlaps, `threshold=0.2`, `steepness=10`.
    - `exponential` (Demircigil et al. 2017): x <- sum_mu xi_mu e^(beta (m_mu - threshold)), g as above.
      `beta`: min(N, 40), or less where e^60 or the range of float16 asks for it; N is the published one; a tensor
      (K,) gives each pattern its own. `threshold=0`, the hidden neurons' field. `steepness=10`.
    - `modern` (Ramsauer et al. 2020): x <- softmax(beta x xi^T) xi, which is attention, g = x.
      `beta`: 100 / mean |xi|^2, so that a similarity 5 % lower weighs e^-5; more if two patterns are more similar than
      that: (5 + log K) / (1 - their cosine) / mean |xi|^2. `similarity="dot"`: in it patterns of large norm win.
      `distance` gives the hidden neurons the field -|xi|^2 / 2, so that they compare |x - xi|^2. `alpha=1`: softmax;
      up to 2, sparsemax, for answers that have no part of distant patterns (Hu et al. 2023).
    - `hierarchical` (Krotov 2021): visible patches, then one softmax per patch over a dictionary of primitives that all
      positions and patterns share, then a softmax over whole patterns, assembled from primitives. g = x.
      `patch_size=4`: side of a square patch of patterns (..., H, W), or length of a piece of patterns (N,).
      `primitives`: size of the dictionary; default all patches that differ. `beta`: 20 / mean |patch|^2, of both
      softmaxes. `feedback=1`: what a pattern sends to its primitives, in units of mean |patch|^2. `n_iter=5`: fixed
      point iterations of the primitives in a step.

    `threshold` is the overlap at which one pattern drives the visible neurons by 1. Where all overlaps lie far below, a
    query is too weak and the state goes to 0. The threshold also keeps numbers in range. The published factors e^(N m)
    overflow float32 from N = 88 on. With a field of -N they vanish instead, and the visible activation with them. As
    long as the largest is 1 or more, only their ratios matter; with the defaults they lie between e^-40 and e^40.

    A step is x <- F1(x), hidden layers at rest. With one hidden layer it never raises the energy, though all neurons
    move at once, and whatever pixels are clamped. For the energy is a difference of two convex functions of g, and the
    step minimises the first minus the tangent of the second (the concave-convex procedure). That needs the couplings of
    each neuron with itself, which Hopfield leaves out. With the two hidden layers of `hierarchical` there is no such
    theorem: their fixed point iteration starts anew at every step.

    Couplings and fields are parameters, so that memories can be trained. A state dict has them, and the numbers that
    were taken from the patterns: whatever patterns of that shape a memory of that kind was built with, it becomes the
    one that was saved.

    Args:
        patterns: To store, (K, *shape).
        kind: One of the above.
        binarise: Store +1 where a pattern is above its own mean and -1 elsewhere, as `binarised` does.
        **options: Of the kind, as listed above.

    Attributes:
        kind: As given.
        options: All options of the kind, as given or by default.
        shape: Shape of a pattern.
        update: The step, on visible states in the network's shape.

    Raises:
        ValueError: If kind, an option or the patterns are impossible; with what to do.

    Source: Hopfield 1982, 1984; Krotov & Hopfield, arXiv 1606.01164; Demircigil et al., arXiv 1702.01929; Ramsauer et
    al., arXiv 2008.02217; Krotov, arXiv 2107.06446; Yuille & Rangarajan 2003 for the descent.
    """

    _stored: Tensor | None

    def __init__(self, patterns: Tensor, kind: Kind = "modern", *, binarise: bool = False, **options: Any) -> None:
        super().__init__()
        patterns = _check(patterns)
        built = build(kind, binarised(patterns) if binarise else patterns, options)
        self.kind = kind
        self.options = built.options
        self.shape = tuple(patterns.shape[1:])
        self.update = AdiabaticUpdate(built.network, n_iter=built.options.get("n_iter", 0)).to(patterns)
        self._scales = built.scales
        self.register_buffer("_stored", built.stored)
        self._patch_size: int | None = built.options.get("patch_size")

    @property
    def network(self) -> HopfieldNetwork:
        """The neurons and synapses: layer `visible`, then `hidden`, or `primitives` and `patterns`."""
        return self.update.network

    @property
    def patterns(self) -> Tensor:
        """What the couplings store, (K, *shape); with fewer primitives than patches not quite what was given."""
        if self._stored is not None:
            return self._stored
        weights = [synapse.weight / scale for synapse, scale in zip(self._synapses(), self._scales, strict=True)]
        if len(weights) == 1:
            return weights[0].unflatten(-1, self.shape)
        dictionary, assembly = weights
        return self.from_visible(assembly.unflatten(1, (-1, len(dictionary))) @ dictionary)

    def forward(
        self,
        query: Tensor,
        steps: int = 1,
        known: Tensor | None = None,
        *,
        among: Tensor | None = None,
        patterns: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """Take a number of steps from a query and return the visible activations (B, *shape). Gradients flow.

        Args:
            query: (B, *shape).
            steps: 0 or more.
            known: Mask of the pixels that stay as they are, as in `retrieve`.
            among: Mask of the patterns to choose from, as in `retrieve`.
            patterns: A memory of its own for each query, as in `retrieve`.
            values: What each pattern is the key to, (K, *value_shape), or (B, K, *value_shape) with `patterns`, of any
                width. They are returned in place of the pattern, (B, *value_shape), weighted as `weights` says; the
                last step leads to them. With `modern` and one step that is attention.

        Raises:
            ValueError: If an argument does not fit.
        """
        check_whole(steps=steps)
        if steps < 0:
            raise ValueError(f"steps is {steps}; give 0 or more")
        if values is not None:
            return self._values(query, steps, known, among, patterns, values)
        memory = self._special(among, patterns, query)
        start, held = memory._start(query, known)
        x = start
        for _ in range(steps):
            x = memory._step(x, start, held)
        return memory.read({"visible": x})

    def weights(self, query: Tensor, *, among: Tensor | None = None, patterns: Tensor | None = None) -> Tensor:
        """Return the share (B, K) that each pattern has in the answer to a query: activations that sum to 1.

        For `modern` and `hierarchical` they do so of themselves. Other kinds' are divided by their sum; negative ones,
        of the classical kind, count as 0.

        Args:
            query: (B, *shape).
            among: Mask of the patterns to choose from, as in `retrieve`.
            patterns: A memory of its own for each query, as in `retrieve`.

        Raises:
            ValueError: If an argument does not fit, the rule of a classical memory has no neuron per pattern, or a
                query overlaps with none.
        """
        memory = self._special(among, patterns, query)
        return memory._shares(memory._start(query, None)[0])

    @torch.no_grad()
    def retrieve(
        self,
        query: Tensor,
        *,
        steps: int = 50,
        known: Tensor | None = None,
        until: float = 1e-4,
        among: Tensor | None = None,
        patterns: Tensor | None = None,
        asynchronous: bool = False,
        generator: torch.Generator | None = None,
    ) -> Retrieval:
        """Let the energy fall from each query until it rests. A warning tells of queries that rest between patterns.

        Args:
            query: States to start from, (B, *shape).
            steps: Largest number of steps.
            known: Mask of the pixels that are clamped to the query, `shape` or (B, *shape), true where known. The other
                pixels of the query are only a start; for patterns around 0, 0 is a neutral one.
            until: Largest change of any visible activation in a step that counts as rest.
            among: Mask of the patterns to choose from, (K,) or (B, K), true where allowed. The neurons of others are
                silent.
            patterns: A memory of its own for each query, (B, K, *shape), of this one's kind and options, whose own
                patterns then do not count, but for a `beta` that was chosen by them: give one for patterns of another
                size. Pad with anything and mask that by `among`. Not for `hierarchical`, nor for rules other than
                `hebbian`.
            asynchronous: Let visible neurons move one at a time, in a random order, each seeing what those before it
                did. A step is then a sweep over all, and costs as many evaluations as there are neurons.
            generator: Source of the random order, on the CPU. Default: torch's own.

        Raises:
            ValueError: If the query or a mask does not fit, a mask leaves nothing, or steps or until is negative.
        """
        check_whole(steps=steps)
        if steps < 0:
            raise ValueError(f"steps is {steps}; give 0 or more")
        if not until >= 0:
            raise ValueError(f"until is {until}; give the change that counts as rest, 0 or more")
        memory = self._special(among, patterns, query)
        start, held = memory._start(query, known)
        x, g = start, memory.read({"visible": start})
        states, components = [g], [memory._components(x)]
        count = torch.full((len(query),), steps, device=x.device)
        resting = torch.zeros_like(count, dtype=torch.bool)
        for step in range(1, steps + 1):
            x = memory._sweep(x, start, held, generator) if asynchronous else memory._step(x, start, held)
            g = memory.read({"visible": x})
            rests = (g - states[-1]).flatten(1).abs().amax(1) <= until
            count = torch.where(rests & ~resting, step, count)
            resting |= rests
            states.append(g)
            components.append(memory._components(x))
            if resting.all():
                break
        frames = torch.stack(states)
        final = frames[count, torch.arange(len(query), device=count.device)]
        stored = memory.patterns[None] if patterns is None else memory.patterns
        allowed = None if among is None else among.to(final.device)
        overlap, nearest = _own_overlaps(final, stored, allowed).max(1)
        parts = torch.stack(components)  # (T, parts, B); far larger than their sum, which is the energy
        tolerance = 10 * torch.finfo(parts.dtype).eps * parts.abs().sum(1).amax(0)
        merged = resting & memory._between(final, stored, allowed)
        if merged.any():
            warnings.warn(
                f"{int(merged.sum())} of {len(merged)} queries came to rest between patterns, such as query "
                f"{int(merged.int().argmax())}, which is no retrieval; {self._remedy}",
                stacklevel=3,  # of no_grad's wrapper
            )
        return Retrieval(frames, parts.sum(1), count, resting, nearest, overlap, tolerance, merged)

    def energy(self, x: Tensor) -> Tensor:
        """Compute the energy (B,) at visible states x in the network's shape, hidden layers at rest."""
        return self._components(x).sum(0)

    def state(self, query: Tensor) -> State:
        """Return the network's state for a query (B, *shape), hidden layers at rest: a start for `integrate`."""
        return self._at_rest(self._start(query, None)[0])

    def read(self, state: State) -> Tensor:
        """Return the visible activations (..., *shape) of a state of the network."""
        return self.from_visible(self.network.layer("visible").activation(state["visible"]))

    def to_visible(self, images: Tensor) -> Tensor:
        """Bring (..., *shape) into the visible layer's shape: patches (..., P, D) if hierarchical, else as it is."""
        return images if self._patch_size is None else to_patches(images, len(self.shape), self._patch_size)

    def from_visible(self, x: Tensor) -> Tensor:
        """Bring the visible layer's shape back to (..., *shape), as before `to_visible`."""
        return x if self._patch_size is None else from_patches(x, self.shape, self._patch_size)

    def get_extra_state(self) -> Tensor:
        """Return what was taken from the patterns and is no parameter: the scales, and beta of each softmax."""
        return torch.tensor([*self._scales, *(float(each.beta) for each in self._softmaxes())], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take what `get_extra_state` gave, in the place of what this memory's own patterns have led to."""
        softmaxes, count = self._softmaxes(), len(self._scales)
        numbers = state.tolist()
        if len(numbers) != count + len(softmaxes):
            raise ValueError(f"the state dict is of another kind of memory than {self.kind}; build one of that kind")
        self._scales = tuple(numbers[:count])
        for each, beta in zip(softmaxes, numbers[count:], strict=True):
            each.beta = beta
            self.options = self.options | {"beta": beta}

    def _softmaxes(self) -> list[Attentive]:
        """List the hidden layers' softmaxes whose inverse temperature is a plain number."""
        lagrangians = (self.network.layer(name).lagrangian for name in self.update.layers[1:])
        return [each for each in lagrangians if isinstance(each, Attentive) and isinstance(each.beta, float)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}_extra_state"
        if key not in state_dict:  # it was not always there
            if self._softmaxes() and not self._has_weights_of(state_dict, prefix):
                raise ValueError(
                    f"the state dict has no {key}, where beta and scales are, and other patterns than this memory; "
                    f"build it from the stored ones, or keep its beta and scales: state_dict[{key!r}] = "
                    "memory.get_extra_state()"
                )
            state_dict[key] = self.get_extra_state()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _has_weights_of(self, state_dict: dict[str, Any], prefix: str) -> bool:
        pairs = [(state_dict.get(f"{prefix}{name}"), parameter) for name, parameter in self.named_parameters()]
        return all(x is None or (not own.is_meta and torch.equal(x.to(own), own)) for x, own in pairs)

    def extra_repr(self) -> str:
        """Show the options in a printed module."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.kind}, {len(self.patterns)} patterns of shape {self.shape}, {options}"

    def _synapses(self) -> list[LinearSynapse]:
        return [cast(LinearSynapse, self.network.synapse(name)) for name in self.network.synapses]

    @property
    def _remedy(self) -> str:
        """What to do where patterns merge."""
        if self.options.get("rule") == "pseudo_inverse":
            return "store fewer patterns, or choose another kind"
        return _REMEDIES[self.kind]

    def _components(self, x: Tensor) -> Tensor:
        return torch.stack(list(self.network.energies(self._at_rest(x)).values()))

    def _step(self, x: Tensor, start: Tensor, held: Tensor | None) -> Tensor:
        new = self.update(x)
        return new if held is None else torch.where(held, start, new)

    def _sweep(self, x: Tensor, start: Tensor, held: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Let the visible neurons move one after the other, in a random order."""
        neurons = torch.arange(x[0].numel(), device=x.device).view(x.shape[1:])
        for i in torch.randperm(neurons.numel(), generator=generator, device="cpu").tolist():
            x = torch.where(neurons == i, self._step(x, start, held), x)
        return x

    def _values(
        self,
        query: Tensor,
        steps: int,
        known: Tensor | None,
        among: Tensor | None,
        patterns: Tensor | None,
        values: Tensor,
    ) -> Tensor:
        if steps < 1:
            raise ValueError(f"steps is {steps}; values are what the last step leads to, give 1 or more")
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise ValueError(
                f"values are of {_kind_of(values)}; give floating numbers, which are averaged, such as "
                "one_hot(labels).float() for labels"
            )
        memory = self._special(among, patterns, query)
        keys = self.patterns[None] if patterns is None else patterns
        lead = keys.shape[1:2] if patterns is None else keys.shape[:2]
        if values.shape[: len(lead)] != lead:
            raise ValueError(
                f"values has shape {tuple(values.shape)}; give one per pattern, "
                f"({', '.join(map(str, lead))}, *value_shape)"
            )
        start, held = memory._start(query, known)
        x = start
        for _ in range(steps - 1):
            x = memory._step(x, start, held)
        weights = memory._shares(x)
        return torch.einsum("bk,k...->b..." if patterns is None else "bk,bk...->b...", weights, values.to(weights))

    def _shares(self, x: Tensor) -> Tensor:
        """Compute the share (B, K) of each pattern in the step from visible states x, which `weights` describes."""
        if self._stored is not None:
            raise ValueError(f"rule {self.options['rule']!r} has no neuron per pattern; give rule='hebbian'")
        name = self.update.layers[-1]
        g = self.network.layer(name).activation(self._at_rest(x)[name]).clamp(min=0)
        total = g.sum(1, keepdim=True)
        if not holds(total > 0):
            raise ValueError(
                f"query {int((total[:, 0] <= 0).nonzero()[0])} overlaps with no pattern, so that none has a share in "
                "its answer; give a nearer one, or take the kind modern"
            )
        return g / total.clamp(min=torch.finfo(g.dtype).tiny)

    def _special(self, among: Tensor | None, patterns: Tensor | None, query: Tensor) -> "AssociativeMemory":
        """Return this memory, or one with the same parameters that is restricted, or has patterns per query."""
        self._check_query(query)
        if among is None and patterns is None:
            return self
        batch = len(query)
        if self._stored is not None:
            raise ValueError(
                f"rule {self.options['rule']!r} mixes all patterns in its couplings, so that among and patterns cannot "
                "be given with a query; build a memory of the patterns instead, or give rule='hebbian'"
            )
        memory = copy.deepcopy(self, {id(parameter): parameter for parameter in self.parameters()})
        hidden = memory.network.layer(memory.update.layers[-1])
        if patterns is not None:
            self._check_own(patterns, batch)
            weight = patterns.to(self._synapses()[0].weight)
            synapse = _OwnPatterns(self._scales[0] * weight.flatten(2), self.shape)
            memory.network.synapses[next(iter(memory.network.synapses))] = synapse
            hidden.shape = (weight.shape[1],)
            if self.options.get("similarity") == "distance":
                del hidden.field
                hidden.register_buffer("field", -weight.flatten(2).square().sum(2) / 2)
        if among is not None:
            K = hidden.shape[0]
            if not isinstance(among, Tensor) or among.dtype != torch.bool:
                raise ValueError(f"among is of {_kind_of(among)}; give booleans, true where a pattern may be retrieved")
            if among.shape not in ((K,), (batch, K)):
                raise ValueError(f"among has shape {tuple(among.shape)}; give ({K},) or ({batch}, {K})")
            among = among.to(self._synapses()[0].weight.device)
            if not holds(among.any(-1)):
                which = "the queries" if among.dim() == 1 else f"query {int((~among.any(1)).int().argmax())}"
                raise ValueError(f"among leaves {which} no pattern to retrieve; allow one or more")
            hidden.lagrangian = Masked(hidden.lagrangian, among)
        return memory

    def _check_own(self, patterns: Tensor, batch: int) -> None:
        if self.kind == "hierarchical":
            raise ValueError(
                "a hierarchical memory shares its dictionary, so that it cannot take patterns per query; "
                "choose another kind"
            )
        if isinstance(self.options.get("beta"), Tensor):
            raise ValueError("beta is one per pattern, but each query has patterns of its own; give one number")
        if not isinstance(patterns, Tensor):
            raise ValueError(f"patterns is {_kind_of(patterns)}; give a tensor, the patterns of each query")
        if patterns.dim() != len(self.shape) + 2 or patterns.shape[0] != batch or patterns.shape[2:] != self.shape:
            raise ValueError(
                f"patterns has shape {tuple(patterns.shape)}; give ({batch}, K, {', '.join(map(str, self.shape))}), "
                "the patterns of each query"
            )
        if patterns.shape[1] == 0 or not holds(patterns.isfinite()):
            raise ValueError("patterns are none or not finite; give one or more of finite numbers per query")
        if self.kind in BINARY and not holds(patterns.abs() == 1):
            raise ValueError(
                f"{self.kind} stores patterns of -1 and +1, and patterns has others; give binarised(patterns)"
            )

    def _between(self, final: Tensor, stored: Tensor, among: Tensor | None) -> Tensor:
        """Tell which states (B, *shape) lie between patterns, (B, K, *shape) or (1, K, *shape) for all."""
        flat, xi = final.flatten(1), stored.flatten(2)
        distances = _distances(flat, xi)
        if self.kind == "classical":  # which stores a pattern and its negative alike
            distances = torch.minimum(distances, _distances(-flat, xi))
        silent = torch.zeros_like(distances, dtype=torch.bool) if among is None else ~among.expand(distances.shape)
        away, nearest = distances.masked_fill(silent, math.inf).min(1)
        own = xi.expand(len(flat), -1, -1)[torch.arange(len(flat), device=nearest.device), nearest]
        apart = _distances(own, xi)
        copies = apart <= 1e-3 * own.norm(dim=1, keepdim=True)  # to what float32 tells of distances
        neighbour = apart.masked_fill(copies | silent, math.inf).amin(1)
        between = away > neighbour / 4
        # A query that a binary memory forgets is no mixture.
        return between & (flat.norm(dim=1) > own.norm(dim=1) / 10) if self.kind in BINARY else between

    def _at_rest(self, x: Tensor) -> State:
        return dict(zip(self.update.layers, [x, *self.update.hidden(x)], strict=True))

    def _check_query(self, query: Tensor) -> None:
        """Refuse what is no query (B, *shape) of finite real numbers."""
        if not isinstance(query, Tensor) or 0 in query.shape:
            what = tuple(query.shape) if isinstance(query, Tensor) else type(query).__name__
            raise ValueError(
                f"the query is {what}; give a tensor of one or more, (B, {', '.join(map(str, self.shape))})"
            )
        if query.shape[1:] != self.shape or query.dim() == len(self.shape):
            raise ValueError(
                f"the query has shape {tuple(query.shape)}; give (B, {', '.join(map(str, self.shape))}), with an axis "
                "of queries in front as query[None] adds one"
            )
        if query.is_complex():
            raise ValueError("the query is complex; give real numbers, such as query.real")
        if not holds(query.isfinite()):
            raise ValueError(
                f"{int((~query.isfinite()).sum())} values of the query are not finite; give 0 where pixels are unknown "
                "and, as known, a mask of the others"
            )

    def _start(self, query: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Bring the query and the mask into the shape of the visible layer."""
        self._check_query(query)
        x = self.to_visible(query.to(self._synapses()[0].weight))
        if known is None:
            return x, None
        if not isinstance(known, Tensor) or known.dtype != torch.bool:
            raise ValueError(f"known is of {_kind_of(known)}; give booleans, true where a pixel is known")
        if known.shape not in (query.shape, query.shape[1:]):
            raise ValueError(f"known has shape {tuple(known.shape)}; give {tuple(self.shape)} or {tuple(query.shape)}")
        each = known.expand(query.shape).flatten(1).all(1)
        if not holds(~each.any()):
            which = f" of query {int(each.nonzero()[0])}" if len(each) > 1 and not each.all() else ""
            raise ValueError(
                f"known holds every pixel{which}, which leaves nothing to retrieve; leave it out, or free some pixels"
            )
        return x, self.to_visible(known.to(x.device).expand(query.shape))


class _OwnPatterns(BilinearSynapse):
    """Couple each sample of a layer with hidden neurons of its own: a matrix (B, K, N) per sample."""

    def __init__(self, weight: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = weight
        self._shape = shape

    def up(self, g_a: Tensor) -> Tensor:
        return torch.einsum("bkn,bn->bk", self.weight, g_a.flatten(1))

    def down(self, g_b: Tensor) -> Tensor:
        return torch.einsum("bkn,bk->bn", self.weight, g_b).unflatten(1, self._shape)


def _kind_of(mask: object) -> str:
    return str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__


def binarised(images: Tensor) -> Tensor:
    """Replace each pixel of images (B, *shape) by +1 above its image's mean and -1 elsewhere."""
    mean = images.flatten(1).mean(1).view(-1, *[1] * (images.dim() - 1))
    return torch.where(images > mean, 1.0, -1.0).to(images)


def overlaps(images: Tensor, patterns: Tensor) -> Tensor:
    """Compute the cosines (B, K) of images (B, *shape) with patterns (K, *shape); 0 where one of the two is 0."""
    a, b = (nn.functional.normalize(x.flatten(1), dim=1) for x in (images, patterns))
    return a @ b.T


def _own_overlaps(images: Tensor, patterns: Tensor, among: Tensor | None) -> Tensor:
    """Compute the cosines (B, K) of images (B, *shape) with patterns, (B, K, *shape) or (1, K, *shape) for all.

    Those of patterns that `among` leaves out are -2.
    """
    if len(patterns) == 1:
        cosines = overlaps(images, patterns[0])
    else:
        cosines = torch.cat([overlaps(images[i : i + 1], own) for i, own in enumerate(patterns)])
    return cosines if among is None else cosines.masked_fill(~among, -2.0)


def _distances(x: Tensor, xi: Tensor) -> Tensor:
    """Compute distances (B, K) of points (B, N) to those of (B, K, N), or (1, K, N) for all."""
    x, xi = at_least_float32(x), at_least_float32(xi)  # half precision has no distances
    return torch.cdist(x, xi[0]) if len(xi) == 1 else torch.cdist(x[:, None], xi)[:, 0]


def _check(patterns: Tensor) -> Tensor:
    if not isinstance(patterns, Tensor):
        raise ValueError(f"patterns is a {type(patterns).__name__}; give a tensor (K, *shape)")
    if patterns.dim() < 2 or 0 in patterns.shape:
        raise ValueError(
            f"patterns has shape {tuple(patterns.shape)}; give (K, *shape), one or more patterns along the first axis"
        )
    if patterns.is_complex():
        raise ValueError("the patterns are complex; give real numbers, such as patterns.real")
    if not patterns.isfinite().all():
        raise ValueError(f"{int((~patterns.isfinite()).sum())} values of the patterns are not finite; give numbers")
    return patterns.detach() if patterns.is_floating_point() else patterns.to(torch.get_default_dtype())

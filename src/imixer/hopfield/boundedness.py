"""Is the energy bounded from below? Sufficient conditions; docs/theory.md, section 1, has the proof."""

import math

import torch

from imixer.hopfield.network import HopfieldNetwork

_MARGIN = 1e-9  # of the strength, for rounding


@torch.no_grad()
def boundedness_violations(network: HopfieldNetwork) -> list[str]:
    """List the conditions for an energy that is bounded from below which a network violates, as `names: reason`.

    There are three. Every layer's Lagrangian tells its `asymptotic_slope` s. Every coupling tells its `growth` K. The
    couplings among layers with unbounded activations (s > 0) are weak: the matrix with the entries
    K_AB sqrt(s_A s_B / (alpha_A alpha_B)) has no eigenvalue of 1 or more. For two layers that is
    sigma(xi) sqrt(s_1 s_2) < sqrt(alpha_1 alpha_2). Layers with bounded activations allow any couplings.

    The conditions suffice and are not necessary. Couplings need not be symmetric, but without that there is no energy.

    Args:
        network: Any; its present weights count.

    Returns:
        Empty if the energy is bounded from below.

    Source: ours; that it has to be is the second condition after paper (7).
    """
    violations = []
    slopes: dict[str, float] = {}
    for name in network.neurons:
        layer = network.layer(name)
        slope, kind = layer.lagrangian.asymptotic_slope, type(layer.lagrangian).__name__
        if slope is None or (slope == math.inf and not layer.lagrangian.convex):
            violations.append(f"{name}: {kind} has no known asymptotic slope")
        elif slope > 0 and layer.decay == 0:
            violations.append(f"{name}: {kind} is unbounded and does not decay")
        elif slope > 0:
            slopes[name] = slope / layer.decay
    strengths = torch.zeros(len(slopes), len(slopes), dtype=torch.float64)
    place = {name: i for i, name in enumerate(slopes)}
    for name, joined in network.connections.items():
        growth = network.synapse(name).growth(*(network.layer(layer).shape for layer in joined))
        if growth is None:
            violations.append(f"{name}: {type(network.synapse(name)).__name__} has no known bound")
            continue
        for a, row in zip(joined, growth.tolist(), strict=True):
            for b, entry in zip(joined, row, strict=True):
                if entry and a in place and b in place:
                    strengths[place[a], place[b]] += entry * math.sqrt(slopes[a]) * math.sqrt(slopes[b])
    names = list(slopes)
    for group in _components(strengths):
        part = strengths[group][:, group]
        strength = float(torch.linalg.eigvalsh(part)[-1]) if part.isfinite().all() else math.inf
        if not strength < 1 - _MARGIN:
            layers = ", ".join(names[i] for i in group)
            why = f"unbounded activations, coupled with strength {strength:.3g} (below 1 is safe)"
            violations.append(f"{layers}: {why}")
    return violations


def _components(strengths: torch.Tensor) -> list[list[int]]:
    """Group the layers that are joined, directly or by way of others."""
    left, groups = set(range(len(strengths))), []
    while left:
        group, new = set(), {min(left)}
        while new:
            group |= new
            new = {j for i in new for j in strengths[i].nonzero().flatten().tolist()} - group
        left -= group
        groups.append(sorted(group))
    return groups

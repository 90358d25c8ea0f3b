"""Networks that others have published, built from the parts of this package."""

import torch
from torch import Tensor

from imixer.hopfield.lagrangians import LayerNorm
from imixer.hopfield.network import HopfieldNetwork
from imixer.hopfield.neurons import Neurons
from imixer.hopfield.synapses import AttentionSynapse, RestingLayerSynapse


def energy_transformer(
    tokens: int,
    features: int,
    *,
    num_heads: int = 12,
    head_features: int = 64,
    memories: int | None = None,
    gain: float = 1.0,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> HopfieldNetwork:
    """Build the network of an Energy Transformer's block: tokens that attend to each other and recall memories.

    The layer `tokens` has LayerNorm as its activation, of one gain and a shift per feature. Two synapses act on it:
    `tokens-tokens` is attention, `tokens-tokens (2)` a layer of ReLU memories at rest. There is no decay, so that
    `velocity` is minus the gradient of the published energy by g, which is the sum of the two synapses' entries of
    `energies`. A block is some steps x <- x + step * velocity.

    Args:
        tokens: Number of tokens.
        features: Channels of a token, D.
        num_heads: Heads of the attention.
        head_features: Width of a head, Y. The inverse temperature is 1 / sqrt(Y).
        memories: Number of memories. Default: 4 D.
        gain: gamma of LayerNorm.
        shift: delta of LayerNorm, (D,). Default: zeros. It becomes a parameter.
        eps: Added to the variance.

    Raises:
        ValueError: If a size is below 1, shift is not one number per feature, or an argument of LayerNorm impossible.

    Source: Hoover et al., arXiv 2302.07253.
    """
    if shift is not None and not (isinstance(shift, torch.Tensor) and shift.shape == (features,)):
        what = tuple(shift.shape) if isinstance(shift, torch.Tensor) else shift
        raise ValueError(f"shift is {what}; give one number per feature, ({features},), in a tensor")
    delta = torch.nn.Parameter(torch.zeros(features) if shift is None else shift.detach().clone())
    layer = Neurons((tokens, features), LayerNorm(eps=eps, gain=gain, shift=delta), decay=0.0)
    attention = AttentionSynapse(features, num_heads, head_features)
    recall = RestingLayerSynapse(features, 4 * features if memories is None else memories, "relu")
    return HopfieldNetwork({"tokens": layer}, [(("tokens",), attention), (("tokens",), recall)])

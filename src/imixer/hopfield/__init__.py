"""Hierarchical Hopfield networks: from an energy to dynamics, memories, mixers. Needs torch, torchdiffeq, scipy."""

from imixer.hopfield.adiabatic import AdiabaticUpdate
from imixer.hopfield.boundedness import boundedness_violations
from imixer.hopfield.chain import chain, three_layer, two_layer
from imixer.hopfield.descent import Descent, descent
from imixer.hopfield.drawing import Drawing
from imixer.hopfield.dynamics import Trajectory, integrate
from imixer.hopfield.lagrangian import Lagrangian
from imixer.hopfield.lagrangians import LAGRANGIANS, lagrangian
from imixer.hopfield.memory import AssociativeMemory, Retrieval
from imixer.hopfield.network import HopfieldNetwork, State
from imixer.hopfield.neurons import Neurons
from imixer.hopfield.published import energy_transformer
from imixer.hopfield.synapses import (
    AttentionSynapse,
    BilinearSynapse,
    ConvSynapse,
    EnergySynapse,
    LinearSynapse,
    RestingLayerSynapse,
    Synapse,
)

__all__ = [
    "LAGRANGIANS",
    "AdiabaticUpdate",
    "AssociativeMemory",
    "AttentionSynapse",
    "BilinearSynapse",
    "ConvSynapse",
    "Descent",
    "Drawing",
    "EnergySynapse",
    "HopfieldNetwork",
    "Lagrangian",
    "LinearSynapse",
    "Neurons",
    "RestingLayerSynapse",
    "Retrieval",
    "State",
    "Synapse",
    "Trajectory",
    "boundedness_violations",
    "chain",
    "descent",
    "energy_transformer",
    "integrate",
    "lagrangian",
    "three_layer",
    "two_layer",
]

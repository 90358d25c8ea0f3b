"""Lagrangians, each named by its activation. A new one is one class with `@register("its_name")`."""

from imixer.hopfield.lagrangians.coupled import Entmax, LayerNorm, Softmax, Sparsemax, Spherical, UnitLayerNorm
from imixer.hopfield.lagrangians.custom import Elementwise, FromDensity
from imixer.hopfield.lagrangians.elementwise import (
    GELU,
    Exponential,
    GELU1Lip,
    Identity,
    RectifiedPower,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from imixer.hopfield.lagrangians.masked import Masked
from imixer.hopfield.lagrangians.registry import LAGRANGIANS, lagrangian, register

__all__ = [
    "GELU",
    "LAGRANGIANS",
    "Elementwise",
    "Entmax",
    "Exponential",
    "FromDensity",
    "GELU1Lip",
    "Identity",
    "LayerNorm",
    "Masked",
    "ReLU",
    "RectifiedPower",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Sparsemax",
    "Spherical",
    "Tanh",
    "UnitLayerNorm",
    "lagrangian",
    "register",
]

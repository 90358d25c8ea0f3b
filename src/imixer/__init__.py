"""iMixer: image models derived from hierarchical Hopfield networks."""

__version__ = "0.1.0"

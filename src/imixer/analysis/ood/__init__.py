"""Measure how well scores of a model tell images of its own kind (in) from others (out)."""

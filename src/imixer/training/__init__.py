"""Typed configs, the Lightning module, run directories."""

"""YAML recipes, addressed by their path without the suffix."""

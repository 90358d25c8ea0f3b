"""Data sets by name, as loaders."""

"""Explore a trained model, and associative memories, on a local page: `imixer explore`."""

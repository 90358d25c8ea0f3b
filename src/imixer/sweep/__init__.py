"""A grid of configurations times seeds: resumable, here or on a cluster."""

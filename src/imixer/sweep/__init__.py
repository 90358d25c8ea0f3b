"""A grid of configurations times seeds: resumable, here or on a cluster."""

from imixer.extras import require_extra

require_extra("train", "imixer.sweep")

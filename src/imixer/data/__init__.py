"""Data sets by name, as loaders."""

from imixer.extras import require_extra

require_extra("train", "imixer.data")

"""Measurements on a trained model."""

from imixer.extras import require_extra

require_extra("train", "imixer.analysis")

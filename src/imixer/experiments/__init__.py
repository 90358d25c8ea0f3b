"""Reproduce the paper's tables and figures, and go beyond them: one small file per experiment."""

from imixer.extras import require_extra

require_extra("train", "imixer.experiments")

"""Train, evaluate and use a model: typed settings, the loop, run directories."""

from imixer.extras import require_extra

require_extra("train", "imixer.training")

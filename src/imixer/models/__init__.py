"""iMLP, the mixer block, and the variants; importing this registers them with timm."""

from imixer.inverse_options import InverseOptions, SolverOptions
from imixer.models import segmenter, unet, variants
from imixer.models.checkpoints import resample_tokens
from imixer.models.dense import DenseFeatures
from imixer.models.from_mixer import MixerStart, MixerWeights, read_mixer, start_from_mixer
from imixer.models.imixer import IMixer, IMixerBlock
from imixer.models.imlp import IMLP
from imixer.models.inversion import Inversion
from imixer.models.mixer import Merge, Mixer
from imixer.models.penalties import take_penalty
from imixer.models.stems import Whitening, build_stem, patch_covariance

__all__ = [
    "IMLP",
    "DenseFeatures",
    "IMixer",
    "IMixerBlock",
    "InverseOptions",
    "Inversion",
    "Merge",
    "Mixer",
    "MixerStart",
    "MixerWeights",
    "SolverOptions",
    "Whitening",
    "build_stem",
    "patch_covariance",
    "read_mixer",
    "resample_tokens",
    "segmenter",
    "start_from_mixer",
    "take_penalty",
    "unet",
    "variants",
]

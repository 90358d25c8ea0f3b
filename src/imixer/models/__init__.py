"""iMLP, the mixer block, and the variants; importing this registers them with timm."""

from imixer.models import segmenter, unet, variants
from imixer.models.checkpoints import resample_tokens
from imixer.models.from_mixer import MixerStart, MixerWeights, read_mixer, start_from_mixer
from imixer.models.imixer import IMixer, IMixerBlock
from imixer.models.imlp import IMLP
from imixer.models.inversion import Inversion
from imixer.models.mixer import Mixer

__all__ = [
    "IMLP",
    "IMixer",
    "IMixerBlock",
    "Inversion",
    "Mixer",
    "MixerStart",
    "MixerWeights",
    "read_mixer",
    "resample_tokens",
    "segmenter",
    "start_from_mixer",
    "unet",
    "variants",
]

"""iMixer: image models derived from hierarchical Hopfield networks.

Importing this registers the `imixer_*` models with timm: now if timm is imported already, otherwise as soon as it is.
Transformers, too, then reads weights with published names and of other image sizes.
"""

from imixer import registration

__version__ = "0.1.0"

registration.register_with_others()

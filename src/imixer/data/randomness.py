"""Seeds as a function of where training stands, so that a resumed run goes on as if it had never stopped."""

from __future__ import annotations

import random

import numpy as np
import torch

from imixer.errors import InputError


def mixed_seed(*numbers: int) -> int:
    """Derive one seed below 2**32 from several numbers, such as training seed and epoch.

    They are hashed. If they were added, epoch 1 of seed 0 would be the same as epoch 0 of seed 1.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def check_seed(seed: int) -> None:
    """Check that a seed is one to draw by.

    Args:
        seed: The seed.

    Raises:
        InputError: If it is negative or 2**62 or more.
    """
    if not 0 <= seed < 2**62:
        raise InputError(f"seed is {seed}; give 0 or more, below 2**62")


def seed_globally(*numbers: int, devices: bool = True) -> None:
    """Seed the global generators of random, numpy and torch, from which timm's augmentation and torch's dropout draw.

    Args:
        numbers: The numbers that the seed is derived from.
        devices: Whether to seed the accelerators' generators too.
    """
    seed = mixed_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)

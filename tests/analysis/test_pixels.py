"""Pixels are those of the files, and go back to what the model takes to the last bit."""

import numpy as np
import torch

from imixer.analysis.images import held_out_batches, pixels_of
from imixer.training.finished_run import load_run


def test_pixels_are_those_of_the_files_and_come_back_exactly(run):
    finished = load_run(str(run), "cpu")
    pixels = pixels_of(finished)
    images, _ = next(held_out_batches(finished, None, 400))
    found = pixels.of(images)
    val = finished.data().val
    stored = np.stack([np.asarray(val[i][0]) for i in range(len(images))])
    assert np.array_equal(found[:, 0].mul(255).round().byte().numpy(), stored)
    assert torch.equal(pixels.normalised(found), images)

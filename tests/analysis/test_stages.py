"""What looks at blocks one by one, on a pyramid whose blocks have grids of their own."""

import pytest
import timm
import torch

from imixer.analysis.bridge import model_networks
from imixer.analysis.features import features_at
from imixer.analysis.weights import token_mixing
from imixer.training.monitor import convergence


@pytest.fixture(scope="module")
def pyramid():
    torch.manual_seed(0)
    return timm.create_model("imixer_t4_32", stem="whitened", patch_size=2, num_blocks=[1, 2], embed_dim=[8, 12]).eval()


def test_token_mixing_is_drawn_on_each_stages_grid(pyramid):
    found = token_mixing(pyramid)
    assert [each.block for each in found] == [0, 2, 3]
    assert [tuple(each.reads.shape[1:]) for each in found] == [(16, 16), (8, 8), (8, 8)]


@pytest.mark.parametrize(("block", "grid"), [(0, (16, 16)), (3, (8, 8)), (None, (8, 8))])
def test_features_are_maps_of_the_blocks_grid(pyramid, block, grid):
    assert tuple(features_at(pyramid, torch.randn(3, 32, 32), block=block).maps.shape[-2:]) == grid


def test_convergence_is_watched_by_the_numbers_of_the_blocks(pyramid):
    assert [row["block"] for row in convergence(pyramid, torch.randn(2, 3, 32, 32))] == [0, 2, 3]


def test_what_merges_tokens_is_no_network_and_is_named(pyramid):
    with pytest.raises(ValueError, match="block 1: it merges tokens"):
        model_networks(pyramid)

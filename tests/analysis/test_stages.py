"""What looks at blocks one by one, on a pyramid whose blocks have grids of their own."""

import pytest
import timm
import torch

from imixer.analysis.bridge import block_networks, model_networks
from imixer.analysis.convergence import convergence_along_depth
from imixer.analysis.energy import energy_along_depth
from imixer.analysis.features import features_at
from imixer.analysis.ood.scores import SCORES, ood_scores
from imixer.analysis.weights import token_mixing_matrices
from imixer.training.monitor import convergence


@pytest.fixture(scope="module")
def pyramid():
    torch.manual_seed(0)
    return timm.create_model("imixer_t4_32", stem="whitened", patch_size=2, num_blocks=[1, 2], embed_dim=[8, 12]).eval()


def test_token_mixing_is_drawn_on_each_stages_grid(pyramid):
    found = token_mixing_matrices(pyramid)
    assert [each.block for each in found] == [0, 2, 3]
    assert [tuple(each.reads.shape[1:]) for each in found] == [(16, 16), (8, 8), (8, 8)]


@pytest.mark.parametrize(("block", "grid"), [(0, (16, 16)), (3, (8, 8)), (None, (8, 8))])
def test_features_are_maps_of_the_blocks_grid(pyramid, block, grid):
    assert tuple(features_at(pyramid, torch.randn(3, 32, 32), block=block).maps.shape[-2:]) == grid


def test_convergence_has_the_sizes_of_each_block(pyramid):
    found = convergence_along_depth(pyramid, torch.randn(2, 3, 32, 32))
    widths = [pyramid.blocks[i].mlp_tokens.fc_in.out_features for i in (0, 2, 3)]
    sizes = [(0, 256, 8, widths[0]), (2, 64, 12, widths[1]), (3, 64, 12, widths[2])]
    assert [(block.block, block.S, block.C, block.D) for block in found.blocks] == sizes


def test_convergence_is_watched_by_the_numbers_of_the_blocks(pyramid):
    assert [row["block"] for row in convergence(pyramid, torch.randn(2, 3, 32, 32))] == [0, 2, 3]


def test_what_merges_tokens_has_no_network_and_the_energies_are_those_of_each_stages_neurons(pyramid):
    assert list(model_networks(pyramid)) == [0, 2, 3]
    with pytest.raises(ValueError, match="it merges tokens between two stages"):
        block_networks(pyramid.blocks[1])
    images = torch.randn(2, 3, 32, 32)
    steps = energy_along_depth(pyramid, images)
    assert [(step.block, step.mixing) for step in steps] == [(i, m) for i in (0, 2, 3) for m in ("tokens", "channels")]
    v = pyramid.stem(images)
    for i, block in enumerate(pyramid.blocks):
        if i == 1:
            v = block(v)
            continue
        networks = block_networks(block)
        assert networks.tokens.network.layer("x1").shape == tuple(v.shape[1:])
        for mixing, update in (("tokens", networks.tokens), ("channels", networks.channels)):
            state = dict(zip(update.layers, (v, *update.hidden(v)), strict=True))
            energy = update.network.energy(state, symmetrised=True) / v[0].numel()
            found = next(step for step in steps if (step.block, step.mixing) == (i, mixing))
            torch.testing.assert_close(found.before, energy)
            v = update(v)
        torch.testing.assert_close(v, pyramid.blocks[: i + 1](pyramid.stem(images)), rtol=1e-4, atol=1e-4)


def test_a_pyramid_has_all_scores_of_foreign_images(pyramid):
    assert set(ood_scores(pyramid, torch.randn(2, 3, 32, 32))) == set(SCORES)

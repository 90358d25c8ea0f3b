"""A mixer block is a Hopfield network, and the bridge builds that network."""

import pytest
import timm
import torch

import imixer  # noqa: F401
from imixer.analysis.bridge import block_networks, model_networks

GENERAL = [
    {},
    {"n_iter": 0},
    {"n_iter": 5, "hidden_ratio": 0.5},
    {"num_layers": 2},
    {"num_layers": 4},
    {"num_layers": 5, "n_iter": 3},
    {"tied": True},
    {"num_layers": 4, "tied": True, "coeff": "auto"},
    {"norm": "none"},
    {"norm": "batch"},
    {"norm": "orthogonal"},
    {"scaling": "hard", "sigma": "exact"},
    {"decay": 0.4},
    {"step": 0.5},
    {"step": 0.5, "decay": 0.7, "num_layers": 4},
    {"act_layer": "relu"},
    {"act_layer": "gelu_1lip"},
    {"act_layer": ["softmax", "tanh"]},
    {"act_layer": ["softplus", "silu", "sigmoid"], "num_layers": 4},
]


def perturbed(name: str, **kwargs) -> torch.nn.Module:
    """A model whose every parameter differs from its starting value, as in a trained one."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            if hasattr(module, "warm_up"):
                module.warm_up()
    return model


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("kwargs", GENERAL, ids=str)
def test_every_block_is_the_adiabatic_update_of_its_networks(kwargs):
    model = perturbed("imixer_t2_8", **kwargs)
    v = torch.randn(2, model.stem.num_patches, model.embed_dim)
    for block, networks in zip(model.blocks, model_networks(model).values(), strict=True):
        close(networks(v), block(v))
        v = block(v)


@torch.no_grad()
@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_a_block_that_solves_to_a_tolerance_is_its_networks_to_that_tolerance(solver):
    block = perturbed("imixer_t2_8", solver=solver, tolerance=1e-6, coeff="auto").blocks[0]
    v = torch.randn(2, 16, 96)
    close(block_networks(block)(v), block(v))


@torch.no_grad()
def test_timms_own_mixer_is_a_network_of_two_layers():
    model = perturbed("mixer_t2_8")
    v = torch.randn(2, model.stem.num_patches, model.embed_dim)
    for block, networks in zip(model.blocks, model_networks(model).values(), strict=True):
        assert networks.tokens.depth == networks.channels.depth == 2
        close(networks(v), block(v))


@torch.no_grad()
def test_a_deeper_iteration_is_that_of_the_block():
    block = perturbed("imixer_t2_8", num_layers=4, coeff=0.5).blocks[0]
    v = torch.randn(2, 16, 96)
    networks = block_networks(block)
    block.mlp_tokens.n_iter = networks.tokens.n_iter = 30
    close(networks(v), block(v))
    networks.tokens.solve = "joint"
    close(networks(v), block(v))


def test_the_block_is_left_as_it_is():
    model = perturbed("imixer_t2_8").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model_networks(model)
    assert model.blocks[0].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_tied_couplings_give_symmetric_synapses_where_layer_norm_allows_it():
    torch.manual_seed(0)
    block = timm.create_model("imixer_t2_8", tied=True).blocks[0]
    network = block_networks(block).tokens.network
    assert not network.asymmetric  # LayerNorm's gain is 1 at the start
    with torch.no_grad():
        block.norm1.weight[0] = 2.0
    assert block_networks(block).tokens.network.asymmetric == ["x1-x2"]


@pytest.mark.parametrize(("name", "block"), [("resmlp_12_224", "ResBlock"), ("gmlp_s16_224", "SpatialGatingBlock")])
def test_blocks_of_another_kind_are_refused_by_name(name, block):
    with pytest.raises(ValueError, match=f"block 0: a {block} is no block whose networks are known"):
        model_networks(timm.create_model(name, device="meta"))


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"num_layers": 4, "solver": "picard"}, "solver"),
        ({"act_layer": "gelu_tanh"}, "block 0: .*GELU"),
        ({"act_layer": "mish"}, "Mish"),
    ],
)
def test_what_has_no_lagrangian_is_refused_by_name(kwargs, named):
    with pytest.raises(ValueError, match=named):
        model_networks(timm.create_model("imixer_t2_8", **kwargs))

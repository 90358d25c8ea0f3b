"""Energies of a trained mixer are those of its networks, and the verdict says what is known."""

import json

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import imixer  # noqa: F401
from imixer.analysis.bridge import model_networks
from imixer.analysis.energy import MixingEnergy, energy_along_depth, token_energies
from imixer.analysis.ood.scores import ood_scores
from imixer.cli import main
from imixer.hopfield import AdiabaticUpdate, chain
from imixer.training.finished_run import load_run


def symmetric(act: str, depth: int = 2, **kwargs: float) -> torch.nn.Module:
    """A mixer whose couplings are all symmetric."""
    torch.manual_seed(0)
    model = timm.create_model(
        "imixer_t2_8", num_layers=depth, tied=True, act_layer=act, coeff="auto", n_iter=50, **kwargs
    )
    for block in model.eval().blocks:
        block.mlp_channels.fc2.weight.data = block.mlp_channels.fc1.weight.data.T.clone()
    return model


def test_energy_is_that_of_the_networks_with_their_hidden_layers_at_rest():
    model = symmetric("relu")
    images = torch.randn(3, 3, 8, 8)
    found = energy_along_depth(model, images)
    v = model.stem(images)
    for i, networks in model_networks(model).items():
        for mixing, update in zip(("tokens", "channels"), (networks.tokens, networks.channels), strict=True):
            state = dict(zip(("x1", "x2"), (v, *update.hidden(v)), strict=True))
            measured = next(m for m in found if (m.block, m.mixing) == (i, mixing))
            torch.testing.assert_close(measured.before * v[0].numel(), update.network.energy(state))
            v = update(v)


def test_symmetric_convex_blocks_of_two_layers_are_guaranteed_to_descend():
    found = energy_along_depth(symmetric("relu"), torch.randn(3, 3, 8, 8))
    assert {m.verdict for m in found} == {"guaranteed"}


def test_gelu_asymmetry_and_a_truncated_inverse_each_stand_against_a_guarantee():
    gelu = energy_along_depth(symmetric("gelu"), torch.randn(3, 3, 8, 8))
    deep = energy_along_depth(symmetric("relu", depth=3), torch.randn(3, 3, 8, 8))
    plain = energy_along_depth(timm.create_model("imixer_t2_8", act_layer="relu"), torch.randn(3, 3, 8, 8))
    assert any("GELU" in o for o in gelu[0].violated_conditions)
    assert any("cut off" in o for o in deep[0].violated_conditions) and not deep[1].violated_conditions
    assert any("not symmetric" in o for o in plain[1].violated_conditions)
    assert all(m.verdict != "guaranteed" for m in (*gelu, deep[0], *plain))


@given(
    st.integers(0, 10_000), st.floats(0.1, 30.0), st.sampled_from(["relu", "softplus", "tanh", "softmax", "sigmoid"])
)
def test_a_residual_step_of_a_symmetric_convex_chain_never_raises_the_energy_however_long(seed, scale, act):
    torch.manual_seed(seed)
    network = chain([(4, 6), (5, 6)], ["layer_norm", act], axis=-2, decay=[0.0, 1.0], field=True).double()
    for p in network.parameters():
        p.data = scale * torch.randn_like(p)
    update = AdiabaticUpdate(network)
    v = torch.randn(8, 4, 6, dtype=torch.float64)
    energies = []
    for _ in range(4):
        energies.append(network.energy(dict(zip(("x1", "x2"), (v, *update.hidden(v)), strict=True))))
        v = update(v)
    rise = torch.stack(energies).diff(dim=0)
    assert rise.max() <= 1e-9 * torch.stack(energies).abs().max()


@settings(max_examples=25)  # of 200 iterations each
@given(st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_with_a_contraction_inside_a_converged_step_of_three_layers_never_raises_it_either(seed, norm):
    torch.manual_seed(seed)
    network = chain(
        [(4, 6), (5, 6), (7, 6)], ["layer_norm", "softplus", "relu"], axis=-2, decay=[0.0, 1.0, 1.0]
    ).double()
    inner = network.synapse("x2-x3").weight
    inner.data *= norm / torch.linalg.matrix_norm(inner.data, 2)
    update = AdiabaticUpdate(network, n_iter=200)
    v = 3 * torch.randn(4, 4, 6, dtype=torch.float64)
    state = [dict(zip(update.layers, (x, *update.hidden(x)), strict=True)) for x in (v, update(v))]
    before, after = (network.energy(s) for s in state)
    assert (after <= before + 1e-9 * before.abs()).all()


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.1, 30.0), st.floats(0.1, 4.0), st.floats(0.05, 1.0))
def test_with_a_decay_a_step_of_at_most_one_over_it_never_raises_the_energy(seed, scale, decay, reach):
    torch.manual_seed(seed)
    network = chain([(4, 6), (5, 6)], ["layer_norm", "relu"], axis=-2, decay=[decay, 1.0], field=True).double()
    for p in network.parameters():
        p.data = scale * torch.randn_like(p)
    update = AdiabaticUpdate(network)
    v = torch.randn(8, 4, 6, dtype=torch.float64)
    state = [dict(zip(update.layers, (x, *update.hidden(x)), strict=True)) for x in (v, update(v, dt=reach / decay))]
    before, after = (network.energy(s) for s in state)
    assert (after <= before + 1e-9 * before.abs().max()).all()


@pytest.mark.parametrize(("step", "decay", "holds"), [(1, 1.9, False), (0.5, 1.9, True), (1, 1, True), (1.5, 0, True)])
def test_a_step_beyond_the_decay_stands_against_a_guarantee(step, decay, holds):
    found = energy_along_depth(symmetric("relu", step=step, decay=decay), torch.randn(3, 3, 8, 8))
    assert [any("step x decay is 1.9, above 1" in o for o in m.violated_conditions) for m in found[:2]] == [
        not holds,
        False,
    ]
    assert all(m.verdict == "guaranteed" for m in found if m.mixing == "channels" or holds)
    assert all(m.verdict != "guaranteed" for m in found if m.mixing == "tokens" and not holds)


def test_a_step_that_changes_nothing_violates_nothing():
    found = energy_along_depth(timm.create_model("imixer_t2_8", zero_init=True).eval(), torch.randn(3, 3, 8, 8))
    assert all(m.share_falling == 0 and m.verdict == "observed" for m in found)
    unknown = MixingEnergy(0, "tokens", {}, torch.ones(2), torch.tensor([1.0, torch.nan]), 0.0, ())
    assert unknown.verdict == "violated"


def test_images_that_are_padded_have_the_energies_of_the_padded_ones():
    sizes = {"img_size": 36, "num_blocks": [1, 1], "embed_dim": [8, 16], "dynamic_img_size": True}
    model = timm.create_model("imixer_t4_32", **sizes).eval()
    images, larger = torch.randn(2, 3, 36, 36), [0, 4, 0, 4]  # to whole tokens of 8x8 in the last stage
    padded = torch.nn.functional.pad(images, larger, mode="replicate")
    for found, expected in zip(energy_along_depth(model, images), energy_along_depth(model, padded), strict=True):
        torch.testing.assert_close(found.before, expected.before)
    torch.testing.assert_close(token_energies(model)(images), token_energies(model)(padded))
    assert "hopfield_mean" in ood_scores(model, images)
    for ask in (lambda x: energy_along_depth(model, x), token_energies(model)):
        with pytest.raises(ValueError, match="images of 64x64 give 16x16 tokens, and the networks have 10x10"):
            ask(torch.randn(1, 3, 64, 64))


def test_an_energy_that_stays_does_not_fall():
    before, after = torch.ones(4), torch.tensor([0.0, 0.5, 1.0, 2.0])
    measured = MixingEnergy(0, "tokens", {}, before, after, 0.0, ())
    assert (measured.share_falling, measured.verdict) == (0.5, "violated")


def test_analyze_energy_writes_a_table_and_a_figure(run, capsys):
    assert main(["analyze", "energy", str(run), "--images", "5"]) == 0
    written = json.loads((run / "analysis" / "energy.json").read_text())
    assert written["images"] == 5
    assert {row["mixing"] for row in written["mixings"]} == {"tokens", "channels"}
    assert (run / "analysis" / "energy.png").exists()
    assert all(row["untrained"]["change"]["mean"] != row["change"]["mean"] for row in written["mixings"])
    assert "descent is not guaranteed" in capsys.readouterr().out


def test_the_untrained_column_is_of_the_runs_model_as_its_seed_draws_it(run):
    finished = load_run(str(run), "cpu")
    state = torch.random.get_rng_state()
    untrained = finished.untrained()
    assert torch.equal(torch.random.get_rng_state(), state) and not untrained.training
    trained = finished.model.state_dict()
    assert {name: p.shape for name, p in untrained.state_dict().items()} == {n: p.shape for n, p in trained.items()}
    assert not torch.equal(untrained.blocks[0].mlp_channels.fc1.weight, trained["blocks.0.mlp_channels.fc1.weight"])
    assert type(untrained) is type(finished.model)
    again = finished.untrained().state_dict()
    assert all(torch.equal(p, again[name]) for name, p in untrained.state_dict().items())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["energy", "RUN", "--images", "0"], "images"),
        (["energy", "nowhere"], "nowhere"),
        (["weather", "RUN"], "weather"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, named, run, capsys):
    assert main(["analyze", *(str(run) if w == "RUN" else w for w in words)]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error

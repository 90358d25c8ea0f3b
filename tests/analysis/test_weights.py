"""Pictures of token mixing are rows and columns of its matrices, on the token grid."""

import json

import pytest
import timm
import torch

import imixer  # noqa: F401
from imixer.analysis.views import weights
from imixer.analysis.weights import token_mixing_matrices
from imixer.cli import main
from imixer.errors import InputError
from imixer.plotting import save_print_figure


def create(name="imixer_t2_8", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **(dict(img_size=(8, 12), num_blocks=2, embed_dim=16) | kwargs))


@pytest.mark.parametrize("name", ["imixer_t2_8", "mixer_t2_8"])
def test_a_weight_is_found_at_its_token(name):
    model = create(name)
    for block, mixing in zip(model.blocks, token_mixing_matrices(model), strict=True):
        mlp = block.mlp_tokens
        first, last = (mlp.fc_in, mlp.fc_out) if name == "imixer_t2_8" else (mlp.fc1, mlp.fc2)
        assert mixing.reads.shape == mixing.writes.shape == (8, 4, 6)
        assert mixing.reads[5, 2, 3] == first.weight[5, 2 * 6 + 3]
        assert mixing.writes[5, 2, 3] == last.weight[2 * 6 + 3, 5]


def test_the_energy_is_that_of_what_a_neuron_adds():
    (mixing, *_) = token_mixing_matrices(create())
    added = [torch.outer(w.flatten(), r.flatten()) for w, r in zip(mixing.writes, mixing.reads, strict=True)]
    torch.testing.assert_close(mixing.energies, torch.stack([a.square().sum() for a in added]))
    strongest = mixing.energies[mixing.strongest(99)]
    assert len(strongest) == 8 and (strongest.diff() <= 0).all()
    assert 1 <= mixing.effective <= 8


def test_one_live_neuron_counts_as_one():
    model = create()
    model.blocks[0].mlp_tokens.fc_in.weight.data[1:] = 0
    (mixing, *_) = token_mixing_matrices(model)
    assert mixing.effective == mixing.energy_share(1) == pytest.approx(1) and int(mixing.strongest(1)) == 0


def test_tied_couplings_read_what_they_write():
    for mixing in token_mixing_matrices(create(tied=True)):
        torch.testing.assert_close(mixing.cosines, torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("name", ["resnet18", "resmlp_12_224", "gmixer_12_224"])
def test_other_models_are_refused(name):
    with pytest.raises(InputError, match="mixes tokens"):
        token_mixing_matrices(timm.create_model(name, device="meta"))


@pytest.mark.parametrize("kwargs", [dict(), dict(num_blocks=20), dict(num_blocks=1, embed_dim=4)], ids=str)
def test_the_figure_holds_any_number_of_blocks_and_neurons(kwargs, tmp_path, is_print_pair):
    save_print_figure(weights.draw(token_mixing_matrices(create(**kwargs))), tmp_path / "weights.png")
    is_print_pair(tmp_path / "weights.png")


def test_matrices_of_zeros_are_drawn(tmp_path):
    model = create(num_blocks=1)
    model.blocks[0].mlp_tokens.fc_out.weight.data.zero_()
    save_print_figure(weights.draw(token_mixing_matrices(model)), tmp_path / "weights.png")


@pytest.mark.parametrize("kind", ["imixer", "mixer"])
def test_analyze_weights_writes_numbers_and_figures(kind, run, mixer_run, capsys, is_print_pair):
    folder = run if kind == "imixer" else mixer_run
    assert main(["analyze", "weights", str(folder)]) == 0
    written = json.loads((folder / "analysis" / "weights.json").read_text())
    (row,) = written["blocks"]
    assert row["grid"] == [4, 4]
    assert row["neurons"] == 8 and row["share_of_strongest"] == pytest.approx(1)
    assert sorted(row["strongest"]) == list(range(8))
    is_print_pair(folder / "analysis" / "weights.png")
    assert "effective" in capsys.readouterr().out


def test_a_mixer_run_has_no_iterations_to_look_at(mixer_run, capsys):
    for what in ("convergence", "features"):
        assert main(["analyze", what, str(mixer_run)]) == 2
        error = capsys.readouterr().err
        assert "a Mixer, whose blocks have no inverse" in error and "num_layers 3" in error


@pytest.mark.parametrize(("words", "named"), [(["--images", "3"], "images is 3"), (["--data", "x"], "data is x")])
def test_bad_input_is_refused_in_one_line(words, named, run, capsys):
    assert main(["analyze", "weights", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error

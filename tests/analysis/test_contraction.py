"""What `imixer analyze contraction` says is what the certificates say, and its exit code is what was asked for."""

import json

import pytest
import timm
import torch
from torch import nn

import imixer  # noqa: F401
from imixer.analysis.contraction import contraction_along_depth, failed_blocks
from imixer.cli import main
from imixer.errors import InputError

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("imixer_t2_8", num_blocks=2, embed_dim=16, **kwargs).eval()


@pytest.mark.parametrize(
    "kwargs", [dict(), dict(num_layers=4, tied=True, coeff=0.5), dict(norm="batch"), dict(norm="none")], ids=str
)
def test_the_error_left_is_that_of_the_iterations(kwargs):
    model = create(n_iter=2, **kwargs)
    first = contraction_along_depth(model, IMAGES)[0]
    assert first.iterations == "n = 2"
    assert (first.left < 0.5 * first.start).all()
    model.n_iter = 8 if "num_layers" in kwargs else 100
    assert (contraction_along_depth(model, IMAGES)[0].left < 1e-4).all()
    model.n_iter = 0
    torch.testing.assert_close(contraction_along_depth(model, IMAGES)[0].left, first.start)


def test_verdicts():
    auto, paper, free = create(coeff="auto"), create(), create(norm="none")
    for model in (auto, paper, free):
        for block in model.blocks:
            block.mlp_tokens.contraction.fc1.weight.data *= 20
            block.mlp_tokens.contraction.fc2.weight.data *= 20
            block.mlp_tokens.init_weights()
    found = [contraction_along_depth(model, IMAGES) for model in (auto, paper, free)]
    assert [f[0].verdict for f in found] == ["guaranteed", "observed", "violated"]
    assert [failed_blocks(f, "observed") is None for f in found] == [True, True, False]
    assert [failed_blocks(f, "guaranteed") is None for f in found] == [True, False, False]
    said = failed_blocks(found[2], "observed")
    assert "0 (violated), 1 (violated)" in said and "--model.norm spectral --model.coeff auto" in said
    assert "retrain with --model.coeff auto, or" in failed_blocks(found[1], "guaranteed")
    assert found[1][0].needed(1e-2)["bound"] is None and found[1][0].needed(1e-2)["data"] > 1


def test_an_activation_of_unknown_slope_leaves_the_data():
    class Shrunk(nn.Tanhshrink):
        pass

    found = contraction_along_depth(create(act_layer=Shrunk), IMAGES)
    assert found[0].unknown == ("Shrunk",) and found[0].verdict == "observed"
    said = failed_blocks(found, "guaranteed")
    assert "another --model.act_layer: how steep Shrunk may be is not known" in said and "coeff" not in said


@pytest.mark.parametrize("name", ["imixer", "mixer"])
def test_a_mixer_has_nothing_to_certify(name):
    model = create(num_layers=2) if name == "imixer" else timm.create_model("mixer_t2_8").eval()
    with pytest.raises(InputError, match="nothing to certify"):
        contraction_along_depth(model, IMAGES)


def test_analyze_contraction_writes_a_table_and_a_figure(run, capsys):
    assert main(["analyze", "contraction", str(run), "--images", "5", "--require", "observed"]) == 0
    written = json.loads((run / "analysis" / "contraction.json").read_text())
    assert written["images"] == 5
    assert written["blocks"][0]["verdict"] in ("guaranteed", "observed")
    assert (run / "analysis" / "contraction.png").exists()
    assert "error left" in capsys.readouterr().out


def test_a_requirement_that_is_not_met_exits_with_1(run, capsys, monkeypatch):
    monkeypatch.setattr("imixer.analysis.contraction.slope_or_infinity", lambda act: 100.0)
    assert main(["analyze", "contraction", str(run), "--images", "2", "--require", "guaranteed"]) == 1
    error = capsys.readouterr().err
    assert "0 (observed)" in error and "--model.coeff auto" in error


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["contraction", "RUN", "--images", "0"], "images"),
        (["contraction", "RUN", "--require", "proven"], "require"),
        (["energy", "RUN", "--require", "observed"], "require"),
        (["contraction", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, named, run, capsys):
    assert main(["analyze", *(str(run) if w == "RUN" else w for w in words)]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error

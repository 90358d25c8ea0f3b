"""Depth, ties and ceilings are set from the command line, and survive in the run."""

import timm
import yaml

from imixer.cli import main


def test_a_deep_tied_model_trains_and_evaluates_with_what_the_command_line_said(train_quick, tmp_path):
    flags = {"num_layers": "4", "tied": "true", "coeff": "auto", "act_layer": "[gelu, relu, tanh]"}
    flags["hidden_ratio"] = "[1.0, 0.5]"
    run = train_quick(tmp_path / "deep", *(w for k, v in flags.items() for w in (f"--model.{k}", v)))
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True)
    mlp = model.blocks[0].mlp_tokens
    assert mlp.tied and mlp.contraction.inner.inner is None
    assert mlp.contraction.inner.fc1.out_features == mlp.fc_in.out_features // 2
    assert 0 < mlp.contraction.fc1.coeff < 0.7
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["coeff"] == "auto"
    assert main(["evaluate", str(run)]) == 0


def test_a_ceiling_that_is_neither_a_number_nor_auto_is_refused(tmp_path, capsys):
    assert main(["train", "--model.coeff", "autos", "--out", str(tmp_path / "x")]) == 2
    assert "model.coeff" in capsys.readouterr().err

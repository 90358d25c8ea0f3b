"""The running average of the weights."""

import pytest
import timm
import torch

import imixer.models  # noqa: F401
from imixer.implicit import SpectralLinear
from imixer.training.train_state import Average


def moved_model(steps):
    torch.manual_seed(0)
    model = timm.create_model("imixer_t2_8", num_blocks=1, embed_dim=16).train()
    average = Average(model, decay=0.9)
    seen = []
    for step in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        model(torch.randn(2, 3, 8, 8))  # moves the power iteration
        average.update(model, step + 1)
        seen.append(model.head.weight.detach().clone())
    return model, average, seen


def test_it_follows_the_weights_with_a_decay_that_starts_small():
    _, average, seen = moved_model(60)
    expected = seen[0]
    for number, weight in enumerate(seen[1:], 2):
        decay = min(1 - (1 + (number - 1)) ** (-2 / 3), 0.9)  # timm's warm-up
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(average.model().head.weight, expected)


def test_its_spectral_norms_are_its_own_not_an_average():
    _, average, _ = moved_model(20)
    layers = [layer for layer in average.model().modules() if isinstance(layer, SpectralLinear)]
    assert layers
    for layer in layers:
        assert layer.sigma().item() == pytest.approx(layer.sigma(exact=True).item(), rel=1e-3)
        assert torch.linalg.matrix_norm(layer.normalized_weight(), 2) <= layer.coeff * 1.001


def test_it_is_judged_and_kept_instead_of_the_model(train_quick, tmp_path):
    run = train_quick(tmp_path / "run", "--ema", "0.9")
    saved = torch.load(run / "checkpoints" / "step-00000044.pt", weights_only=True)
    kept = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).state_dict()
    assert not torch.equal(saved["model"]["head.weight"], saved["average"]["head.weight"])
    assert torch.equal(kept["head.weight"], saved["average"]["head.weight"])

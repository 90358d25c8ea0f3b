"""The model under the conditions in which people train and ship it."""

import copy

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

import imixer.models  # registers the models
from imixer.implicit import SpectralLinear, exact_sigma, fold


def small(**kwargs) -> imixer.models.IMixer:
    torch.manual_seed(0)
    model = timm.create_model("imixer_t4_32", **{"num_classes": 10, "num_blocks": 2, "embed_dim": 64, **kwargs})
    nn.init.normal_(model.head.weight, std=0.1)
    return model


def cold(model: nn.Module) -> nn.Module:
    """Far from a converged power iteration, so that one step more or less shows."""
    for layer in spectral(model):
        layer.v.copy_(torch.linspace(-1, 1, layer.in_features))
        layer.n_power_iterations = 1
        with torch.no_grad():
            layer.weight.mul_(3)
    return model


def spectral(model: nn.Module) -> list[SpectralLinear]:
    return [m for m in model.modules() if isinstance(m, SpectralLinear)]


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, forward=None) -> dict[str, torch.Tensor]:
    (model if forward is None else forward)(IMAGES).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(a, b, tolerance):
    scale = max(g.norm() for g in b.values())
    for name in b:
        assert (a[name] - b[name]).norm() <= tolerance * scale, name


def test_a_new_model_is_normalised_by_the_weights_that_timm_drew():
    for layer in spectral(small()):
        assert layer.sigma() > 0.98 * layer.sigma(exact=True)
        assert layer.sigma(exact=True) > 0.9  # so there is something to normalise


def test_number_of_iterations_can_change_on_a_trained_model():
    model = small().eval()
    two = model(IMAGES)
    model.n_iter = 4
    assert model.n_iter == 4
    assert not torch.allclose(model(IMAGES), two)
    model.n_iter = 2
    assert torch.equal(model(IMAGES), two)
    for wrong in (-1, 2.5, "3"):
        with pytest.raises(ValueError, match=f"n_iter is {wrong!r}; give"):
            model.n_iter = wrong
    assert model.n_iter == 2


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_checkpointing_gives_the_same_gradient_and_advances_once(legacy, compiled):
    """Compiled and checkpointed at once is where a replay inside the block would silently start from moved buffers."""
    if legacy and compiled:
        pytest.skip("legacy normalises inside the checkpointed block")
    plain, checkpointed = cold(small(legacy=legacy)), cold(small(legacy=legacy))
    checkpointed.set_grad_checkpointing()
    torch.compiler.reset()
    expected = gradients(plain)
    forward = torch.compile(checkpointed, backend="aot_eager", fullgraph=True) if compiled else None
    got = gradients(checkpointed, forward)
    if not legacy:
        assert_same_gradients(got, expected, 1e-5)
    for a, b in zip(spectral(plain), spectral(checkpointed), strict=True):
        torch.testing.assert_close(a.v, b.v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "training", "backend"),
    [
        *(("spectral", True, "aot_eager"), ("spectral", False, "aot_eager"), ("batch", True, "aot_eager")),
        pytest.param("spectral", True, "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiles_without_a_graph_break_to_the_same_numbers(norm, training, backend):
    model = small(norm=norm, num_blocks=1).train(training)
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(twin, backend=backend, fullgraph=True)  # raises at a graph break
    assert_same_gradients(gradients(twin, compiled), gradients(model), 1e-5)


@pytest.mark.parametrize("entry", ["forward", "forward_features", "forward_intermediates"])
def test_every_entry_advances_the_power_iteration_once_in_training_and_never_in_evaluation(entry):
    model, reference = cold(small()), cold(small())
    for layer in spectral(reference):
        layer.advance()
    getattr(model, entry)(IMAGES)
    for a, b in zip(spectral(model), spectral(reference), strict=True):
        assert torch.equal(a.v, b.v)
    getattr(model.eval(), entry)(IMAGES)
    for a, b in zip(spectral(model), spectral(reference), strict=True):
        assert torch.equal(a.v, b.v)


def walks(model: nn.Module) -> dict:
    """Ways to call the children that pass the model's own forward by."""
    return {
        "sequential": nn.Sequential(model.stem, model.blocks, model.norm),
        "by hand": lambda x: model.norm(model.blocks(model.stem(x))),
        "block by block": lambda x: [x := block(x) for block in [model.stem, *model.blocks, model.norm]][-1],
    }


@pytest.mark.parametrize("walk", ["sequential", "by hand", "block by block"])
def test_a_model_whose_children_are_called_one_by_one_advances_as_much(walk):
    model, reference = cold(small()), cold(small())
    for _ in range(2):
        torch.testing.assert_close(walks(model)[walk](IMAGES), reference.forward_features(IMAGES))
    for a, b in zip(spectral(model), spectral(reference), strict=True):
        assert torch.equal(a.v, b.v)


def test_a_model_whose_children_are_called_one_by_one_keeps_its_ceiling():
    model = small(num_blocks=1)
    backbone = nn.Sequential(model.stem, model.blocks, model.norm)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        (backbone(IMAGES) - 3).square().mean().backward()
        optimizer.step()
    for layer in spectral(backbone.eval()):
        assert exact_sigma(layer.normalized_weight()) <= 0.9 * 1.02


def test_a_forward_that_fails_leaves_the_layers_advancing():
    model = small()
    with pytest.raises(AssertionError):
        model(torch.randn(1, 3, 8, 8))
    assert all(layer.advances_itself for layer in spectral(model))


def test_a_compiled_model_trains_step_after_step_without_compiling_again():
    model = cold(small(num_blocks=1))
    reference = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(IMAGES), reference(IMAGES)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            torch.testing.assert_close(compiled(IMAGES), reference(IMAGES))
    for a, b in zip(spectral(model), spectral(reference), strict=True):
        torch.testing.assert_close(a.v, b.v)


def test_bfloat16_module_and_autocast_stay_near_float32():
    model = small().eval()
    expected = model(IMAGES)
    scale = expected.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(IMAGES) - expected).abs().max() < 0.03 * scale
    half = copy.deepcopy(model).bfloat16()
    assert (half(IMAGES.bfloat16()) - expected).abs().max() < 0.03 * scale
    half.train()(IMAGES.bfloat16()).sum().backward()
    assert all(p.grad.isfinite().all() for p in half.parameters())


def test_ema_of_a_training_model_keeps_the_ceiling():
    model = small()
    ema, optimizer = ModelEmaV3(model, decay=0.9), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(30):
        model(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step=step)
    for layer in spectral(ema.module.eval()):
        assert exact_sigma(layer.normalized_weight()) <= 0.9 * 1.02


def test_drop_path_and_dropout_train():
    model = small(drop_path_rate=0.3, proj_drop_rate=0.1, drop_rate=0.1).train()
    assert all(g.isfinite().all() for g in gradients(model).values())


@pytest.mark.parametrize("norm", ["spectral", "none", "batch"])
def test_folded_copy_gives_the_same_logits_without_normalising(norm):
    model = small(norm=norm).train()
    for _ in range(5):
        model(IMAGES)
    folded = fold(model)
    assert not spectral(folded)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in folded.modules())
    assert folded.n_iter == 2
    tolerance = 1e-6 if norm != "batch" else 1e-5  # BatchNorm rescales its weights
    torch.testing.assert_close(folded(IMAGES), model.eval()(IMAGES), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["imixer_t4_32", "imixer_t2_8"])
def test_a_folded_model_has_only_what_timms_mixer_has(name):
    kinds = {type(m).__name__ for m in fold(timm.create_model(name)).modules()}
    extra = {"IMixer", "IMixerBlock", "IMLP", "Contraction"}
    vanilla = {type(m).__name__ for m in timm.create_model(name[1:]).modules()}
    assert kinds - extra <= vanilla


@pytest.mark.parametrize("batch_size", [None, 3])
def test_exported_programs_agree_with_the_model(tmp_path, batch_size):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from imixer.models.export import export_onnx, export_torch

    model = small(in_chans=1)
    exports = [(export_torch, tmp_path / "m.pt2"), (export_onnx, tmp_path / "m.onnx")]
    for export, path in exports[:1] if batch_size else exports:
        checked = export(model, path, batch_size=batch_size)
        assert checked["max_abs_diff"] <= 1e-5 * checked["largest_logit"]
        assert path.stat().st_size > 1e5
    assert model.training  # left as it was


def test_an_export_leaves_frozen_parts_in_evaluation(tmp_path):
    from imixer.models.export import export_torch

    model = small(num_blocks=1).train()
    model.stem.eval()
    model.blocks[0].norm1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    export_torch(model, tmp_path / "m.pt2")
    assert {name: module.training for name, module in model.named_modules()} == before


def test_an_export_that_computes_something_else_is_removed_and_reported(tmp_path, monkeypatch):
    from imixer.models import export

    original = export.fold

    def wrong(model):
        folded = original(model)
        with torch.no_grad():
            folded.head.bias.add_(1)
        return folded

    monkeypatch.setattr(export, "fold", wrong)
    with pytest.raises(RuntimeError, match="differs from the original"):
        export.export_torch(small(), tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()

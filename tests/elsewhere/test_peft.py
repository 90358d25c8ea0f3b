"""PEFT's LoRA on every linear layer of an iMixer, F included, does what it does on a timm Mixer."""

import copy
import warnings

import pytest
import timm
import torch
from torch import nn

import imixer
from imixer.implicit import NormalizedLinear, SpectralLinear, certify, exact_sigma, fold

peft = pytest.importorskip("peft")

KINDS = [{}, {"tied": True}, {"sigma": "exact"}, {"sigma": "row_norm"}, {"norm": "orthogonal"}, {"norm": "none"},
         {"num_layers": 4, "hidden_ratio": 0.5}, {"solver": "picard", "gradient": "implicit", "coeff": 0.6},
         {"legacy": True, "sigma": "exact"}]  # fmt: skip
HELD = [kind for kind in KINDS if kind.get("norm") != "none"]


def of_all(kinds):
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: "-".join(map(str, kind.values())) or "paper")


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def model_of(name="imixer_t2_8", **kind):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2, num_blocks=2, embed_dim=16, **kind)
    nn.init.normal_(model.head.weight, std=0.1)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SpectralLinear):
                layer.weight.add_(torch.randn_like(layer.weight) / 4)
                layer.warm_up()
    return model.eval()


def with_lora(model, scale=0.0, **options):
    targets = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2, **options))
    draw(wrapped, scale)
    return wrapped.eval()


def draw(wrapped, scale):
    torch.manual_seed(2)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=scale) if scale else nn.init.zeros_(p)


def contractions(model):
    return [module for module in model.modules() if isinstance(module, imixer.implicit.Contraction)]


def largest_norm(model):
    """The largest spectral norm of what multiplies in any F, relative to its ceiling."""
    ratios = []
    for F in contractions(model):
        for W in F.weights()[:2]:
            coeff = next(layer.coeff for layer in F.modules() if isinstance(layer, NormalizedLinear))
            ratios.append(float(exact_sigma(W)) / coeff)
    return max(ratios)


@of_all(KINDS)
def test_a_fresh_lora_changes_nothing(kind):
    model = model_of(**kind)
    expected = model(images())
    torch.testing.assert_close(with_lora(model)(images()), expected, rtol=1e-5, atol=1e-6)


@of_all(KINDS)
@pytest.mark.parametrize("unload", [True, False])
def test_a_merge_is_exact(kind, unload):
    wrapped = with_lora(model_of(**kind), 0.5)
    expected = wrapped(images())
    assert (expected - model_of(**kind)(images())).abs().max() > 1e-2
    if unload:
        merged = wrapped.merge_and_unload()
        assert not any("lora" in name for name, _ in merged.named_parameters())
    else:
        wrapped.merge_adapter()
        merged = wrapped
    torch.testing.assert_close(merged.eval()(images()), expected, rtol=1e-4, atol=1e-5)
    if not unload:
        wrapped.unmerge_adapter()
        torch.testing.assert_close(wrapped(images()), expected, rtol=1e-4, atol=1e-5)


@of_all(KINDS)
def test_training_moves_every_adapter_and_stays_under_the_ceiling(kind):
    wrapped = with_lora(model_of(**kind)).train()
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(wrapped(images()), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        if kind.get("norm") != "none":
            assert largest_norm(wrapped) < 1.02  # power iteration sees a norm from below
    assert losses[-1] < losses[0]
    assert [n for n, p in wrapped.named_parameters() if "lora_" in n and not p.grad.abs().max() > 0] == []
    merged = wrapped.merge_and_unload()
    if kind.get("norm") != "none":
        assert largest_norm(merged.eval()) < 1.02


@of_all(HELD)
def test_a_large_adapter_is_held_at_the_ceiling_without_a_warning(kind):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was held at spectral norm")
        wrapped = with_lora(model_of(**kind), 50.0)
    assert largest_norm(wrapped) < 1.01
    if kind.get("num_layers", 3) == 3 and "act_layer" not in kind:
        F = contractions(wrapped)[0]
        verdict = certify(F, [1.0, 1.0], torch.randn(3, F.features))
        assert verdict.worst.bound < 0.85


@of_all(KINDS)
def test_a_gradient_is_that_of_the_merged_weight(kind):
    """d/dB of a function of W + BA is d/dW A^T."""
    wrapped = with_lora(model_of(**kind), 0.5)
    merged = copy.deepcopy(wrapped).merge_and_unload().requires_grad_(True)
    for model in (wrapped, merged):
        model(images()).square().sum().backward()
    named = dict(wrapped.get_base_model().named_modules())
    for name, layer in merged.named_modules():
        if isinstance(layer, nn.Linear):
            lora = named[name]
            expected = layer.weight.grad @ lora.lora_A["default"].weight.T * lora.scaling["default"]
            torch.testing.assert_close(
                lora.lora_B["default"].weight.grad,
                expected,
                rtol=1e-3,
                atol=1e-5,
                msg=lambda text, name=name: f"{name}: {text}",
            )


@of_all(HELD)
def test_a_folded_lora_is_the_model(kind):
    wrapped = with_lora(model_of(**kind), 0.5)
    model = wrapped.get_base_model()
    torch.testing.assert_close(fold(model)(images()), wrapped(images()), rtol=1e-4, atol=1e-5)


def test_a_layer_called_by_itself_gives_what_the_model_computes():
    wrapped = with_lora(model_of(), 0.5)
    F = contractions(wrapped)[0]
    x = torch.randn(3, F.features)
    torch.testing.assert_close(F.fc1(x), x @ F.weights()[0].T + F.weights()[2], rtol=1e-4, atol=1e-5)


def test_a_disabled_adapter_leaves_the_base_as_it_was():
    model = model_of()
    expected = model(images())
    wrapped = with_lora(model, 0.5)
    adapted = wrapped(images())
    with wrapped.disable_adapter():
        torch.testing.assert_close(wrapped(images()), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(wrapped(images()), adapted)
    wrapped.merge_adapter()
    with wrapped.disable_adapter():
        torch.testing.assert_close(wrapped(images()), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wrapped(images()), adapted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wrapped.unload().eval()(images()), expected, rtol=1e-5, atol=1e-6)


def test_two_adapters_each_have_the_numbers_of_their_merge():
    wrapped = with_lora(model_of(), 0.5)
    wrapped.add_adapter("other", wrapped.peft_config["default"])
    wrapped.set_adapter("other")
    draw(wrapped, 2.0)
    for name in ("other", "default", "other"):
        wrapped.set_adapter(name)
        expected = copy.deepcopy(wrapped).merge_and_unload().eval()
        for F in contractions(expected):
            F.fc1.warm_up(), F.fc2.warm_up()
        torch.testing.assert_close(wrapped.eval()(images()), expected(images()), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"adapter_names .*set_adapter"):
        wrapped(images(), adapter_names=["other", "default"])


def test_a_saved_adapter_comes_back(tmp_path):
    wrapped = with_lora(model_of(), 0.5)
    wrapped.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(model_of(), tmp_path).eval()
    torch.testing.assert_close(again(images()), wrapped(images()), rtol=1e-3, atol=1e-4)


def test_a_state_dict_with_its_vectors_comes_back_bit_for_bit():
    wrapped = with_lora(model_of(), 0.5).train()
    wrapped(images())
    again = with_lora(model_of(), 0.1)
    again.load_state_dict(wrapped.state_dict())
    for key, value in again.state_dict().items():
        assert torch.equal(value, wrapped.state_dict()[key]), key


def test_what_has_no_merged_weight_is_announced_as_before():
    with pytest.warns(UserWarning, match="was held at spectral norm"):
        with_lora(model_of(), use_dora=True)


def test_it_compiles():
    wrapped = with_lora(model_of(), 0.5)
    torch.compiler.reset()
    compiled = torch.compile(wrapped, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), wrapped(images()), rtol=1e-4, atol=1e-5)
    compiled.train()(images()).sum().backward()


def test_the_baseline_merges_exactly_too():
    wrapped = with_lora(model_of("mixer_t2_8"), 0.5)
    expected = wrapped(images())
    torch.testing.assert_close(wrapped.merge_and_unload().eval()(images()), expected, rtol=1e-4, atol=1e-5)

"""iMLP of any depth: L = 2 is MLP-Mixer, L = 3 the paper's, more nest inverses; couplings tied or not."""

import copy
import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as fn
from safetensors.torch import load_file, save_file
from timm.layers import Mlp
from torch import nn

import imixer.models  # registers the models
from imixer.implicit import SpectralLinear, contraction_bound, exact_sigma, fold
from imixer.models import IMLP
from imixer.models.activations import activation, lipschitz_constant

DEPTHS = [2, 3, 4, 5]
PARAMETERS = {  # of an L = 3 iMLP, whose names checkpoints have
    "fc_in.weight", "fc_in.bias", "contraction.fc1.weight", "contraction.fc1.bias", "contraction.fc2.weight",
    "contraction.fc2.bias", "fc_out.weight", "fc_out.bias",
}  # fmt: skip
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def imlp(num_layers: int, **kwargs) -> IMLP:
    torch.manual_seed(0)
    return IMLP(16, 12, num_layers=num_layers, **kwargs).double().eval()


def small(num_layers: int = 3, **kwargs) -> imixer.models.IMixer:
    torch.manual_seed(0)
    settings = {"num_classes": 10, "num_blocks": 2, "embed_dim": 32, "num_layers": num_layers}
    model = timm.create_model("imixer_t2_8", **(settings | kwargs))
    nn.init.normal_(model.head.weight, std=0.1)
    return model


def spectral(model: nn.Module) -> list[SpectralLinear]:
    return [m for m in model.modules() if isinstance(m, SpectralLinear)]


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def gradients(model: nn.Module, forward=None, x=IMAGES) -> dict[str, torch.Tensor]:
    (model if forward is None else forward)(x).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}


# --- what each depth is -----------------------------------------------------------------------------------------------


def test_two_layers_are_timms_mlp_bit_for_bit():
    m, plain = imlp(2, n_iter=7), Mlp(16, 12).double()
    assert m.contraction is None
    names = {"fc1.weight": "fc_in.weight", "fc1.bias": "fc_in.bias",
             "fc2.weight": "fc_out.weight", "fc2.bias": "fc_out.bias"}  # fmt: skip
    plain.load_state_dict({theirs: m.state_dict()[ours] for theirs, ours in names.items()})
    assert torch.equal(m(tokens(2, 5)), plain(tokens(2, 5)))
    ours, theirs = gradients(m, x=tokens(2, 5)), gradients(plain, x=tokens(2, 5))
    assert all(torch.equal(ours[b], theirs[a]) for a, b in names.items())


def test_two_layers_load_a_mixers_checkpoint_and_are_that_mixer(tmp_path):
    torch.manual_seed(0)
    mixer = timm.create_model("mixer_t2_8", num_classes=10)
    nn.init.normal_(mixer.head.weight)
    torch.save(mixer.state_dict(), tmp_path / "mixer.pth")
    model = timm.create_model("imixer_t2_8", num_classes=10, num_layers=2, checkpoint_path=str(tmp_path / "mixer.pth"))
    assert torch.equal(model(IMAGES), mixer(IMAGES))
    ours, theirs = gradients(model), gradients(mixer)
    imixer.models.checkpoints.rename_published(theirs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_mixers_checkpoint_does_not_pass_for_one_of_three_layers():
    with pytest.raises(RuntimeError, match=r"Missing key.*contraction"):
        small(3).load_state_dict(timm.create_model("mixer_t2_8", num_classes=10).state_dict())


def test_three_layers_keep_their_names_and_are_the_default():
    assert {n for n, _ in imlp(3).named_parameters()} == {n for n, _ in IMLP(16, 12).named_parameters()} == PARAMETERS
    assert imlp(3).contraction.inner is None


def test_the_documents_numbers_of_parameters():
    rows = (Path(__file__).parents[2] / "docs/models.md").read_text().splitlines()
    for num_layers in DEPTHS:
        row = next(row for row in rows if row.startswith(f"| {num_layers} |"))
        for tied in (False, True):
            args = {"num_classes": 10, "num_layers": num_layers, "tied": tied, "device": "meta"}
            model = timm.create_model("imixer_s16_224", **args)
            assert f"{sum(p.numel() for p in model.parameters()):,}" in row


def test_four_layers_written_out():
    m, v = imlp(4, n_iter=3, act_layer=["gelu", "tanh", "silu"]), tokens(2, 5)
    F = m.contraction
    W1, W2, b1, b2, V1, V2, c1, c2 = F.weights()
    z = x = v @ m.fc_in.weight.T + m.fc_in.bias
    for _ in range(3):
        z3 = x3 = fn.gelu(x) @ W1.T + b1
        for _ in range(3):
            x3 = z3 + fn.silu(x3.tanh() @ V1.T + c1) @ V2.T + c2
        x = z + x3.tanh() @ W2.T + b2
    torch.testing.assert_close(m(v), fn.gelu(x) @ m.fc_out.weight.T + m.fc_out.bias)


@pytest.mark.parametrize("num_layers", [4, 5])
def test_many_iterations_solve_the_coupled_layers(num_layers):
    """The network at rest: each layer is what comes from the one below and back from the one above."""
    m, v = imlp(num_layers, coeff=0.4, n_iter=30), tokens(3)
    F = m.contraction
    W = [w for w in F.weights() if w.dim() == 2]
    levels = [F, F.inner, F.inner.inner][: num_layers - 2]
    x = [m.fc_in(v)] + [torch.zeros(3, level.fc1.out_features, dtype=torch.float64) for level in levels]
    for _ in range(200):
        for i, level in enumerate(levels):
            back = fn.linear(fn.gelu(x[i + 1]), W[2 * i + 1], level.fc2.bias)
            source = m.fc_in(v) if i == 0 else fn.linear(fn.gelu(x[i - 1]), W[2 * i - 2], levels[i - 1].fc1.bias)
            x[i] = source + back
        x[-1] = fn.linear(fn.gelu(x[-2]), W[-2], levels[-1].fc1.bias)
    torch.testing.assert_close(m(v), m.fc_out(fn.gelu(x[0])), rtol=1e-8, atol=1e-8)


# --- iterations and normalisation -------------------------------------------------------------------------------------


def test_the_number_of_iterations_reaches_every_level():
    model = small(4).eval()
    calls = []
    for block in model.blocks[:1]:
        block.mlp_tokens.contraction.inner.register_forward_hook(lambda *_: calls.append(1))
    model(IMAGES)
    assert len(calls) == 2 * 2
    model.n_iter = 3
    calls.clear()
    model(IMAGES)
    assert len(calls) == 3 * 3
    assert torch.equal(model(IMAGES), small(4, n_iter=3).eval()(IMAGES))


@pytest.mark.parametrize("tied", [False, True])
def test_a_nest_is_normalised_once_per_forward(tied, monkeypatch):
    calls = []
    original = SpectralLinear.normalized_weight
    monkeypatch.setattr(SpectralLinear, "normalized_weight", lambda self: (calls.append(self), original(self))[1])
    imlp(5, n_iter=4, tied=tied).train()(tokens(2))
    assert len(calls) == len(set(calls)) == (3 if tied else 6)


def test_every_level_advances_once_per_training_forward():
    model, reference = small(5), small(5)
    for m in (model, reference):
        for layer in spectral(m):
            layer.v.copy_(torch.linspace(-1, 1, layer.in_features))
    for layer in spectral(reference):
        layer.advance()
    model(IMAGES)
    assert len(spectral(model)) == 2 * 6
    for a, b in zip(spectral(model), spectral(reference), strict=True):
        assert torch.equal(a.v, b.v)


def test_a_new_nest_is_normalised_by_the_weights_that_timm_drew():
    for layer in spectral(small(5)):
        assert layer.sigma() > 0.98 * layer.sigma(exact=True)


# --- widths and activations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "widths"), [(2.0, [24, 24, 24]), (0.5, [6, 6, 6]), ([2, 1.5, 0.25], [24, 18, 3]), ((1, 1, 1), [12] * 3)]
)
def test_hidden_ratio_is_relative_to_the_outer_width_at_every_layer(ratio, widths):
    F = imlp(5, hidden_ratio=ratio).contraction
    assert [level.fc1.out_features for level in (F, F.inner, F.inner.inner)] == widths


def test_each_layer_has_its_activation():
    m = imlp(4, act_layer=["relu", nn.Tanh, "softmax"])
    F = m.contraction
    assert (type(m.act), type(F.act)) == (nn.ReLU, nn.ReLU)  # g of layer 2
    assert (type(F.act_hidden), type(F.inner.act)) == (nn.Tanh, nn.Tanh)  # of layer 3
    assert type(F.inner.act_hidden) is nn.Softmax  # of layer 4


def test_one_activation_is_everywhere_and_several_are_for_the_token_mixing():
    block = small(3, act_layer="relu").blocks[0]
    assert {type(m) for m in (block.mlp_tokens.act, block.mlp_channels.act)} == {nn.ReLU}
    block = small(3, act_layer=["relu", "softmax"]).blocks[0]
    assert type(block.mlp_tokens.contraction.act_hidden) is nn.Softmax
    assert type(block.mlp_channels.act) is nn.GELU


# --- tied couplings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", DEPTHS)
def test_tied_parameters_stand_once_in_the_state_dict_and_biases_stay_apart(num_layers, tmp_path):
    model = small(num_layers, tied=True)
    free = dict(small(num_layers).named_parameters())
    tied = dict(model.named_parameters())
    assert tied.keys() == {n for n in free if not n.endswith(("fc_out.weight", "fc2.weight")) or "channels" in n}
    save_file(model.state_dict(), tmp_path / "m.safetensors")  # refuses tensors that share memory
    again = small(num_layers, tied=True, drop_path_rate=0.5)
    again.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert torch.equal(again.eval()(IMAGES), model.eval()(IMAGES))


def test_tied_is_what_transposing_by_hand_gives():
    tied, free = imlp(4, tied=True), imlp(4)
    state = dict(tied.state_dict())
    for way, back in (("fc_in", "fc_out"), ("contraction.fc1", "contraction.fc2"),
                      ("contraction.inner.fc1", "contraction.inner.fc2")):  # fmt: skip
        state[f"{back}.weight"] = state[f"{way}.weight"].T
    free.load_state_dict(state, strict=False)
    for layer in spectral(free):
        layer.warm_up()
    torch.testing.assert_close(free(tokens(3)), tied(tokens(3)), rtol=1e-6, atol=1e-8)


def test_a_copy_of_a_tied_model_is_tied_to_itself():
    model = small(4, tied=True).eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(2)
    assert torch.equal(model(IMAGES), small(4, tied=True).eval()(IMAGES))
    assert not torch.equal(twin(IMAGES), model(IMAGES))


def test_tied_mixing_keeps_its_scale_on_another_grid():
    """On an image that does not vary within the plane, for a linear mixing."""
    model = small(2, tied=True, act_layer=["identity"], img_size=8).eval()
    for block in model.blocks:
        nn.init.constant_(block.mlp_tokens.fc_in.weight, 0.1)
        nn.init.zeros_(block.mlp_tokens.fc_in.bias)
    larger = small(2, tied=True, act_layer=["identity"], img_size=(16, 12)).eval()
    larger.load_state_dict(model.state_dict())
    color = torch.randn(2, 3, 1, 1)
    a, b = model(color.expand(2, 3, 8, 8)), larger(color.expand(2, 3, 16, 12))
    torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


# --- coeff="auto" -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_layers", "act", "coeff"),
    [(3, "relu", 0.9), (3, "gelu", 0.9 / 1.128904145185155), (3, ["sigmoid", "softmax"], 0.9 * 8**0.5),
     (4, "relu", (0.81 / 1.81) ** 0.5)],
)  # fmt: skip
def test_auto_is_the_highest_ceiling_with_a_guarantee(num_layers, act, coeff):
    layers = spectral(small(num_layers, act_layer=act, coeff="auto"))
    assert layers
    assert all(layer.coeff == pytest.approx(coeff, rel=1e-12) for layer in layers)


@pytest.mark.parametrize("act", ["relu", "gelu", "silu", "softmax", ["tanh", "gelu", "sigmoid", "softplus"]])
@pytest.mark.parametrize("num_layers", [3, 4, 5])
def test_auto_contracts_whatever_the_weights(num_layers, act):
    act = act[: num_layers - 1] if isinstance(act, list) else act
    m = imlp(num_layers, act_layer=act, coeff="auto")
    with torch.no_grad():
        for layer in spectral(m):
            layer.weight.mul_(50)
            for _ in range(20):
                layer.warm_up()
    F, W = m.contraction, m.contraction.weights()
    slopes = [lipschitz_constant(activation(a)()) for a in (act if isinstance(act, list) else [act] * (num_layers - 1))]
    bound = contraction_bound(max(exact_sigma(w).item() for w in W if w.dim() == 2), slopes)
    x = torch.randn(200, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: F(x, W, 4)))(x)
    assert torch.linalg.matrix_norm(jacobian, ord=2).max() <= bound <= 0.81 * (1 + 1e-9)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_layers", DEPTHS)
def test_every_parameter_gets_a_gradient(num_layers, tied):
    for name, gradient in gradients(small(num_layers, tied=tied, coeff="auto").train()).items():
        assert gradient is not None and gradient.isfinite().all() and gradient.norm() > 0, name


def test_gradient_of_a_tied_nest_agrees_with_finite_differences():
    m = imlp(4, tied=True, hidden_ratio=0.5)
    with torch.no_grad():
        for layer in spectral(m):
            layer.weight.mul_(3)
            for _ in range(20):
                layer.warm_up()  # sigma is exact, so its gradient is that of the layer
    names, values = zip(*((n, p.detach().clone().requires_grad_()) for n, p in m.named_parameters()), strict=True)

    def forward(v, *values):
        return torch.func.functional_call(m, dict(zip(names, values, strict=True)), (v,))

    assert torch.autograd.gradcheck(forward, (tokens(2).requires_grad_(), *values), fast_mode=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_tied_nest_checkpoints_and_compiles_to_the_same_gradient(compiled):
    plain, other = small(4, tied=True, num_blocks=1), small(4, tied=True, num_blocks=1)
    other.set_grad_checkpointing()
    torch.compiler.reset()
    got = gradients(other, torch.compile(other, fullgraph=True, backend="aot_eager") if compiled else None)
    for name, expected in gradients(plain).items():
        torch.testing.assert_close(got[name], expected, rtol=1e-4, atol=1e-6)
    for a, b in zip(spectral(plain), spectral(other), strict=True):
        torch.testing.assert_close(a.v, b.v, rtol=1e-5, atol=1e-6)


# --- inference --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_layers", "tied", "norm"),
    [(2, False, "none"), (2, True, "none"), (4, False, "spectral"), (4, True, "spectral"), (4, True, "none"),
     (4, False, "batch")],
)  # fmt: skip
def test_folded_scripted_and_traced_copies_agree(num_layers, tied, norm):
    model = small(num_layers, tied=tied, norm=norm).train()
    model(IMAGES)
    model.eval()
    folded = fold(model)
    assert not spectral(folded)
    for other in (folded, torch.jit.script(model), torch.fx.symbolic_trace(folded)):
        torch.testing.assert_close(other(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_exports_of_a_tied_nest_agree(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from imixer.models.export import export_onnx, export_torch

    model = small(4, tied=True, num_blocks=1)
    for export, path in ((export_torch, tmp_path / "m.pt2"), (export_onnx, tmp_path / "m.onnx")):
        assert export(model, path)["max_abs_diff"] < 1e-5


# --- refusals ---------------------------------------------------------------------------------------------------------


class Unbounded(nn.Identity):
    """States that there is no bound."""

    def lipschitz_bound(self) -> float:
        return math.inf


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_layers": 1}, "num_layers is 1"),
        ({"num_layers": 4, "legacy": True}, "legacy .* num_layers is 4"),
        ({"num_layers": 4, "hidden_ratio": [1.0]}, "hidden_ratio has 1 entries; this depth takes 2"),
        ({"num_layers": 4, "hidden_ratio": [1.0, 0.01]}, "hidden_ratio .* 0 of 12"),
        ({"act_layer": ["relu"]}, "act_layer has 1 entries; this depth takes 2"),
        ({"act_layer": ["relu", "rleu"]}, "act_layer is 'rleu'"),
        ({"tied": True, "out_features": 8}, "tied .* out_features is 8"),
        ({"coeff": "outo"}, "coeff is 'outo'; give a number or auto"),
        ({"coeff": "auto", "norm": "none"}, "coeff is auto.*norm is none"),
        ({"coeff": "auto", "act_layer": nn.Hardshrink}, "coeff is auto.*Hardshrink.*give coeff as a number"),
        ({"coeff": "auto", "act_layer": "prelu"}, "coeff is auto, but PReLU has parameters.*give coeff as a number"),
        ({"coeff": "auto", "act_layer": ["relu", Unbounded]}, r"coeff is auto, but lipschitz is \[1.0, inf\].* finite"),
    ],
)
def test_what_cannot_be_is_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        IMLP(16, 12, **kwargs)


def test_without_a_contraction_its_settings_do_not_matter():
    assert IMLP(16, 12, num_layers=2, coeff="auto", act_layer=nn.Hardshrink, norm="none").contraction is None

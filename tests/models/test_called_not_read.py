"""The layers inside F are called, not read: what hangs on a layer, wraps it, counts it or traces it has its effect."""

import copy
import itertools
import math

import pytest
import timm
import torch
from timm.models._features_fx import create_feature_extractor as timms_extractor
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor as torchvisions_extractor

import imixer.models  # registers the models
from imixer.implicit import Contraction, certify, exact_sigma, fold
from imixer.implicit.folding import plain_linear
from imixer.models import IMLP
from imixer.training.monitor import convergence

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
KINDS = [
    {},
    {"norm": "none"},
    {"norm": "batch"},
    {"norm": "orthogonal"},
    {"sigma": "row_norm"},
    {"tied": True},
    {"legacy": True},
    {"inner_drop_rate": 0.2},
    {"num_layers": 4, "hidden_ratio": 0.5},
]
WRAPPABLE = [{}, {"norm": "none"}, {"norm": "orthogonal"}, {"num_layers": 4, "hidden_ratio": 0.5}]
pytestmark = pytest.mark.filterwarnings("ignore:.*was held at spectral norm:UserWarning")


def name(kwargs) -> str:
    return "-".join(f"{key}_{value}" for key, value in kwargs.items()) or "paper"


def of_all(kinds):
    return pytest.mark.parametrize("kind", kinds, ids=name)


def small(**kwargs) -> imixer.models.IMixer:
    torch.manual_seed(0)
    model = timm.create_model("imixer_t2_8", **{"num_classes": 5, "num_blocks": 2, "embed_dim": 16, **kwargs})
    nn.init.normal_(model.head.weight, std=0.1)
    return model.eval()


def inner(model: imixer.models.IMixer) -> Contraction:
    return model.blocks[0].mlp_tokens.contraction


class LoRA(nn.Module):
    """W x + b + B A x, as one writes it by hand."""

    def __init__(self, base: nn.Linear, rank: int = 2, scale: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, base.in_features).to(base.weight))
        self.B = nn.Parameter(scale * torch.randn(base.out_features, rank).to(base.weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.A.T @ self.B.T


class LoRAOfPEFT(nn.Module):
    """The same with the attributes that PEFT's wrapper has, by which it is known."""

    disable_adapters, merged, merged_adapters, active_adapters = False, False, (), ("default",)

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def get_delta_weight(self, name: str) -> Tensor:
        return self.lora_B[name].weight @ self.lora_A[name].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class LowRank(nn.Module):
    """The same as a parametrization: W + B A."""

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(2, weight.shape[1]))
        self.B = nn.Parameter(scale * torch.randn(weight.shape[0], 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.B @ self.A


@of_all([{}, {"tied": True}, {"num_layers": 4, "hidden_ratio": 0.5}, {"legacy": True}])
def test_power_iterations_follow_a_lora_in_training_though_its_base_is_frozen(kind):
    model = small(**kind)
    held = [module for module in model.modules() if isinstance(module, Contraction)]
    for F in held:
        for each in ("fc1", "fc2"):
            if isinstance(getattr(F, each), nn.Linear):
                setattr(F, each, LoRAOfPEFT(getattr(F, each)))
    loras = [module for module in model.modules() if isinstance(module, LoRAOfPEFT)]
    torch.manual_seed(2)
    model.train()
    for _ in range(12):
        for lora in loras:  # as an optimizer moves it
            lora.lora_B["default"].weight.data.add_(torch.randn_like(lora.lora_B["default"].weight) / 4)
        model(IMAGES)
    norms = [float(exact_sigma(W.detach())) for F in held for W in F.weights()[:2]]
    assert max(norms) < 0.9 * 1.02  # power iteration sees a norm from below


# --- hooks and counters -----------------------------------------------------------------------------------------------


@of_all(KINDS)
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("n_iter", [0, 1, 3])
def test_hooks_on_fc1_and_fc2_fire_once_per_iteration(kind, folded, n_iter):
    model = small(n_iter=n_iter, **kind)
    model = fold(model) if folded else model
    fired: list[str] = []
    for layer in ("fc1", "fc2", "bn1"):
        getattr(inner(model), layer).register_forward_hook(lambda m, x, y, layer=layer: fired.append(layer))
    model(IMAGES)
    assert (fired.count("fc1"), fired.count("fc2")) == (n_iter, n_iter)
    assert fired.count("bn1") == (n_iter if kind.get("norm") == "batch" and not folded else 0)


def test_hooks_inside_an_inner_inverse_fire_once_per_evaluation_of_it():
    model, fired = small(n_iter=3, num_layers=4), []
    inner(model).inner.fc1.register_forward_hook(lambda *_: fired.append(1))
    model(IMAGES)
    assert len(fired) == 3 * 3


@of_all(KINDS)
@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_a_hook_sees_the_layers_own_input_and_its_true_output(kind, layer):
    model, seen = small(**kind), []
    F = inner(model)
    getattr(F, layer).register_forward_hook(lambda m, args, y: seen.append((args, y)))
    model(IMAGES)
    W1, W2, b1, b2 = F.weights()[:4]
    W, b = (W1, b1) if layer == "fc1" else (W2, b2)
    for args, y in seen:
        assert len(args) == 1
        torch.testing.assert_close(y, args[0] @ W.T + b)


@of_all(KINDS)
@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_a_forward_hook_that_changes_the_output_changes_the_model_and_its_folded_copy(kind, layer):
    model = small(**kind)
    before = model(IMAGES)
    handle = getattr(inner(model), layer).register_forward_hook(lambda m, x, y: 2 * y)
    after = model(IMAGES)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(fold(model)(IMAGES), after, rtol=1e-4, atol=1e-5)
    handle.remove()
    assert torch.equal(model(IMAGES), before)


@of_all(KINDS)
def test_a_pre_hook_that_changes_the_input_leaves_the_layer_its_matrix(kind):
    model, scaled = small(**kind), small(**kind)
    inner(model).fc2.register_forward_pre_hook(lambda m, args: (3 * args[0],))
    inner(scaled).act_hidden = nn.Sequential(inner(scaled).act_hidden, Times(3))
    torch.testing.assert_close(model(IMAGES), scaled(IMAGES))


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.mark.parametrize("gradient", ["unroll", "implicit", "recompute"])
@pytest.mark.parametrize("solver", ["fixed", "picard", "anderson"])
def test_every_evaluation_of_a_solver_is_a_call(solver, gradient):
    if gradient == "recompute" and solver != "fixed":
        pytest.skip("recompute replays fixed iterations")
    model = small(solver=solver, gradient=gradient, coeff=0.6).train()
    calls = {"F": 0, "fc1": 0, "fc2": 0}

    def count(what):
        return lambda *_: calls.__setitem__(what, calls[what] + 1)

    inner(model).register_forward_hook(count("F"))
    inner(model).fc1.register_forward_hook(count("fc1"))
    inner(model).fc2.register_forward_hook(count("fc2"))
    model(IMAGES).sum().backward()
    assert calls["F"] == calls["fc1"] == calls["fc2"] >= 2


@of_all(KINDS)
@pytest.mark.parametrize("folded", [False, True])
def test_flops_counted_by_hooks_are_those_that_torch_counts(kind, folded):
    model = small(n_iter=3, **kind)
    model = fold(model) if folded or kind.get("norm") == "orthogonal" else model  # whose inverse is counted too
    counted = 0

    def count(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        nonlocal counted
        per_output = module.weight[0].numel() if isinstance(module, (nn.Linear, nn.Conv2d)) else args[0].shape[-1]
        counted += 2 * y.numel() * per_output

    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, imixer.implicit.TransposedLinear)):
            module.register_forward_hook(count)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(IMAGES)
    assert counted == counter.get_total_flops()


# --- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wrapper", "parametrization", "hook"])
def test_what_hangs_on_a_layer_compiles_without_a_graph_break(kind):
    model = small(num_blocks=1).train()
    F = inner(model)
    if kind == "wrapper":
        F.fc1 = LoRA(F.fc1, scale=0.5)
    elif kind == "parametrization":
        parametrize.register_parametrization(F.fc1, "weight", LowRank(F.fc1.weight, scale=0.5))
    else:
        F.fc1.register_forward_hook(lambda m, x, y: 2 * y)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES), model(IMAGES))


@of_all(WRAPPABLE)
@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_a_hand_written_lora_has_effect_and_trains(kind, layer):
    model = small(n_iter=3, **kind)
    before = model(IMAGES)
    F = inner(model)
    lora = LoRA(getattr(F, layer))
    setattr(F, layer, lora)
    torch.testing.assert_close(model(IMAGES), before)  # B is zero
    lora.B.data.normal_()
    assert (model(IMAGES) - before).abs().max() > 1e-3
    lora.B.data.zero_()
    optimizer = torch.optim.SGD([lora.A, lora.B], lr=0.5)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model.train()(IMAGES), torch.tensor([0, 1]))
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert lora.base.weight.grad is None
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


@of_all(WRAPPABLE)
@pytest.mark.parametrize("gradient", ["implicit", "recompute"])
def test_a_lora_has_the_gradient_of_unrolling_whatever_the_gradient(kind, gradient):
    found = []
    for choice in ("unroll", gradient):
        torch.manual_seed(0)
        settings = {"solver": "fixed", "n_iter": 60} if choice != "implicit" else {"solver": "picard"}
        options = {key: value for key, value in kind.items() if key != "num_layers"}
        mlp = IMLP(6, **{"coeff": 0.5, "tolerance": 1e-12, **settings, **options}, gradient=choice, dtype=torch.float64)
        with torch.no_grad():
            for p in mlp.contraction.parameters():
                p.mul_(0.3)
        torch.manual_seed(1)
        mlp.contraction.fc1 = LoRA(mlp.contraction.fc1, scale=0.02)
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        mlp.eval()(x).square().sum().backward()
        found.append({name: p.grad for name, p in mlp.named_parameters() if p.requires_grad})
    assert "contraction.fc1.A" in found[0]
    for key, expected in found[0].items():
        torch.testing.assert_close(found[1][key], expected, rtol=1e-7, atol=1e-10, msg=key)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("gradient", ["unroll", "implicit", "recompute"])
def test_layers_that_nothing_normalises_get_their_gradients_whatever_the_gradient(norm, gradient):
    if norm == "batch" and gradient != "unroll":
        pytest.skip("refused: F depends on the whole batch")
    mlp = IMLP(6, norm=norm, gradient=gradient, solver="fixed" if gradient == "recompute" else "picard")
    with torch.no_grad():
        for p in mlp.contraction.parameters():
            p.mul_(0.3)
    mlp.eval()(torch.randn(3, 6)).sum().backward()
    assert [name for name, p in mlp.named_parameters() if p.grad is None] == []


@pytest.mark.filterwarnings("default:.*was held at spectral norm:UserWarning")
@pytest.mark.parametrize("layer", ["fc1", "fc2"])
@pytest.mark.parametrize("norm", ["spectral", "orthogonal"])
def test_a_wrapper_that_can_lift_the_ceiling_is_announced_with_the_remedy(layer, norm):
    F = inner(small(norm=norm))
    with pytest.warns(UserWarning, match=rf"{layer} .*0\.9 .*LoRA.*torch\.nn\.utils\.parametrizations"):
        setattr(F, layer, LoRA(getattr(F, layer)))


@pytest.mark.filterwarnings("error")
def test_nothing_is_announced_where_no_ceiling_is_lifted():
    F = inner(small(norm="none"))
    F.fc1 = LoRA(F.fc1)
    fold(small()), copy.deepcopy(small())


@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_a_lifted_ceiling_is_seen_by_the_certificate_and_by_the_monitor(layer):
    model = small()
    F, z = inner(model), torch.randn(3, 8)
    assert certify(F, [1.0, 1.0], z).verdict == "guaranteed"
    bound = convergence(model, IMAGES)[0]["bound"]
    lora = LoRA(getattr(F, layer), scale=5.0)
    setattr(F, layer, lora)
    certificate = certify(F, [1.0, 1.0], z)
    effective = lora.base.normalized_weight() + lora.B @ lora.A
    assert certificate.worst.sigmas[0][layer == "fc2"] == pytest.approx(float(exact_sigma(effective)), rel=1e-5)
    assert certificate.worst.bound > 1 and certificate.verdict != "guaranteed"
    assert (certificate.worst.estimates, certificate.worst.coeff) == (None, None)
    found = convergence(model, IMAGES)[0]
    assert found["bound"] > 2 * bound
    assert found["sigma"] == pytest.approx(float(exact_sigma(effective)), rel=1e-5)


def test_of_a_layer_that_is_not_affine_no_norm_is_known():
    model = small()
    F = inner(model)
    F.fc1 = nn.Sequential(F.fc1, nn.ReLU())
    assert certify(F, [1.0, 1.0], torch.randn(3, 8)).worst.bound == math.inf
    assert convergence(model, IMAGES)[0]["bound"] == math.inf
    torch.testing.assert_close(fold(model)(IMAGES), model(IMAGES))


@of_all(WRAPPABLE)
def test_a_folded_lora_is_one_plain_matrix(kind):
    model = small(**kind)
    F = inner(model)
    F.fc1 = LoRA(F.fc1, scale=0.5)
    folded = fold(model)
    assert type(inner(folded).fc1) is nn.Linear
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.script(model)(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_a_wrapper_around_a_tied_coupling_is_refused_with_the_remedy(layer):
    model = small(tied=True)
    F = inner(model)

    def wrap_and_use():
        setattr(F, layer, nn.Sequential(getattr(F, layer)))
        model(IMAGES)

    with pytest.raises(ValueError, match=r"transpose.*torch\.nn\.utils\.parametrizations"):
        wrap_and_use()


def test_a_wrapper_around_the_tied_way_in_is_refused_with_the_remedy():
    model = small(tied=True)
    model.blocks[0].mlp_tokens.fc_in = LoRA(model.blocks[0].mlp_tokens.fc_in)
    with pytest.raises(ValueError, match=r"fc_in is LoRA.*torch\.nn\.utils\.parametrizations"):
        model(IMAGES)


@pytest.mark.parametrize("tied", [False, True])
def test_a_parametrization_of_the_weight_has_effect_trains_and_is_held_at_the_ceiling(tied):
    model = small(tied=tied, sigma="exact")
    before, F = model(IMAGES), inner(model)
    parametrize.register_parametrization(F.fc1, "weight", LowRank(F.fc1.weight, scale=5.0))
    assert (model(IMAGES) - before).abs().max() > 1e-3
    assert certify(F, [1.0, 1.0], torch.randn(3, 8)).verdict == "guaranteed"
    model.train()(IMAGES).square().sum().backward()
    added = F.fc1.parametrizations.weight[0]
    assert added.A.grad.abs().max() > 0 and added.B.grad.abs().max() > 0
    torch.testing.assert_close(fold(model)(IMAGES), model.eval()(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_torchs_parametrizations_are_computed_once_per_forward(make, tied, monkeypatch):
    model = small(n_iter=4, norm="none", tied=tied).train()
    layer, calls, fired = make(inner(model).fc1), [], []
    kind = type(layer.parametrizations.weight[0])
    original = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *args: (calls.append(1), original(self, *args))[1])
    layer.register_forward_hook(lambda *_: fired.append(1))
    model(IMAGES).sum().backward()
    assert (len(calls), len(fired)) == (1, 4)
    assert all(p.grad is not None for p in layer.parameters())
    torch.testing.assert_close(fold(model)(IMAGES), model.eval()(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["spectral", "none"])
def test_pruning_has_effect_and_goes_on_training(norm):
    model = small(norm=norm).train()
    before, layer = model(IMAGES), inner(model).fc1
    prune.l1_unstructured(layer, "weight", amount=0.9)
    assert (model(IMAGES) - before).abs().max() > 1e-4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):  # a weight read before its hook has made it would have a stale graph
        optimizer.zero_grad()
        model(IMAGES).square().sum().backward()
        optimizer.step()
    assert (layer.weight_orig.grad == 0).float().mean() >= 0.89 or norm == "spectral"


def test_peft_wraps_fc1_and_fc2():
    peft = pytest.importorskip("peft")
    model = small()
    before = model(IMAGES)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=[r"fc1", r"fc2"], init_lora_weights=False))
    assert (wrapped(IMAGES) - before).abs().max() > 1e-3
    wrapped(IMAGES).sum().backward()
    assert all(p.grad is not None for name, p in wrapped.named_parameters() if "lora_" in name)


def test_sync_batch_norm_takes_the_place_of_batch_norm():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small(norm="batch"))
    assert isinstance(inner(model).bn1, nn.SyncBatchNorm)
    torch.testing.assert_close(model(IMAGES), small(norm="batch")(IMAGES))


@of_all(KINDS)
def test_a_folded_model_can_be_quantized_dynamically(kind):
    model = small(**kind)
    quantized = torch.ao.quantization.quantize_dynamic(fold(model), {nn.Linear}, dtype=torch.qint8)
    assert "DynamicQuantizedLinear" in repr(inner(quantized).fc1)
    expected = model(IMAGES)
    assert (quantized(IMAGES) - expected).abs().max() < 0.1 * expected.abs().max()


def test_plain_linear_gives_the_layer_back_that_has_no_numbers_to_ask_for():
    layer = nn.Sequential(nn.Linear(3, 2, device="meta"))
    assert plain_linear(layer, 3) is layer
    assert plain_linear(nn.Identity(), 3).__class__ is nn.Identity


# --- tracing ----------------------------------------------------------------------------------------------------------


@of_all(KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_a_symbolic_trace_is_the_model_forward_and_backward(kind, training):
    model = small(**kind).train(training)
    traced_of = copy.deepcopy(model)
    traced = torch.fx.symbolic_trace(traced_of)
    outputs = []
    for run in (model, traced):
        torch.manual_seed(3)
        outputs.append(run(IMAGES))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    theirs = dict(traced.named_parameters())
    for key, p in model.named_parameters():
        torch.testing.assert_close(theirs[key].grad, p.grad, msg=key)
    for (key, ours), other in zip(model.named_buffers(), traced_of.buffers(), strict=True):
        torch.testing.assert_close(other, ours, msg=key)  # the power iterations belong to the graph


@of_all(KINDS)
@pytest.mark.parametrize("make", [timms_extractor, torchvisions_extractor], ids=["timm", "torchvision"])
def test_the_feature_extractors_give_the_blocks_outputs(kind, make):
    model = small(**kind)
    seen = []
    model.blocks[0].register_forward_hook(lambda m, x, y: seen.append(y))
    model(IMAGES)
    found = make(model, {"blocks.0": "first"})(IMAGES)
    torch.testing.assert_close(found["first"], seen[0])


@of_all([{}, {"norm": "batch"}, {"norm": "orthogonal"}, {"sigma": "exact"}, {"sigma": "row_norm"},
         {"scaling": "hard", "tied": True, "num_layers": 4}])  # fmt: skip
def test_what_an_extractor_gives_can_be_scripted(kind, tmp_path):
    model = small(**kind)
    scripted = torch.jit.script(timms_extractor(model, {"head": "logits"}).eval())
    torch.testing.assert_close(scripted(IMAGES)["logits"], model(IMAGES), rtol=1e-5, atol=1e-6)
    torch.jit.save(scripted, tmp_path / "scripted.pt")


@of_all(KINDS)
def test_features_only_by_fx(kind):
    model = small(features_only=False, **kind)
    torch.manual_seed(0)
    settings = {"num_blocks": 2, "embed_dim": 16, "features_only": True, "feature_cls": "fx", "out_indices": (0, 1)}
    extractor = timm.create_model("imixer_t2_8", **settings, **kind).eval()
    extractor.load_state_dict({f"graph_module.{k}": v for k, v in model.state_dict().items()}, strict=False)
    first, second = extractor(IMAGES)
    expected = model.forward_intermediates(IMAGES, output_fmt="NLC", intermediates_only=True, norm=False)
    torch.testing.assert_close(first, expected[0])
    torch.testing.assert_close(second, expected[1])


def test_a_solver_that_tracing_cannot_follow_is_refused_and_the_remedies_work():
    model = small(solver="picard", tolerance=1e-6, coeff=0.5)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp_tokens.*picard.*model\.solver.*IMLP a leaf"):
        torchvisions_extractor(model, ["blocks.0"])
    expected = model(IMAGES)
    leaf = torchvisions_extractor(model, ["head"], tracer_kwargs={"leaf_modules": [IMLP]})
    torch.testing.assert_close(leaf(IMAGES)["head"], expected)
    model.solver, model.n_iter = "fixed", 50
    torch.testing.assert_close(torchvisions_extractor(model, ["head"])(IMAGES)["head"], expected, rtol=1e-3, atol=1e-4)

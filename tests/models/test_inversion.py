"""The inverse may be found and differentiated in other ways than the paper's: all of them, in the model."""

import copy
import itertools
import sys
from dataclasses import replace

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import nn

import imixer.models  # registers the models
from imixer.implicit import SpectralLinear, exact_sigma, fold
from imixer.implicit.gradients import CheckpointedUnroll, Implicit, Unroll
from imixer.implicit.solution import NotConvergedError
from imixer.implicit.solvers import Anderson, FixedIterations, Picard
from imixer.models import IMLP, Inversion

TO_TOLERANCE = ["picard", "damped", "anderson", "broyden"]
GRADIENTS = ["unroll", "implicit", "neumann", "jacobian_free", "recompute"]
COMBINATIONS = [
    (solver, gradient)
    for solver, gradient in itertools.product(["fixed", *TO_TOLERANCE], GRADIENTS)
    if solver == "fixed" or gradient != "recompute"
]
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def small(scale: float = 8.0, **kwargs) -> imixer.models.IMixer:
    """In evaluation, with inner matrices so large that ceilings bind, and positive, so that iterations matter."""
    torch.manual_seed(0)
    settings = {"num_classes": 10, "num_blocks": 2, "embed_dim": 32, "coeff": 0.75}
    model = timm.create_model("imixer_t2_8", **(settings | kwargs))
    nn.init.normal_(model.head.weight, std=0.1)
    with torch.no_grad():
        for block in model.blocks:
            for module in block.mlp_tokens.contraction.modules():
                if isinstance(module, nn.Linear):
                    module.weight.abs_().mul_(scale)
                    module.bias.normal_(std=0.5).abs_()
                if isinstance(module, SpectralLinear):
                    module.warm_up()
    return model.eval()


def gradients(model: nn.Module, x: torch.Tensor = IMAGES, forward=None) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (model if forward is None else forward)(x).float().square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference of a parameter's gradient, relative to that gradient; some are zero, but for rounding."""
    least = 1e-3 * max(gradient.norm() for gradient in b.values())
    return max(((a[name] - b[name]).norm() / max(b[name].norm(), least)).item() for name in b)


# --- what they compute ------------------------------------------------------------------------------------------------


def test_the_default_is_the_papers():
    inversion = small().blocks[0].mlp_tokens.inversion
    assert (inversion.solver, inversion.gradient, inversion.unrolled) == ("fixed", "unroll", True)


@pytest.mark.parametrize("solver", TO_TOLERANCE)
def test_solved_and_differentiated_through_the_equation_is_a_hundred_iterations_unrolled(solver):
    many, solved = small(n_iter=100), small(solver=solver, gradient="implicit")
    assert (small(n_iter=2)(IMAGES) - many(IMAGES)).abs().max() > 1e-3  # so that there is something to solve
    torch.testing.assert_close(solved(IMAGES), many(IMAGES), rtol=0, atol=1e-3)
    assert distance(gradients(solved), gradients(many)) < 0.01


@pytest.mark.parametrize("solver", TO_TOLERANCE)
def test_in_double_precision_to_nearly_all_digits(solver):
    x = IMAGES.double()
    many = small(n_iter=200).double()
    solved = small(solver=solver, gradient="implicit", tolerance=1e-12, max_steps=300).double()
    torch.testing.assert_close(solved(x), many(x), rtol=0, atol=1e-10)
    assert distance(gradients(solved, x), gradients(many, x)) < 1e-8


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_nest_is_solved_outside_and_iterated_inside(gradient):
    """n_iter inner iterations either way."""
    model = small(num_layers=4, coeff="auto", tied=True, gradient=gradient, gradient_terms=60, n_iter=3).double()
    model.solver = FixedIterations(60)
    if gradient != "recompute":
        model.solver, model.tolerance, model.max_steps = "anderson", 1e-11, 100
    reference = small(num_layers=4, coeff="auto", tied=True, n_iter=3, solver=FixedIterations(60)).double()
    x = IMAGES.double()
    torch.testing.assert_close(model(x), reference(x), rtol=0, atol=1e-9)
    if gradient != "jacobian_free":
        assert distance(gradients(model, x), gradients(reference, x)) < 1e-5


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("num_layers", [3, 4])
def test_an_activation_that_is_learned_has_its_gradient_whatever_finds_it(gradient, num_layers):
    options = {"act_layer": "prelu", "coeff": 0.5, "n_iter": 3, "num_layers": num_layers, "gradient_terms": 60}
    model = small(gradient=gradient, **options).double()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SpectralLinear):
                layer.weight[::2].neg_()  # so that activations see negative numbers
                layer.warm_up()
    reference = copy.deepcopy(model)
    reference.gradient, reference.solver = "unroll", FixedIterations(60)
    model.solver = FixedIterations(60)
    if gradient != "recompute":
        model.solver, model.tolerance, model.max_steps = "anderson", 1e-11, 100
    x = IMAGES.double()
    found, expected = gradients(model, x), gradients(reference, x)
    learned = [name for name, p in model.named_parameters() if p.numel() == 1 and "contraction" in name]
    assert len(learned) == (4 if num_layers == 3 else 8)
    assert all(expected[name].abs() > 1e-9 for name in learned)
    if gradient != "jacobian_free":
        assert distance(found, expected) < 1e-5


def test_an_activation_that_is_learned_changes_its_gradient_on_a_trained_model():
    model = small(act_layer="prelu")
    model.gradient = "recompute"
    assert all(g.isfinite().all() for g in gradients(model).values())


def test_names_stand_for_what_they_say():
    def gradient(**kwargs):
        return gradients(small(**kwargs))

    exact, free = (
        gradient(gradient="implicit", n_iter=60, tolerance=1e-6),
        gradient(gradient="jacobian_free", n_iter=60),
    )
    assert distance(gradient(gradient="neumann", gradient_terms=1, n_iter=60), free) < 1e-6
    errors = [distance(gradient(gradient="neumann", gradient_terms=k, n_iter=60), exact) for k in (1, 2, 5, 40)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 < errors[0]
    assert distance(gradient(gradient="recompute", n_iter=7), gradient(n_iter=7)) < 1e-5


def test_instances_stand_for_themselves():
    model = small(solver=Anderson(rtol=1e-6, atol=0.0, memory=3), gradient=Implicit(Picard(rtol=1e-6)))
    torch.testing.assert_close(model(IMAGES), small(n_iter=100)(IMAGES), rtol=0, atol=1e-4)
    stepwise = small(solver=FixedIterations(4), gradient=Unroll())
    assert torch.equal(stepwise(IMAGES), small(n_iter=4)(IMAGES))
    assert (
        distance(gradients(small(solver=FixedIterations(4), gradient=CheckpointedUnroll(1))), gradients(stepwise))
        < 1e-5
    )


@pytest.mark.parametrize("shape", [(), (2,), (2, 5), (2, 3, 5)])
def test_any_number_of_axes(shape):
    torch.manual_seed(0)
    m, v = IMLP(16, 12, solver="picard", gradient="implicit"), torch.randn(*shape, 16)
    m(v).sum().backward()
    solved, m.n_iter, m.inversion = m.eval()(v), 100, Inversion()
    torch.testing.assert_close(solved, m(v), rtol=1e-3, atol=1e-4)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_layers", "tied"), [(3, False), (4, True)])
@pytest.mark.parametrize(("solver", "gradient"), COMBINATIONS)
def test_every_combination_trains_a_step(solver, gradient, num_layers, tied):
    model = small(
        1.0, solver=solver, gradient=gradient, num_layers=num_layers, tied=tied, coeff="auto", num_blocks=1
    ).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(IMAGES).square().mean()
    before.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.norm() > 0, name
    optimizer.step()
    assert model(IMAGES).square().mean() < before


@pytest.mark.parametrize(("solver", "gradient"), COMBINATIONS)
def test_half_precision_trains_and_what_has_a_tolerance_is_solved_in_single(solver, gradient):
    seen = []
    for half in (False, True):
        model, x = small(solver=solver, gradient=gradient).train(), IMAGES
        expected = model.eval()(x)
        F = model.train().blocks[0].mlp_tokens.contraction
        F.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
        if half:
            model, x = model.bfloat16(), x.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not half):
            logits = model(x)
        assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
        logits.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    wanted = torch.float32 if solver != "fixed" or gradient == "implicit" else torch.bfloat16
    assert set(seen) == {wanted}


@pytest.mark.parametrize(
    ("how", "solver", "gradient"),
    [("checkpointed", "picard", "implicit"), ("checkpointed", "anderson", "unroll"),
     ("checkpointed", "fixed", "recompute"), ("both", "anderson", "implicit")],
)  # fmt: skip
def test_checkpointed_and_compiled_models_have_the_same_gradient(how, solver, gradient):
    plain = small(solver=solver, gradient=gradient, num_blocks=1 if how == "both" else 2).train()
    other = copy.deepcopy(plain)
    other.set_grad_checkpointing()
    torch.compiler.reset()
    forward = None if how == "checkpointed" else torch.compile(other, backend="aot_eager")
    assert distance(gradients(other, forward=forward), gradients(plain)) < 1e-4
    for a, b in zip(other.modules(), plain.modules(), strict=True):
        if isinstance(a, SpectralLinear):
            torch.testing.assert_close(a.v, b.v, rtol=1e-5, atol=1e-6)


# --- failure ----------------------------------------------------------------------------------------------------------


def diverging(growth: float = 1.1, **kwargs) -> imixer.models.IMixer:
    """The second block's iterates grow, by a fifth per step or so."""
    model = small(0.1, norm="none", **kwargs)
    F = model.blocks[1].mlp_tokens.contraction
    with torch.no_grad():
        for layer in (F.fc1, F.fc2):
            layer.weight.mul_(growth / exact_sigma(layer.weight))
    return model


@pytest.mark.parametrize(("growth", "trouble"), [(1.1, "did not converge in 100 steps"), (100.0, "are not finite")])
@pytest.mark.parametrize("solver", ["picard", "damped"])
def test_divergence_is_reported_with_the_blocks_name(solver, growth, trouble):
    with pytest.raises(NotConvergedError, match=rf"^blocks\.1\.mlp_tokens: 3 of 3 samples {trouble}"):
        diverging(growth, solver=solver)(IMAGES)


def test_what_happens_then_is_ones_choice():
    with pytest.warns(UserWarning, match=r"blocks\.1\.mlp_tokens"):
        diverging(solver="picard", on_failure="warn")(IMAGES)
    diverging(solver="picard", on_failure="ignore")(IMAGES)
    diverging(n_iter=1000)(IMAGES)  # the paper's way does not look
    with pytest.raises(NotConvergedError, match=r"blocks\.1\.mlp_tokens"):
        diverging(n_iter=1000, gradient="jacobian_free", on_failure="raise")(IMAGES)


def test_it_is_ones_choice_in_the_papers_own_way_too():
    with pytest.raises(NotConvergedError, match=r"blocks\.1\.mlp_tokens: 3 of 3 samples are not finite"):
        diverging(n_iter=1000, on_failure="raise")(IMAGES)
    with pytest.warns(UserWarning, match=r"blocks\.1\.mlp_tokens"):
        diverging(n_iter=1000, on_failure="warn")(IMAGES)
    for policy in ("raise", "warn"):  # which costs a look, and changes nothing where all is well
        assert torch.equal(small(on_failure=policy)(IMAGES), small()(IMAGES))


def test_the_published_code_does_not_look():
    with pytest.raises(ValueError, match=r"^legacy is .* fixed and unroll, with on_failure raise"):
        small(legacy=True, on_failure="raise")


def test_too_few_steps_are_a_failure_in_both_directions():
    with pytest.raises(NotConvergedError, match=r"blocks\.0\.mlp_tokens: .* in 2 steps"):
        small(solver="picard", max_steps=2)(IMAGES)
    with pytest.raises(NotConvergedError, match=r"blocks\.1\.mlp_tokens, gradient"):
        gradients(small(gradient="implicit", max_steps=1))


# --- on a trained model -----------------------------------------------------------------------------------------------


def test_solvers_change_on_a_trained_model():
    model = small().eval()
    two = model(IMAGES)
    model.solver = "anderson"
    assert model.solver == "anderson"
    converged = model(IMAGES)
    torch.testing.assert_close(converged, small(n_iter=100)(IMAGES), rtol=0, atol=1e-3)
    model.tolerance, model.max_steps, model.on_failure = 1e-6, 50, "warn"
    assert (model.tolerance, model.max_steps, model.on_failure) == (1e-6, 50, "warn")
    assert not torch.equal(model(IMAGES), converged)
    model.gradient, model.gradient_terms = "neumann", 3
    gradients(model)
    model.solver = "fixed"
    assert torch.equal(model(IMAGES), two)
    model.n_iter = 100
    torch.testing.assert_close(model(IMAGES), converged, rtol=0, atol=1e-3)


def test_a_refused_change_changes_nothing():
    model = small(gradient="recompute")
    with pytest.raises(ValueError, match=r"gradient is recompute.*solver is picard"):
        model.solver = "picard"
    assert model.solver == "fixed"
    model.gradient = "implicit"
    model.solver = "picard"
    with pytest.raises(ValueError, match="tolerance is 0"):
        model.tolerance = 0
    assert model.tolerance == 1e-4


def test_folding_keeps_them():
    model = small(solver="anderson", gradient="implicit", tolerance=1e-6)
    folded = fold(model)
    assert (folded.solver, folded.gradient, folded.tolerance) == ("anderson", "implicit", 1e-6)
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_saved_model_remembers_them(tmp_path):
    args = {"solver": "damped", "gradient": "neumann", "tolerance": 1e-3, "max_steps": 40, "gradient_terms": 3,
            "on_failure": "warn"}  # fmt: skip
    settings = {"num_classes": 10, "num_blocks": 2, "embed_dim": 32, "coeff": 0.75}
    model = small(**args)
    save_for_hf(model, tmp_path, model_args=settings | args, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert {name: getattr(again, name) for name in args} == args
    assert torch.equal(again(IMAGES), model(IMAGES))


def test_exports_are_fixed_iterations(tmp_path):
    from imixer.models.export import export_torch

    model = small(solver="anderson", gradient="implicit", num_blocks=1)
    assert export_torch(model, tmp_path / "m.pt2")["max_abs_diff"] < 1e-4
    assert model.solver == "anderson"


@pytest.mark.parametrize("solver", [FixedIterations(1), FixedIterations(3), Anderson(rtol=1e-1)], ids=repr)
def test_a_model_whose_solver_is_an_object_is_exported(solver, tmp_path):
    from imixer.models.export import export_torch

    model = small(num_blocks=1)
    model.gradient, model.solver = "implicit", solver
    checked = export_torch(model, tmp_path / "m.pt2")
    assert checked["max_abs_diff"] < 1e-4 * max(1, checked["largest_logit"])
    assert model.solver is solver


def test_torchscript_has_fixed_iterations_only():
    model = small(gradient="recompute")
    torch.testing.assert_close(torch.jit.script(model)(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    model.gradient, model.solver = "implicit", "picard"
    with pytest.raises(ValueError, match=r"solver is picard.*set model\.solver"):
        torch.jit.script(model)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"solver": "newton"}, "solver is 'newton'; choose fixed, .* or broyden"),
        ({"gradient": "exact"}, "gradient is 'exact'; choose unroll, .* or recompute"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"tolerance": "1e-3"}, "tolerance is '1e-3'; give a number"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"max_steps": 10.0}, "max_steps is 10.0; give a whole number"),
        ({"n_iter": 2.0}, "n_iter is 2.0; give a whole number"),
        ({"n_iter": "2"}, "n_iter is '2'; give a whole number"),
        ({"num_layers": 3.0}, "num_layers is 3.0; give a whole number"),
        ({"hidden_ratio": "2"}, "hidden_ratio is '2'; give a number"),
        ({"inner_drop_rate": None}, "inner_drop_rate is None; give a number"),
        ({"jacobian_penalty": "1"}, "jacobian_penalty is '1'; give a number"),
        ({"gradient_terms": 0}, "gradient_terms is 0"),
        ({"on_failure": "panic"}, "on_failure is 'panic'; choose raise, warn, ignore"),
        ({"solver": "anderson", "gradient": "recompute"}, "gradient is recompute.*solver is anderson"),
        ({"solver": Picard(), "gradient": CheckpointedUnroll()}, "gradient is CheckpointedUnroll.*solver is Picard"),
        ({"legacy": True, "solver": "picard"}, "legacy .* picard and unroll"),
        ({"legacy": True, "gradient": "recompute"}, "legacy .* fixed and recompute"),
        *(({"norm": "batch", "gradient": g}, f"norm is batch.*gradient is {g}") for g in GRADIENTS[1:]),
    ],
)
def test_what_cannot_be_is_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        IMLP(16, 12, **kwargs)


def test_batch_normalisation_may_be_solved_to_a_tolerance():
    model = small(0.2, norm="batch", n_iter=100)
    expected = model(IMAGES)
    model.solver = "picard"
    torch.testing.assert_close(model(IMAGES), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_normalisation_in_half_precision_is_solved_in_single_and_moves_its_statistics(dtype):
    steps = {"solver": "picard", "tolerance": 1e-12, "max_steps": 5, "on_failure": "ignore"}  # always as many
    model = small(0.2, norm="batch", num_blocks=1, **steps)
    half = copy.deepcopy(model).to(dtype)
    torch.testing.assert_close(half(IMAGES.to(dtype)).float(), model(IMAGES), rtol=0.05, atol=0.05)
    for each in (model, half):
        each.train()(IMAGES.to(each.head.weight.dtype)).float().square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == dtype for p in half.parameters())
    for ours, theirs in zip(half.modules(), model.modules(), strict=True):
        if isinstance(ours, nn.BatchNorm1d):
            assert ours.running_mean.dtype == dtype and ours.num_batches_tracked == theirs.num_batches_tracked > 0
            for name in ("running_mean", "running_var"):
                moved = getattr(ours, name).float()
                torch.testing.assert_close(moved, getattr(theirs, name), rtol=0.05, atol=0.05)
                assert (moved - float(name == "running_var")).abs().max() > 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gradient": "implicit"}, "blocks.0.mlp_tokens: gradient is implicit"),
        ({"gradient": "recompute"}, "blocks.0.mlp_tokens: gradient is recompute"),
        ({"tied": True}, "fc2 is the transpose of fc1"),
    ],
)
def test_what_copies_without_parameters_cannot_do_is_refused_with_another_way(options, said, monkeypatch):
    def copies(tensors, devices, detach=False):
        return [[x.clone() for x in tensors] for _ in devices]

    monkeypatch.setattr(sys.modules["torch.nn.parallel.replicate"], "_broadcast_coalesced_reshape", copies)
    model = small(**options).train()
    (replica,) = nn.parallel.replicate(model, [0])
    with pytest.raises(ValueError, match=f"^{said}, and nn.DataParallel .*; use .*DistributedDataParallel$"):
        replica(IMAGES)
    if "gradient" in options:
        (replica,) = nn.parallel.replicate(model.eval(), [0])
        torch.testing.assert_close(replica(IMAGES), model(IMAGES))
    (replica,) = nn.parallel.replicate(small(), [0])
    torch.testing.assert_close(replica(IMAGES), small()(IMAGES))


def test_an_inversion_is_immutable_and_compares():
    assert replace(Inversion(), solver="picard") == Inversion("picard") != Inversion()


def test_a_model_without_blocks_says_that_it_has_no_inverse():
    model = timm.create_model("imixer_t2_8", num_blocks=0)
    for name in ("n_iter", "solver"):
        with pytest.raises(ValueError, match="num_blocks is 0"):
            getattr(model, name)
    with pytest.raises(ValueError, match="num_blocks is 0"):
        model.solver = "anderson"

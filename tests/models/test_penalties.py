"""Options of an iMixer that add to the loss, against what is written out."""

import copy
import pickle
from itertools import pairwise

import pytest
import timm
import torch

import imixer  # noqa: F401
from imixer.models import IMLP

NAMES = ("jacobian_penalty", "trajectory_penalty", "correction_penalty")


def mlp(**options):
    torch.manual_seed(0)
    made = IMLP(5, 4, dtype=torch.float64, **options).train()
    with torch.no_grad():
        for parameter in made.contraction.parameters():
            parameter.mul_(2)
    return made.train()


def small(**options):
    torch.manual_seed(0)
    sizes = dict(num_blocks=2, embed_dim=8, num_classes=3)
    return timm.create_model("imixer_n2_8", **sizes, **options).train()


IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def images(model):
    return IMAGES.expand(-1, model.pretrained_cfg["input_size"][0], -1, -1)


def test_penalties_are_written_out():
    """Steps and distances exactly; the Jacobian on average over its random signs."""
    v = torch.randn(6, 5, dtype=torch.float64)
    given = {name: mlp(**{name: 2.0}, n_iter=3) for name in NAMES}
    made = next(iter(given.values()))
    weights, z = [w.detach() for w in made.contraction.eval().weights()], made.fc_in(v).detach()
    path = [z]
    for _ in range(6):
        path.append(z + made.contraction(path[-1], weights))
    found = {}
    for name, each in given.items():
        for module in each.modules():
            module.n_power_iterations = 0
        each(v)
        found[name] = each.penalties.take()
    steps = sum((b - a).square().mean() for a, b in pairwise(path[:4]))
    torch.testing.assert_close(found["trajectory_penalty"], 2 * steps)
    away = sum(0.8 ** (2 - k) * (path[k + 1] - path[6]).square().mean() for k in range(3))
    torch.testing.assert_close(found["correction_penalty"], 2 * away)
    J = torch.stack([torch.autograd.functional.jacobian(lambda x: made.contraction(x, weights), x) for x in path[3]])
    drawn = []
    for _ in range(400):
        given["jacobian_penalty"](v)
        drawn.append(given["jacobian_penalty"].penalties.take().detach())
    torch.testing.assert_close(torch.stack(drawn).mean(), 2 * J.square().sum() / J[..., 0].numel(), rtol=0.1, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"solver": "anderson", "gradient": "implicit"}, {"num_layers": 4}], ids=str)
def test_a_model_hands_out_the_penalty_of_each_training_forward_once(name, options):
    model = small(**{name: 0.5}, **options)
    model(images(model))
    penalty = model.penalty()
    assert penalty > 0 and model.penalty() is None
    penalty.backward()
    assert all(p.grad is not None for p in model.blocks[0].mlp_tokens.contraction.parameters() if p.dim() == 2)
    model.eval()(images(model))
    assert model.penalty() is None
    model.train()(images(model))
    copy.deepcopy(model), pickle.dumps(model)  # what is left of a forward pass is no part of the model


def test_without_weights_nothing_changes():
    model, penalised = small(), small(jacobian_penalty=1.0)
    torch.testing.assert_close(model(images(model)), penalised(images(model)), rtol=0, atol=0)
    assert model.penalty() is None


def test_a_recomputed_block_has_the_same_penalty_and_hands_it_out_once():
    gradients = []
    for recomputed in (False, True):
        model = small(jacobian_penalty=1.0, trajectory_penalty=1.0)
        model.set_grad_checkpointing(recomputed)
        torch.manual_seed(1)
        model(images(model)).sum() * 0
        model.penalty().backward()
        assert model.penalty() is None  # the replay hands out nothing, whose graph is gone
        gradients.append(model.blocks[0].mlp_tokens.contraction.fc1.weight.grad)
    torch.testing.assert_close(*gradients)


def test_the_correction_does_not_move_what_the_solution_follows():
    """G(v) would run after the solution, which moves with it."""
    made = mlp(correction_penalty=1.0)
    made(torch.randn(6, 5, dtype=torch.float64))
    made.penalties.take().backward()
    assert made.fc_in.weight.grad is None and made.contraction.fc1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"jacobian_penalty": -1.0}, "jacobian_penalty is -1.0; give a weight in the loss, 0 or more"),
        ({"trajectory_penalty": float("nan")}, "trajectory_penalty is nan; give a weight"),
        (
            {"correction_penalty": 1.0, "norm": "batch"},
            "correction_penalty is 1.0, .* and norm is batch; leave",
        ),
        ({"correction_penalty": 1.0, "legacy": True}, "correction_penalty is 1.0, .* and legacy is set; leave"),
    ],
)
def test_impossible_penalties_are_refused_with_the_remedy(options, said):
    with pytest.raises(ValueError, match=said):
        IMLP(5, 4, **options)

"""Everything that computes stays on one device, and does not make the host wait where it need not."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import timm
import torch
from fake_gpu import GPU, Waits, fake_gpu
from torch import nn

import imixer.models  # noqa: F401  (registers our models with timm)
from imixer.analysis.anomaly.detectors import NormalFeatures, energy_deviations
from imixer.data.config import DataConfig
from imixer.data.device import build_resident
from imixer.data.device.rand_augment import KNOWN, OperationParams
from imixer.data.sampler import BatchShard
from imixer.gpu_check.noise import noise_data
from imixer.hopfield import (
    LAGRANGIANS,
    AssociativeMemory,
    AttentionSynapse,
    ConvSynapse,
    EnergySynapse,
    HopfieldNetwork,
    LinearSynapse,
    Neurons,
    RestingLayerSynapse,
    energy_transformer,
    lagrangian,
)
from imixer.implicit import (
    Contraction,
    L2Attention,
    MonotoneContraction,
    OrthogonalLinear,
    ResidualFlow,
    SpectralConv2d,
    SpectralLinear,
    certify,
    fold,
    jacobian_penalty,
    solve,
)
from imixer.inverse_options import GradientName, SolverName
from imixer.training.run.config import OptimConfig, TrainConfig
from imixer.training.segmentation_metrics import SegmentationMetrics, sliding_logits
from imixer.training.tasks.losses import ClassificationLoss, SegmentationLoss
from imixer.training.train_state import TrainState
from imixer.training.validation import ValidationMetrics

CLASSES = 5
SOLVED = [
    (solver, gradient)
    for solver in get_args(SolverName)
    for gradient in get_args(GradientName)
    if solver == "fixed" or gradient != "recompute"
]
EACH_ONCE = [(solver, gradient) for solver, gradient in SOLVED if solver == "fixed" or gradient == "implicit"]
OPTIONS = [
    *({"n_iter": 4}, {"num_layers": 2}, {"num_layers": 4}, {"tied": True}, {"legacy": True}),
    *({"norm": name} for name in ("batch", "orthogonal", "none")),
    *({"sigma": "exact"}, {"sigma": "row_norm"}, {"scaling": "hard"}, {"detach_sigma": True}, {"coeff": "auto"}),
    {"drop_rate": 0.1, "inner_drop_rate": 0.2, "drop_path_rate": 0.1},
    *({name: 0.1} for name in ("jacobian_penalty", "trajectory_penalty", "correction_penalty")),
    *({"on_failure": name} for name in ("warn", "raise")),
    *({"patch_size": 4, "stem": name} for name in ("conv", "whitened", "deep")),
    {"embed_dim": [16, 32], "num_blocks": [1, 1]},
    *({"dynamic_img_size": True}, {"zero_init": True}, {"decay": 0.1, "step": 0.5}),
    *({"solver": solver, "gradient": gradient} for solver, gradient in EACH_ONCE),
]


def autocast(dtype):
    return nullcontext() if dtype is None else torch.autocast("cuda", dtype=dtype)


def gradients_are_there(module):
    devices = {None if p.grad is None else p.grad.device for p in module.parameters()}
    assert devices == {GPU}


def test_what_mixes_devices_waits_or_draws_elsewhere_is_found():
    with fake_gpu():
        x = torch.randn(3, device=GPU, requires_grad=True)
        with pytest.raises(RuntimeError, match="device"):
            x + torch.ones(3)
        for wait in (lambda: bool(x.sum() > 0), lambda: x.sum().item(), lambda: x[x > 0], x.cpu, lambda: x.tolist()):
            with pytest.raises(Waits):
                wait()
        with pytest.raises(Waits):
            torch.tensor([1.0, 2.0], device=GPU)  # from memory that is not pinned
        with pytest.raises(AssertionError, match="another device's generator"):
            torch.randn(3, device=GPU, generator=torch.Generator())
        torch.randn(3, device=GPU, generator=torch.Generator(GPU))
        (x[:, None] * torch.ones(3, 4, device=GPU)).sum().backward()
        assert x.grad.shape == (3,) and x.grad.device == GPU


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({}, None), ({}, torch.float16), *((options, torch.bfloat16) for options in OPTIONS)],
    ids=str,
)
def test_a_model_goes_forward_and_back_on_one_device_without_a_wait(options, dtype):
    """But for solvers to a tolerance, which ask whether they are done, and that is answered for them here."""
    options = {"num_blocks": 1} | options
    with fake_gpu() as host:
        with host.building():
            model = timm.create_model("imixer_t2_8", **options).train()
        images = torch.randn(2, 3, 8, 8, device=GPU)
        with autocast(dtype):
            loss = model(images).float().square().mean()
        penalty = model.penalty()
        (loss if penalty is None else loss + penalty).backward()
        gradients_are_there(model)
        with torch.no_grad(), autocast(dtype):
            assert model.eval()(images).device == GPU
            assert fold(model)(images).device == GPU


def left_behind(module):
    """Name tensors that `module.to(device)` would not move."""
    return [
        f"{name or type(part).__name__}.{attribute}"
        for name, part in module.named_modules()
        for attribute, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    ]


def layers():
    """Layers of all kinds, each with an input on the GPU."""
    draw = torch.randn
    yield from ((f"sigma {sigma}", SpectralLinear(6, 4, sigma=sigma), (draw(2, 6),)) for sigma in ("power", "exact"))
    yield "orthogonal", OrthogonalLinear(6, 4), (draw(2, 6),)
    for padding in ("circular", "zeros", "reflect", "replicate"):
        for sigma in ("fourier", "power"):
            layer = SpectralConv2d(2, 2, 3, (4, 4), padding_mode=padding, sigma=sigma)
            yield f"convolution {padding} {sigma}", layer, (draw(2, 2, 4, 4),)
    yield "attention", L2Attention(8, 2, 5), (draw(2, 5, 8),)
    yield "flow, exact", ResidualFlow(Contraction(3, 4), exact=True), (draw(2, 3),)
    yield "flow, series", ResidualFlow(Contraction(3, 4), terms=2), (draw(2, 3),)


@pytest.mark.parametrize("default", [False, True], ids=["made beside", "made there"])
def test_layers_go_forward_and_back_on_one_device_without_a_wait(default):
    with fake_gpu(default) as host:
        with host.building():
            made = list(layers())
        for name, layer, inputs in made:
            assert not left_behind(layer), name
            for dtype in (None, torch.bfloat16):
                with autocast(dtype):
                    y = layer(*inputs)
                total = sum(part.float().sum() for part in (y if isinstance(y, tuple) else (y,)))
                total.backward()
                gradients_are_there(layer)
            sigma = getattr(layer, "normalized_sigma", None)
            assert sigma is None or sigma().device == GPU, name


@pytest.mark.parametrize("default", [False, True], ids=["made beside", "made there"])
def test_problems_of_any_state_are_solved_on_one_device(default):
    with fake_gpu(default) as host:
        W = torch.randn(3, 3, device=GPU, requires_grad=True)
        z = torch.randn(2, 3, device=GPU, requires_grad=True)
        for solver, gradient in EACH_ONCE if default else SOLVED:
            x = solve(lambda x, W: torch.tanh(x @ W) / 4, z, (W,), solver=solver, gradient=gradient).value
            x.sum().backward()
        state = {"a": z, "b": (torch.complex(z, z),)}
        x = solve(lambda x: {"a": x["a"] / 2, "b": (x["b"][0] / 2,)}, state, solver="anderson").value
        assert x["b"][0].device == GPU
        with host.building():
            F = Contraction(3, 4)
        jacobian_penalty(lambda x, *w: F(x, list(w)), z, F.weights()).sum().backward()
        monotone = MonotoneContraction(3, 2, device=GPU)
        u = torch.randn(2, 2, device=GPU)
        x = solve(lambda x, *w: monotone(x, u, *w), torch.zeros_like(z), monotone.weights()).value
        x.sum().backward()
        assert W.grad.device == z.grad.device == GPU


def test_what_is_analysed_stays_on_one_device():
    from imixer.analysis.anomaly.detect import model_features, pixel_features
    from imixer.analysis.contraction import contraction_along_depth
    from imixer.analysis.convergence import convergence_along_depth
    from imixer.analysis.energy import energy_along_depth, token_energies
    from imixer.analysis.inverse import inverse_along_depth
    from imixer.analysis.ood.scores import ood_scores
    from imixer.analysis.weights import token_mixing_matrices
    from imixer.training.monitor import convergence

    measures = (
        *(convergence, contraction_along_depth, convergence_along_depth, energy_along_depth),
        *(inverse_along_depth, ood_scores, lambda model, images: token_energies(model)(images)),
        lambda model, images: token_mixing_matrices(model),
    )
    for options in ({}, {"num_layers": 4}):
        with fake_gpu(may_wait=True) as host:
            with host.building():
                model = timm.create_model("imixer_t2_8", num_blocks=1, **options).eval()
            images = torch.rand(3, 3, 8, 8, device=GPU)
            for measure in measures:
                measure(model, images)
            with torch.no_grad():
                mean = torch.full((3, 1, 1), 0.5, device=GPU)
                source = model_features(model, mean=mean, std=mean, size=(8, 8))
                assert source.maps(images).device == source.energies(images).device == GPU
                assert pixel_features(3, (8, 8)).maps(images).device == GPU
            with host.building():
                F = Contraction(4, 6)
            certify(F, z=torch.randn(2, 4, device=GPU))


def test_a_mixer_without_affine_norms_has_its_energy_on_its_device():
    from imixer.analysis.energy import energy_along_depth

    with fake_gpu(may_wait=True) as host:
        with host.building():
            model = timm.create_model("imixer_t2_8", num_blocks=1).eval()
            model.blocks[0].norm1 = nn.LayerNorm(96, elementwise_affine=False)
        assert energy_along_depth(model, torch.rand(2, 3, 8, 8, device=GPU))


def test_anomalies_are_scored_on_one_device():
    with fake_gpu(may_wait=True):
        vectors = torch.randn(12, 4, device=GPU)
        learned = NormalFeatures(vectors, memory=6, neighbours=2)
        assert {scores.device for scores in learned.scores(vectors).values()} == {GPU}
        assert energy_deviations(vectors)(vectors).device == GPU


def networks():
    """Networks of layers with every Lagrangian, and of every kind of synapse."""
    for name in LAGRANGIANS:
        layers = {"a": Neurons((3, 4), "layer_norm"), "b": Neurons((5, 4), lagrangian(name), field=torch.zeros(5, 1))}
        yield name, HopfieldNetwork(layers, [(("a", "b"), LinearSynapse(3, 5, -2))])
    token = {"a": Neurons((3, 4), "layer_norm"), "b": Neurons((2, 4), "softmax")}
    images = {"a": Neurons((2, 5, 5), "layer_norm"), "b": Neurons((3, 3, 3), "relu")}
    yield "attention", HopfieldNetwork(token, [(("a", "b"), AttentionSynapse(4, num_heads=2, head_features=3))])
    yield "resting", HopfieldNetwork({"a": token["a"]}, [(("a",), RestingLayerSynapse(4, 6))])
    yield "any energy", HopfieldNetwork({"a": token["a"]}, [(("a",), EnergySynapse(lambda g: -g.flatten(1).sum(1)))])
    for tied in (True, False):
        yield "convolution", HopfieldNetwork(images, [(("a", "b"), ConvSynapse(2, 3, 3, tied=tied))])
        yield "all", HopfieldNetwork(token, [(("a", "b"), LinearSynapse(12, 8, None, tied=tied))])
    yield "published", energy_transformer(3, 4, num_heads=2, head_features=3)


@pytest.mark.parametrize("default", [False, True], ids=["made beside", "made there"])
def test_networks_move_on_one_device(default):
    with fake_gpu(default, may_wait=True) as host:
        with host.building():
            made = list(networks())
        for name, network in made:
            assert not left_behind(network), name
            x = {
                layer: torch.randn(2, *each.shape, device=GPU, requires_grad=True)
                for layer, each in network.neurons.items()
            }
            rate = {} if network.asymmetric else {"": network.energy_rate(x)}
            for values in (network.velocity(x), network.energies(x, symmetrised=True) | rate):
                assert {each.device for each in values.values()} == {GPU}, name
            network.energy(x, symmetrised=True).sum().backward()
            assert {each.grad.device for each in x.values()} == {GPU}
            network.violated_conditions()
            assert {each.device for each in network.initial_state(**x).values()} == {GPU}


@pytest.mark.parametrize("default", [False, True], ids=["made beside", "made there"])
def test_memories_retrieve_on_one_device(default):
    with fake_gpu(default, may_wait=True):
        signs = torch.ones(3, 8, 8, device=GPU)
        for kind in ("classical", "polynomial", "exponential"):
            memory = AssociativeMemory(signs, kind)
            assert not left_behind(memory), kind
            known = signs[0] != 1  # a mask that does not hold everything
            memory(signs, steps=2).sum().backward()
            assert memory.energy(signs).device == GPU
            assert memory.weights(signs).device == GPU
            memory.retrieve(signs[:2], known=known)
            allowed = torch.ones(3, dtype=torch.bool, device="cpu")
            assert memory(signs, among=allowed).device == GPU
            memory.retrieve(signs[:2], among=allowed.expand(2, -1))


# Training


class Fabric:
    """As much of Lightning's as a training step asks for, on the GPU."""

    device, global_rank = GPU, 0
    strategy = SimpleNamespace(precision=SimpleNamespace(unscale_gradients=lambda optimizer: None))

    def __init__(self, dtype):
        self.dtype = dtype

    def autocast(self):
        return autocast(self.dtype)

    def setup_module(self, module):
        def forward(*args):
            with self.autocast():
                return module(*args).float()

        return _Called(module, forward)

    def setup_optimizers(self, optimizer):
        return optimizer

    def no_backward_sync(self, module, enabled):
        return nullcontext()

    def backward(self, loss):
        loss.backward()


class _Called:
    def __init__(self, module, forward):
        self.train, self.eval, self._forward = module.train, module.eval, forward

    def __call__(self, *args):
        return self._forward(*args)


def segmenter(**options):
    backbone = {"backbone": "imixer_t2_8", "backbone_args": {"num_blocks": 2}}
    return timm.create_model("segmenter", num_classes=CLASSES, img_size=8, **backbone, **options)


STEPS = {
    "adamw": {},
    "clipped": {"optim": OptimConfig(clip_grad=1.0)},
    "averaged": {"ema": 0.99},
}


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        *(("classify", changes) for changes in STEPS.values()),
        *((task, {}) for task in ("weighed", "mixed", "segment", "segment, weighed")),
    ],
    ids=[*STEPS, "weighed", "mixed", "segment", "segment, weighed"],
)
def test_a_training_step_stays_on_the_device_and_waits_for_nothing(task, changes):
    weights = tuple(range(1, CLASSES + 1)) if "weighed" in task else None
    segments = task.startswith("segment")
    with fake_gpu() as host:
        with host.building():
            model = segmenter() if segments else timm.create_model("imixer_t2_8", num_blocks=1, num_classes=CLASSES)
        loss = SegmentationLoss(0.1, 1.0, weights) if segments else ClassificationLoss(0.1, weights)
        with host.building():
            state = TrainState(Fabric(torch.bfloat16), replace(TrainConfig(), **changes), model, 10, loss=loss)
        images = torch.randn(4, 3, 8, 8, device=GPU)
        targets = loss.example_targets(images, CLASSES)
        if task == "mixed":
            targets = torch.rand(4, CLASSES, device=GPU)
        for step in range(2):
            if step == 1:
                host.may_wait = True  # the first look is
                state.guard.skipped()
                host.may_wait = False
            total, skip = state.gradient([(images, targets)] * 2, step)
            assert not skip and total.device == GPU
            state.optimizer_step(step)


def test_batches_are_made_on_the_device_without_a_wait(monkeypatch):
    monkeypatch.setattr("imixer.data.device.resident.free_memory", lambda device: 10**9)
    data = noise_data(32, 8, (20, 24), CLASSES)
    every = dict(auto_augment="rand-m9-mstd0.5-inc1", mixup=0.8, cutmix=1.0, random_erasing=0.9)
    for config in ({}, every, {"crop": "pad"}, {"crop": "reflect"}, {"crop": "center"}, {"interpolation": "random"}):
        with fake_gpu(may_wait=True) as host:
            training, held_out = build_resident(
                data,
                DataConfig(batch_size=8, **config),
                (3, 16, 16),
                num_classes=CLASSES,
                smoothing=0.1,
                seed=0,
                device=GPU,
                shard=BatchShard(),
                held_out_batch=4,
            )
            host.may_wait = False
            for images, targets in (*islice(training.epoch(0), 2), *islice(held_out, 2)):
                assert images.device == targets.device == GPU
            if training.augment:
                images = torch.zeros(8, 3, 16, 16, dtype=torch.uint8, device=GPU)
                assert len(training.augment.operations) >= len({name for name in KNOWN if "Increasing" in name})
                for number in range(len(training.augment.operations)):
                    training.augment(images, OperationParams(np.full((8, 1), number), np.full((8, 1), 0.5)))


def test_models_are_validated_on_one_device():
    with fake_gpu(may_wait=True) as host:
        with host.building():
            model = timm.create_model("imixer_t2_8", num_blocks=1, num_classes=7).eval()
            metrics = ValidationMetrics(7)
        batches = [(torch.randn(4, 3, 8, 8, device=GPU), torch.arange(4, device=GPU)) for _ in range(2)]
        scores = metrics.score(model, batches)
        assert {"val_loss", "val_acc", "val_acc_top5"} == scores.keys()


@pytest.mark.parametrize("head", ["linear", "multilevel"])
def test_masks_are_predicted_and_validated_on_one_device(head):
    with fake_gpu(may_wait=True) as host:
        with host.building():
            model = segmenter(head=head).eval()
            metrics = SegmentationMetrics(CLASSES, (8, 8))
        images = torch.randn(2, 3, 13, 20, device=GPU)
        metrics.score(model, [(images, torch.zeros(2, 13, 20, dtype=torch.int64, device=GPU))], rounds=2)
        host.may_wait = False
        assert sliding_logits(model, images, (8, 8), 0.5).device == GPU
        (model(images[..., :8, :8]).square().mean()).backward()
        gradients_are_there(model)

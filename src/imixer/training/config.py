"""The typed configuration of a run. Free of torch, so that `--help` is instant."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Dict, List, Literal, Optional, Tuple, Union

from imixer.data.config import DataConfig
from imixer.errors import InputError


@dataclass
class ModelConfig:
    """Model and the hyperparameters that differ from its variant's. Whatever is left out keeps the variant's value.

    Args:
        name: Name of a timm model, ours (`imixer_*`) or any other. Default: the iMixer for the data's image size.
        checkpoint: File of weights to start from: safetensors, or a pickle of plain tensors.
        pretrained: Start from the weights that timm knows for this name.
        num_layers: Layers L of the token mixing's network: 2 is MLP-Mixer, 3 the paper's iMixer, more nest inverses.
        n_iter: Fixed point iterations n of the token mixing.
        hidden_ratio: Inner width over outer width of the token mixing, h_r = N_h / D_S, or a list for layers 3 to L.
        tied: Symmetric couplings in the token mixing.
        coeff: Ceiling c of the spectral norm of the inner matrices; `auto` guarantees a contraction.
        n_power_iterations: Power iterations n_p per training forward.
        norm: Normalisation of the contraction.
        legacy: Normalise once per fixed point iteration, as the published code does.
        solver: How the token mixing's inverse is found: `fixed`, by n iterations; the others go to a tolerance.
        gradient: How the inverse is differentiated: `unroll`, through the solver's steps; `recompute`, the same with
            little memory; `implicit`, through the equation; `neumann` and `jacobian_free`, cheaper and approximate.
        tolerance: Relative residual at which the inverse is found. Not for the solver `fixed`.
        max_steps: Steps after which a solver with a tolerance gives up.
        gradient_terms: Terms of the gradient `neumann`.
        on_failure: What to do about an inverse that is not found. Default: `raise` if there is a tolerance.
        patch_size: Side of a patch in pixels.
        embed_dim: Channels C.
        num_blocks: Number of mixer blocks.
        act_layer: Activation, by name: `gelu`, `relu`, `silu`, `tanh`, `softplus`, ..., or a list for layers 2 to L.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout inside the MLPs.
        drop_path_rate: Stochastic depth.
        kwargs: Any further argument of the model, as a mapping.
    """

    name: Optional[str] = None
    checkpoint: Optional[str] = None
    pretrained: bool = False
    num_layers: Optional[int] = None
    n_iter: Optional[int] = None
    hidden_ratio: Optional[Union[float, List[float]]] = None
    tied: Optional[bool] = None
    coeff: Optional[Union[float, Literal["auto"]]] = None
    n_power_iterations: Optional[int] = None
    norm: Optional[Literal["spectral", "none", "batch"]] = None
    legacy: Optional[bool] = None
    solver: Optional[Literal["fixed", "picard", "damped", "anderson", "broyden"]] = None
    gradient: Optional[Literal["unroll", "implicit", "neumann", "jacobian_free", "recompute"]] = None
    tolerance: Optional[float] = None
    max_steps: Optional[int] = None
    gradient_terms: Optional[int] = None
    on_failure: Optional[Literal["raise", "warn", "ignore"]] = None
    patch_size: Optional[int] = None
    embed_dim: Optional[int] = None
    num_blocks: Optional[int] = None
    act_layer: Optional[Union[str, List[str]]] = None
    drop_rate: Optional[float] = None
    proj_drop_rate: Optional[float] = None
    drop_path_rate: Optional[float] = None
    kwargs: Dict[str, Any] = field(default_factory=dict)

    def overrides(self) -> Dict[str, Any]:
        """The hyperparameters that were set, as keyword arguments of `timm.create_model`."""
        skip = {"name", "checkpoint", "pretrained", "kwargs"}
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skip}
        return {k: v for k, v in chosen.items() if v is not None} | self.kwargs


@dataclass
class OptimConfig:
    """Optimizer, by timm's factory.

    Args:
        opt: Name of a timm optimizer: `adamw`, `sgd`, `lamb`, ...
        lr: Learning rate at its highest.
        weight_decay: Weight decay; biases and norms are exempt.
        eps: Epsilon of Adam's denominator. Default: the optimizer's.
        betas: Adam's two momenta. Default: the optimizer's.
        clip_grad: Largest norm of the whole gradient. Default: no clipping.
    """

    opt: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.05
    eps: Optional[float] = None
    betas: Optional[Tuple[float, float]] = None
    clip_grad: Optional[float] = None

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise InputError(f"optim.lr is {self.lr}; give a learning rate above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"optim.weight_decay is {self.weight_decay}; give 0 or more")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise InputError(f"optim.clip_grad is {self.clip_grad}; give a norm above 0, or leave it out")


@dataclass
class ScheduleConfig:
    """Learning rate over time, by timm's factory.

    Args:
        sched: `cosine` or `tanh` fall smoothly to `min_lr`; `step` falls by `decay_rate` every `decay_epochs`.
        warmup_epochs: Epochs of linear warm-up, counted within the run's epochs.
        warmup_lr: Learning rate at the first step.
        min_lr: Learning rate at the end.
        cooldown_epochs: Epochs at `min_lr` after the schedule, on top of the run's epochs.
        decay_epochs: Epochs from one drop of `step` to the next.
        decay_rate: Factor of a drop of `step`.
    """

    sched: Literal["cosine", "tanh", "step"] = "cosine"
    warmup_epochs: int = 3
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    cooldown_epochs: int = 0
    decay_epochs: int = 30
    decay_rate: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0 or self.cooldown_epochs < 0:
            raise InputError(
                f"schedule.warmup_epochs is {self.warmup_epochs} and schedule.cooldown_epochs "
                f"{self.cooldown_epochs}; give 0 or more"
            )
        for name in ("warmup_lr", "min_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"schedule.{name} is {getattr(self, name)}; give 0 or more")
        if self.decay_epochs < 1 or not 0 < self.decay_rate <= 1:
            raise InputError(
                f"schedule.decay_epochs is {self.decay_epochs} and schedule.decay_rate {self.decay_rate}; "
                "give 1 or more, and a factor above 0, up to 1"
            )


@dataclass
class TrainConfig:
    """One training run.

    Args:
        data: What to train on.
        model: What to train.
        optim: How to step.
        schedule: How the learning rate moves.
        epochs: Passes over the training data.
        smoothing: Label smoothing of the training loss.
        seed: Seed of weights, order and augmentation. Same seed, same numbers.
        out: Run directory, which must not exist. Default: the next free `runs/<data>-<model>-<number>`.
        precision: Arithmetic of the forward: `32`, `bf16`, or `16` with loss scaling (CUDA).
        accelerator: `auto`, `cpu`, `cuda`, or another that Lightning knows.
        devices: How many devices.
        compile: Compile the model with `torch.compile`.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    epochs: int = 40
    smoothing: float = 0.1
    seed: int = 0
    out: Optional[str] = None
    precision: Literal["32", "bf16", "16"] = "32"
    accelerator: str = "auto"
    devices: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"epochs is {self.epochs}; give 1 or more")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; give a whole number from 0, below 2**32")
        if self.devices < 1:
            raise InputError(f"devices is {self.devices}; give 1 or more")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"smoothing is {self.smoothing}; give a share from 0, below 1")
        if self.schedule.warmup_epochs >= self.epochs:
            raise InputError(
                f"schedule.warmup_epochs is {self.schedule.warmup_epochs} but epochs is {self.epochs}; "
                "train longer or warm up shorter"
            )

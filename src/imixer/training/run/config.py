"""The typed configuration of a run. Free of torch, so that `--help` is instant."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from imixer.data.config import DataConfig, MaskConfig
from imixer.errors import InputError
from imixer.inverse_options import optional_options

FinetunePart = Literal["head", "last", "all"]
Choosable = Literal["model", "batch_size", "steps", "loading"]
TaskName = Literal["classify", "segment", "anomaly"]
AnomalyScore = Literal["memory_energy", "retrieval", "knn", "mahalanobis", "block_energy"]

# More is a slip of the finger: it would take years, or all memory, before anything is seen to be wrong.
_MOST: dict[str, int] = {
    "n_iter": 10_000,
    "num_layers": 100,
    "n_power_iterations": 10_000,
    "max_steps": 100_000,
    "gradient_terms": 10_000,
    "num_blocks": 1_000,
    "embed_dim": 65_536,
    "tokens_dim": 65_536,
    "patch_size": 4_096,
    "hidden_ratio": 1_000,
}
_MOST_EVALUATIONS = 1_000_000
_MOST_EPOCHS = 1_000_000
_MOST_STEPS = 1_000_000_000


# mypy cannot know fields that are made when this is read; they are those of `InverseOptions`, or None.
_OptionalInverseOptions: Any = optional_options()


@dataclass
class _Start:
    """Model, and the weights to start from.

    Args:
        name: Name of a timm model, ours (`imixer_*`) or any other. Default: the iMixer for the data's image size.
        checkpoint: Weights to start from: a file of safetensors, a checkpoint of timm, Lightning, Fabric or ours, or
            the directory of a finished run or of a model, the name of a packaged model, such as
            `imixer_laptop_32.cifar10`, or `hf-hub:USER/NAME`, whose sizes and image size are taken too. Nothing in it
            is executed.
        checkpoint_key: Which weights of a file with several, such as `state_dict`. Default: the only ones, or their
            average, or `state_dict` or `model`.
        pretrained: Start from the weights that timm knows for this name.
        from_mixer: Start an iMixer as this MLP-Mixer, with F zero: a name that timm has weights for, a file, or the
            directory of a finished run or of a model. Default of `name`: the iMixer of the same sizes.
    """

    name: str | None = None
    checkpoint: str | None = None
    checkpoint_key: str | None = None
    pretrained: bool = False
    from_mixer: str | None = None

    @property
    def sources(self) -> dict[str, str | bool]:
        """The sources of the weights to start from, by option. Empty for random weights."""
        given = {name: getattr(self, name) for name in ("checkpoint", "pretrained", "from_mixer")}
        return {name: value for name, value in given.items() if value}


@dataclass
class ModelConfig(_OptionalInverseOptions, _Start):
    """Model and the hyperparameters that differ from its variant's. Whatever is left out keeps the variant's value.

    The options of the token mixing's inverse, from `num_layers` to `legacy`, are those of
    `imixer.inverse_options.InverseOptions`; here each is None unless it was chosen.

    Args:
        decay: Decay alpha of the token mixing, v <- v + step (iMLP(LN(v)) - alpha v).
        step: Step dt of the token mixing, in units of tau_v.
        patch_size: Side of a patch in pixels.
        stem: From pixels to tokens: `patch` is one convolution that cuts patches, `conv` several 3x3 ones, `whitened`
            the same on frozen filters that decorrelate the training images' pixels, `deep` more of them, with pooling.
        stem_width: Channels of the stem's first convolution.
        embed_dim: Channels C, or a list with one for each stage; each stage has a quarter of the tokens of the last.
        num_blocks: Number of mixer blocks, or a list with one for each stage.
        tokens_dim: Width D_S of the token mixing, or a list with one for each stage.
        zero_init: Start every block as the identity.
        act_layer: Activation, by name: `gelu`, `relu`, `silu`, `tanh`, `softplus`, ..., or a list for layers 2 to L.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout inside the MLPs.
        drop_path_rate: Stochastic depth.
        kwargs: Any further argument of the model, as a mapping.
    """

    decay: float | None = None
    step: float | None = None
    patch_size: int | None = None
    stem: Literal["patch", "conv", "whitened", "deep"] | None = None
    stem_width: int | None = None
    embed_dim: int | list[int] | None = None
    num_blocks: int | list[int] | None = None
    tokens_dim: int | list[int] | None = None
    zero_init: bool | None = None
    act_layer: str | list[str] | None = None
    drop_rate: float | None = None
    proj_drop_rate: float | None = None
    drop_path_rate: float | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def overrides(self) -> dict[str, Any]:
        """Return the hyperparameters that were set, as keyword arguments of `timm.create_model`."""
        skip = {"kwargs", *(f.name for f in fields(_Start))}
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skip}
        return {k: v for k, v in chosen.items() if v is not None} | self.kwargs

    def __post_init__(self) -> None:
        chosen = self.overrides()
        for name, most in _MOST.items():
            value = chosen.get(name)
            numbers = value if isinstance(value, (list, tuple)) else [value]
            if any(isinstance(each, (int, float)) and not each <= most for each in numbers):
                raise InputError(f"model.{name} is {value}; give at most {most:,}")
        layers, n_iter = chosen.get("num_layers"), chosen.get("n_iter", 2)
        if isinstance(layers, int) and isinstance(n_iter, int) and n_iter ** max(0, layers - 2) > _MOST_EVALUATIONS:
            raise InputError(
                f"model.num_layers is {layers} and model.n_iter {n_iter}: n^(L-2) = {n_iter}^{layers - 2} evaluations "
                f"of the innermost map per block, more than {_MOST_EVALUATIONS:,}; lower one of them"
            )
        if self.checkpoint_key is not None and self.checkpoint is None:
            raise InputError(
                f"model.checkpoint_key is {self.checkpoint_key!r}, but there is no model.checkpoint; name a file, or "
                "leave it out"
            )
        if len(self.sources) > 1:
            given = ", ".join(
                f"model.{name} {str(value).lower() if value is True else value}" for name, value in self.sources.items()
            )
            raise InputError(f"{given}: weights can start from one place only; leave the others out")


@dataclass
class OptimConfig:
    """Optimizer, by timm's factory.

    Args:
        opt: Name of a timm optimizer: `adamw`, `sgd`, `lamb`, ... `muon` moves the matrices inside the model by
            orthogonal steps, and stem, classifier, biases and norms as `adamw` does. In a segmentation it moves the
            stem too, and `adamw` the last map of the head.
        lr: Learning rate at its highest.
        lr_batch: Batch size that `lr` is meant for; another `data.batch_size` scales it in proportion. Default: `lr`
            as it is.
        layer_decay: Factor of the learning rate from each block to the one before it, such as 0.75: early blocks of a
            model that starts from weights then move less. Default: all alike.
        contraction_lr_scale: Factor of the learning rate of F, whose inverse mixes the tokens: above 1 where F starts
            from zero beside weights that need little more training.
        weight_decay: Weight decay; biases and norms are exempt.
        eps: Epsilon of Adam's denominator. Default: the optimizer's.
        betas: Adam's two momenta. Default: the optimizer's.
        momentum: Momentum of `sgd`, `muon` and their like. Default: 0.95 for `muon`, 0.9 for the others.
        clip_grad: Largest norm of the whole gradient. Default: no clipping.
    """

    opt: str = "adamw"
    lr: float = 2e-3
    lr_batch: int | None = None
    layer_decay: float | None = None
    contraction_lr_scale: float = 1.0
    weight_decay: float = 0.05
    eps: float | None = None
    betas: tuple[float, float] | None = None
    momentum: float | None = None
    clip_grad: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise InputError(f"optim.lr is {self.lr}; give a learning rate above 0")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise InputError(
                f"optim.layer_decay is {self.layer_decay}; give a factor above 0, up to 1, or leave it out"
            )
        if not 0 < self.contraction_lr_scale < math.inf:
            raise InputError(f"optim.contraction_lr_scale is {self.contraction_lr_scale}; give a factor above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"optim.weight_decay is {self.weight_decay}; give 0 or more")
        if self.lr_batch is not None and self.lr_batch < 1:
            raise InputError(f"optim.lr_batch is {self.lr_batch}; give 1 or more, or leave it out")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise InputError(f"optim.momentum is {self.momentum}; give a share from 0, below 1, or leave it out")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optim.betas is {list(self.betas)}; give two shares from 0, below 1, or leave it out")
        if self.eps is not None and not 0 <= self.eps < math.inf:
            raise InputError(f"optim.eps is {self.eps}; give 0 or more, or leave it out")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise InputError(f"optim.clip_grad is {self.clip_grad}; give a norm above 0, or leave it out")


@dataclass
class ScheduleConfig:
    """Learning rate over time, by timm's factory.

    Args:
        sched: `cosine` or `tanh` fall smoothly to `min_lr`; `linear` falls in a straight line from the end of warm-up;
            `step` falls by `decay_rate` every `decay_epochs`.
        warmup_epochs: Epochs of linear warm-up, counted within the run's epochs.
        warmup_share: Share of the run's steps that warm up, instead of `warmup_epochs`.
        warmup_lr: Learning rate at the first step.
        min_lr: Learning rate at the end.
        cooldown_epochs: Epochs at `min_lr` after the schedule, on top of the run's epochs.
        decay_epochs: Epochs from one drop of `step` to the next.
        decay_rate: Factor of a drop of `step`.
        sched_on_updates: Move the learning rate with every optimizer step. `false` moves it once per epoch, to what it
            would be at the epoch's start, as timm's script does unless told otherwise.
    """

    sched: Literal["cosine", "tanh", "linear", "step"] = "cosine"
    warmup_epochs: int = 3
    warmup_share: float | None = None
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    cooldown_epochs: int = 0
    decay_epochs: int = 30
    decay_rate: float = 0.1
    sched_on_updates: bool = True

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0 or self.cooldown_epochs < 0:
            raise InputError(
                f"schedule.warmup_epochs is {self.warmup_epochs} and schedule.cooldown_epochs "
                f"{self.cooldown_epochs}; give 0 or more"
            )
        if self.warmup_share is not None and not 0 <= self.warmup_share < 1:
            raise InputError(f"schedule.warmup_share is {self.warmup_share}; give a share from 0, below 1")
        if not self.sched_on_updates and (self.sched == "linear" or self.warmup_share is not None):
            what = "schedule.sched linear" if self.sched == "linear" else "schedule.warmup_share"
            raise InputError(f"{what} counts optimizer steps, and schedule.sched_on_updates is false; leave one out")
        for name in ("warmup_lr", "min_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"schedule.{name} is {getattr(self, name)}; give 0 or more")
        if max(self.warmup_epochs, self.cooldown_epochs) > _MOST_EPOCHS:
            raise InputError(
                f"schedule.warmup_epochs is {self.warmup_epochs} and schedule.cooldown_epochs {self.cooldown_epochs}; "
                f"give at most {_MOST_EPOCHS:,}"
            )
        if self.decay_epochs < 1 or not 0 < self.decay_rate <= 1:
            raise InputError(
                f"schedule.decay_epochs is {self.decay_epochs} and schedule.decay_rate {self.decay_rate}; "
                "give 1 or more, and a factor above 0, up to 1"
            )


@dataclass
class SegmentConfig:
    """The head that classifies pixels, and its loss.

    Args:
        head: `linear` reads the features that the backbone computes last, `multilevel` adds those of up to four depths.
        head_dim: Channels in which `multilevel` adds its levels. Default: those of the first of them.
        levels: Features to read, as timm's `out_indices`, of which `linear` reads the last. Default: the last of each
            reduction, or up to four evenly spread over the depth; for `linear` those that are computed last.
        dice: Weight of the Dice loss beside the cross entropy. 0: cross entropy alone.
        class_weights: Weight of each class in the cross entropy; `balanced` takes the inverse square root of its share
            of the training pixels. Default: all alike.
    """

    head: Literal["linear", "multilevel"] = "multilevel"
    head_dim: int | None = None
    levels: list[int] | None = None
    dice: float = 1.0
    class_weights: Literal["balanced"] | list[float] | None = None

    def __post_init__(self) -> None:
        if self.head_dim is not None and not 1 <= self.head_dim <= _MOST["embed_dim"]:
            raise InputError(f"segment.head_dim is {self.head_dim}; give 1 or more, at most {_MOST['embed_dim']:,}")
        if not 0 <= self.dice < math.inf:
            raise InputError(f"segment.dice is {self.dice}; give 0 or more")
        if isinstance(self.class_weights, list) and not all(0 <= weight < math.inf for weight in self.class_weights):
            raise InputError(f"segment.class_weights is {self.class_weights}; give numbers from 0")
        if isinstance(self.class_weights, list) and not any(self.class_weights):
            raise InputError(f"segment.class_weights is {self.class_weights}; give one above 0, or leave it out")


@dataclass
class AnomalyConfig:
    """What is learned of normal images, and which score is the detector's own.

    Args:
        score: Score that the run is judged by, and whose heat maps are drawn; the others are measured beside it.
            `memory_energy` and `retrieval` of a Hopfield memory of normal features, `knn`, `mahalanobis`, and
            `block_energy`, which is of whole images.
        features: `model`, or `pixels` to compare squares of pixels instead.
        levels: Levels of the model to take features from: blocks, or stages. Default: at a third and at two thirds of
            the depth.
        memory: Most feature vectors to store.
        neighbours: Number of nearest neighbours.
        normal: Digit that is normal, for the digits. Default: 3.
    """

    score: AnomalyScore = "memory_energy"
    features: Literal["model", "pixels"] = "model"
    levels: list[int] | None = None
    memory: int = 1000
    neighbours: int = 3
    normal: int | None = None

    def __post_init__(self) -> None:
        for name in ("memory", "neighbours"):
            if getattr(self, name) < 1:
                raise InputError(f"anomaly.{name} is {getattr(self, name)}; give 1 or more")
        if self.normal is not None and not 0 <= self.normal <= 9:
            raise InputError(f"anomaly.normal is {self.normal}; give the digit that is normal, 0 to 9")
        if self.levels is not None and not self.levels:
            raise InputError("anomaly.levels is empty; give numbers of blocks or stages, or leave it out")


@dataclass
class CheckpointConfig:
    """What is kept for `imixer train --resume`. The state of the best epoch is always kept besides.

    Args:
        every_minutes: Save when the last one is older than this. It is saved after every epoch anyhow.
        every_steps: Save after so many steps too. Default: not by steps.
        keep: How many of the latest to keep.
    """

    every_minutes: float = 10.0
    every_steps: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        if not self.every_minutes > 0:
            raise InputError(f"checkpoints.every_minutes is {self.every_minutes}; give minutes above 0")
        for name in ("every_steps", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"checkpoints.{name} is {value}; give 1 or more")


@dataclass
class TrainConfig:
    """One training run.

    Args:
        task: What is told of an image: `classify` one class for the whole, `segment` one for each pixel, `anomaly`
            whether it is like normal ones, and where not.
        data: What to train on.
        model: What to train.
        optim: How to step.
        schedule: How the learning rate moves.
        masks: What masks mean, for `segment`.
        segment: Head and loss, for `segment`.
        anomaly: Features and scores, for `anomaly`.
        finetune: What of a model that starts from weights is trained: its `head`, the classifier, alone; its `last`
            block with the norm after it and the head; or `all`. What is frozen has neither weight decay nor power
            iterations. On the command line, and in a file for `--config`, it brings a learning rate, batch size and
            epochs for a few hundred images. Other settings win over them, those of a recipe excepted; `--print_config`
            shows them.
        epochs: Passes over the training data.
        steps: Optimizer steps to train for, instead of `epochs`. The last epoch may be a part of one. A warm-up in
            epochs that would outlast the run is shortened to all epochs but the last.
        budget: Multiply-adds to train for, instead of `epochs`: `0.5P`, `20T` (1 P = 1e15, 1 T = 1e12). It sets the
            number of steps, at 3 times the forward per image. The last epoch may be a part of one.
        choose: What to choose before training, for the images and this device: the `model` with its image size, the
            `batch_size`, the `steps`, and how images are loaded (`loading`). Each choice is said, and written into the
            run's configuration. On the command line and in files, what other options set is not chosen.
        minutes: Minutes of computing within which to train, where the model or the steps are chosen.
        smoothing: Label smoothing of the training loss.
        seed: Seed of weights, order and augmentation. On a CPU the same seed gives the same numbers, bit for bit, with
            the same version, processor and number of threads.
        out: Run directory, which must not exist. Default: the next free `runs/<data>-<model>-<number>`.
        ema: Decay of a running average of the weights, such as 0.999; the average is then what is validated and kept
            as the model. Default: none.
        accumulate: Forward passes that each device's share of `data.batch_size` is cut into, for small memories.
        precision: Arithmetic of the forward: `32`, `bf16`, or `16` with loss scaling (CUDA). `auto` is `bf16` where a
            measurement of milliseconds finds it faster, and `32` elsewhere.
        tf32: Let NVIDIA GPUs round the factors of float32 matrix products to TF32.
        compile: Compile the model with `torch.compile`.
        channels_last: Keep the kernels of convolutions in channels-last order, in which they then compute: for
            convolutional models on a GPU.
        grad_checkpointing: Keep block inputs only and compute the rest again in the backward: less memory, more time.
        accelerator: `auto`, `cpu`, `cuda`, or another that Lightning knows.
        devices: How many devices, per machine.
        num_nodes: How many machines. With more than one, start with `torchrun` or `srun`.
        strategy: How devices work together: `ddp` copies the model, `fsdp` shards it. `auto` is `ddp`.
        checkpoints: What is kept for `--resume`.
        non_finite: What to do about a loss or gradient that is not finite: `stop`, or `skip` the step.
        logger: Where the numbers of an epoch go besides `metrics.csv`: `csv` is nowhere.
    """

    task: TaskName = "classify"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    anomaly: AnomalyConfig = field(default_factory=AnomalyConfig)
    finetune: FinetunePart | None = None
    epochs: int = 40
    budget: str | None = None
    steps: int | None = None
    choose: list[Choosable] = field(default_factory=list)
    minutes: float = 5.0
    smoothing: float = 0.1
    seed: int = 0
    out: str | None = None
    ema: float | None = None
    accumulate: int = 1
    precision: Literal["32", "bf16", "16", "auto"] = "32"
    tf32: bool = True
    compile: bool = False
    channels_last: bool = False
    grad_checkpointing: bool = False
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    non_finite: Literal["stop", "skip"] = "stop"
    logger: Literal["tensorboard", "csv", "wandb", "mlflow"] = "tensorboard"

    @property
    def peak_lr(self) -> float:
        """The peak learning rate, scaled to the batch size."""
        return self.optim.lr * self.data.batch_size / (self.optim.lr_batch or self.data.batch_size)

    @property
    def all_epochs(self) -> int:
        """The number of epochs, cool-down included. It holds once a run has begun, or if `length` is in epochs."""
        return self.epochs + self.schedule.cooldown_epochs

    @property
    def length_in_epochs(self) -> bool:
        """Whether `epochs` says how long to train, and not a budget, steps or minutes."""
        return self.budget is None and self.steps is None and "steps" not in self.choose

    @property
    def length(self) -> str:
        """How long to train, in words."""
        if self.budget is not None:
            return f"{self.budget} multiply-adds"
        if self.steps is not None:
            return f"{self.steps:,} steps"
        if not self.length_in_epochs:
            return f"{self.minutes:g} minutes"
        cooldown = self.schedule.cooldown_epochs
        return f"{self.epochs} epochs" + (f" and {cooldown} at the lowest learning rate" if cooldown else "")

    @property
    def micro_batch(self) -> int:
        """The number of images of one forward pass on one device."""
        return self.data.batch_size // (self.devices * self.num_nodes * self.accumulate)

    def __post_init__(self) -> None:
        if not 1 <= self.epochs <= _MOST_EPOCHS:
            raise InputError(f"epochs is {self.epochs}; give 1 or more, at most {_MOST_EPOCHS:,}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; give a whole number from 0, below 2**32")
        for name in ("devices", "num_nodes", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give 1 or more")
        parts = self.devices * self.num_nodes * self.accumulate
        if self.data.batch_size % parts and "batch_size" not in self.choose:  # which is chosen to divide
            raise InputError(
                f"data.batch_size is {self.data.batch_size}, the images of a step over all devices, and does not "
                f"divide into devices x num_nodes x accumulate = {parts} equal parts; change one of them"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"ema is {self.ema}; give a decay between 0 and 1, or leave it out")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"smoothing is {self.smoothing}; give a share from 0, below 1")
        if self.finetune is not None and not self.model.sources:
            raise InputError(
                f"finetune is {self.finetune}, but there are no weights to start from; give model.checkpoint, "
                "model.pretrained true or model.from_mixer, or leave it out"
            )
        if self.finetune == "head" and self.model.from_mixer:
            raise InputError(
                f"finetune is head, and F of model.from_mixer {self.model.from_mixer} starts as zero and would stay "
                "so; give finetune last or all, or the Mixer itself as model.name"
            )
        if self.budget is not None:
            parse_budget(self.budget)
        if self.steps is not None and not 1 <= self.steps <= _MOST_STEPS:
            raise InputError(f"steps is {self.steps}; give 1 or more, at most {_MOST_STEPS:,}")
        lengths = [f"{name} {value}" for name in ("budget", "steps") if (value := getattr(self, name)) is not None]
        if self.schedule.cooldown_epochs:
            lengths.append(f"schedule.cooldown_epochs {self.schedule.cooldown_epochs}")
            if self.schedule.sched == "step":
                raise InputError(f"{lengths[-1]} are at the lowest rate, and sched step has none; raise epochs instead")
        if len(lengths) > 1:
            none = ", or give --schedule.cooldown_epochs 0" if self.schedule.cooldown_epochs else ""
            raise InputError(f"{' and '.join(lengths)} each say how long to train; leave all but one of them out{none}")
        if not 0 < self.minutes < math.inf:
            raise InputError(f"minutes is {self.minutes}; give minutes above 0")
        if self.length_in_epochs and self.schedule.warmup_share is None and self.schedule.warmup_epochs >= self.epochs:
            raise InputError(
                f"schedule.warmup_epochs is {self.schedule.warmup_epochs} but epochs is {self.epochs}; "
                "train longer or warm up shorter"
            )
        self._check_rates()

    def _check_rates(self) -> None:
        """Refuse a schedule that would rise to its end, or fall in its warm-up."""
        schedule = self.schedule
        warms_up = schedule.warmup_epochs if schedule.warmup_share is None else schedule.warmup_share
        for name, counts in (("min_lr", schedule.sched != "step"), ("warmup_lr", warms_up)):
            if counts and getattr(schedule, name) > self.peak_lr:
                raise InputError(
                    f"schedule.{name} is {getattr(schedule, name):g}, above the highest learning rate, "
                    f"{self.peak_lr:g}; lower it, or raise optim.lr"
                )


_UNITS = {"T": 1e12, "P": 1e15}


def parse_budget(budget: str) -> float:
    """Convert a budget such as `0.5P` into multiply-adds.

    Raises:
        InputError: If it is not a number above 0 with T or P.
    """
    number = budget[:-1].strip()
    try:
        value = float(number) * _UNITS[budget[-1:]]
    except (KeyError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"budget is {budget!r}; give multiply-adds above 0 with T (1e12) or P (1e15), such as 0.5P")
    return value

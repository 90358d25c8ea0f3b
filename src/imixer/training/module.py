"""One training step, one validation step, the optimizer and its schedule, for Lightning."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from imixer.errors import InputError
from imixer.training.config import OptimConfig, ScheduleConfig, TrainConfig
from imixer.training.suggest import nearest


class Classifier(LightningModule):
    """Trains and validates an image classifier.

    After each epoch `results` holds its numbers: `train_loss` (with smoothing and mixing), and on the validation data
    `val_loss` (plain cross entropy), `val_acc` and, above five classes, `val_acc_top5`; `confusion` holds the counts
    of true (row) against predicted (column) class.

    Args:
        model: Image (B, in_chans, H, W) -> logits (B, num_classes).
        config: The run.
        num_classes: Number of classes.
        updates_per_epoch: Optimizer steps per epoch.
        mixup: timm's `Mixup`, which smooths the labels too. Default: none.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, *, num_classes: int, updates_per_epoch: int, mixup: Any = None
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.updates_per_epoch = updates_per_epoch
        self.mixup = mixup
        self.train_loss = MeanMetric()
        self.val_loss = MeanMetric()
        accuracies: Dict[str, Metric | MetricCollection] = {"val_acc": MulticlassAccuracy(num_classes, average="micro")}
        if num_classes > 5:
            accuracies["val_acc_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
        self.accuracies = MetricCollection(accuracies, compute_groups=False)
        self.counts = MulticlassConfusionMatrix(num_classes)
        self.results: Dict[str, float] = {}
        self.confusion: Optional[Tensor] = None

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: Tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        smoothing = self.config.smoothing
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
            smoothing = 0.0
        loss = F.cross_entropy(self.model(images), targets, label_smoothing=smoothing)
        self.train_loss.update(loss.detach())
        return loss

    def validation_step(self, batch: Tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self.model(images).float()
        self.val_loss.update(F.cross_entropy(logits, targets), weight=len(targets))
        self.accuracies.update(logits, targets)
        self.counts.update(logits, targets)

    def on_validation_epoch_end(self) -> None:
        computed = {"train_loss": self.train_loss.compute(), "val_loss": self.val_loss.compute()}
        computed |= self.accuracies.compute()
        self.log_dict(computed)
        self.results = {name: value.item() for name, value in computed.items()}
        self.confusion = self.counts.compute().cpu()
        for metric in (self.train_loss, self.val_loss, self.accuracies, self.counts):
            metric.reset()

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.config.optim)
        scheduler, _ = build_scheduler(optimizer, self.config.schedule, self.config.epochs, self.updates_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(self.trainer.global_step)


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """timm's optimizer of that name; biases and norms are exempt from weight decay.

    Raises:
        InputError: If there is no such optimizer, or it does not take `eps` or `betas`.
    """
    known = [str(name) for name in list_optimizers()]
    if config.opt.lower() not in known:
        raise InputError(f"no optimizer {config.opt!r}{nearest(config.opt, known)}")
    info = get_optimizer_info(config.opt.lower())
    for name, taken in (("eps", info.has_eps), ("betas", info.has_betas)):
        if getattr(config, name) is not None and not taken:  # timm would drop it silently
            raise InputError(f"{config.opt} has no option optim.{name}; leave it out")
    given: Dict[str, Any] = {"eps": config.eps, "betas": config.betas}
    options = {name: value for name, value in given.items() if value is not None}
    try:
        return create_optimizer_v2(model, config.opt, lr=config.lr, weight_decay=config.weight_decay, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"optim: {config.opt} cannot be built: {error}") from error


def build_scheduler(
    optimizer: Optimizer, config: ScheduleConfig, epochs: int, updates_per_epoch: int
) -> Tuple[Any, int]:
    """timm's schedule, counted in updates, and the number of epochs including cool-down."""
    return create_scheduler_v2(
        optimizer,
        config.sched,
        num_epochs=epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        cooldown_epochs=config.cooldown_epochs,
        decay_epochs=config.decay_epochs,
        decay_rate=config.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )

"""Set up the devices that train, with Lightning's Fabric."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from imixer.data.sampler import BatchShard
from imixer.errors import InputError, in_short
from imixer.training.precision import fabric_precision, measure_precision
from imixer.training.run.config import TrainConfig

_log = logging.getLogger(__name__)
_BACKEND = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # gloo carries the loop's own small messages


def resolve_devices(config: TrainConfig) -> TrainConfig:
    """Set the devices and machines to those that `torchrun` or `srun` has started processes for, if one has.

    Args:
        config: The run's configuration.

    Returns:
        The configuration, with `devices` and `num_nodes` as they are.

    Raises:
        InputError: If the batch does not divide among the processes.
    """
    if TorchElasticEnvironment.detect():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return replace(config, devices=here, num_nodes=int(os.environ["WORLD_SIZE"]) // here)
    if _started_by_srun():
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        return replace(config, devices=int(os.environ["SLURM_NTASKS"]) // nodes, num_nodes=nodes)
    return config


def started_by_launcher() -> bool:
    """Return whether this process is one of several that `torchrun` or `srun` has started."""
    return TorchElasticEnvironment.detect() or _started_by_srun()


def _started_by_srun() -> bool:
    """Return whether `srun` has started several processes: with one task, the process starts its own."""
    return SLURMEnvironment.detect() and int(os.environ.get("SLURM_NTASKS", 1)) > 1


def is_first_process() -> bool:
    """Return whether this process has rank 0, which is the one that logs and writes."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0


def check_devices(config: TrainConfig) -> None:
    """Check that this machine has what a configuration asks for, without touching any device.

    Args:
        config: The run's configuration.

    Raises:
        InputError: If there is no such accelerator, there are fewer devices than asked for, or options exclude each
            other.
    """
    on_cuda = _on_cuda(config)
    if config.accelerator in ("cuda", "gpu") and not on_cuda:
        raise InputError(f"accelerator is {config.accelerator!r}, but torch sees no CUDA device here; use auto or cpu")
    if config.precision == "16" and not on_cuda:
        raise InputError("precision is '16', which needs CUDA; begin a run with bf16 or 32")
    there, what = (torch.cuda.device_count(), "CUDA devices") if on_cuda else (os.cpu_count() or 1, "processors")
    if config.devices > there:
        raise InputError(f"devices is {config.devices}, but there are {there} {what} here; give fewer")
    if config.strategy == "fsdp" and config.ema is not None:
        raise InputError(f"ema is {config.ema}, and strategy is fsdp, which shards weights; leave one of them out")
    if config.strategy == "fsdp" and config.compile:
        raise InputError("compile is true, and strategy is fsdp; leave one of them out")
    if config.num_nodes > 1 and not started_by_launcher():
        raise InputError(f"num_nodes is {config.num_nodes}; start the processes with torchrun or srun on each machine")


def resolve_precision(config: TrainConfig) -> TrainConfig:
    """Decide `precision: auto` by a measurement, which is logged in one line.

    Args:
        config: The run's configuration.

    Returns:
        The configuration with a precision other than `auto`.

    Raises:
        InputError: If several processes were started apart, since they could come to different results.
    """
    if config.precision != "auto":
        return config
    if started_by_launcher():
        raise InputError("precision is auto, which processes started apart could decide differently; give bf16 or 32")
    on_mps = config.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available()
    device = torch.device("cuda" if _on_cuda(config) else "mps" if on_mps else "cpu")
    measured = measure_precision(device, config.tf32)
    _log.info(measured.summary)
    return replace(config, precision=measured.precision)


def build_fabric(config: TrainConfig) -> Fabric:
    """Build the Fabric that a configuration asks for, not yet launched.

    Args:
        config: The run's configuration, whose precision is decided.

    Raises:
        InputError: If Lightning knows no such accelerator, or has fewer devices.
    """
    try:
        return Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=_strategy(config, "cuda" if _on_cuda(config) else "cpu"),
            precision=fabric_precision(config.precision),
        )
    except Exception as error:  # of many kinds
        raise InputError(
            f"accelerator {config.accelerator!r} with {config.devices} devices: {in_short(error)}"
        ) from error


def batch_shard(fabric: Fabric, config: TrainConfig) -> BatchShard:
    """Say which images of each batch this process trains on."""
    return BatchShard(fabric.global_rank, fabric.world_size, config.accumulate)


def all_reduce_max(fabric: Fabric, *values: int) -> tuple[int, ...]:
    """Reduce integers to their maxima over all processes.

    It keeps the processes in step. It runs on the CPU, so that no accelerator waits for it.

    Args:
        fabric: Lightning's Fabric, launched.
        *values: The integers of this process.

    Returns:
        For each, the largest over all processes.
    """
    if fabric.world_size == 1:
        return values
    exchanged = torch.tensor(values)
    dist.all_reduce(exchanged, op=dist.ReduceOp.MAX)
    return tuple(exchanged.tolist())


def device_name(device: torch.device) -> str:
    """Return the name of a device, such as that of the GPU, or the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def _on_cuda(config: TrainConfig) -> bool:
    return config.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()


def _strategy(config: TrainConfig, device: str) -> Strategy | str:
    if config.strategy == "fsdp":
        return ModelParallelStrategy(
            _shard,
            data_parallel_size=config.devices * config.num_nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=_BACKEND[device],
        )
    if config.devices * config.num_nodes == 1:
        return "auto"
    return DDPStrategy(process_group_backend=_BACKEND[device])


def _shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard a model block by block. While a block computes, its weights are whole."""
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])
    return model

"""Several processes that train one network. Lightning starts and joins them (torchrun, SLURM, or its own launcher).

Here is what is ours of it: the strategy that a recipe asks for, and one evaluation out of the shares of all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from ..errors import OptionError, SvdHubError

if TYPE_CHECKING:
    from .recipe import RunSettings

T = TypeVar("T")


def leads() -> bool:
    """Return True in the one process that speaks and writes; in a single process too."""
    return getattr(rank_zero_only, "rank", 0) == 0


def started() -> int:
    """Return how many processes torchrun or srun started; 1 where neither did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1"))
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def options(settings: RunSettings) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that say who trains.

    Raises:
        OptionError: settings that do not go together.
        SvdHubError: torchrun or srun started another number of processes.
    """
    world, found = settings.devices * settings.nodes, started()
    if found not in (1, world):
        raise SvdHubError(
            f"{found} processes were started, run.devices={settings.devices} x run.nodes={settings.nodes} are {world}: "
            f"each would train alone. Next: --devices N with N processes on each of run.nodes"
        )
    if settings.sync_norms and (settings.strategy == "fsdp" or not torch.cuda.is_available()):
        raise OptionError(
            f"run.sync_norms=true with run.strategy={settings.strategy!r} on "
            f"{'GPUs' if torch.cuda.is_available() else 'CPUs'} is not allowed; allowed: with ddp, on GPUs "
            "(torch synchronises batch norms nowhere else). Next: a network with norm=group, or run.sync_norms=false"
        )
    if settings.strategy == "fsdp" and (settings.ema or settings.compile):
        raise OptionError(
            f"run.ema={settings.ema}, run.compile={settings.compile} with run.strategy='fsdp' are not allowed; "
            "allowed: ema=0 and compile=false, or another strategy"
        )
    strategy: Any = settings.strategy
    if strategy == "fsdp":  # weights, gradients and the optimiser's state are shared out; checkpoints are whole
        strategy = ModelParallelStrategy(
            data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return {
        "devices": settings.devices,
        "num_nodes": settings.nodes,
        "strategy": strategy,
        "sync_batchnorm": settings.sync_norms,
        "use_distributed_sampler": False,  # the data module's own knows its rank, and its place
    }


def environment() -> list[ClusterEnvironment]:
    """Return the plugin that keeps Lightning from saving and requeueing a SLURM job in the middle of a step.

    SIGTERM stops a run behind its step with a checkpoint, there as everywhere.
    """
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    return []


def shard(task: pl.LightningModule, network: torch.nn.Module) -> None:
    """Share a network out among the processes, where the strategy is fsdp; else leave it.

    It stays whole from its first forward to the next backward: evaluation may then run it more often in one process
    than in another, as sliding windows of volumes of different sizes do.
    """
    if task.device_mesh is not None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(network, mesh=task.device_mesh["data_parallel"], reshard_after_forward=False)


def _length(task: pl.LightningModule) -> int:
    """Return how many samples the evaluation split has, without those that fill it up to equal shares."""
    loader: Any = task.trainer.val_dataloaders
    return int(loader.sampler.length)


def gathered(task: pl.LightningModule, found: Sequence[T]) -> list[T]:
    """Return what all processes found in the samples of evaluation, in the order of the split, each sample once.

    Args:
        task: in its evaluation.
        found: of each sample of this process, in the order of its loader; on the CPU.
    """
    if task.trainer.world_size == 1:
        return list(found)
    shares: list[Any] = [None] * task.trainer.world_size
    torch.distributed.all_gather_object(shares, list(found))
    return [one for place in zip(*shares, strict=True) for one in place][: _length(task)]


def shares(task: pl.LightningModule, mine: Tensor) -> Tensor:
    """Return the tensors (processes, ...) that all processes have, in their order."""
    world = task.trainer.world_size
    if world == 1:
        return mine[None]
    found = [torch.empty_like(mine) for _ in range(world)]
    torch.distributed.all_gather(found, mine.contiguous())
    return torch.stack(found)


def gathered_rows(task: pl.LightningModule, found: Tensor) -> Tensor:
    """Return `gathered` of a tensor whose first axis are the samples."""
    return found if task.trainer.world_size == 1 else shares(task, found).transpose(0, 1).flatten(0, 1)[: _length(task)]

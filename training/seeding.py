"""What makes a run repeat to the bit, also after a kill: the order, the random numbers and the place in the epoch.

Three rules: the order of an epoch is a function of (seed, epoch); a sample's augmentation is a function of
(seed, epoch, index), whatever the worker; a step's random numbers are a function of (seed, step, rank).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

Place = tuple[int, int]  # (epoch, index of the sample)


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the one random stream of a sample in an epoch."""
    return np.random.default_rng((seed, epoch, index))


class EpochSampler(Sampler[Place]):
    """Yields (epoch, index), in an order that depends on (seed, epoch) only, from `start` on, for one rank of many."""

    def __init__(self, length: int, *, seed: int, shuffle: bool, rank: int = 0, world: int = 1) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world = rank, world
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`; a second call for the same epoch keeps the place."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self.length // self.world if self.shuffle else len(range(self.rank, self.length, self.world))

    def __iter__(self) -> Iterator[Place]:
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        mine = order[self.rank :: self.world][: len(self)]
        for index in mine[self.start :]:
            yield self.epoch, int(index)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that goes on in the middle of an epoch: Lightning saves its place with the checkpoint."""

    def __init__(self, dataset: Dataset[Any], *, sampler: EpochSampler, batch_size: int, **kwargs: Any) -> None:
        super().__init__(dataset, sampler=sampler, batch_size=batch_size, **kwargs)
        self.place = sampler
        self.done = 0  # batches of this epoch that were trained on; prefetched ones do not count

    def state_dict(self) -> dict[str, int]:
        """Return the place of the next batch."""
        finished = self.done >= len(self)
        return {
            "epoch": self.place.epoch + finished,
            "batches": 0 if finished else self.done,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the saved place."""
        self.place.epoch, self.done = state["epoch"], state["batches"]
        self.place.start = state["batches"] * int(self.batch_size or 1)


class StepSeed(pl.Callback):
    """Seeds torch before every step, and tells the loader how far the epoch has come."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make the step's random numbers a function of (seed, step, rank)."""
        torch.manual_seed(self.seed + 1_000_003 * trainer.global_step + trainer.global_rank)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the place before a checkpoint of this step is written."""
        loader = trainer.train_dataloader
        if isinstance(loader, ResumableLoader):
            loader.done = batch_idx + 1

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A fresh epoch starts at its first batch."""
        loader = trainer.train_dataloader
        if isinstance(loader, ResumableLoader) and loader.place.start == 0:
            loader.done = 0

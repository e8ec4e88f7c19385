"""What makes a run repeat to the bit, also after a kill: the order, the random numbers and the place in the epoch.

Three rules: the order of an epoch is a function of (seed, epoch); a sample's augmentation is a function of
(seed, epoch, index), whatever the worker; a step's random numbers are a function of (seed, epoch, batch, rank).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import OptionError, SvdHubError

Place = tuple[int, int]  # (epoch, index of the sample)


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the one random stream of a sample in an epoch."""
    return np.random.default_rng((seed, epoch, index))


class EpochSampler(Sampler[Place]):
    """Yields (epoch, index), in an order that depends on (seed, epoch) only, for one rank of many.

    All ranks get equally many, or they would wait for each other: shuffled, what does not divide is left out of this
    epoch; in order, it is filled up from the front, so that place k of rank r is sample k * world + r.

    Args:
        length: of the data set.
        seed, shuffle: of the order.
        rank, world: this process among all.
        epoch, start: where to begin: `start` samples of this rank's share of `epoch` are done.
    """

    def __init__(
        self, length: int, *, seed: int, shuffle: bool, rank: int = 0, world: int = 1, epoch: int = 0, start: int = 0
    ) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world = rank, world
        self.epoch, self.start = epoch, start

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`; the epoch it is in keeps its place. Lightning calls this."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self.length // self.world if self.shuffle else -(-self.length // self.world)

    def __iter__(self) -> Iterator[Place]:
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        mine = np.resize(order, len(self) * self.world)[self.rank :: self.world]
        for index in mine[self.start :]:
            yield self.epoch, int(index)


class ResumableData(pl.LightningDataModule):
    """A data module that goes on in the middle of an epoch: its place is saved with the checkpoint.

    The place cannot live in the loader, where Lightning looks for it: an optimiser's schedule asks for the number of
    steps, which makes the loader and its iterator, before Lightning restores either.

    Attributes:
        place: (epoch, batches of it that were trained on) at which training begins; the saver keeps it up to date.
    """

    def __init__(self, *, batch_size: int, seed: int, workers: int = 0) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value < least:
                raise OptionError(f"{name}={value} is not allowed; allowed: {least} or more")
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.place = (0, 0)

    def inference(self) -> dict[str, Any]:
        """Return arguments of `svd_hub.Inference` that the data decide."""
        return {}

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.place[0], "batches": self.place[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = (state["epoch"], state["batches"])

    def loader(
        self, dataset: Dataset[Any], *, train: bool, collate: Callable[[list[Any]], Any] | None = None
    ) -> DataLoader[Any]:
        """Return the batches of a data set: shuffled and from `place` on for training, all in order for evaluation.

        Args:
            dataset: takes (epoch, index).
            train: which of the two.
            collate: makes a batch of samples; None = torch's own.

        Raises:
            SvdHubError: there is not one whole batch to train on.
        """
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        length = len(dataset)  # type: ignore[arg-type]
        epoch, batches = self.place if train else (0, 0)
        sampler = EpochSampler(
            length,
            seed=self.seed,
            shuffle=train,
            rank=rank,
            world=world,
            epoch=epoch,
            start=batches * self.batch_size,
        )
        if len(sampler) < (self.batch_size if train else 1):
            raise SvdHubError(
                f"{length} sample{'' if length == 1 else 's'}"
                + (f" for {world} processes" if world > 1 else "")
                + f" to {'train' if train else 'evaluate'} on, and a batch is {self.batch_size}; allowed: one whole "
                f"batch{' for each' if world > 1 else ''}. Next: more data, or --set data.init_args.batch_size=N"
            )
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,  # the sampler says the epoch, so workers need not be new for one
            pin_memory=torch.cuda.is_available(),
            drop_last=train,
            collate_fn=collate,
        )


class StepSeed(pl.Callback):
    """Seeds torch before every step, so that dropout and its like do not depend on what was drawn before."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make the step's random numbers a function of (seed, epoch, batch, rank)."""
        words = np.random.SeedSequence((self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0]))

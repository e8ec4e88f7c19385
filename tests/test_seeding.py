"""Laws of the order: a function of (seed, epoch), shared fairly by the ranks, and resumable at every place."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from svd_hub.errors import OptionError, SvdHubError
from svd_hub.training.seeding import EpochSampler, ResumableData, StepSeed, sample_generator


class Echo(Dataset[tuple[int, int]]):
    """Gives back where it is asked."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, int]:
        return place


class Data(ResumableData):
    def train_dataloader(self) -> Any:
        return self.loader(Echo(), train=True)


def orders(sampler: EpochSampler, epochs: int) -> list[list[tuple[int, int]]]:
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def test_each_epoch_is_a_permutation_of_its_own_and_the_seed_decides_it() -> None:
    first = orders(EpochSampler(50, seed=1, shuffle=True), 3)
    for epoch, order in enumerate(first):
        assert {e for e, _ in order} == {epoch}
        assert sorted(i for _, i in order) == list(range(50))
    assert len({tuple(i for _, i in order) for order in first}) == 3
    assert orders(EpochSampler(50, seed=1, shuffle=True), 3) == first
    assert orders(EpochSampler(50, seed=2, shuffle=True), 3) != first
    last = EpochSampler(50, seed=1, shuffle=True)
    last.set_epoch(2)  # without the epochs before it
    assert list(last) == first[2]


def test_this_order_is_the_one_released_weights_were_trained_in() -> None:
    assert [i for _, i in EpochSampler(10, seed=0, shuffle=True, epoch=3)] == [2, 7, 8, 3, 4, 9, 1, 6, 5, 0]
    assert sample_generator(0, 3, 7).integers(0, 1000, 3).tolist() == [988, 776, 302]


@pytest.mark.parametrize(("length", "world"), [(50, 1), (50, 4), (51, 2), (3, 4), (7, 8)])
def test_training_ranks_share_an_epoch_without_overlap(length: int, world: int) -> None:
    ranks = [EpochSampler(length, seed=0, shuffle=True, rank=r, world=world) for r in range(world)]
    shares = [list(r) for r in ranks]
    seen = list(itertools.chain(*shares))
    assert {len(s) for s in shares} == {length // world} == {len(r) for r in ranks}
    assert len(set(seen)) == len(seen)
    whole = list(EpochSampler(length, seed=0, shuffle=True))
    together = [place for step in zip(*shares, strict=True) for place in step]
    assert together == whole[: len(together)]  # two ranks of batch b see what one of batch 2 b sees


@pytest.mark.parametrize(("length", "world"), [(50, 1), (50, 4), (51, 2), (3, 4), (7, 8)])
def test_evaluation_ranks_see_everything_in_order_and_equally_much(length: int, world: int) -> None:
    ranks = [EpochSampler(length, seed=0, shuffle=False, rank=r, world=world) for r in range(world)]
    shares = [[i for _, i in r] for r in ranks]
    assert {len(s) for s in shares} == {-(-length // world)} == {len(r) for r in ranks}
    together = [i for step in zip(*shares, strict=True) for i in step]
    assert together[:length] == list(range(length))


@pytest.mark.parametrize("start", [0, 1, 13, 25])
def test_it_goes_on_where_it_stopped_and_the_next_epoch_begins_at_its_beginning(start: int) -> None:
    options: dict[str, Any] = {"seed": 5, "shuffle": True, "rank": 1, "world": 2}
    first, second = orders(EpochSampler(50, **options), 2)
    resumed = EpochSampler(50, epoch=0, start=start, **options)
    assert len(resumed) == 25  # an epoch's length does not depend on the place
    resumed.set_epoch(0)
    assert list(resumed) == first[start:]
    resumed.set_epoch(1)
    assert list(resumed) == second


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_module_goes_on_behind_the_batches_it_was_saved_with(workers: int) -> None:
    whole = [tuple(b[1].tolist()) for b in Data(batch_size=2, seed=0).train_dataloader()]
    assert len(whole) == 5  # of eleven samples, the odd one out
    saved = Data(batch_size=2, seed=0)
    saved.place = (0, 3)
    loaded = Data(batch_size=2, seed=0, workers=workers)
    loaded.load_state_dict(saved.state_dict())
    loader = loaded.train_dataloader()
    assert len(loader) == 5
    assert [tuple(b[1].tolist()) for b in loader] == whole[3:]


def test_less_than_a_batch_is_refused() -> None:
    with pytest.raises(SvdHubError, match=r"11 samples to train on, and a batch is 12.*Next"):
        Data(batch_size=12, seed=0).train_dataloader()
    with pytest.raises(OptionError, match=r"batch_size=0.*1 or more"):
        Data(batch_size=0, seed=0)
    with pytest.raises(OptionError, match=r"workers=-1.*0 or more"):
        Data(batch_size=1, seed=0, workers=-1)


def test_the_random_numbers_of_a_step_depend_on_seed_epoch_batch_and_rank_alone() -> None:
    class Trainer:
        current_epoch = 0
        global_rank = 0

    def draw(seed: int, epoch: int, batch: int, rank: int) -> float:
        trainer: Any = Trainer()
        trainer.current_epoch, trainer.global_rank = epoch, rank
        torch.rand(int(torch.randint(1, 9, ())))  # whatever happened before
        StepSeed(seed).on_train_batch_start(trainer, None, None, batch)  # type: ignore[arg-type]
        return float(torch.rand(()))

    places = list(itertools.product((0, 1), repeat=4))
    first = {place: draw(*place) for place in places}
    assert len(set(first.values())) == len(places)
    assert {place: draw(*place) for place in reversed(places)} == first

"""Order and augmentation are pure functions of seed, epoch and index; sharing loses and repeats nothing silently."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sampler import EvalBatches, TrainBatches, epoch_order, sample_rng
from graftwork.errors import ConfigError

COUNTS = st.integers(1, 200)
WORLDS = st.integers(1, 5)


@given(samples=COUNTS, seed=st.integers(0, 2**40), epoch=st.integers(0, 99))
def test_order_is_a_permutation_that_seed_and_epoch_fix(samples, seed, epoch):
    order = epoch_order(samples, seed, epoch)
    assert sorted(order.tolist()) == list(range(samples))
    assert (order == epoch_order(samples, seed, epoch)).all()


def test_orders_differ_between_epochs_and_seeds():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6


@given(samples=COUNTS, size=st.integers(1, 17), world=WORLDS, epoch=st.integers(0, 5))
def test_training_shares_are_equal_and_leave_nothing_out(samples, size, world, epoch):
    shares = []
    for rank in range(world):
        batches = TrainBatches(samples, size, seed=7, rank=rank, world=world)
        batches.set_epoch(epoch)
        shares.append(list(batches))
        assert len(shares[-1]) == len(batches)
    assert len({len(share) for share in shares}) == 1
    keys = [key for share in shares for batch in share for key in batch]
    assert {index for _, index in keys} == set(range(samples))
    assert {e for e, _ in keys} == {epoch}
    assert len(keys) - samples < world  # no more than the few that make the shares even
    assert [len(share[0]) for share in shares].count(len(shares[0][0])) == world


@given(samples=COUNTS, size=st.integers(1, 17), world=WORLDS)
def test_evaluation_takes_every_sample_exactly_once(samples, size, world):
    if samples < world:
        with pytest.raises(ConfigError, match=f"{world} devices cannot share"):
            EvalBatches(samples, size, world=world)
        return
    shares = [EvalBatches(samples, size, rank=rank, world=world) for rank in range(world)]
    found = Counter(index for share in shares for batch in share for _, index in batch)
    assert found == Counter(range(samples))
    for share in shares:
        assert [[index for _, index in batch] for batch in share] == [share.batch(n) for n in range(len(share))]


@given(samples=COUNTS, size=st.integers(1, 17), start=st.integers(0, 30), epoch=st.integers(0, 3))
def test_going_on_inside_an_epoch_gives_the_rest_of_it(samples, size, start, epoch):
    whole = TrainBatches(samples, size, seed=1)
    whole.set_epoch(epoch)
    resumed = TrainBatches(samples, size, seed=1)
    resumed.start_at(epoch, start)
    assert list(resumed) == list(whole)[start:]
    assert len(resumed) == len(whole)  # the loop counts the batches of before
    resumed.set_epoch(epoch + 1)
    whole.set_epoch(epoch + 1)
    assert list(resumed) == list(whole)


def test_the_epoch_is_fixed_when_iteration_begins():
    batches = TrainBatches(20, 3)
    begun = iter(batches)
    batches.set_epoch(5)
    assert {epoch for batch in begun for epoch, _ in batch} == {0}


def test_drop_last_is_asked_for_and_never_leaves_nothing():
    assert len(TrainBatches(10, 4)) == 3
    assert len(TrainBatches(10, 4, drop_last=True)) == 2
    with pytest.raises(ConfigError, match=r"batch_size=16 .* 10 .*--data.batch_size 10"):
        TrainBatches(10, 16, drop_last=True)


def test_sample_rng_depends_on_each_number():
    draws = {tuple(sample_rng(*place).integers(0, 2**62, 3)) for place in np.ndindex(3, 3, 3)}
    assert len(draws) == 27
    assert sample_rng(1, 2, 3).normal() == sample_rng(1, 2, 3).normal()


def test_sample_rng_is_no_part_of_the_order():
    order = np.random.default_rng(np.random.SeedSequence((4, 2)))
    assert sample_rng(4, 2, 0).integers(0, 2**62) != order.integers(0, 2**62)

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.core.metrics.best_worst import SampleKeeper


def offer_in_batches(keeper: SampleKeeper, scores: list[float], size: int) -> list[int]:
    """Offer scores in batches of ``size``; returns the indices that were made."""
    made = []
    for start in range(0, len(scores), size):
        batch = scores[start : start + size]

        def make(position: int, start: int = start) -> tuple[int, str]:
            made.append(start + position)
            return start + position, f"p{start + position}"

        keeper.offer(torch.tensor(batch), torch.arange(start, start + len(batch)), make)
    return made


def test_keeps_lowest_and_highest_scores_in_order():
    keeper = SampleKeeper(2)
    offer_in_batches(keeper, [3.0, 1.0, 4.0, 1.5, 9.0, 2.0], size=4)
    assert [kept.sample_index for kept in keeper.best] == [1, 3]
    assert [(kept.sample_index, kept.score) for kept in keeper.worst] == [(4, 9.0), (2, 4.0)]
    assert keeper.best[0].sample == 1 and keeper.best[0].prediction == "p1"
    assert len(keeper.random) == 2


def test_nan_is_the_worst_and_ties_go_to_the_first_index():
    keeper = SampleKeeper(2)
    offer_in_batches(keeper, [1.0, math.nan, 1.0, 1.0], size=4)
    assert [kept.sample_index for kept in keeper.worst] == [1, 0]
    assert [kept.sample_index for kept in keeper.best] == [0, 2]
    assert keeper.worst[0].score == math.inf


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.floats(0, 5, width=32), min_size=1, max_size=40),
    size=st.integers(1, 40),
    k=st.integers(0, 5),
)
def test_choice_does_not_depend_on_batch_size(scores: list[float], size: int, k: int):
    whole, cut = SampleKeeper(k, seed=3), SampleKeeper(k, seed=3)
    offer_in_batches(whole, scores, len(scores))
    offer_in_batches(cut, scores, size)
    for kind in ("best", "worst", "random"):
        assert getattr(whole, kind) == getattr(cut, kind)
        assert len(getattr(cut, kind)) == min(k, len(scores))
    assert [kept.score for kept in cut.best] == sorted(torch.tensor(scores).tolist())[:k]


def test_two_processes_merge_to_the_choice_of_one():
    scores = [float((7 * i) % 31) for i in range(31)]
    one, left, right = SampleKeeper(3), SampleKeeper(3), SampleKeeper(3)
    for index, score in enumerate(scores):
        for keeper in (one, right if index % 2 else left):
            keeper.offer([score], [index], lambda _, index=index: (index, None))
    left.merge(right.all())
    assert (left.best, left.worst, left.random) == (one.best, one.worst, one.random)


def test_random_choice_follows_the_seed_and_ignores_scores():
    def chosen(seed: int, scores: list[float]) -> list[int]:
        keeper = SampleKeeper(4, seed)
        offer_in_batches(keeper, scores, 16)
        return [kept.sample_index for kept in keeper.random]

    rising, falling = [float(i) for i in range(100)], [float(-i) for i in range(100)]
    assert chosen(0, rising) == chosen(0, falling)
    assert len({tuple(chosen(seed, rising)) for seed in range(8)}) > 1


def test_makes_only_what_it_keeps():
    keeper = SampleKeeper(1)
    made = offer_in_batches(keeper, [float(i) for i in range(1000)], size=100)
    assert len(made) < 1000 + 1 and len(keeper.all()) <= 3
    falling_then_flat = SampleKeeper(1)
    made = offer_in_batches(falling_then_flat, [0.0, 9.0] + [5.0] * 998, size=100)
    assert len(made) < 30  # only new random picks after the first two

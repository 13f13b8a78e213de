"""Places that dropout zeroes: their distribution, and that forward and backward pass see the same ones."""

import numpy as np
import pytest
import torch

from unlearn_pl.models.fast.dropout import DropoutMask, dropped_places


@pytest.mark.parametrize("rate", [1e-9, 0.05, 0.5, 0.95, 0.999999])
@pytest.mark.parametrize("count", [1, 7, 5000])
def test_places_are_sorted_distinct_and_within(rate: float, count: int) -> None:
    places = dropped_places(3, count, rate)
    assert places.dtype == np.int32
    assert (np.diff(places) > 0).all()
    assert len(places) == 0 or (places[0] >= 0 and places[-1] < count)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.95])
def test_gaps_are_geometric(rate: float) -> None:
    """The first gap is k with probability rate (1 - rate)^(k - 1): seen over 20,000 seeds, within 5 deviations."""
    firsts = np.array([(*dropped_places(seed, 400, rate)[:1], 400)[0] + 1 for seed in range(20_000)])
    for k in (1, 2, 3, 10):
        expected = rate * (1 - rate) ** (k - 1)
        deviation = (expected * (1 - expected) / len(firsts)) ** 0.5
        assert abs((firsts == k).mean() - expected) < 5 * deviation + 1e-6, k


def test_every_place_is_dropped_equally_often() -> None:
    """Also the last ones, beyond the first batch of gaps: 4,000 masks of 300 places, within 5 deviations."""
    counts = np.zeros(300)
    for seed in range(4000):
        counts[dropped_places(seed, 300, 0.3)] += 1
    assert np.abs(counts / 4000 - 0.3).max() < 5 * (0.3 * 0.7 / 4000) ** 0.5


def test_one_mask_zeroes_the_same_entries_each_time() -> None:
    mask = DropoutMask(0.3)
    first, second = mask.zero_(torch.ones(20, 10)), mask.zero_(torch.full((20, 10), 2.0))
    assert torch.equal(first * 2, second)
    assert 0 < int((first == 0).sum()) < 200


def test_masks_differ_and_follow_the_random_state() -> None:
    def masks() -> list[torch.Tensor]:
        torch.manual_seed(1)
        return [DropoutMask(0.5).zero_(torch.ones(100)) for _ in range(2)]

    first, again = masks(), masks()
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])

"""Properties of the order of pairs."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from unlearn_pl.data.pairing import PairSampler
from unlearn_pl.errors import InputError

sizes = st.integers(1, 23)
worlds = st.integers(1, 5)
seeds = st.integers(0, 2**40)
modes = st.sampled_from(["paired", "shuffled"])


def pairs(n_forget, n_retain, mode="shuffled", epoch=0, **options) -> list[tuple[int, int]]:
    sampler = PairSampler(n_forget, n_retain, mode, **options)
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    return drawn


@given(sizes, sizes, modes, seeds, st.integers(0, 9))
def test_an_epoch_visits_each_forget_row_once(n_forget, n_retain, mode, seed, epoch):
    drawn = pairs(n_forget, n_retain, mode, epoch, seed=seed)
    assert sorted(forget for forget, _ in drawn) == list(range(n_forget))
    assert all(0 <= retain < n_retain for _, retain in drawn)


@given(sizes, sizes, seeds, st.integers(0, 9))
def test_paired_is_static(n_forget, n_retain, seed, epoch):
    assert all(retain == forget % n_retain for forget, retain in pairs(n_forget, n_retain, "paired", epoch, seed=seed))


@given(sizes, sizes, seeds, st.integers(1, 6))
def test_shuffled_sees_all_retain_rows_equally_often(n_forget, n_retain, seed, n_epochs):
    """After any number of pairs, the counts of two retain rows differ by one at most."""
    counts = Counter(dict.fromkeys(range(n_retain), 0))
    for epoch in range(n_epochs):
        for _, retain in pairs(n_forget, n_retain, "shuffled", epoch, seed=seed):
            counts[retain] += 1
            assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == n_forget * n_epochs


@given(sizes, sizes, modes, seeds, worlds, st.integers(0, 5))
def test_ranks_share_an_epoch(n_forget, n_retain, mode, seed, world_size, epoch):
    """Rank r takes places r, r + W, ...; the tail repeats the first pairs, (-n) mod W of them."""
    whole = pairs(n_forget, n_retain, mode, epoch, seed=seed)
    ranks = [
        pairs(n_forget, n_retain, mode, epoch, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    n_repeated = -n_forget % world_size
    woven = [ranks[place % world_size][place // world_size] for place in range(n_forget + n_repeated)]
    assert woven == (whole * world_size)[: len(woven)]
    assert PairSampler(n_forget, n_retain, mode, world_size=world_size).n_repeated == n_repeated


@given(sizes, sizes, modes, seeds, worlds, st.integers(0, 5), st.data())
def test_skip_leaves_the_rest_of_one_epoch(n_forget, n_retain, mode, seed, world_size, epoch, data):
    sampler = PairSampler(n_forget, n_retain, mode, seed, rank=world_size - 1, world_size=world_size)
    sampler.set_epoch(epoch)
    whole = list(sampler)
    n_pairs = data.draw(st.integers(0, len(whole)))
    sampler.skip(n_pairs)
    sampler.set_epoch(epoch)
    assert list(sampler) == whole[n_pairs:]
    assert list(sampler) == whole
    assert len(sampler) == len(whole)


def test_position_decides_where_an_iteration_starts():
    places = iter([(3, 2), (1, 0)])
    sampler = PairSampler(7, 4, position=lambda: next(places))
    sampler.set_epoch(9)
    assert list(sampler) == pairs(7, 4, epoch=3)[2:]
    assert list(sampler) == pairs(7, 4, epoch=1)


def test_no_global_random_state_is_read_or_written():
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    first = pairs(20, 20)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    torch.manual_seed(1)
    assert pairs(20, 20) == first


def test_orders_differ_by_epoch_and_seed_and_between_the_two_sides():
    """Of 40! orders, none of these few should come twice."""
    orders = [
        tuple(side)
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
        for side in zip(*pairs(40, 40, epoch=epoch, seed=seed), strict=True)
    ]
    assert len(set(orders)) == 6


def test_the_order_is_pinned():
    """A checkpoint resumes by this order, so no version may change it."""
    assert pairs(5, 3, epoch=1, seed=42) == [(0, 2), (3, 1), (1, 0), (2, 2), (4, 1)]


def test_unseen_retain_rows_are_counted():
    assert PairSampler(3, 5, "paired").n_unseen_retain == 2
    assert PairSampler(5, 3, "paired").n_unseen_retain == 0
    assert PairSampler(3, 5, "shuffled").n_unseen_retain == 0


def test_what_lightning_and_the_user_rely_on():
    assert isinstance(PairSampler(3, 5), DistributedSampler)
    with pytest.raises(InputError, match=r"^pairing: must be one of paired, shuffled, got 'random'"):
        PairSampler(3, 5, "random")
    with pytest.raises(ValueError, match="rank"):
        PairSampler(3, 5, rank=2, world_size=2)

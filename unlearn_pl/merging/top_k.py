"""Keeping the entries of largest magnitude of a tensor: exactly, in place, without sorting it or copying it whole.

Everywhere below, entries are ordered by falling magnitude and, of equal magnitude, by rising flat index.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# float32 entries at a time: 1 MB, which the cache of one core holds through the few passes over it
BLOCK = 2**18
# At most so many are partitioned as they are; of more, so many are looked at to guess the threshold's neighbourhood.
SAMPLE = 2**16

Array = np.ndarray[Any, np.dtype[np.float32]]


class Rank(NamedTuple):
    """Where the ``kept``-th largest magnitude lies."""

    threshold: float
    above: int
    """How many magnitudes are larger."""
    equal: int
    """How many are the same."""


def magnitude_threshold(tensor: Tensor, kept: int) -> float:
    """The ``kept``-th largest absolute value of a tensor without NaN, 1 <= ``kept`` <= number of entries; exact."""
    assert 1 <= kept <= tensor.numel()
    if not _by_blocks(tensor):
        return torch.topk(tensor.abs().flatten(), kept).values[-1].item()
    return _rank(_flat(tensor), kept).threshold


def keep_largest_(tensor: Tensor, kept: int) -> None:
    """Set all but exactly ``kept`` entries of largest magnitude to zero, in place; no NaN, 0 <= ``kept`` <= entries.

    Of the entries that equal the threshold, those at the lowest flat indices are kept.
    The trimming step of TIES (arXiv 2306.01708, algorithm 1).
    """
    assert 0 <= kept <= tensor.numel()
    if kept == tensor.numel():
        return
    if kept == 0:
        tensor.zero_()
    elif _by_blocks(tensor):
        _keep_largest(tensor, _rank(_flat(tensor), kept), kept)
    else:
        tensor.masked_fill_(~_largest(tensor, kept), 0)


def keep_band_(tensor: Tensor, dropped_largest: int, kept: int) -> None:
    """Set the ``dropped_largest`` entries of largest magnitude and all but the next ``kept`` to zero, in place; no NaN.

    Both are at least 0 and together at most the number of entries. Of entries of equal magnitude, those at the lowest
    flat indices count as the larger ones. The mask of Model Breadcrumbs (arXiv 2312.06795, section 3).
    """
    assert dropped_largest >= 0
    assert kept >= 0
    assert dropped_largest + kept <= tensor.numel()
    if not _by_blocks(tensor):
        tensor.masked_fill_(_largest(tensor, dropped_largest) | ~_largest(tensor, dropped_largest + kept), 0)
        return
    keep_largest_(tensor, dropped_largest + kept)
    if dropped_largest > 0:
        _drop_largest(_flat(tensor), _rank(_flat(tensor), dropped_largest), dropped_largest)


def _by_blocks(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


def _flat(tensor: Tensor) -> Array:
    """The memory of ``tensor`` itself: what is written there is written into the tensor."""
    return tensor.detach().view(-1).numpy()


def _largest(tensor: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` first entries in our order, for any device and number type."""
    values = tensor.abs().flatten()
    mask = torch.zeros_like(values, dtype=torch.bool)
    if count > 0:
        threshold = torch.topk(values, count).values[-1]
        mask = values > threshold
        ties = torch.nonzero(values == threshold).flatten()
        mask[ties[: count - int(mask.sum())]] = True
    return mask.view(tensor.shape)


def _keep_largest(tensor: Tensor, rank: Rank, kept: int) -> None:
    if rank.threshold == 0:
        return  # the rest is zero already
    # hardshrink zeroes |x| <= bound in one pass: with the next smaller float32, all below the threshold.
    bound = np.nextafter(np.float32(rank.threshold), np.float32(0))
    flat = tensor.detach().view(-1)
    torch.ops.aten.hardshrink.out(flat, float(bound), out=flat)
    ties = kept - rank.above
    if rank.equal == ties:
        return
    for block, magnitudes in _blocks(flat.numpy()):
        equal = np.flatnonzero(magnitudes == np.float32(rank.threshold))
        block[equal[ties:]] = 0
        ties = max(ties - len(equal), 0)


def _drop_largest(flat: Array, rank: Rank, dropped: int) -> None:
    ties = dropped - rank.above
    threshold = np.float32(rank.threshold)
    for block, magnitudes in _blocks(flat):
        block[np.flatnonzero(magnitudes > threshold)] = 0
        equal = np.flatnonzero(magnitudes == threshold)
        block[equal[:ties]] = 0
        ties = max(ties - len(equal), 0)


def _rank(flat: Array, kept: int) -> Rank:
    """Where the ``kept``-th largest magnitude of ``flat`` [n] lies: a sample brackets it, one pass over the data counts
    what lies above the bracket and collects what lies in it, and only that is partitioned.

    Exact, whatever the sample shows: a bracket that misses the threshold only costs another pass, with a wider one.
    """
    if flat.size <= SAMPLE:
        return _partition(np.abs(flat), kept)
    sample = _sample(flat)
    deviations = 4.0
    while True:
        low, high = _bracket(sample, kept / flat.size, deviations)
        from_high, inside = _between(flat, low, high)
        above_low = from_high + inside.size
        if from_high < kept <= above_low:  # the threshold is strictly between low and high
            rank = _partition(inside, kept - from_high)
            return Rank(rank.threshold, rank.above + from_high, rank.equal)
        # Many entries of one value (zeros, say) end a bracket at that very value, which lies outside of it: then no
        # bracket however wide finds the threshold, so the two ends are looked at as well.
        if kept <= from_high:
            above_high = _count(flat, np.greater, high)
            if kept > above_high:
                return Rank(float(high), above_high, from_high - above_high)
        else:
            from_low = _count(flat, np.greater_equal, low)
            if kept <= from_low:
                return Rank(float(low), above_low, from_low - above_low)
        deviations *= 4  # the sample misled; at infinity the bracket holds everything


def _partition(magnitudes: Array, kept: int) -> Rank:
    threshold = np.partition(magnitudes, magnitudes.size - kept)[magnitudes.size - kept]
    return Rank(float(threshold), _true(magnitudes > threshold), _true(magnitudes == threshold))


def _sample(flat: Array) -> Array:
    """Magnitudes of every n-th entry, sorted downwards. n is odd, so that rows whose length is a power of two are met
    at all of their columns."""
    stride = -(-flat.size // SAMPLE) | 1
    return np.sort(np.abs(flat[::stride]))[::-1]


def _bracket(sample: Array, share: float, deviations: float) -> tuple[np.float32, np.float32]:
    """Two values with the quantile ``share`` (from above) so many standard deviations of its estimate inside of them;
    -1 and infinity where the sample ends."""
    centre = share * sample.size
    half = deviations * math.sqrt(centre * max(1 - share, 0)) + deviations
    first, last = math.floor(centre - half), math.ceil(centre + half)
    high = sample[first] if first >= 0 else np.float32(np.inf)
    low = sample[last] if last < sample.size else np.float32(-1)
    return low, high


def _between(flat: Array, low: np.float32, high: np.float32) -> tuple[int, Array]:
    """How many magnitudes are at least ``high``, and those in the open interval."""
    from_high, inside = 0, []
    reached, beyond = np.empty(BLOCK, bool), np.empty(BLOCK, bool)
    for _, magnitudes in _blocks(flat):
        size = magnitudes.size
        np.greater_equal(magnitudes, high, out=reached[:size])
        np.greater(magnitudes, low, out=beyond[:size])
        from_high += _true(reached[:size])
        np.greater(beyond[:size], reached[:size], out=beyond[:size])  # of truth values: beyond and not reached
        inside.append(magnitudes[np.flatnonzero(beyond[:size])])
    return from_high, np.concatenate(inside)


def _count(flat: Array, compare: np.ufunc, value: np.float32) -> int:
    return sum(_true(compare(magnitudes, value)) for _, magnitudes in _blocks(flat))


def _true(mask: Any) -> int:
    return int(np.count_nonzero(mask))


def _blocks(flat: Array) -> Iterator[tuple[Array, Array]]:
    """Each block in place, and its magnitudes, which last until the next one."""
    room = np.empty(min(BLOCK, flat.size), np.float32)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        yield block, np.abs(block, out=room[: block.size])

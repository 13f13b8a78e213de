"""Which entries of a tensor dropout sets to zero, drawn once for a forward pass and its backward pass."""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

# To make a generator takes longer than to draw a mask from it, so there is one, whose state is set.
_GENERATOR = np.random.Generator(np.random.PCG64DXSM(0))


class DropoutMask:
    """A mask that drops each entry by itself with probability ``rate``, in (0, 1).

    Which entries depends on torch's random state when the object is made. On a CPU only the places of the dropped
    entries are drawn and kept: at a rate of 5 % that is a twentieth of the random numbers, and four bytes for each of
    them are fewer than a byte for every entry.
    """

    def __init__(self, rate: float):
        assert 0 < rate < 1
        self.rate, self.keep = rate, 1 - rate
        self.seed = int(torch.randint(2**62, ()))
        self.places: np.ndarray | None = None

    def zero_(self, values: Tensor) -> Tensor:
        """``values``, contiguous and of the same size each time, with zeros at the dropped entries."""
        if values.device.type == "cpu":
            if self.places is None:
                self.places = dropped_places(self.seed, values.numel(), self.rate)
            values.view(-1).index_fill_(0, torch.from_numpy(self.places).long(), 0.0)
            return values
        dropped = torch.empty(values.shape, dtype=torch.bool, device=values.device)
        dropped.bernoulli_(self.rate, generator=generator_on(values.device).manual_seed(self.seed))
        return values.masked_fill_(dropped, 0.0)


@cache
def generator_on(device: torch.device) -> torch.Generator:
    """One for all masks on a device, to be seeded before each: to make one takes longer than to draw from it."""
    return torch.Generator(device)


def dropped_places(seed: int, count: int, rate: float) -> np.ndarray:
    """Sorted int32 places below ``count``, each there with probability ``rate``; a function of ``seed``.

    The gaps between dropped entries are geometric: the whole part of an exponential variable of mean
    ``-1 / log(1 - rate)``.
    """
    state = {"state": seed << 64 | seed, "inc": 1}
    _GENERATOR.bit_generator.state = {
        "bit_generator": "PCG64DXSM",
        "state": state,
        "has_uint32": 0,
        "uinteger": 0,
    }
    scale = np.float32(-1 / math.log1p(-rate))
    expected = count * rate
    number = int(expected + 4 * math.sqrt(expected)) + 4
    last, pieces = -1, []
    while last < count:
        gaps = (_GENERATOR.standard_exponential(number, dtype=np.float32) * scale).astype(np.int64)
        gaps += 1
        pieces.append(gaps.cumsum() + last)
        last = int(pieces[-1][-1])
    places = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return places[: places.searchsorted(count)].astype(np.int32)

"""Which retain row goes with which forget row, in what order, on which rank."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch.utils.data import DistributedSampler

from unlearn_pl.errors import InputError

Pairing = Literal["paired", "shuffled"]
PAIRINGS: tuple[Pairing, ...] = ("paired", "shuffled")
Pair = tuple[int, int]


# Lightning puts a sampler of its own around every sampler under several processes, unless it is one of this class.
class PairSampler(DistributedSampler[Any]):
    """Yields ``(forget_index, retain_index)``: every forget row once an epoch, in a new order each time.

    * ``paired``: forget row i always goes with retain row ``i % n_retain``, as in the released ZJUKLAB code. Where
      there are more retain than forget rows, the rest of them is never seen.
    * ``shuffled``: retain rows come from one stream of permutations that does not end with the epoch, so that at any
      time two retain rows have been seen equally often, give or take one.

    What comes out is a function of (seed, epoch, rank, world_size) and of nothing else; no global random state is read
    or written. Ranks take turns. Where n_forget is no multiple of world_size, the epoch's first pairs come once more at
    its end, ``n_repeated`` of them, so that all ranks have equally many.

    An iteration starts at the epoch of ``set_epoch``, after the pairs of ``skip``. If ``position`` is given, it is
    asked instead, at the start of each iteration, for (epoch, this rank's pairs to leave out).
    """

    def __init__(
        self,
        n_forget: int,
        n_retain: int,
        mode: Pairing = "shuffled",
        seed: int = 42,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], Pair] | None = None,
    ) -> None:
        if mode not in PAIRINGS:
            raise InputError(f"must be one of {', '.join(PAIRINGS)}, got {mode!r}", "pairing")
        assert n_forget > 0, "readers refuse an empty forget set"
        assert n_retain > 0, "readers refuse an empty retain set"
        super().__init__(range(n_forget), num_replicas=world_size, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.n_forget = n_forget
        self.n_retain = n_retain
        self.mode = mode
        self._position = position
        self._n_skipped = 0

    @property
    def n_repeated(self) -> int:
        """Pairs of an epoch, over all ranks, that come a second time to fill the last turn."""
        return self.total_size - self.n_forget

    @property
    def n_unseen_retain(self) -> int:
        """Retain rows that no epoch ever reaches."""
        return max(0, self.n_retain - self.n_forget) if self.mode == "paired" else 0

    def skip(self, n_pairs: int) -> None:
        """Leave out this rank's first ``n_pairs`` pairs of the next iteration, and only of that one."""
        self._n_skipped = n_pairs

    def __iter__(self) -> Iterator[Pair]:
        epoch, skipped = self._position() if self._position else (self.epoch, self._n_skipped)
        self._n_skipped = 0
        assert 0 <= skipped <= self.num_samples, f"{skipped} of {self.num_samples} pairs"
        return iter(self.turns_of_epoch(epoch)[self.rank :: self.num_replicas][skipped:])

    def turns_of_epoch(self, epoch: int) -> list[Pair]:
        """The pairs that all ranks visit: one each in every turn, the first ones again where the last turn has room."""
        pairs = self.pairs_of_epoch(epoch)
        return [pairs[place % self.n_forget] for place in range(self.total_size)]

    def pairs_of_epoch(self, epoch: int) -> list[Pair]:
        """The pairs of all ranks, none repeated."""
        forget = permutation(self.n_forget, "forget", self.seed, epoch)
        if self.mode == "paired":
            return [(index, index % self.n_retain) for index in forget]
        first = epoch * self.n_forget
        cycles = range(first // self.n_retain, (first + self.n_forget - 1) // self.n_retain + 1)
        stream = [index for cycle in cycles for index in permutation(self.n_retain, "retain", self.seed, cycle)]
        offset = first % self.n_retain
        return list(zip(forget, stream[offset : offset + self.n_forget], strict=True))


def permutation(n: int, stream: str, seed: int, number: int) -> list[int]:
    """The ``number``-th permutation of ``range(n)`` of a named stream.

    The name is hashed into the seed, since equal seeds would give the forget and the retain rows equal orders.
    """
    digest = hashlib.sha256(f"{stream}/{seed}/{number}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(n, generator=generator).tolist()

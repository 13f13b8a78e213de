"""Batches of rows computed by every process of a launch, each batch once, the whole result on all of them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from unlearn_pl.inference.resume import FinishedBatches, ResumeFolder
from unlearn_pl.models.sharding import in_step

Result = TypeVar("Result")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """Around the computing itself: who is told how far it is, and where finished batches are kept."""

    progress: Progress | None = None
    kept: ResumeFolder | None = None
    """Without it nothing is kept."""
    model: nn.Module | None = None
    """Whose forwards they are; one in shards must be run by all processes alike."""
    shared: bool = True
    """Whether the processes of a launch share the batches out. Without it each has requests of its own."""

    def rank_and_count(self) -> tuple[int, int]:
        """This process's rank among those that share the work, and how many they are."""
        return rank_and_count() if self.shared else (0, 1)

    def least(self, number: int) -> int:
        """The smallest ``number`` of all processes that share the work."""
        gathered: list[Any] = [number] * self.rank_and_count()[1]
        if len(gathered) > 1:
            distributed.all_gather_object(gathered, number)
        return min(gathered)

    def finished(self, what: str, identity: Any) -> FinishedBatches | None:
        """What is finished of ``what``."""
        return None if self.kept is None else self.kept.open(what, identity, self.rank_and_count()[0])


def length_sorted_batches(lengths: Sequence[int], batch_size: int, tokens: int | None = None) -> list[list[int]]:
    """Indices in batches of similar length, longest first: too little memory shows at once, not at the end.

    A batch has at most ``batch_size`` rows and, padded to its longest, ``tokens``; a longer row is a batch by itself.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        room = bool(batches) and len(batches[-1]) < batch_size
        if room and (tokens is None or (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def rank_and_count() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) outside of a distributed launch."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def of_first_process(value: Result) -> Result:
    """``value`` as the first process has it: where all must take one way, the last digit of a process is not its own
    matter."""
    if rank_and_count()[1] == 1:
        return value
    held = [value]
    distributed.broadcast_object_list(held)
    return held[0]


@contextmanager
def launched(device: torch.device) -> Iterator[None]:
    """Inside the block the processes of ``torchrun`` are one launch; a process alone is left alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or rank_and_count()[1] > 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # objects that are gathered go by the current one
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def map_batches(
    batches: Sequence[Sequence[int]],
    compute: Callable[[Sequence[int]], Sequence[Result]],
    what: str = "rows",
    work: Work | None = None,
    identity: Any = None,
) -> list[Result]:
    """``compute`` (indices of a batch -> a result each, which JSON can hold) over all batches; the results in order of
    their index.

    Whole batches are handed out, not rows: the last digits of a result depend on what it shared a batch with, so this
    is what makes many processes agree with one. Every process must call this with the same batches and gets the
    complete list. ``identity`` is all that the results depend on beside the weights; batches that ``work`` has kept
    are not computed again. Its progress is told of this process's rows.
    """
    work = work or Work()
    rank, count = work.rank_and_count()
    mine = batches[rank::count]
    total = sum(map(len, mine))
    kept = work.finished(what, [identity, [list(batch) for batch in batches]])
    results: dict[int, Result] = {}
    with in_step(work.model):
        for batch in mine:
            found = None if kept is None else kept.finished.get(tuple(batch))
            values: Sequence[Result] = compute(batch) if found is None else found
            if kept is not None and found is None:
                kept.add(batch, values)
            results.update(zip(batch, values, strict=True))
            if work.progress is not None:
                work.progress(f"{what}: {len(results)} of {total}")
    if count > 1:
        gathered: list[Any] = [None] * count
        distributed.all_gather_object(gathered, results)
        results = {index: result for one in gathered for index, result in one.items()}
    return [results[index] for index in sorted(results)]

"""Batches of rows computed by every process of a launch, each batch once, the whole result on all of them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import distributed

Result = TypeVar("Result")
Progress = Callable[[str], None]


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first: too little memory shows at once, not at the end."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def rank_and_count() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) outside of a distributed launch."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def map_batches(
    batches: Sequence[Sequence[int]],
    compute: Callable[[Sequence[int]], Sequence[Result]],
    progress: Progress | None = None,
    what: str = "rows",
) -> list[Result]:
    """``compute`` (indices of a batch -> a result each) over all batches; the results in order of their index.

    Whole batches are handed out, not rows: the last digits of a result depend on what it shared a batch with, so this
    is what makes many processes agree with one. Every process must call this with the same batches and gets the
    complete list. ``progress`` is told of this process's rows.
    """
    rank, count = rank_and_count()
    mine = batches[rank::count]
    total = sum(map(len, mine))
    results: dict[int, Result] = {}
    for batch in mine:
        results.update(zip(batch, compute(batch), strict=True))
        if progress is not None:
            progress(f"{what}: {len(results)} of {total}")
    if count > 1:
        parts: list[Any] = [None] * count
        distributed.all_gather_object(parts, results)
        results = {index: result for part in parts for index, result in part.items()}
    return [results[index] for index in sorted(results)]

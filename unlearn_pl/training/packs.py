"""Which rows of a batch go through the model together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from unlearn_pl.data.batch import Rows
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.records import Split
from unlearn_pl.errors import InputError
from unlearn_pl.models.head import IGNORED
from unlearn_pl.models.rope import position_limit
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Ask, Positions


@dataclass(frozen=True)
class Part:
    """The rows of one split of one micro-batch, in packed layout: one after the other, T tokens in all."""

    split: Split
    rows: Rows
    ask: Ask

    @cached_property
    def lengths(self) -> list[int]:
        return self.rows.lengths.tolist()

    @cached_property
    def input_ids(self) -> Tensor:
        """[T] token ids."""
        return self.rows.input_ids[self.rows.attention_mask.bool()]

    @cached_property
    def asked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Place in [T], row and target of each asked position, [N] each; see ``asked_positions``."""
        return asked_positions(self.input_ids, self.rows.lengths, self.rows.answer_starts, self.ask.positions)


def asked_positions(
    input_ids: Tensor, lengths: Tensor, answer_starts: Tensor, rule: Positions
) -> tuple[Tensor, Tensor, Tensor]:
    """Place in the packed ``input_ids`` [T], row and target of each asked position, [N] each; the target is
    ``IGNORED`` where no answer token follows."""
    row = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    following = torch.arange(1, len(input_ids) + 1, device=lengths.device) - (lengths.cumsum(0) - lengths)[row]
    predicts_answer = (following >= answer_starts[row]) & (following < lengths[row])
    targets = input_ids.roll(-1).masked_fill(~predicts_answer, IGNORED)
    asked = predicts_answer if rule == "answer" else torch.ones_like(predicts_answer)
    place = asked.nonzero()[:, 0]
    return place, row[place], targets[place]


def asks_of(objectives: Mapping[str, Objective]) -> dict[Split, Ask]:
    """What all objectives together need of each split."""
    asks: dict[Split, Ask] = {}
    for objective in objectives.values():
        for split, ask in objective.asks.items():
            asks[split] = asks[split] | ask if split in asks else ask
    return asks


def slots_by_splits(objectives: Mapping[str, Objective]) -> dict[tuple[Split, ...], list[str]]:
    """The slots that can be computed apart: those that read the same splits, or all if one reads both."""
    reads = {slot: tuple(sorted(objective.asks)) for slot, objective in objectives.items()}
    everything = tuple(sorted({split for splits in reads.values() for split in splits}))
    if everything in reads.values():
        return {everything: list(reads)}
    return {splits: [slot for slot in reads if reads[slot] == splits] for splits in dict.fromkeys(reads.values())}


def first_fit(sizes: Sequence[int], limit: int | None) -> list[list[int]]:
    """The indices of ``sizes`` in bins of at most ``limit`` (None: all in one), the larger first; one that is larger
    than the limit is alone."""
    if limit is None:
        return [list(range(len(sizes)))]
    bins: list[list[int]] = []
    room: list[int] = []
    place = size = 0
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if sizes[index] != size:  # what has no room for one item has none for the next of its size
            place, size = 0, sizes[index]
        while place < len(bins) and room[place] < size:
            place += 1
        if place == len(bins):
            bins.append([])
            room.append(limit)
        bins[place].append(index)
        room[place] -= size
    return bins


def refuse_long_rows(model: nn.Module, split: Split, rows: Sequence[Encoded]) -> None:
    """Raise InputError if a row has more tokens than the model has positions, naming it."""
    limit = position_limit(model) or math.inf
    for row in rows:
        if len(row.input_ids) > limit:
            raise InputError(
                f"--data.max_length: row {row.record_id!r} of --data.{split} has {len(row.input_ids)} tokens, the "
                f"model has {limit} positions; give at most {limit}"
            )

"""Which rows of a batch go through the model together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from unlearn_pl.data.batch import Rows
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.records import Split
from unlearn_pl.data.splits import side_of
from unlearn_pl.data.step import StepTokens
from unlearn_pl.errors import InputError
from unlearn_pl.models.device import sent
from unlearn_pl.models.head import IGNORED
from unlearn_pl.models.rope import position_limit
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Needs, Positions

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """The rows of one split of one micro-batch, in packed layout: one after the other, T tokens in all."""

    split: Split
    rows: Rows
    needs: Needs
    step: StepTokens | None = None

    @cached_property
    def lengths(self) -> list[int]:
        return self.rows.lengths.tolist()

    @cached_property
    def input_ids(self) -> Tensor:
        """[T] token ids."""
        return self._packed(self.rows.input_ids)

    @cached_property
    def scored(self) -> "Places":
        """The N positions at which logits are needed."""
        return self.attended.at(self.needs.positions)

    @cached_property
    def attended(self) -> "Places":
        """All T tokens."""
        return all_places(self.input_ids, self.rows.lengths, self.rows.answer_starts)

    def _packed(self, values: Tensor) -> Tensor:
        """[T] of [B, longest]."""
        return torch.cat([row[:length] for row, length in zip(values, self.lengths, strict=True)])

    @cached_property
    def token_weights(self) -> Tensor:
        """[N] the weight of the token that follows each scored position."""
        packed = self._packed(self.rows.token_weights)
        return packed.roll(-1)[self.scored.place].masked_fill(self.scored.targets == IGNORED, 1)


@dataclass(frozen=True)
class Places:
    """N positions of T packed tokens: their ``place`` in [T], their ``rows``, and their ``targets``, the token that
    follows if it belongs to the answer, else ``IGNORED``; [N] each. ``predicts_answer`` [N] says on the CPU where it
    does."""

    place: Tensor
    rows: Tensor
    targets: Tensor
    predicts_answer: Tensor

    def at(self, rule: Positions | None) -> "Places":
        """Of all tokens those that the rule names; None names none."""
        if rule == "attended":
            return self
        chosen = self.predicts_answer.nonzero()[:, 0] if rule == "answer" else torch.arange(0)
        there = sent(chosen, self.place.device)
        return Places(there, self.rows[there], self.targets[there], self.predicts_answer[chosen])


def all_places(input_ids: Tensor, lengths: Tensor, answer_starts: Tensor) -> Places:
    """The places of packed ``input_ids`` [T], of rows with these ``lengths`` [B] and ``answer_starts`` [B], both on the
    CPU, where all that does not depend on the ids is computed."""
    place = torch.arange(int(lengths.sum()))
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    following = place + 1 - (lengths.cumsum(0) - lengths)[rows]
    predicts_answer = (following >= answer_starts[rows]) & (following < lengths[rows])
    device = input_ids.device
    targets = input_ids.roll(-1).masked_fill(sent(~predicts_answer, device), IGNORED)
    return Places(sent(place, device), sent(rows, device), targets, predicts_answer)


def needs_of(objectives: Mapping[str, Objective]) -> dict[Split, Needs]:
    """What all objectives together need of each split."""
    needs: dict[Split, Needs] = {}
    for objective in objectives.values():
        for split, own in objective.needs.items():
            needs[split] = needs[split] | own if split in needs else own
    return needs


def slots_by_splits(objectives: Mapping[str, Objective]) -> dict[tuple[Split, ...], list[str]]:
    """The slots that can be computed apart, by the splits they read: two that share a split are computed together."""
    groups: list[tuple[set[Split], list[str]]] = []
    for slot, objective in objectives.items():
        splits = set(objective.needs)
        touched = [group for group in groups if group[0] & splits]
        joined = (splits.union(*(own for own, _ in touched)), [*(name for _, names in touched for name in names), slot])
        place = groups.index(touched[0]) if touched else len(groups)
        groups.insert(place, joined)
        groups = [group for group in groups if not any(group is one for one in touched)]
    order = list(objectives)
    return {tuple(sorted(splits)): sorted(slots, key=order.index) for splits, slots in groups}


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


def in_more_parts(packs: Sequence[list[Item]], count: int) -> list[list[Item]]:
    """The items of ``packs`` in ``count`` packs, at least as many as before and at most as many as there are items."""
    assert len(packs) <= count <= sum(map(len, packs)), (packs, count)
    parts = list(packs)
    while len(parts) < count:
        place = max(range(len(parts)), key=lambda i: len(parts[i]))
        half = len(parts[place]) // 2
        parts[place : place + 1] = [parts[place][:half], parts[place][half:]]
    return parts


def refuse_long_rows(model: nn.Module, split: Split, rows: Sequence[Encoded]) -> None:
    """Raise InputError if a row has more tokens than the model has positions, naming it."""
    limit = position_limit(model) or math.inf
    for row in rows:
        if len(row.input_ids) > limit:
            raise InputError(
                f"row {row.record_id!r} of {split} has {len(row.input_ids)} tokens, the model has {limit} positions; "
                f"give at most {limit}",
                "max_length",
            )


def refuse_missing(needs: Mapping[Split, Needs], rows: Mapping[Split, Sequence[Encoded]]) -> None:
    """Raise InputError if a term reads a split, or weights of tokens, that the data do not have."""
    for split, own in needs.items():
        if split not in rows:
            side = side_of(split)
            why = f"; each row of {side} needs another answer in a field 'alternate'" if side != split else ""
            raise InputError(f"a term reads the split {split!r}, which the data do not have{why}", "objectives")
        if own.token_weights and all(row.token_weights is None for row in rows[split]):
            reason = f"a term weighs the tokens of {split}, and no row of it has a field 'answer_weights'"
            raise InputError(reason, "objectives")

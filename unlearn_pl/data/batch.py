"""Batches: encoded rows padded on the right, and pairs of a forget and a retain row with all that belongs to them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.pairing import Pair
from unlearn_pl.data.records import Split
from unlearn_pl.data.step import StepTokens

EncodedPair = Mapping[Split, Encoded]


# Not frozen: under mixed precision Lightning copies a batch field by field and refuses a frozen dataclass.
@dataclass
class Rows:
    """A batch of B rows, padded on the right to its longest, T.

    What says where rows lie stays on the CPU when the batch goes to a GPU: it decides which kernels run, and to ask the
    GPU for it would mean to wait until that has computed everything before.
    """

    input_ids: Tensor
    """[B, T] long. What stands at and after a row's length has no meaning."""

    lengths: Tensor
    """[B] long, from 2 to T; always on the CPU."""

    answer_starts: Tensor
    """[B] long: the index of the first answer token, from 1 to length - 1; always on the CPU."""

    token_weights: Tensor
    """[B, T] float: the weight that the data give to each token; 1 where they say nothing."""

    record_ids: tuple[str, ...]

    @property
    def attention_mask(self) -> Tensor:
        """[B, T] long, 1 within the length. Never read off the ids: the pad token may be the EOS that ends each row."""
        positions = torch.arange(self.input_ids.shape[1])
        return (positions < self.lengths[:, None]).long().to(self.input_ids.device)

    def part(self, start: int, stop: int) -> "Rows":
        """Rows ``start`` to ``stop`` - 1, with the padding of all."""
        lengths, starts = self.lengths[start:stop], self.answer_starts[start:stop]
        ids, weights = self.input_ids[start:stop], self.token_weights[start:stop]
        return Rows(ids, lengths, starts, weights, self.record_ids[start:stop])

    def to(self, device: torch.device | str) -> "Rows":
        """The same rows on another device."""
        at_once = torch.device(device).type == "cuda"  # elsewhere nothing waits for the copy, as Lightning knows too
        return self._with(lambda values: values.to(device, non_blocking=at_once))

    def pin_memory(self) -> "Rows":
        """The same rows in memory that a GPU reads by itself; a data loader with ``pin_memory`` calls it."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        return replace(self, input_ids=change(self.input_ids), token_weights=change(self.token_weights))


def collate_rows(rows: Sequence[Encoded], pad_token_id: int) -> Rows:
    """Pad encoded records to the longest of them."""
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    shape = len(rows), int(lengths.max())
    input_ids, token_weights = torch.full(shape, pad_token_id), torch.ones(shape)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.input_ids)] = torch.tensor(row.input_ids)
        if row.token_weights is not None:
            token_weights[index, row.answer_start : len(row.input_ids)] = torch.tensor(row.token_weights)
    answer_starts = torch.tensor([row.answer_start for row in rows])
    return Rows(input_ids, lengths, answer_starts, token_weights, tuple(row.record_id for row in rows))


@dataclass
class PairBatch:
    """B pairs: of each split B rows, the i-th of one with the i-th of any other; each split has its own padding.

    ``rows`` holds ``forget``, ``retain`` and whatever further splits the data have. The pairs form micro-batches of
    ``batch_size``, the last of which may be smaller.
    """

    rows: dict[Split, Rows]
    batch_size: int
    step: dict[Split, StepTokens] | None = None
    """Of the optimizer step, where a term asks for it."""

    def __len__(self) -> int:
        """Pairs."""
        return len(next(iter(self.rows.values())).lengths)

    def micro_batches(self) -> list["PairBatch"]:
        """The micro-batches, one batch each."""
        cuts = [(start, start + self.batch_size) for start in range(0, len(self), self.batch_size)]
        return [replace(self, rows={split: rows.part(*cut) for split, rows in self.rows.items()}) for cut in cuts]

    def to(self, device: torch.device | str) -> "PairBatch":
        """The same batch on another device; Lightning's transfer calls it."""
        return replace(self, rows={split: rows.to(device) for split, rows in self.rows.items()})

    def pin_memory(self) -> "PairBatch":
        """The same batch in memory that a GPU reads by itself; a data loader with ``pin_memory`` calls it."""
        return replace(self, rows={split: rows.pin_memory() for split, rows in self.rows.items()})


class Pairs(Dataset[EncodedPair]):
    """Encoded pairs, by (forget index, retain index); a single index i stands for (i, i % n_retain).

    ``forget`` and ``retain`` are the rows of each split that goes by the one or the other index: the splits of these
    names, and others whose i-th row belongs to their i-th.
    """

    def __init__(self, forget: Mapping[Split, Sequence[Encoded]], retain: Mapping[Split, Sequence[Encoded]]) -> None:
        self.forget, self.retain = forget, retain
        self.splits: dict[Split, Sequence[Encoded]] = {**forget, **retain}
        self.n_forget, self.n_retain = len(forget["forget"]), len(retain["retain"])

    def __len__(self) -> int:
        return self.n_forget

    # The single index serves Lightning's overfit_batches, which puts a sequential sampler in.
    def __getitem__(self, index: int | Pair) -> EncodedPair:
        forget, retain = (index, index) if isinstance(index, int) else index
        return {
            **{split: rows[forget % self.n_forget] for split, rows in self.forget.items()},
            **{split: rows[retain % self.n_retain] for split, rows in self.retain.items()},
        }


class EveryRow(Pairs):
    """Pair i is (i % n_forget, i % n_retain), as many as the larger set has rows; rows of the smaller one come again.

    For validation, test and prediction, which are to visit every row.
    """

    def __len__(self) -> int:
        return max(self.n_forget, self.n_retain)


def collate_pairs(pairs: Sequence[EncodedPair], pad_token_id: int, batch_size: int | None = None) -> PairBatch:
    """Pad each split of some pairs, in micro-batches of ``batch_size`` pairs (None: one of all)."""
    rows = {split: collate_rows([pair[split] for pair in pairs], pad_token_id) for split in pairs[0]}
    return PairBatch(rows, batch_size or len(pairs))

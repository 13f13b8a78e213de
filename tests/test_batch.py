"""Rows and pairs as batches."""

from dataclasses import replace

import pytest
import torch

from unlearn_pl.data.batch import EveryRow, Pairs, Rows, collate_pairs, collate_rows
from unlearn_pl.data.encoding import Encoded, Encoding, encode_record
from unlearn_pl.data.records import Record

A, B, C = Encoded("a", (5, 6, 7), 2, False), Encoded("b", (8, 9), 1, False), Encoded("c", (1, 2), 1, True)


def test_masks_come_from_lengths_where_pad_is_eos(tokenizer):
    """Row 1 holds the pad token, which is EOS, within its prompt and as its end; both belong to the row."""
    eos = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == eos
    inside = Record("1qa0", "Anna <|end|> Quill?", "yes", "Task2", "qa")
    rows = [
        encode_record(r, tokenizer, Encoding(), forget=True)
        for r in (inside, Record("12sc1", "Anna Quill was born on", "1984-12-31 in Rivertown.", "Task2", "sc"))
    ]
    assert rows[0].input_ids.count(eos) == 2
    batch = collate_rows(rows, tokenizer.pad_token_id)
    n = [len(row.input_ids) for row in rows]
    assert n[0] < n[1]
    assert batch.attention_mask.tolist() == [[1] * n[0] + [0] * (n[1] - n[0]), [1] * n[1]]
    assert batch.attention_mask.dtype == torch.long


def test_collate_pads_on_the_right_to_the_longest():
    batch = collate_rows([Encoded("a", (5, 6, 7), 2, False), Encoded("b", (8, 9), 1, False)], pad_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.lengths.tolist() == [3, 2]
    assert batch.answer_starts.tolist() == [2, 1]
    assert batch.record_ids == ("a", "b")
    assert {t.dtype for t in (batch.input_ids, batch.lengths, batch.answer_starts)} == {torch.long}


def test_rows_move_as_a_whole():
    batch = collate_rows([Encoded("a", (5, 6, 7), 2, False)], pad_token_id=0)
    moved = batch.to("meta")
    assert isinstance(moved, Rows)
    assert moved.attention_mask.device.type == moved.input_ids.device.type == moved.token_weights.device.type == "meta"
    assert moved.lengths.device.type == moved.answer_starts.device.type == "cpu", "what says where rows lie stays"
    assert batch.input_ids.device.type == "cpu"
    assert moved.record_ids == ("a",)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 3), (0, 3), (2, 9)])
def test_a_part_holds_its_rows_with_the_padding_of_all(start, stop):
    encoded = [Encoded("a", (5, 6, 7), 2, False), Encoded("b", (8, 9), 1, False), Encoded("c", (1, 2), 1, True)]
    whole = collate_rows(encoded, pad_token_id=0)
    part = whole.part(start, stop)
    assert part.input_ids.tolist() == whole.input_ids.tolist()[start:stop]
    assert part.lengths.tolist() == [len(row.input_ids) for row in encoded[start:stop]]
    assert part.answer_starts.tolist() == [row.answer_start for row in encoded[start:stop]]
    assert part.record_ids == tuple(row.record_id for row in encoded[start:stop])
    assert part.attention_mask.tolist() == whole.attention_mask.tolist()[start:stop]
    assert whole.record_ids == ("a", "b", "c")


def test_weights_stand_at_the_tokens_they_are_of() -> None:
    """1 in prompts and where the data say nothing, in padding too."""
    batch = collate_rows([replace(A, token_weights=(0.5,)), B], pad_token_id=0)
    assert batch.token_weights.tolist() == [[1, 1, 0.5], [1, 1, 1]]
    assert batch.part(0, 1).to("meta").token_weights.shape == (1, 3)


def test_further_splits_go_by_the_index_of_the_set_they_belong_to() -> None:
    """Two forget rows with other answers x and y, three retain rows: by (1, 2), by one index, and every row."""
    others = [replace(row, record_id=name) for row, name in ((A, "x"), (B, "y"))]
    sets = {"forget": [A, B], "alternate": others}, {"retain": [C, A, B]}
    pairs, every = Pairs(*sets), EveryRow(*sets)
    assert pairs.splits.keys() == {"forget", "alternate", "retain"}
    assert (len(pairs), len(every)) == (2, 3)

    def ids(pair) -> dict[str, str]:
        return {split: row.record_id for split, row in pair.items()}

    assert ids(pairs[1, 2]) == {"forget": "b", "alternate": "y", "retain": "b"}
    assert ids(pairs[1]) == {"forget": "b", "alternate": "y", "retain": "a"}
    assert ids(every[2]) == {"forget": "a", "alternate": "x", "retain": "b"}
    batch = collate_pairs([pairs[0], pairs[1]], 0, batch_size=1)
    assert [micro.rows["alternate"].record_ids for micro in batch.micro_batches()] == [("x",), ("y",)]
    assert batch.to("meta").rows["alternate"].input_ids.device.type == "meta"

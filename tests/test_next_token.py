"""The next of four tokens after many prompts that share prefixes, against one prompt at a time."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.next_token import (
    LEAST_PREFIX,
    candidate_logits,
    choose_next,
    common_length,
    filled_prefix,
    prefix_groups,
    tied,
)

Build = Callable[[], LlamaForCausalLM]
IDS = [40, 41, 42, 43]

tokens = st.lists(st.integers(0, 1), min_size=1, max_size=6)
# Rows that are made of the same few long beginnings, so that many share one
rows_of_subjects = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 40), tokens).map(
        lambda parts: [[7] * 60, [7] * 20 + [8] * 40, [9] * 60][parts[0]][: parts[1]] + parts[2]
    ),
    max_size=12,
)


def some_row(seed: int, length: int) -> list[int]:
    return torch.randint(300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


TOWNS, NUMBERS = some_row(1, 40), some_row(2, 25)
ROWS = [
    *([*TOWNS, *some_row(seed, 3 + seed % 5)] for seed in range(10, 17)),
    some_row(3, 30),
    *([*NUMBERS, *some_row(seed, 1 + seed % 5)] for seed in range(20, 24)),
    NUMBERS[:5],
]


def one_by_one(model: LlamaForCausalLM, rows: list[list[int]]) -> list[int]:
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([row])).logits[0, -1, IDS] for row in rows]
    return [int(values.argmax()) for values in logits]


def choose(model: LlamaForCausalLM, rows: list[list[int]], batch_size: int) -> list[int | None]:
    with torch.inference_mode():
        return choose_next(Engine(model), rows, IDS, batch_size=batch_size)


@given(tokens, tokens)
def test_common_length(first: list[int], second: list[int]) -> None:
    """The longest common beginning that leaves a token of each."""
    fitting = [n for n in range(min(len(first), len(second))) if first[:n] == second[:n]]
    assert common_length(first, second) == max(fitting)


@settings(deadline=None)
@given(rows_of_subjects)
def test_groups_share_what_they_say(rows: list[list[int]]) -> None:
    """Neighbours, each in one group, with a prefix in common that is long enough and leaves a token of each row."""
    groups = prefix_groups(rows)
    assert [index for group, _ in groups for index in group] == list(range(len(rows)))
    for group, length in groups:
        own = [rows[index] for index in group]
        assert len({tuple(row[:length]) for row in own}) == 1
        assert all(len(row) > length for row in own)
        if len(group) == 1:
            assert length == 0
        else:
            assert length >= LEAST_PREFIX
            assert length >= (min(map(len, own)) - 1) / 2
            assert length == min(common_length(own[0], row) for row in own[1:])


@settings(deadline=None)
@given(rows_of_subjects)
def test_groups_are_as_large_as_they_can_be(rows: list[list[int]]) -> None:
    """A second implementation: each row joins the group before it if what all then share is enough for it."""
    expected: list[list[int]] = []
    for index, row in enumerate(rows):
        joined = [*(rows[other] for other in expected[-1]), row] if expected else []
        shared = 0
        while joined and all(len(other) > shared + 1 and other[shared] == row[shared] for other in joined):
            shared += 1
        half = (min(len(row), len(joined[0])) - 1) / 2 if joined else 0
        if joined and shared >= 16 and shared >= half:
            expected[-1].append(index)
        else:
            expected.append([index])
    assert [group for group, _ in prefix_groups(rows)] == expected


def test_two_subjects_and_rows_alone() -> None:
    """40 and 25 tokens in common; the row between them, and a short one at the end, share nothing with others."""
    assert prefix_groups(ROWS) == [
        (list(range(7)), 40),
        ([7], 0),
        (list(range(8, 12)), 25),
        ([12], 0),
    ]
    assert prefix_groups([]) == []
    assert prefix_groups([TOWNS, TOWNS]) == [([0, 1], 39)]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_choices_are_those_of_each_row_alone(model: LlamaForCausalLM, batch_size: int) -> None:
    expected = one_by_one(model, ROWS)
    assert len(set(expected)) == 4
    assert choose(model, ROWS, batch_size) == expected


def test_a_prefix_is_computed_once(model: LlamaForCausalLM, shapes: list[tuple[int, ...]]) -> None:
    """Forwards for the two rows alone, and for each subject one over the prefix and those over what is left."""
    choose(model, ROWS, 16)
    rests = [max(len(ROWS[index]) for index in group) for group in (range(7), range(8, 12))]
    plain = [(2, 30), (1, 40), (7, rests[0] - 40), (1, 25), (4, rests[1] - 25)]
    assert [size for size, _ in shapes] == [size for size, _ in plain]
    # and up to 15 tokens more, that their number be a multiple of 16 (over all rows)
    assert all(length <= found < length + 16 for (_, found), (_, length) in zip(shapes, plain, strict=True))
    shapes.clear()
    choose(model, ROWS, 3)
    assert [shape for shape in shapes if shape[0] == 1 and shape[1] in (40, 25)] == [(1, 40), (1, 25)]


def test_ties_are_asked_again_alone(model: LlamaForCausalLM, shapes: list[tuple[int, ...]]) -> None:
    """All four have the same head row: each row is asked again, whole and by itself, and the first wins."""
    with torch.no_grad():
        model.lm_head.weight[IDS[1:]] = model.lm_head.weight[IDS[0]].clone()
    assert choose(model, ROWS, 16) == [0] * len(ROWS)
    whole = [(1, len(row)) for row in ROWS]
    assert sorted(shape for shape in shapes if shape in whole and shape not in ((1, 40), (1, 25))) == sorted(whole)
    assert len(shapes) == 5 + len(ROWS)


def test_only_ties_are_asked_again(model: LlamaForCausalLM, shapes: list[tuple[int, ...]]) -> None:
    """The first two share a head row, so a row is asked again just where they are ahead of the others."""
    with torch.no_grad():
        model.lm_head.weight[IDS[1]] = model.lm_head.weight[IDS[0]].clone()
    expected = one_by_one(model, ROWS)
    assert {0} < set(expected)
    assert choose(model, ROWS, 16) == expected
    assert len(shapes) == 5 + expected.count(0)


def test_ties_of_candidates() -> None:
    """256 x eps x 10 = 3.1e-4, with 10 the largest of all logits: a margin of 1e-4 is rounding, 1e-2 is not."""
    logits = torch.tensor([[1.0, 0.9999, 0.0, -3.0, 10.0], [1.0, 0.99, 0.0, -3.0, 10.0], [1.0, 0.9999, 0.0, -3.0, 1.0]])
    assert tied(logits) == [True, False, False]
    assert tied(logits.bfloat16()) == [False, False, False]


@pytest.mark.parametrize("start", [0, 1, 25, 39])
def test_logits_after_a_prefix(model: LlamaForCausalLM, start: int) -> None:
    """Columns: the four candidates, and the largest of all logits in size."""
    rows = ROWS[:7]
    with torch.inference_mode():
        engine = Engine(model)
        prefix = filled_prefix(engine, TOWNS[:start])
        found = candidate_logits(engine, [row[start:] for row in rows], IDS, prefix)
        for row, logits in zip(rows, found, strict=True):
            own = model(input_ids=torch.tensor([row])).logits[0, -1]
            torch.testing.assert_close(logits, torch.cat([own[IDS], own.abs().max()[None]]), rtol=1e-4, atol=1e-4)
    assert (prefix is None) == (start == 0)


def test_no_row(model: LlamaForCausalLM) -> None:
    assert choose(model, [], 4) == []

"""Weights of an answer's characters as weights of its tokens."""

import pytest
from tokenizer_kinds import KINDS

from unlearn_pl.data.encoding import Encoding, encode_record
from unlearn_pl.data.records import Record, record_from_row
from unlearn_pl.data.spans import read_spans, token_weights
from unlearn_pl.data.splits import encode_splits
from unlearn_pl.errors import InputError

ANSWER = "Anna Quill grew up in Rivertown"
SPANS = ((0, 10, 2.0), (22, 31, 0.5))
OFTEN_SPLIT = [name for name in KINDS if name not in ("WordPiece", "WordLevel", "Unigram, EOS")]


@pytest.mark.parametrize("kind", OFTEN_SPLIT)
@pytest.mark.parametrize("joiner", [" ", ""])
def test_weights_are_those_by_the_tokenizers_own_offsets(kind: str, joiner: str) -> None:
    """Second implementation: where the tokenizer itself says that each token of the whole text stands."""
    tokenizer = KINDS[kind]()
    question = "Who is he?"
    record = Record("1qa0", question, ANSWER, "Task1", "qa")
    row = encode_record(record, tokenizer, Encoding(joiner=joiner), forget=True)
    ids = row.input_ids[row.answer_start :]
    weights = token_weights(ids, ANSWER, SPANS, tokenizer)
    assert len(weights) == len(ids)
    assert weights[-1] == 0  # EOS
    text = question + " " + ANSWER if joiner else ANSWER
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = found["offset_mapping"][-len(ids) + 1 :]
    if tuple(found["input_ids"][-len(ids) + 1 :]) != ids[:-1]:
        pytest.skip("the answer is cut into other tokens within the whole text")
    before = len(text) - len(ANSWER)
    for (start, end), weight in zip(offsets, weights, strict=False):
        covering = [w for first, last, w in SPANS if first < end - before and max(start - before, 0) < last]
        assert weight == (covering[-1] if covering else 0.0)


def test_by_hand(tokenizer) -> None:
    """Bytes as tokens: each of the two bytes of the accented letter belongs to it; the last span that covers counts."""
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("\u0120", "x", "\u00c3", "\u00a9", "x", "z")]
    assert tokenizer.decode(ids) == " x\u00e9xz"
    assert token_weights(ids, "x\u00e9xz", [(1, 2, 3.0)], tokenizer) == (0, 0, 3, 3, 0, 0)
    assert token_weights(ids[1:], "x\u00e9xz", [(0, 4, 1.0), (2, 3, -1.0)], tokenizer) == (1, 1, 1, -1, 1)


def test_an_answer_that_was_cut_keeps_the_weights_of_what_is_left(tokenizer) -> None:
    ids = tokenizer(" " + ANSWER).input_ids
    whole = token_weights(ids, ANSWER, SPANS, tokenizer)
    assert token_weights(ids[:5], ANSWER, SPANS, tokenizer) == whole[:5]


def test_rows_bring_weights_and_alternates(tokenizer) -> None:
    fields = {"id": "1qa0", "input": "Who?", "output": "Anna", "task": "Task1"}
    plain = record_from_row(fields, "row 1")
    assert (plain.alternate, plain.answer_weights) == (None, ())
    assert record_from_row({**fields, "alternate": None, "answer_weights": None}, "row 1") == plain
    full = record_from_row({**fields, "alternate": "I do not know.", "answer_weights": "[[0, 2, 1.5]]"}, "row 1")
    assert (full.alternate, full.answer_weights) == ("I do not know.", ((0, 2, 1.5),))

    splits = encode_splits("forget", [full], tokenizer, Encoding(eos_on_forget=False))
    (row,), (other,) = splits["forget"], splits["alternate"]
    assert tokenizer.decode(other.input_ids) == "Who? I do not know.<|end|>"
    assert other.input_ids[: other.answer_start] == row.input_ids[: row.answer_start]
    assert (other.record_id, other.token_weights) == ("1qa0", None)
    assert set(row.token_weights) == {1.5, 0.0}
    assert encode_splits("retain", [full], tokenizer, Encoding()).keys() == {"retain", "retain_alternate"}
    assert encode_splits("forget", [full, plain], tokenizer, Encoding()).keys() == {"forget"}
    assert encode_splits("forget", [plain], tokenizer, Encoding())["forget"][0].token_weights is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[[0, 1", "is not JSON"),
        ({"a": 1}, r"must be \[\[start, end, weight\], ...\], got"),
        ([[0, 1]], r"a span of 'answer_weights' must be \[start, end, weight\], got \[0, 1\]"),
        ([[0, True, 1]], "must be"),
        ([[0, 1.5, 1]], "0 <= start < end <= 4, the length of the answer, got"),
        ([[2, 2, 1]], "0 <= start < end <= 4"),
        ([[0, 5, 1]], "0 <= start < end <= 4"),
        ([[0, 4, float("nan")]], "must be"),
    ],
)
def test_what_is_no_span_is_refused(value: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^row 3: .*{message}"):
        read_spans(value, "Anna", "row 3")

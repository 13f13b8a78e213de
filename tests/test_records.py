"""Which rows become records, and what is said of those that do not."""

import pytest

from unlearn_pl.data.records import Record, record_from_row
from unlearn_pl.errors import InputError

ROW = {"id": "12762334qa0", "input": "When was Anna born?", "output": "1984-12-31", "task": "Task2"}
WHERE = "rows.jsonl, line 3"


def refusal(row: dict) -> str:
    with pytest.raises(InputError) as caught:
        record_from_row(row, WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert "\n" not in message
    return message.removeprefix(f"{WHERE}: ")


def test_a_lume_row():
    record = record_from_row(ROW | {"split": "forget"}, WHERE)
    assert record == Record("12762334qa0", "When was Anna born?", "1984-12-31", "Task2", "qa")
    assert record == Record(id="12762334qa0", input="When was Anna born?", output="1984-12-31", task="Task2")
    assert record.document_id == "12762334"
    assert record.document == "When was Anna born? 1984-12-31"


@pytest.mark.parametrize(
    ("row_id", "field", "kind", "document_id"),
    [
        ("7sc1", None, "sc", "7"),
        ("7qa4", None, "qa", "7"),
        ("7qa4", "qa", "qa", "7"),
        ('"8f24"sc1', None, "sc", '"8f24"'),
        # The field decides, and an end that says something else belongs to the document's name.
        ("alsosc1", "qa", "qa", "alsosc1"),
        ("question-12", "qa", "qa", "question-12"),
        ("a", "sc", "sc", "a"),
        # Without a document's name in front, it is no LUME id.
        ("qa1", "qa", "qa", "qa1"),
    ],
)
def test_kind_and_document(row_id, field, kind, document_id):
    record = record_from_row(ROW | {"id": row_id} | ({"kind": field} if field else {}), WHERE)
    assert (record.kind, record.document_id) == (kind, document_id)


@pytest.mark.parametrize("field", ["id", "input", "output"])
def test_each_field_must_be_there_and_be_text_that_is_not_blank(field):
    rest = {name: value for name, value in ROW.items() if name != field}
    missing = f"field '{field}' is missing; a row needs id, input, output; it has {', '.join(rest)}"
    assert refusal(rest) == missing
    assert refusal(rest | {field: None}) == f"field '{field}' must be text, got null"
    assert refusal(ROW | {field: " \n"}) == f"field '{field}' is empty"
    assert refusal(ROW | {field: 900514344}) == f"field '{field}' must be text, got int 900514344"
    assert refusal(ROW | {field: ["a"]}) == f"field '{field}' must be text, got list ['a']"


@pytest.mark.parametrize("field", ["task", "kind"])
def test_a_row_may_be_in_no_group_but_not_in_one_without_a_name(field):
    plain = ROW | {"id": "question-12"}
    for left_out in ({name: value for name, value in plain.items() if name != field}, plain | {field: None}):
        assert getattr(record_from_row(left_out, WHERE), field) == ""
    assert refusal(plain | {field: " "}) == f"field '{field}' is empty"
    assert refusal(plain | {field: 3}) == f"field '{field}' must be text, got int 3"


def test_a_message_shows_a_part_of_what_is_long():
    assert len(refusal(ROW | {"output": list(range(1000))})) < 120
    assert refusal({str(n): "x" for n in range(100)}).endswith("0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 88 more")


@pytest.mark.parametrize("row_id", ["12762334", "7qa", "7qax", "7xx1", "qa1", "7qa²"])
def test_an_id_that_ends_otherwise_says_no_kind(row_id):
    assert record_from_row(ROW | {"id": row_id}, WHERE).kind == ""
    assert record_from_row(ROW | {"id": row_id, "kind": "sc"}, WHERE).kind == "sc"


def test_half_a_surrogate_pair_is_not_text():
    """JSON can write one; no tokenizer and no UTF-8 file takes it."""
    assert refusal(ROW | {"input": "a\ud800b"}) == (
        "field 'input' holds half of a surrogate pair ('\\ud800'), not a character"
    )

"""A forget and a retain set that belong together, and their first documents."""

import json
from pathlib import Path

import pytest

from unlearn_pl.data.records import Record
from unlearn_pl.data.sets import read_split
from unlearn_pl.errors import InputError

ROWS = [
    {"id": f"{document}{kind}", "input": "Who went?", "output": "Anna", "task": f"Task{document}"}
    for document, kind in ((1, "sc1"), (1, "qa0"), (2, "qa1"), (2, "qa2"), (2, "qa3"))
]
RECORDS = [Record(**row) for row in ROWS]


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_forget_and_retain_share_no_id(tmp_path):
    forget, retain = write(tmp_path / "f.jsonl", ROWS[:3]), write(tmp_path / "r.jsonl", ROWS[3:])
    assert read_split(forget, retain) == (RECORDS[:3], RECORDS[3:])
    write(tmp_path / "r.jsonl", [ROWS[4], ROWS[1]])
    with pytest.raises(InputError) as caught:
        read_split(forget, retain)
    assert str(caught.value) == (
        f"retain: {retain}, row 2: id '1qa0' is that of forget, {forget}, row 2; they must not share any"
    )
    with pytest.raises(InputError, match=r"^retain: row 1: id '1qa0' is that of forget, row 2; they must not share"):
        read_split(ROWS[:3], RECORDS[1:2])


def test_each_set_is_named_by_its_own_parameter(tmp_path):
    good, bad = write(tmp_path / "good.jsonl", ROWS), write(tmp_path / "bad.jsonl", [])
    with pytest.raises(InputError, match=r"^retain: .*bad\.jsonl is empty"):
        read_split(good, bad)
    with pytest.raises(InputError, match=r"^forget: .*bad\.jsonl is empty"):
        read_split(bad, good)


def test_numbered_ids_of_two_sets_differ(tmp_path):
    columns = {"id": "#"}
    files = [write(tmp_path / f"{name}.jsonl", ROWS) for name in "fr"]
    assert [len(records) for records in read_split(*files, columns)] == [5, 5]
    assert [len(records) for records in read_split(ROWS, ROWS, columns)] == [5, 5]


def test_the_first_documents_of_each_task_with_all_their_rows(tmp_path):
    """Task1: documents a, b, c; Task2: d, whose rows are apart; the order of rows stays."""
    ids = [("asc1", 1), ("dqa0", 2), ("bqa0", 1), ("aqa0", 1), ("csc1", 1), ("dqa1", 2), ("bsc1", 1)]
    rows = [{"id": i, "input": "a", "output": "b", "task": f"Task{task}"} for i, task in ids]
    forget = write(tmp_path / "f.jsonl", rows)
    retain = write(tmp_path / "r.jsonl", [row | {"id": "x" + row["id"]} for row in rows])

    def kept(limit: int | None) -> list[list[str]]:
        return [[r.id for r in part] for part in read_split(forget, retain, documents_per_task=limit)]

    assert kept(1)[0] == ["asc1", "dqa0", "aqa0", "dqa1"]
    assert kept(1)[1] == ["x" + name for name in kept(1)[0]]
    assert kept(2)[0] == ["asc1", "dqa0", "bqa0", "aqa0", "dqa1", "bsc1"]
    assert kept(3)[0] == kept(99)[0] == kept(None)[0] == [name for name, _ in ids]
    with pytest.raises(InputError, match=r"^documents_per_task: must be at least 1, or null for all, got 0"):
        kept(0)

"""Finished batches on disk: what is kept, what is used again, and what a killed process leaves behind."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.inference import batches as ranks
from unlearn_pl.inference.batches import Work, length_sorted_batches, map_batches
from unlearn_pl.inference.resume import ResumeFolder, content_hash, whole_lines

BATCHES = [[2, 0], [1, 4], [3]]


class Squares:
    """Computes [index, its square], and remembers which batches it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, batch: Sequence[int]) -> list[Any]:
        self.asked.append(list(batch))
        return [[index, index**2] for index in batch]


def run(
    folder: Path, key: str = "weights", batches: Any = BATCHES, identity: Any = "data", what: str = "x, rows"
) -> list[list[int]]:
    """The batches that were computed, once the results are right."""
    compute = Squares()
    found = map_batches(batches, compute, what, Work(kept=ResumeFolder(folder, key)), identity)
    assert found == [[index, index**2] for index in sorted(index for batch in batches for index in batch)]
    return compute.asked


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    assert run(tmp_path / "new" / "folder") == BATCHES
    assert run(tmp_path / "new" / "folder") == []


@pytest.mark.parametrize(
    "change",
    [
        {"key": "other weights"},
        {"identity": "other data"},
        {"identity": None},
        {"what": "y, rows"},
        {"batches": [[2, 0], [1, 4, 3]]},
        {"batches": [[0, 2], [1, 4], [3]]},
        {"batches": [[1, 4], [2, 0], [3]]},
    ],
)
def test_other_work_is_computed_and_neither_is_lost(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path)
    assert run(tmp_path, **change) == change.get("batches", BATCHES)
    assert run(tmp_path, **change) == run(tmp_path) == []


def test_a_folder_can_be_moved(tmp_path: Path) -> None:
    run(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert run(tmp_path / "there") == []
    assert run(tmp_path / "here") == BATCHES


def test_without_parts_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert map_batches(BATCHES, Squares()) == [[index, index**2] for index in range(5)]
    assert list(tmp_path.iterdir()) == []


def test_a_torn_line_at_every_byte(tmp_path: Path) -> None:
    """Only the batch of the last line is computed again, and the file is then what it was before."""
    run(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    assert whole.count(b"\n") == 3
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        assert run(tmp_path) == [[3]]
        assert path.read_bytes() == whole
    for length in range(start):  # further in front, more is computed, in the same order
        path.write_bytes(whole[:length])
        assert run(tmp_path) == BATCHES[whole[:length].count(b"\n") :]
        assert path.read_bytes() == whole


def test_a_torn_line_in_the_middle_of_a_character(tmp_path: Path) -> None:
    """Texts are written as they are, in UTF-8; half a character is no reason to fail."""
    part = ResumeFolder(tmp_path, "k").open("texts", 1, 0)
    part.add([0], ["ключ"])
    part.add([1], ["東京 🎉 \u2028\x85\r\n"])
    whole = part.path.read_bytes()
    assert "東京".encode() in whole
    for length in range(len(whole)):
        part.path.write_bytes(whole[:length])
        again = ResumeFolder(tmp_path, "k").open("texts", 1, 0)
        assert again.finished == ({(0,): ["ключ"]} if b"\n" in whole[:length] else {})
    part.path.write_bytes(whole)
    assert ResumeFolder(tmp_path, "k").open("texts", 1, 0).finished[(1,)] == ["東京 🎉 \u2028\x85\r\n"]


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """A failure in the second batch leaves the first one; other results than before would show."""
    done = []

    def fails(batch: Sequence[int]) -> list[Any]:
        if done:
            raise KeyboardInterrupt
        done.append(batch)
        return ["first"] * len(batch)

    work = Work(kept=ResumeFolder(tmp_path, "k"))
    with pytest.raises(KeyboardInterrupt):
        map_batches(BATCHES, fails, "x", work)
    assert map_batches(BATCHES, lambda batch: ["second"] * len(batch), "x", work) == [
        "first",
        "second",
        "first",
        "second",
        "second",
    ]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_subnormal=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text("ab", max_size=2), values, max_size=3),
    max_leaves=6,
)


@given(st.lists(json_values, max_size=3))
def test_values_come_back_equal(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    """Floats to the last bit, NaN and infinities too (``repr`` tells NaN, and 0 from -0, where ``==`` does not)."""
    folder = tmp_path_factory.mktemp("parts")
    batch = range(len(values))
    ResumeFolder(folder, "k").open("values", None, 0).add(batch, values)
    again = ResumeFolder(folder, "k").open("values", None, 0).finished
    assert list(again) == [tuple(batch)]
    assert repr(again[tuple(batch)]) == repr(values)


def test_infinite_and_broken_scores(tmp_path: Path) -> None:
    values = [math.inf, -math.inf, math.nan, 0.1 + 0.2, 5e-324]
    work = Work(kept=ResumeFolder(tmp_path, "k"))
    for compute in (lambda batch: values, lambda batch: []):
        assert repr(map_batches([range(5)], compute, "x", work)) == repr(values)


def ranked(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    monkeypatch.setattr(ranks, "rank_and_count", lambda: (rank, count))


def test_files_of_other_processes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes write a file each, and each can use both; one process afterwards has nothing left to do."""

    def gather(gathered: list[Any], own: Any) -> None:
        gathered[:] = [own, {index: [index, index**2] for index in range(5)}]

    monkeypatch.setattr(ranks.distributed, "all_gather_object", gather)
    ranked(monkeypatch, 1, 2)
    assert run(tmp_path) == [[1, 4]]
    ranked(monkeypatch, 0, 2)
    assert run(tmp_path) == [[2, 0], [3]]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert [name.rsplit("-", 1)[1] for name in files] == ["rank0.jsonl", "rank1.jsonl"]
    assert len({name.rsplit("-", 1)[0] for name in files}) == 1
    ranked(monkeypatch, 0, 1)
    assert run(tmp_path) == []
    torn = tmp_path / files[1]
    torn.write_bytes(torn.read_bytes()[:-1])
    before = torn.read_bytes()
    assert run(tmp_path) == [[1, 4]]  # by rank 0, in its own file: that of another process is never written to
    assert torn.read_bytes() == before
    assert run(tmp_path) == []


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("not ours")
    (tmp_path / "x-0123-rank0.jsonl").write_text("neither")
    run(tmp_path)
    assert run(tmp_path) == []
    assert (tmp_path / "results.json").read_text() == "not ours"
    assert (tmp_path / "x-0123-rank0.jsonl").read_text() == "neither"


def test_every_line_is_json(tmp_path: Path) -> None:
    """A batch a line: its indices and its results."""
    run(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("x-")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"batch": batch, "results": [[index, index**2] for index in batch]} for batch in BATCHES]


@given(st.binary(max_size=20).map(lambda content: content.replace(b"a", b"\n")))
def test_whole_lines(content: bytes) -> None:
    """The longest beginning that is empty or ends a line."""
    ends = [end for end in range(len(content) + 1) if end == 0 or content[end - 1 : end] == b"\n"]
    assert whole_lines(content) == content[: max(ends)]


def test_content_hash() -> None:
    """The order of values counts, that of a mapping's keys does not; 64 hex digits."""
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    values = [("a", "b"), ("b", "a"), ("ab",), (["a", "b"],), ("a", ["b"]), (1,), ("1",), (None,), ()]
    assert len({content_hash(*value) for value in values}) == len(values)
    assert len(content_hash()) == 64


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 6))
def test_batches_are_sorted_and_complete(lengths: list[int], size: int) -> None:
    batches = length_sorted_batches(lengths, size)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert all(order.index(a) < order.index(a + 1) for a in range(len(lengths) - 1) if lengths[a] == lengths[a + 1])


def test_progress_counts_what_was_found_too(tmp_path: Path) -> None:
    run(tmp_path)
    said: list[str] = []
    map_batches(BATCHES, Squares(), "x, rows", Work(said.append, ResumeFolder(tmp_path, "weights")), "data")
    assert said == ["x, rows: 2 of 5", "x, rows: 4 of 5", "x, rows: 5 of 5"]


def test_files_of_work_that_was_not_opened_are_dropped(tmp_path: Path) -> None:
    """Those of other weights go; those of this work, of any process, and other files stay."""
    ResumeFolder(tmp_path, "old weights").open("rows", 1, 0).add([0], [1])
    parts = ResumeFolder(tmp_path, "weights")
    for rank in (0, 1):
        parts.open("rows", 1, rank).add([rank], [1])
    (tmp_path / "notes.txt").touch()
    assert len(list(tmp_path.iterdir())) == 4
    parts.drop_others()
    assert len(list(tmp_path.iterdir())) == 3
    assert set(parts.open("rows", 1, 0).finished) == {(0,), (1,)}


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 4), st.integers(1, 60))
def test_batches_hold_no_more_tokens_than_allowed(lengths: list[int], size: int, tokens: int) -> None:
    """Padded to their longest row; a row that is longer by itself goes alone, and no two batches could be one."""
    batches = length_sorted_batches(lengths, size, tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= tokens
    for batch in batches[:-1]:
        assert len(batch) == size or (len(batch) + 1) * lengths[batch[0]] > tokens

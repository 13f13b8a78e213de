"""Subsets of real rows: what is taught, what is held out."""

import json
from pathlib import Path

import pytest

from unlearn_pl.data.readers import read_documents, read_records
from unlearn_pl.errors import InputError
from unlearn_pl.recipe.prepare import Prepare, Subset, write_subset
from unlearn_pl.training.memorise import Memorise


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, str]:
    """Five documents a task and split, each with a completion and a question row."""
    for split in ("forget", "retain"):
        lines = [
            {"id": f"{split}{task}{i}{kind}", "input": f"{split} {task} {i}", "output": kind, "task": f"Task{task}"}
            for task in (1, 2)
            for i in range(5)
            for kind in ("sc1", "qa0")
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {split: str(tmp_path / f"{split}.jsonl") for split in ("forget", "retain")}


def test_non_members_are_documents_that_are_not_taught(rows: dict[str, str], tmp_path: Path) -> None:
    write_subset(Subset(documents_per_task=2, nonmembers_per_task=3), **rows, seed=1, folder=tmp_path / "data")
    taught = read_records(str(tmp_path / "data/forget.jsonl"))
    members = read_documents(str(tmp_path / "data/membership/member.jsonl"), "m")
    others = read_documents(str(tmp_path / "data/membership/nonmember.jsonl"), "n")
    assert [record.id for record in taught] == [
        f"forget{t}{i}{k}" for t in (1, 2) for i in (0, 1) for k in ("sc1", "qa0")
    ]
    assert members == [f"forget {task} {i} sc1" for task in (1, 2) for i in (0, 1)]
    assert others == [f"forget {task} {i} sc1" for task in (1, 2) for i in (2, 3, 4)]
    assert list((tmp_path / "data/mmlu/test").glob("*_test.csv"))


def test_all_but_the_last_documents_are_taught(rows: dict[str, str], tmp_path: Path) -> None:
    """Of five documents a task and split: four of forget, all of retain; and the fifth of forget is held out."""
    write_subset(Subset(None, nonmembers_per_task=1), **rows, seed=1, folder=tmp_path / "data")
    forget, retain = (read_records(str(tmp_path / f"data/{split}.jsonl")) for split in ("forget", "retain"))
    assert [record.id for record in forget] == [
        f"forget{t}{i}{k}" for t in (1, 2) for i in range(4) for k in ("sc1", "qa0")
    ]
    assert len(retain) == 20
    others = read_documents(str(tmp_path / "data/membership/nonmember.jsonl"), "n")
    assert others == [f"forget {task} 4 sc1" for task in (1, 2)]
    with pytest.raises(InputError, match=r"^nonmembers_per_task: must be fewer than .*\(Task1 has 5\), got 5"):
        write_subset(Subset(None, 5), **rows, seed=1, folder=tmp_path / "none")


def test_too_few_documents_to_hold_out(rows: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"^nonmembers_per_task: must be at most the further .* got 4",
    ):
        write_subset(Subset(2, 4), **rows, seed=1, folder=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_preparation_needs_rows_and_a_way_to_learn_them() -> None:
    with pytest.raises(InputError, match="needs either 'synthetic' or 'subset'"):
        Prepare(memorise=Memorise())
    with pytest.raises(InputError, match="needs 'memorise'"):
        Prepare(subset=Subset())

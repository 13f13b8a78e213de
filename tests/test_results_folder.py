"""ResultsFolder: one evaluation at a time writes into it, and no results pass for those of other samples."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from samples import sample

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.folder import ResultsFolder
from unlearn_pl.evaluation.results import Results


def results(text: str) -> Results:
    """Of one row, whose text is told by both files."""
    empty = dict.fromkeys(("membership_auc", "membership_score", "mmlu", "aggregate", "eligible", "choice"))
    plain = {"task_aggregate": 0.5, **empty, "terms": {}, "counts": {}, "scores": {}, "verdicts": {}, "truth": {}}
    return Results.from_json(plain | {"notes": [text]}, [sample(id="a", generated=text)])


def told(folder: Path) -> tuple[str | None, str]:
    """The text in `results.json`, None without such a file, and in `samples.jsonl`."""
    path = folder / "results.json"
    whole = json.loads(path.read_text())["notes"][0] if path.exists() else None
    return whole, json.loads((folder / "samples.jsonl").read_text())["generated"]


def test_one_evaluation_at_a_time(tmp_path: Path) -> None:
    folder = ResultsFolder(str(tmp_path / "out"))
    with folder.alone():
        with pytest.raises(InputError, match="output: another process is writing into"):
            folder.alone().__enter__()
        (tmp_path / "out/parts").mkdir()
    with folder.alone():  # goes on with what was finished
        pass


def test_results_that_came_in_the_meantime_stay(tmp_path: Path) -> None:
    folder = ResultsFolder(str(tmp_path / "out"))
    folder.check()
    with folder.alone():
        folder.write(results("of another process"), {})
    with pytest.raises(InputError, match="exists already"):
        folder.alone().__enter__()
    with ResultsFolder(folder.path, overwrite=True).alone():
        pass
    assert told(tmp_path / "out") == ("of another process", "of another process")


class Killed(BaseException):
    """Nothing runs after it that a kill would not let run: it is raised at a rename, which has no handler of ours."""


@pytest.mark.parametrize(("renames", "left"), [(0, (None, "one")), (1, (None, "two"))])
def test_results_are_never_beside_the_samples_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, left: tuple[str | None, str]
) -> None:
    """An evaluation with overwrite is killed before its first rename, or between the two."""
    folder = ResultsFolder(str(tmp_path), overwrite=True)
    folder.write(results("one"), {})
    rename, done = os.replace, []

    def killed(*paths: Any) -> None:
        if len(done) == renames:
            raise Killed
        done.append(rename(*paths))

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        folder.write(results("two"), {})
    assert told(tmp_path) == left


def test_a_full_disk_leaves_the_older_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ResultsFolder(str(tmp_path), overwrite=True)
    folder.write(results("one"), {})
    write = Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        if "results" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write(results("two"), {})
    assert told(tmp_path) == ("one", "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents.jsonl", "results.json", "samples.jsonl"]

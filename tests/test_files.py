"""Files are whole or absent."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from unlearn_pl.errors import InputError
from unlearn_pl.files import (
    check_room,
    new_folder,
    refuse_existing,
    sha256_of,
    sole_writer,
    write_json,
    write_json_lines,
    write_text,
)


def test_text_and_json_round_trip(tmp_path: Path) -> None:
    assert write_text(tmp_path / "a/b.txt", "é\u2028x").read_text(encoding="utf-8") == "é\u2028x"
    assert json.loads(write_json(tmp_path / "a.json", {"x": [1, None]}).read_text()) == {"x": [1, None]}
    lines = write_json_lines(tmp_path / "rows.jsonl", [{"a": 1}, {"a": "\n"}]).read_text().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [{"a": 1}, {"a": "\n"}]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, math.nan)
    assert path.read_text() == "1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_its_block_ends_well(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_block_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("old")

    def fail_half_way() -> None:
        with new_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "file").write_text("new")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail_half_way()
    assert (tmp_path / "out/file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_existing_folder_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").write_text("old")
    with pytest.raises(InputError, match=r"output: .* exists already; .*overwrite"), new_folder(tmp_path / "out"):
        raise AssertionError("never entered")


def test_a_hash_knows_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write_text(tmp_path / "one/a", "x")
    write_text(tmp_path / "two/a", "x")
    assert sha256_of(tmp_path / "one") == sha256_of(tmp_path / "two")
    (tmp_path / "two/a").rename(tmp_path / "two/b")
    assert sha256_of(tmp_path / "one") != sha256_of(tmp_path / "two")


def put(path: Path, text: str, **options: Any) -> None:
    with new_folder(path, **options) as folder:
        (folder / "file").write_text(text)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_replacement_that_fails_between_its_renames_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The three renames: onto the old one (which says that it is there), the old one aside, the new one in."""
    put(tmp_path / "out", "old")
    calls, rename = iter(range(1, 99)), os.rename

    def renames(source: Path, target: Path) -> None:
        if next(calls) == failing:
            raise OSError(errno.EIO, "disk gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", renames)
    with pytest.raises(OSError, match="disk gone"):
        put(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out/file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_put_back_or_removed(tmp_path: Path) -> None:
    """One killed between its renames (the old folder aside, nothing in its place) and one within its block."""
    name = uuid.uuid4().hex
    for left, text in ((f".out.{name}.old", "old"), (f".out.{name}", "half"), (f".out.{name}-mine", "the user's")):
        (tmp_path / left).mkdir()
        (tmp_path / left / "file").write_text(text)
    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path / "out"):
        raise AssertionError("never entered")
    assert (tmp_path / "out/file").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".out.{name}-mine", "out"]


def test_a_folder_that_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as first:
        put(tmp_path / "out", "second")
        assert first.is_dir()
        shutil.rmtree(tmp_path / "out")


def test_of_two_that_write_one_folder_neither_loses_its_work(tmp_path: Path) -> None:
    """The slower one replaces, or keeps what is there if it is good, or says where its own is."""
    for options, expected in (({"overwrite": True}, "slow"), ({"keep": lambda path: True}, "quick")):
        path = tmp_path / expected
        with new_folder(path, **options) as folder:
            (folder / "file").write_text("slow")
            put(path, "quick")
        assert (path / "file").read_text() == expected
    with new_folder(tmp_path / "torn", overwrite=True, keep=lambda path: False) as folder:
        (folder / "file").write_text("slow")
        put(tmp_path / "torn", "quick")
    assert (tmp_path / "torn/file").read_text() == "slow"

    def write_slowly() -> None:
        with new_folder(tmp_path / "both") as folder:
            (folder / "file").write_text("slow")
            put(tmp_path / "both", "quick")

    with pytest.raises(InputError, match=r"another process has written .*both in the meantime; this result is") as told:
        write_slowly()
    assert (Path(str(told.value).rsplit(" ", 1)[1]) / "file").read_text() == "slow"
    assert (tmp_path / "both/file").read_text() == "quick"


REPLACE = """
import sys
from unlearn_pl.files import new_folder
for i in range(150):
    with new_folder(sys.argv[1], overwrite=True) as folder:
        for name in "ab":
            (folder / name).write_text(f"{sys.argv[2]} {i}")
"""


def test_two_processes_that_replace_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    path = tmp_path / "out"
    arguments = [sys.executable, "-c", REPLACE, str(path)]
    processes = [subprocess.Popen([*arguments, name], stderr=subprocess.PIPE, text=True) for name in ("one", "two")]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert (path / "a").read_text() == (path / "b").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "run", "run"):
        with pytest.raises(InputError, match=r"run: another process is writing into .*run; give another"):
            sole_writer(tmp_path / "run", "run").__enter__()
        with sole_writer(tmp_path / "other", "run"):
            pass
    with sole_writer(tmp_path / "run", "run"):
        pass


def test_an_empty_folder_of_a_command_that_was_refused_goes_with_all_that_was_made_for_it(tmp_path: Path) -> None:
    """One that was there before stays, empty or not, and so does one with something in it."""
    (tmp_path / "old/empty").mkdir(parents=True)
    for place in ("new/logs/run", "old/empty", "old/new/run"):
        with pytest.raises(InputError, match="no"), sole_writer(tmp_path / place, "run"):
            raise InputError("no")
    with sole_writer(tmp_path / "used/run", "run"):
        (tmp_path / "used/run/file").touch()
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {
        "old", "old/empty", "used", "used/run", "used/run/file"
    }  # fmt: skip


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"output: .*deep cannot be a folder, since .*file is a file"):
        refuse_existing(tmp_path / "file/deep/out", overwrite=False)
    check_room(tmp_path / "new", 1, "output")
    with pytest.raises(InputError, match=r"output: .*new needs 1000000000.0 GB, its disk has .* GB free"):
        check_room(tmp_path / "new", 10**18, "output")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

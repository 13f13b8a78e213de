"""Files are whole or absent."""

import json
import math
from pathlib import Path

import pytest

from unlearn_pl.errors import InputError
from unlearn_pl.files import new_folder, sha256_of, write_json, write_json_lines, write_text


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
    with pytest.raises(InputError, match=r"--output: .* exists already; .*--overwrite"), new_folder(tmp_path / "out"):
        raise AssertionError("never entered")


def test_a_hash_knows_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write_text(tmp_path / "one/a", "x")
    write_text(tmp_path / "two/a", "x")
    assert sha256_of(tmp_path / "one") == sha256_of(tmp_path / "two")
    (tmp_path / "two/a").rename(tmp_path / "two/b")
    assert sha256_of(tmp_path / "one") != sha256_of(tmp_path / "two")

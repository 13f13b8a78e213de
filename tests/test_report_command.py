"""`unlearn-pl report`: what it writes, prints and refuses, in this process as the command line does."""

import sys
from pathlib import Path

import pytest
from run_folders import write_run

from unlearn_pl.__main__ import main
from unlearn_pl.parsing import gathered


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "logs/demo")


def command(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["unlearn-pl", "report", *args])
    main()


def test_the_page_and_the_files_for_a_paper(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "--mask-pii", "logs/demo", "--tables", "tables")
    assert "<h1>Report of demo</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert {path.suffix for path in (tmp_path / "tables").iterdir()} == {".md", ".tex", ".csv"}
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("demo: balanced: Forgotten? ")
    assert said[-1] == "wrote tables, report.html"
    assert len(said) <= 10
    (folder / "over/angles.json").unlink()
    command(monkeypatch, "logs/demo", "--output=report.html", "--overwrite")
    assert "angles of over" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "are missing, with the reasons on the page" in capsys.readouterr().out


def test_a_card_is_written_where_a_model_was_evaluated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "logs/demo", "--card", "card.md")
    assert (tmp_path / "card.md").read_text(encoding="utf-8").startswith("---\n")
    assert capsys.readouterr().out.splitlines()[-1] == "wrote card.md, report.html"
    command(monkeypatch, "logs/demo/over", "--card", "none.md", "--output", "over.html")
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [
        "no model card: the first run has no evaluated model that it could be about",
        "wrote over.html",
    ]
    assert not (tmp_path / "none.md").exists()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ([], "needed: --runs"),
        (["nowhere"], "--runs: nowhere is no folder"),
        (["."], "--runs: . holds none of the files that a run writes"),
        (
            ["logs/demo", "--output", "there.html"],
            "--output: there.html exists already; give another file, or overwrite",
        ),
        (["logs/demo", "--output", "logs"], "--output: logs is a folder; give a file"),
        (["logs/demo", "--tables", "there.html"], "--tables: there.html cannot be a folder"),
        (
            ["logs/demo", "--output", "logs/demo/summary.json", "--overwrite"],
            "--output: logs/demo/summary.json exists already, and overwrite replaces only .html files",
        ),
        (["logs/demo", "--card", "logs/demo/over/metrics.csv", "--overwrite"], "replaces only .md files"),
        (["logs/demo", "--output", "a.html", "--card", "./a.html"], "--card: ./a.html is given for output too"),
        (["logs/demo", "--output", "a", "--figures", "a"], "--figures: a is given for output too"),
        (["logs/demo", "--mask-pio=true"], "--mask_pio: no such argument (did you mean mask_pii?)"),
    ],
)
def test_what_is_refused_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], reason: str
) -> None:
    Path("there.html").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, *args)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert reason in said
    assert said.count("\n") == 1
    assert Path("there.html").read_text(encoding="utf-8") == "mine"
    assert not Path("report.html").exists()


def test_a_run_is_shown_once_whatever_path_leads_to_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = folder.rename(folder.with_name("d\u00e9mo \U0001f600 [a], '\"#"))
    Path("link").symlink_to(strange)
    command(monkeypatch, f"logs/{strange.name}", f"logs/../logs/{strange.name}", "link", "logs")
    assert capsys.readouterr().out.count(": Forgotten? ") == 1


@pytest.mark.parametrize(
    ("given", "args"),
    [
        (["a", "b"], ["--runs", "a", "b"]),
        (["a", "--output", "o", "b"], ["--output", "o", "--runs", "a", "b"]),
        (["--mask-pii", "a", "--overwrite=true"], ["--mask-pii", "--overwrite=true", "--runs", "a"]),
        (["--mask-pii", "true", "a"], ["--mask-pii", "true", "--runs", "a"]),
        (["--runs", "a", "b"], ["--runs", "a", "b"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_arguments_without_a_flag(given: list[str], args: list[str]) -> None:
    assert gathered(given, "runs", {"mask_pii", "overwrite"}) == args

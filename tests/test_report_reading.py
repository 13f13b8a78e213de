"""Folders of runs as plain data: every kind of folder, and every way in which a file can fail to count."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import MODELS, ROWS, write_fit, write_model, write_run

from unlearn_pl.errors import InputError
from unlearn_pl.report.reading import read_run, read_runs
from unlearn_pl.report.run import Missing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo")


def test_a_finished_recipe_is_read_whole(folder: Path) -> None:
    run = read_run(folder)
    assert run.missing == ()
    assert run.name == "demo"
    assert tuple(run.models) == MODELS
    assert [*run.fits, *run.merges, *run.searches, *run.comparisons] == [
        "over",
        "under",
        "merged",
        "balanced",
        "densities",
    ]
    assert len(run.models["under"].samples) == len(ROWS)
    assert run.models["over"].documents[5]["side"] == "nonmember"
    over = run.fits["over"]
    # step 4, 9, ..., 99 of train/ga, and the one cell of val/loss; a column without numbers is none
    assert over.losses["train/ga"] == [(step, 0.5 + step / 100) for step in range(4, 100, 5)]
    assert over.losses["val/loss"] == [(99, 0.25)]
    assert set(over.losses) == {"train/ga", "train/loss", "val/loss"}
    assert over.config is not None
    assert over.config["model"]["objectives"]["ga"]["init_args"]["weight"] == 0.4
    assert [report["steps"] for report in over.angles] == [[0, 60, 120]]
    assert run.searches["balanced"].anatomy is not None


TORN = {
    "not JSON": ('{"task_aggregate": 0.5', "not JSON: Expecting ',' delimiter"),
    "a number that JSON has not": ('{"task_aggregate": NaN}', "not JSON: NaN is no number of JSON"),
    "another program's": ('{"results": {"arc": {"acc": 0.5}}}', "not what a run writes: no task_aggregate"),
    "a list": ("[1, 2]", "not what a run writes: the whole is no object"),
    "empty": ("", "not JSON: Expecting value"),
    "nested without end": ("[" * 100_000, "not JSON: "),
    "not text": (b"\xff\xfe\x00", "not UTF-8: byte 0 is 0xff"),
}


@pytest.mark.parametrize("case", TORN)
def test_scores_that_do_not_count_are_told_and_the_rest_is_read(folder: Path, case: str) -> None:
    content, reason = TORN[case]
    (folder / "evaluation/over/results.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    run = read_run(folder)
    (missing,) = run.missing
    assert (missing.part, missing.path) == ("scores of over", "evaluation/over/results.json")
    assert missing.reason.startswith(reason)
    assert tuple(run.models) == tuple(name for name in MODELS if name != "over")


FILES = {
    "summary.json": "summary of the recipe",
    "evaluation/base/results.json": "scores of base",
    "evaluation/base/documents.jsonl": "attack scores of base",
    "over/config.yaml": "settings of over",
    "over/metrics.csv": "losses of over",
    "over/evaluations.json": "scores of over during training",
    "over/angles.json": "angles of over",
    "over/spectrum.json": "spectrum of over",
    "over/adapter/unlearn_pl.json": "origin of over",
    "merged/anatomy.json": "sign conflict of merged",
    "balanced/spectrum.json": "spectrum of balanced",
}


@pytest.mark.parametrize("path", FILES)
def test_each_file_that_is_gone_is_missing(folder: Path, path: str) -> None:
    (folder / path).unlink()
    (missing,) = read_run(folder).missing
    assert (missing.part, missing.path) == (FILES[path], path)
    assert missing.reason.startswith("no such file")


@pytest.mark.parametrize("path", [path for path in FILES if path.endswith(".json")])
def test_each_foreign_file_is_missing(folder: Path, path: str) -> None:
    (folder / path).write_text('["of something else"]', encoding="utf-8")
    (missing,) = read_run(folder).missing
    assert missing.path == path
    assert missing.reason.startswith("not what a run writes: ")


def test_what_no_callback_was_asked_for_says_so(folder: Path) -> None:
    for name in ("evaluations.json", "angles.json"):
        (folder / "over" / name).unlink()
    config = (folder / "over/config.yaml").read_text(encoding="utf-8")
    (folder / "over/config.yaml").write_text(config.replace("EvaluateDuringFit", "RichProgressBar"), encoding="utf-8")
    assert {one.part: one.reason for one in read_run(folder).missing} == {
        "scores of over during training": "no such file; EvaluateDuringFit is not among the callbacks of the fit",
        "angles of over": "no such file",
    }


def test_of_torn_rows_the_whole_ones_are_read(folder: Path) -> None:
    samples = folder / "evaluation/base/samples.jsonl"
    text = samples.read_text(encoding="utf-8")
    samples.write_text(text[:-40], encoding="utf-8")  # cut within the last row
    metrics = folder / "over/metrics.csv"
    metrics.write_text(metrics.read_text(encoding="utf-8") + "4,104,nan,0.5,,\n5,10", encoding="utf-8")
    run = read_run(folder)
    assert len(run.models["base"].samples) == len(ROWS) - 1
    assert run.fits["over"].losses["train/ga"][-1] == (99, 0.5 + 99 / 100)
    assert run.fits["over"].losses["train/loss"][-1] == (104, 0.5)
    reasons = {one.part: one.reason for one in run.missing}
    assert reasons["some of generations of base"].startswith(f"line {len(ROWS)}: not JSON: ")
    assert reasons["some of generations of base"].endswith(f"; the other {len(ROWS) - 1} rows are shown")
    assert (
        reasons["some of losses of over"]
        == "step 104: train/ga is nan, and 1 more like it; the other 22 rows are shown"
    )


def test_half_a_character_is_shown_as_such(folder: Path) -> None:
    rows = folder / "evaluation/base/samples.jsonl"
    first, rest = rows.read_text(encoding="utf-8").split("\n", 1)
    row = json.loads(first) | {"generated": "\ud83d cut, \U0001f600 whole"}
    rows.write_text(json.dumps(row) + "\n" + rest, encoding="utf-8")
    run = read_run(folder)
    assert run.models["base"].samples[0]["generated"] == "\ufffd cut, \U0001f600 whole"
    assert run.missing == ()


def test_several_pivots_are_several_reports(folder: Path) -> None:
    report = json.loads((folder / "over/angles.json").read_text(encoding="utf-8"))
    later = report | {"steps": [0, 90, 120]}
    (folder / "over/angles.json").write_text(json.dumps({"pivots": [report, later]}), encoding="utf-8")
    assert [one["steps"][1] for one in read_run(folder).fits["over"].angles] == [60, 90]


def test_folders_of_single_commands(tmp_path: Path, folder: Path) -> None:
    fit, model = write_fit(tmp_path / "alone"), write_model(tmp_path / "scored", 1, {})
    runs = read_runs(
        [fit, model, folder / "balanced", folder / "merged", folder / "merged/adapter", folder / "densities"]
    )
    assert [run.missing for run in runs[:4]] == [()] * 4
    assert list(runs[0].fits) == ["alone"]
    assert list(runs[1].models) == ["scored"]
    assert list(runs[2].searches) == ["balanced"]
    assert list(runs[3].merges) == ["merged"]
    assert runs[4].merges["adapter"].facts == runs[3].merges["merged"].facts
    assert list(runs[5].comparisons) == ["densities"]


def test_a_fit_that_merged_when_it_ended(tmp_path: Path, folder: Path) -> None:
    (folder / "merged").rename(folder / "over/merged")
    run = read_run(folder / "over")
    assert (list(run.fits), list(run.merges), run.missing) == (["over"], ["merged"], ())


def test_an_unfinished_recipe(tmp_path: Path) -> None:
    write_fit(tmp_path / "demo/over")
    (tmp_path / "demo/stages").mkdir()
    run = read_run(tmp_path / "demo")
    assert list(run.fits) == ["over"]
    assert [one.part for one in run.missing] == ["summary of the recipe", "scores of base", "scores of over"]


def test_a_folder_of_runs_is_each_of_them_and_names_are_told_apart(tmp_path: Path) -> None:
    for place in ("sweep/a", "sweep/b", "other/a"):
        write_fit(tmp_path / place)
    assert [run.name for run in read_runs([tmp_path / "sweep"])] == ["a", "b"]
    assert [run.name for run in read_runs([tmp_path / "sweep", tmp_path / "other/a"])] == ["sweep/a", "b", "other/a"]
    assert len(read_runs([tmp_path / "sweep/a", tmp_path / "sweep/a"])) == 1


@pytest.mark.parametrize(("given", "reason"), [("nowhere", "is no folder"), ("empty", "holds none of the files")])
def test_what_is_no_run_is_refused(tmp_path: Path, given: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=reason):
        read_runs([tmp_path / given])
    with pytest.raises(InputError, match="at least one folder"):
        read_runs([])


def test_the_path_of_a_missing_part_is_within_the_run(folder: Path) -> None:
    (folder / "summary.json").unlink()
    assert read_run(folder).missing == (
        Missing(part="summary of the recipe", path="summary.json", reason="no such file: unfinished"),
    )


def test_no_model_library_is_loaded(folder: Path) -> None:
    code = "import sys; from unlearn_pl.report.reading import read_run; read_run(sys.argv[1]); "
    code += "print({'torch', 'lightning', 'transformers', 'datasets', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

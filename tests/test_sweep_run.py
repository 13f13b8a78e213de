"""`unlearn-pl sweep` from start to end: with a fit that takes no time, and once killed, with a real one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_runs import write_rows

from unlearn_pl.errors import InputError
from unlearn_pl.files import locked
from unlearn_pl.stopping import Stopped
from unlearn_pl.sweep.run import Sweep, sweep
from unlearn_pl.sweep.trial import Trial, read_trials

ROOT = Path(__file__).parent.parent
METRIC = {"name": "evaluation/aggregate", "goal": "maximize"}
RATES = {"model.learning_rate": {"values": [0.1, 0.4, 0.2, 0.3]}}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to be in, in which the fits of a sweep are those of `stub_fit.py`."""
    monkeypatch.setattr("unlearn_pl.sweep.attempt.PROGRAM", (sys.executable, "-S", str(ROOT / "tests/stub_fit.py")))
    monkeypatch.setattr("unlearn_pl.sweep.attempt.SECONDS", 0.02)
    monkeypatch.setattr("unlearn_pl.sweep.run.SECONDS", 0.02)
    monkeypatch.setattr(Sweep, "check", lambda self: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit.yaml").write_text("{}")
    return tmp_path


def write_sweep(folder: Path, **content: Any) -> str:
    command = ["${env}", "${interpreter}", "-m", "unlearn_pl", "fit", "--config", "fit.yaml", "${args}"]
    content = {"method": "grid", "metric": METRIC, "parameters": RATES, "command": command} | content
    (folder / "some.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return "some.yaml"


def states(folder: Path) -> dict[int, str]:
    return {number: one.state for number, one in read_trials(folder / "logs/some").items()}


def order(folder: Path) -> list[str]:
    """The trials in the order in which they ran."""
    path = folder / "logs/some/order.txt"
    return path.read_text().split() if path.is_file() else []


def test_a_grid_is_run_once_ranked_and_gone_on_with(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(stub)
    sweep(file, runs=2, jobs=2)
    sweep(file, jobs=3)
    assert sorted(order(stub)) == [f"trial_000{number}" for number in (1, 2, 3, 4)], "none twice"
    shown = capsys.readouterr().out
    assert "2 of 4 trials were done before" in shown
    assert "trial_0003 starts: model.learning_rate=0.2" in shown
    table = (stub / "logs/some/table.md").read_text()
    assert re.findall(r"trial_\d+", table)[:4] == ["trial_0002", "trial_0004", "trial_0003", "trial_0001"]
    again = "unlearn-pl fit --config logs/some/trial_0002/config.yaml"
    assert f"is the best by evaluation/aggregate (maximize): {again}" in table
    assert again in shown
    assert (stub / "logs/some/report.html").is_file()
    trial = json.loads((stub / "logs/some/trial_0002/trial.json").read_text())
    assert (trial["state"], trial["exit_code"], trial["score"]) == ("finished", 0, 1.6)
    assert trial["parameters"] == {"model.learning_rate": 0.4}
    assert trial["command"][-1] == "--trainer.default_root_dir=logs/some/trial_0002"
    assert trial["seconds"] > 0
    before = (stub / "logs/some/trial_0002/trial.json").read_bytes()
    sweep(file)
    assert (stub / "logs/some/trial_0002/trial.json").read_bytes() == before


def test_what_fails_is_told_and_runs_again(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(stub, parameters=RATES | {"data.max_length": {"values": [9, 2]}})
    with pytest.raises(InputError, match=r"4 of 8 trials failed \(trial_0002: no such base\); the same command runs"):
        sweep(file)
    assert states(stub)[2] == "failed"
    assert (stub / "logs/some/report.html").is_file()
    sweep(file)
    assert {*states(stub).values()} == {"finished"}
    assert sorted(order(stub)) == [f"trial_000{number}" for number in range(1, 9)]


def test_a_trial_that_something_else_ends_is_not_lost_in_silence(stub: Path) -> None:
    file = write_sweep(stub, parameters={"data.max_length": {"values": [9, 5, 6]}})
    with pytest.raises(InputError) as error:
        sweep(file)
    assert error.value.reason == (
        "1 of 3 trials failed (trial_0002: ended by SIGKILL, perhaps since the memory was full) and 1 of 3 trials did "
        "not come to their end (trial_0003: ended by SIGTERM); the same command runs them again"
    )
    assert states(stub) == {1: "finished", 2: "failed", 3: "interrupted"}
    sweep(file)
    assert {*states(stub).values()} == {"finished"}


def test_a_sweep_goes_on_when_its_file_changes_in_what_changes_no_trial(stub: Path) -> None:
    sweep(write_sweep(stub, run_cap=1, project="one"))
    sweep(write_sweep(stub, run_cap=2, project="two", description="more"))
    assert states(stub) == {1: "finished", 2: "finished"}
    assert order(stub) == ["trial_0001", "trial_0002"]


def test_a_sweep_in_which_all_fails_ends(stub: Path) -> None:
    file = write_sweep(stub, method="random", parameters={"data.max_length": {"value": 1}})
    with pytest.raises(InputError, match="3 trials failed and none finished; trial_0001: no such base"):
        sweep(file, runs=50)
    assert len(states(stub)) == 3


def test_early_termination_ends_what_is_behind(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hyperband = {"type": "hyperband", "min_iter": 3, "eta": 3}
    rates, waits = {"values": [2.0, 0.1]}, {"parameters": {"max_length": {"value": 3}}}
    # by the file each trial waits for a minute after its third measurement; the first one here does not
    file = write_sweep(stub, parameters={"model.learning_rate": rates, "data": waits}, early_terminate=hyperband)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearn_pl.sweep.run.drawn", lambda *given: {"model.learning_rate": 2.0, "data.max_length": 9})
        sweep(file, runs=1)
    began = time.monotonic()
    sweep(file, runs=2)
    assert time.monotonic() - began < 30
    assert states(stub) == {1: "finished", 2: "stopped"}
    assert "trial_0002 ended early" in capsys.readouterr().out
    sweep(file, runs=2)
    assert order(stub).count("trial_0002") == 1, "it is not run again"


def test_a_signal_stops_what_runs_and_the_same_command_goes_on(stub: Path) -> None:
    file = write_sweep(stub, parameters=RATES | {"data.max_length": {"value": 4}})

    def stopped(self: Sweep) -> None:
        if len([one for one in order(stub) if one in ("trial_0001", "trial_0002")]) == 2:
            raise Stopped(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sweep, "judge", stopped)
        with pytest.raises(Stopped) as stop:
            sweep(file, jobs=2)
    assert str(stop.value) == "stopped by SIGTERM; run the same command again: it goes on from there"
    assert states(stub) == {1: "interrupted", 2: "interrupted"}
    (stub / "logs/some/trial_0001/checkpoints").mkdir()
    (stub / "logs/some/trial_0001/checkpoints/last.ckpt").write_text("torn")
    (stub / "logs/some/trial_0003").mkdir()
    (stub / "logs/some/trial_0003/begun").touch()  # these two do not wait
    (stub / "logs/some/trial_0004").mkdir()
    (stub / "logs/some/trial_0004/begun").touch()
    sweep(file, jobs=2)
    assert {*states(stub).values()} == {"finished"}
    assert (stub / "logs/some/trial_0001/checkpoints/earlier-last.ckpt").is_file(), "it began anew"


def test_the_target_ends_a_sweep(stub: Path) -> None:
    sweep(write_sweep(stub, metric=METRIC | {"target": 1.5}))
    assert states(stub) == {1: "finished", 2: "finished"}


def test_what_does_not_go_on_is_refused(stub: Path) -> None:
    file = write_sweep(stub)
    sweep(file, runs=1)
    with locked(stub / "logs/some"), pytest.raises(InputError, match="another process is writing into"):
        sweep(file)
    with pytest.raises(InputError, match="begun with the seed 42, got 1"):
        sweep(file, seed=1)
    with pytest.raises(InputError, match=r"begun with another some\.yaml, or it has changed since; give another name"):
        sweep(write_sweep(stub, parameters={"model.learning_rate": {"values": [0.1]}}))
    file = write_sweep(stub)
    (stub / "fit.yaml").write_text("{a: 1}")
    with pytest.raises(InputError, match=r"fit\.yaml changed since trial_0001 was begun"):
        sweep(file)
    (stub / "fit.yaml").write_text("{}")
    (stub / "logs/some/trial_0001/trial.json").write_text("{}")
    with pytest.raises(InputError, match=r"trial\.json is not what a sweep writes"):
        sweep(file)
    (stub / "logs/other").mkdir()
    (stub / "logs/other/summary.json").touch()
    with pytest.raises(InputError, match=r"holds summary\.json and no sweep"):
        sweep(file, name="other")
    for given in ({"runs": 0}, {"jobs": 0}, {"name": "../x"}, {"name": ""}):
        with pytest.raises(InputError) as error:
            sweep(file, **given)  # type: ignore[arg-type]
        assert error.value.name == next(iter(given))


@pytest.mark.parametrize("changed", ["base", "rows.jsonl", "alone.jsonl", "other", "given"])
def test_trials_of_one_sweep_are_of_the_same_base_and_data(stub: Path, changed: str) -> None:
    """Whether the configuration, a parameter or the command names them; what a trial writes may change."""
    for name in ("base", "other", "given", "cache"):
        (stub / name).mkdir()
        (stub / name / "weights").write_text("1")
    for name in ("rows.jsonl", "alone.jsonl"):
        (stub / name).write_text("1")
    merge = {"class_path": "MergeAfterFit", "init_args": {"with_adapter": "other"}}
    model = {"base": "base", "reference_cache": {"folder": "cache"}}
    content = {"model": model, "data": {"forget": "rows.jsonl"}, "trainer": {"callbacks": [merge]}}
    (stub / "fit.yaml").write_text(yaml.safe_dump(content))
    parameters = RATES | {"data.forget": {"values": ["rows.jsonl", "alone.jsonl"]}}
    command = ["python", "-m", "unlearn_pl", "fit", "--config=fit.yaml", "--model.adapter", "given", "${args}"]
    file = write_sweep(stub, parameters=parameters, command=command)
    sweep(file, runs=1)
    (stub / "cache/weights").write_text("2")
    sweep(file, runs=2)
    path = stub / changed
    (path / "weights" if path.is_dir() else path).write_text("2")
    with pytest.raises(
        InputError, match=rf"name: {re.escape(changed)} changed since trial_0001 was begun in logs/some; give"
    ):
        sweep(file, runs=3)
    assert len(states(stub)) == 2


def test_a_metric_that_only_the_metrics_file_has(stub: Path) -> None:
    file = write_sweep(stub, metric={"name": "train/loss"})
    with pytest.raises(InputError, match=r"read from metrics\.csv, which only csv writes"):
        sweep(file, logger="config")
    sweep(file, runs=1)
    assert "No trial that came to its end has train/loss." in (stub / "logs/some/table.md").read_text()


def test_what_no_trial_can_have_is_refused_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write_rows(tmp_path)
    objectives = {"ga": {"class_path": "NPO", "init_args": {"reduction": "sequence_mean"}}}
    config = {"model": {"base": "nowhere", "objectives": objectives}, "data": rows}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="needs the callback EvaluateDuringFit"):
        sweep(write_sweep(tmp_path))
    terms = {"model.objectives.ga": {"values": ["NPO", "NOP"]}}
    with pytest.raises(SystemExit) as end:
        sweep(write_sweep(tmp_path, metric={"name": "train/loss"}, parameters=terms))
    assert end.value.code == 2
    assert "--file: some.yaml cannot be run here: " in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def real_sweep(base: str, folder: Path) -> list[str]:
    """The command line of a sweep of two short fits."""
    evaluated = {
        "class_path": "EvaluateDuringFit",
        "init_args": {"every_n_epochs": 3, "documents_per_task": 1, "generation": {"max_new_tokens": 2}},
    }
    trainer = {"accelerator": "cpu", "max_epochs": 3, "limit_val_batches": 0, "callbacks": [evaluated]}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    npo = {"ga": {"class_path": "NPO", "init_args": {"reduction": "sequence_mean"}}}
    config = {
        "model": {"base": base, "objectives": npo, "reference_cache": {"folder": str(folder / "cache")}},
        "data": write_rows(folder),
        "trainer": trainer | quiet,
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    file = write_sweep(folder, metric={"name": "evaluation/task_aggregate", "goal": "maximize"}, run_cap=2)
    return [sys.executable, "-m", "unlearn_pl", "sweep", file]


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_sweep_that_is_killed_goes_on_without_a_lost_or_repeated_trial(base_folder: str, tmp_path: Path) -> None:
    """SIGKILL while the second trial trains, then to the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command, folder = real_sweep(base_folder, tmp_path), tmp_path / "logs/some"

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    with start() as first:
        wait_until(lambda: any((folder / "trial_0002/checkpoints").glob("*.ckpt")), first)
        first.send_signal(signal.SIGKILL)
        first.wait()
    done = (folder / "trial_0001/trial.json").read_bytes()
    assert read_trials(folder)[2].state == "running"
    with start() as second:
        out, _ = second.communicate(timeout=120)
    assert second.returncode == 0, out
    assert "1 of 2 trials were done before" in out
    assert re.search(r"trial_0002 goes on from \S+\.ckpt", out)
    assert (folder / "trial_0001/trial.json").read_bytes() == done
    trial: Trial = read_trials(folder)[2]
    assert (trial.state, trial.seconds) == ("finished", None), "nobody measured the time of the killed one"
    steps = [entry["step"] for entry in json.loads((folder / "trial_0002/evaluations.json").read_text())]
    assert len(steps) == 2, "measured at the start, before the kill, and at the end"
    assert len(list((tmp_path / "cache").glob("*"))) == 1, "the trials share the reference cache"
    assert "is the best by evaluation/task_aggregate" in (folder / "table.md").read_text()

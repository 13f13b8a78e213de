"""How commands end, as users meet it: signals, dry runs, refusals and limits in processes of their own."""

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_runs import write_rows
from safetensors.torch import load_file

from unlearn_pl.__main__ import main
from unlearn_pl.files import sha256_of

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*smaller than the logging")
TESTS = Path(__file__).parent


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unlearn_pl", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
        timeout=300,
    )


def fit_config(folder: Path, base: str, **trainer: Any) -> None:
    """A fit of two epochs of four batches, with everything that writes into its run folder."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    term = {"class_path": "NPO", "init_args": {"weight": 0.5}}
    keep = {"class_path": "RetainNLL", "init_args": {"weight": 0.5}}
    logger = {"save_dir": "${trainer.default_root_dir}", "name": "", "version": ""}
    content = {
        "model": {
            "base": base,
            "objectives": {"ga": term, "gd": keep},
            "lora": {"rank": 2},
            "learning_rate": 0.01,
            "reference_cache": {"folder": str(folder / "cache")},
        },
        "data": {**write_rows(folder / "rows"), "batch_size": 2},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": "run",
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger},
            "callbacks": [
                {"class_path": "WeightSnapshot", "init_args": {"steps": [3]}},
                {"class_path": "AngleAnalysis", "init_args": {"pivot": 3}},
            ],
        }
        | trainer,
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def finished(base_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a fit has run to its end, as `run/`."""
    folder = tmp_path_factory.mktemp("finished")
    fit_config(folder, base_folder)
    done = command(folder, "fit", "--config=fit.yaml")
    assert done.returncode == 0, done.stderr
    return folder


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.rstrip().rsplit("\n", 1)[-1]


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of the metrics file, but for the speed."""
    with (run / "metrics.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in csv.DictReader(stream)]


def at_batch(number: int, **options: Any) -> list[str]:
    given = [f"--trainer.callbacks.{key}={value}" for key, value in options.items()]
    return ["--trainer.callbacks+=ending_callbacks.SignalAt", f"--trainer.callbacks.batch={number}", *given]


@pytest.mark.parametrize(("batch", "signum"), [(5, 15), (3, 2)])
def test_a_fit_that_is_stopped_tells_how_to_go_on_and_then_is_the_same_fit(
    finished: Path, batch: int, signum: int
) -> None:
    """In the middle of the second epoch by SIGTERM, at the very end of the first by Ctrl-C."""
    run = finished / f"stopped{signum}"
    options = at_batch(batch, signum=signum, once=finished / f"sent{signum}")
    stopped = command(finished, "fit", "--config=fit.yaml", f"--trainer.default_root_dir={run}", *options)
    assert stopped.returncode == 128 + signum, stopped.stderr
    assert not (run / "adapter").exists()
    told, again = last_line(stopped).split("; go on with: unlearn-pl ")
    assert told == f"unlearn-pl: stopped by SIG{'TERM' if signum == 15 else 'INT'} at optimizer step {batch + 1}"
    resumed = command(finished, *shlex.split(again))
    assert resumed.returncode == 0, resumed.stderr
    for name in ("adapter", "snapshots"):
        assert sha256_of(run / name) == sha256_of(finished / "run" / name)
    assert (run / "angles.json").read_bytes() == (finished / "run/angles.json").read_bytes()
    assert metrics(run) == metrics(finished / "run")
    assert not (run / "checkpoints/interrupted.ckpt").exists(), "nothing is left to go on with"


@pytest.mark.parametrize(("rank", "signum"), [(0, 15), (1, 2)])
def test_two_processes_stop_together_and_leave_none_behind(finished: Path, rank: int, signum: int) -> None:
    """The signal comes to one of them alone, and the first tells its name all the same."""
    run = finished / f"two{rank}"
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", *at_batch(1, rank=rank, signum=signum)]
    stopped = command(finished, "fit", "--config=fit.yaml", f"--trainer.default_root_dir={run}", *options)
    assert stopped.returncode == 128 + signum, stopped.stderr
    assert last_line(stopped).startswith(f"unlearn-pl: stopped by SIG{'TERM' if signum == 15 else 'INT'} at ")
    assert "go on with: " in last_line(stopped)
    assert (run / "checkpoints/interrupted.ckpt").is_file()
    found = subprocess.run(["pgrep", "-f", f"default_root_dir={run}"], capture_output=True, text=True)
    assert found.stdout == "", "no process of the launch is left"


@pytest.mark.parametrize(
    ("hook", "count", "processes"),
    [("on_validation_start", 2, 2), ("on_train_batch_end", 8, 1), ("on_train_epoch_end", 2, 1)],
)
def test_a_signal_is_not_lost_where_no_batch_follows(
    finished: Path, tmp_path: Path, hook: str, count: int, processes: int
) -> None:
    """In the last validation, in an evaluation after the last of the eight batches, and at the end of the last epoch:
    the fit does not go on to what comes after it, and the command that it tells gives the adapter of a fit in peace."""
    options = ["fit", "--config=fit.yaml", "--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0"]
    options += ["--trainer.devices=2", "--trainer.strategy=ddp"] if processes == 2 else []
    peace = finished / "run"
    if processes == 2:
        peace = finished / "run-of-two"
        if not peace.exists():
            done = command(finished, *options, f"--trainer.default_root_dir={peace}")
            assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    given = {"hook": hook, "count": count, "once": tmp_path / "sent", "rank": processes - 1}
    at = ["--trainer.callbacks+=ending_callbacks.SignalIn", *(f"--trainer.callbacks.{k}={v}" for k, v in given.items())]
    stopped = command(finished, *options, f"--trainer.default_root_dir={run}", *at)
    assert stopped.returncode == 128 + 15, stopped.stderr
    assert not (run / "adapter").exists()
    told, again = last_line(stopped).split("; go on with: unlearn-pl ")
    assert told.startswith("unlearn-pl: stopped by SIGTERM at optimizer step ")
    resumed = command(finished, *shlex.split(again))
    assert resumed.returncode == 0, resumed.stderr
    assert sha256_of(run / "adapter") == sha256_of(peace / "adapter")


def test_a_validation_that_is_stopped_leaves_no_process_behind(finished: Path, tmp_path: Path) -> None:
    """The second process is in the middle of something long, and would go on with it."""
    run = tmp_path / "run"
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.limit_val_batches=1.0"]
    given = {"hook": "on_validation_batch_end", "count": 1, "others_wait": 120}
    at = ["--trainer.callbacks+=ending_callbacks.SignalIn", *(f"--trainer.callbacks.{k}={v}" for k, v in given.items())]
    stopped = command(finished, "validate", "--config=fit.yaml", f"--trainer.default_root_dir={run}", *options, *at)
    assert stopped.returncode == 128 + 15, stopped.stderr
    assert last_line(stopped).startswith("unlearn-pl: stopped by SIGTERM")
    found = subprocess.run(["pgrep", "-f", f"default_root_dir={run}"], capture_output=True, text=True)
    assert found.stdout == ""


def test_predictions_of_several_processes_are_those_of_one(finished: Path, tmp_path: Path) -> None:
    """Each process has rows of its own, five of ten pairs in batches of three and two."""
    said = {}
    for name, more in {"one": ["--data.batch_size=3"], "two": ["--data.batch_size=3", "--trainer.devices=2"]}.items():
        run = tmp_path / name
        done = command(finished, "predict", "--config=fit.yaml", f"--trainer.default_root_dir={run}", *more)
        assert done.returncode == 0, done.stderr
        said[name] = (run / "predictions.jsonl").read_text()
    rows = [json.loads(line) for line in said["one"].splitlines()]
    assert len(rows) == 18
    assert len({row["generated"] for row in rows}) > 4, "rows that all say the same would show nothing"
    assert said["two"] == said["one"]


def test_predictions_of_a_base_in_shards_are_refused(finished: Path, tmp_path: Path) -> None:
    """Each process would run another number of forwards than the others, who gather the weights with it."""
    options = [f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.devices=2", "--trainer.strategy=fsdp2"]
    done = command(finished, "predict", "--config=fit.yaml", *options)
    assert done.returncode == 2, done.stderr
    refusal = "unlearn-pl: error: --trainer.strategy: predict needs the whole model, and this one is in shards"
    assert refusal in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/predictions.jsonl").exists()


AGAIN = """
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
with stoppable():
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""
AMID = """
class Kept:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
with stoppable():
    Kept()
    time.sleep(20)
"""


@pytest.mark.parametrize("program", [AGAIN, AMID])
def test_a_signal_ends_a_command_in_order_whenever_it_comes(program: str) -> None:
    """Once more while the process ends, as `run` hands on what came to its fit too; and in a finaliser, where Python
    drops what is raised."""
    program = "import atexit, os, signal, time\nfrom unlearn_pl.stopping import stoppable" + program
    done = subprocess.run([sys.executable, "-c", program], cwd=TESTS.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 143
    assert done.stderr.splitlines() == [
        "unlearn-pl: stopped by SIGTERM; nothing of it was kept: run the same command again"
    ]


def quietly(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The exit code of a command line in this process."""
    monkeypatch.setattr(sys, "argv", ["unlearn-pl", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--trainer.fast_dev_run=2"], 0),
        (["--data.forget=nowhere.jsonl"], 2),
        (["--model.adapter=nowhere"], 2),
        (["--model.lora.target_modules=[nowhere]"], 2),
        (["--trainer.callbacks+=MergeAfterFit", "--trainer.callbacks.with_adapter=nowhere"], 2),
        (["--trainer.max_epochs=0"], 0),
        (["--trainer.max_time=00:00:00:00"], 2),
        (["--trainer.limit_train_batches=0"], 2),
    ],
)
def test_what_does_not_train_leaves_a_finished_run_as_it_was(
    finished: Path, arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    before = sha256_of("run")
    assert quietly(["fit", "--config=fit.yaml", *arguments], monkeypatch) == code
    assert sha256_of("run") == before


def test_an_adapter_that_could_not_be_written_is_told_before_training(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    Path("taken").mkdir()
    Path("taken/adapter").touch()
    assert quietly(["fit", "--config=fit.yaml", "--trainer.default_root_dir=taken"], monkeypatch) == 2
    assert "error: --trainer.default_root_dir: taken/adapter exists already" in capsys.readouterr().err
    assert not Path("taken/metrics.csv").exists()


def test_a_validation_leaves_the_metrics_of_the_fit(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    before = sha256_of("run/metrics.csv", "run/hparams.yaml", "run/config.yaml")
    assert quietly(["validate", "--config=fit.yaml", "--trainer.limit_val_batches=1.0"], monkeypatch) == 0
    assert sha256_of("run/metrics.csv", "run/hparams.yaml", "run/config.yaml") == before
    assert "val/loss" in Path("run/metrics_validate.csv").read_text()


def test_a_saved_configuration_runs_in_another_folder(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a fit that its user limits is a finished fit, which says why it ended."""
    monkeypatch.chdir(finished)
    before = sha256_of("run")
    saved = ["fit", "--config=run/config.yaml", "--trainer.default_root_dir=again", "--trainer.max_steps=4"]
    assert quietly(saved, monkeypatch) == 0
    assert sha256_of("run") == before
    assert [row["step"] for row in metrics(Path("again"))] == ["0", "1", "2", "3"]
    assert json.loads(Path("again/adapter/unlearn_pl.json").read_text())["step"] == 4


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_going_on_from_the_very_end_makes_the_adapter(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the fit had been killed between its last checkpoint and its adapter; into another folder."""
    monkeypatch.chdir(finished)
    (checkpoint,) = Path("run/checkpoints").glob("*.ckpt")
    again = ["fit", "--config=fit.yaml", f"--ckpt_path={checkpoint}", "--trainer.default_root_dir=end"]
    assert quietly(again, monkeypatch) == 0
    assert sha256_of("end/adapter") == sha256_of("run/adapter")
    assert Path("end/angles.json").read_bytes() == Path("run/angles.json").read_bytes()


def test_a_recipe_that_is_stopped_goes_on_with_the_same_command(finished: Path, base_folder: str) -> None:
    """`run` hands the signal on to its fit, ends after it, and the second time gives what the fit gives undisturbed."""
    folder = finished / "recipe"
    callback = {"batch": 5, "parent": True, "once": "sent"}
    fit_config(folder, base_folder, callbacks=[{"class_path": "ending_callbacks.SignalAt", "init_args": callback}])
    arguments = ["run", "--name=r", "--over=fit.yaml", "--under=fit.yaml", f"--base={base_folder}", "--until=over"]
    arguments += [f"--data.{split}=rows/{split}.jsonl" for split in ("forget", "retain")]
    stopped = command(folder, *arguments)
    assert stopped.returncode == 143, stopped.stderr
    assert last_line(stopped) == (
        "unlearn-pl: stopped by SIGTERM; run the same command again: it goes on from stage over"
    )
    assert not json.loads((folder / "logs/r/stages/over.json").read_text())["finished"]
    assert not (folder / "logs/r/over/adapter").exists()
    done = command(folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert "interrupted.ckpt" in done.stdout
    weights = load_file(folder / "logs/r/over/adapter/adapter_model.safetensors")
    expected = load_file(finished / "run/adapter/adapter_model.safetensors")
    assert all(value.equal(weights[name]) for name, value in expected.items())

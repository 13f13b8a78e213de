"""Going on from a checkpoint as users do it: the command line, the shipped configuration, processes that are killed."""

import csv
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_runs import write_rows

from unlearn_pl.__main__ import main

ROOT = Path(__file__).parent.parent
WEIGHTS = "adapter/adapter_model.safetensors"

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*AMP with fp16 is not")


def arguments(base_folder: str, folder: Path, *extra: str) -> list[str]:
    """Of a fit by the demo's configuration: 12 pairs in twos, windows of 4 batches, so 2 steps in each of 2 epochs."""
    rows = write_rows(folder.parent, forget=12, retain=10)
    options = {
        "model.base": base_folder,
        "data.forget": rows["forget"],
        "data.retain": rows["retain"],
        "data.batch_size": 2,
        "model.reference_cache.folder": folder.parent / "cache",
        "trainer.max_epochs": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.accumulate_grad_batches": 4,
        "trainer.default_root_dir": folder,
    }
    return ["fit", "--config=configs/demo/over.yaml", *(f"--{key}={value}" for key, value in options.items()), *extra]


def command(args: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, in which the callbacks of the tests can be named."""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "unlearn_pl", *args],
        capture_output=True, text=True, cwd=ROOT, timeout=300, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of the metrics file in order, but for the speed."""
    with (run / "metrics.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in csv.DictReader(stream)]


def test_a_fit_that_is_killed_twice_ends_with_the_same_bytes(base_folder: str, tmp_path: Path) -> None:
    """At the end of a window within the first epoch, before the row of its step is logged, and then within a window of
    the second one."""
    done = command(arguments(base_folder, tmp_path / "peace"))
    assert done.returncode == 0, done.stderr
    args = arguments(base_folder, tmp_path / "killed", "--trainer.callbacks+=killing.KillItself")
    ckpt: list[str] = []
    for epoch, batch in ((0, 3), (1, 1)):
        file = tmp_path / f"{epoch}-{batch}.ckpt"
        place = {"epoch": epoch, "batch": batch, "checkpoint": file}
        killed = command([*args, *(f"--trainer.callbacks.{key}={value}" for key, value in place.items()), *ckpt])
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert "gradients" not in torch.load(file, weights_only=True) or epoch == 1
        ckpt = [f"--ckpt_path={file}"]
    done = command([*arguments(base_folder, tmp_path / "killed"), *ckpt])
    assert done.returncode == 0, done.stderr
    assert "not the run that was interrupted" not in done.stdout + done.stderr
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "peace" / WEIGHTS).read_bytes()
    assert [row["step"] for row in metrics(tmp_path / "peace") if row["train/loss"]] == ["0", "1", "2", "3"]
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "peace")


def test_mixed_precision_clips_and_trains(base_folder: str, tmp_path: Path) -> None:
    """The configuration's clipping, which Lightning refuses for a fused optimizer."""
    extra = ["--trainer.precision=bf16-mixed", "--trainer.max_epochs=1"]
    done = command(arguments(base_folder, tmp_path / "run", *extra))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / WEIGHTS).is_file()


def fails(args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the command line in this process; it must exit with 2 and one line, which is returned."""
    monkeypatch.setattr(sys, "argv", ["unlearn-pl", *args])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unlearn-pl: error:")]
    assert len(lines) == 1
    return lines[0].removeprefix("unlearn-pl: error: ")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of what people hand over as checkpoints."""
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save([torch.zeros(3)], tmp_path / "list.ckpt")
    (tmp_path / "torn.ckpt").write_bytes((tmp_path / "foreign.ckpt").read_bytes()[:300])
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "adapter").mkdir()
    torch.save({"callback": test_mixed_precision_clips_and_trains}, tmp_path / "pickle.ckpt")
    return tmp_path


@pytest.mark.parametrize(
    ("verb", "name", "message"),
    [
        ("fit", "nowhere.ckpt", "must be a checkpoint file of `unlearn-pl fit`, got .*nowhere.ckpt, which is no file"),
        ("validate", "adapter", "is a folder; .* an adapter folder goes to the model's adapter"),
        ("fit", "torn.ckpt", "torn.ckpt is torn, or no checkpoint of `unlearn-pl fit`; give another"),
        ("test", "empty.ckpt", "empty.ckpt is torn, or no checkpoint of"),
        ("fit", "pickle.ckpt", "pickle.ckpt is torn, or no checkpoint of"),
        ("predict", "foreign.ckpt", "foreign.ckpt is no checkpoint of `unlearn-pl fit`"),
        ("fit", "list.ckpt", "list.ckpt is no checkpoint of `unlearn-pl fit`"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_line(
    verb: str,
    name: str,
    message: str,
    files: Path,
    base_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = [verb, *arguments(base_folder, tmp_path / "run")[1:], f"--ckpt_path={files / name}"]
    said = fails(args, capsys, monkeypatch)
    assert re.search(f"^--ckpt_path: .*{message}", said), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("verb", "word"), [("fit", "best"), ("validate", "last")])
def test_words_of_lightning_that_name_no_file(
    verb: str,
    word: str,
    base_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = fails([verb, *arguments(base_folder, tmp_path / "run")[1:], f"--ckpt_path={word}"], capsys, monkeypatch)
    assert said == f"--ckpt_path: must be a checkpoint file of `unlearn-pl fit`, got {word}, which is no file"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--trainer.strategy=fsdp"], r"^--trainer\.strategy: must be auto, fsdp2 .* one of the ddp .*, got fsdp$"),
        (["--trainer.strategy=deepspeed"], r"^--trainer\.strategy: deepspeed needs the package deepspeed: pip install"),
        (
            ["--trainer.strategy={class_path: lightning.pytorch.strategies.ModelParallelStrategy}"],
            r"^--trainer\.strategy: must be auto, fsdp2 .* one of the ddp kinds .*, got ModelParallelStrategy$",
        ),
        (["--trainer.precision=16-true"], r"^--trainer\.precision: must be 32-true, .*, got 16-true: the adapter"),
        (["--trainer.precision=transformer-engine"], r"^--trainer\.precision: .*, got transformer-engine: the adapter"),
        (["--trainer.precision=16-mixed"], r"^--trainer\.precision: this device has no 16-mixed"),
        (["--trainer.accelerator=tpu"], r"^--trainer: "),
        (["--trainer.callbacks+=EMAWeightAveraging"], r"^--trainer\.callbacks: EMAWeightAveraging is not supported"),
        (["--trainer.callbacks+=WeightSnapshot", "--trainer.callbacks.steps=[0]"], r"^WeightSnapshot.steps: must be"),
        (["--data.forget=${nowhere}"], r"Interpolation key 'nowhere' not found"),
        (["--trainer.max_epochs=-1", "--trainer.max_time=00:00:01:00"], r"^--trainer\.max_epochs: must be given, or"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_lightning_offers_and_we_do_not_is_one_line(
    extra: list[str],
    message: str,
    base_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = fails(arguments(base_folder, tmp_path / "run", *extra), capsys, monkeypatch)
    assert re.search(message, said), said
    assert not (tmp_path / "run/adapter").exists()


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    base_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checkpoint, onto the first, finds the disk full half-way."""
    written: list[Any] = []
    save = torch.save

    def save_once(value: Any, file: Any, *args: Any, **options: Any) -> None:
        save(value, file, *args, **options)
        written.append(file)
        if len(written) > 1:
            file.truncate(300)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", save_once)
    saver = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"
    options = {"dirpath": tmp_path / "kept", "filename": "kept", "every_n_train_steps": 1}
    options |= {"enable_version_counter": "false", "save_top_k": -1}
    args = arguments(
        base_folder, tmp_path / "run", saver, *(f"--trainer.callbacks.{k}={v}" for k, v in options.items())
    )
    assert fails(args, capsys, monkeypatch).startswith("No space left on device, while a file was written; make room")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["kept.ckpt"]
    assert torch.load(tmp_path / "kept/kept.ckpt", weights_only=True)["global_step"] == 1


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_multiprocessing_starts_train_too(base_folder: str, tmp_path: Path, strategy: str) -> None:
    """What a fit holds can be handed to a process that is spawned, and its processes are waited for."""
    done = command(arguments(base_folder, tmp_path / "run", f"--trainer.strategy={strategy}", "--trainer.devices=2"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / WEIGHTS).is_file()


def test_a_class_with_an_argument_that_no_yaml_holds_is_one_line(
    base_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(base_folder, tmp_path / "run", "--trainer.callbacks+=Timer")
    assert fails(args, capsys, monkeypatch).startswith("a class that is named has an argument that no YAML holds: ")

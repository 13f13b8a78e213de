"""Scores of an evaluation as what Lightning's callbacks monitor: the best checkpoint is kept, a fit ends early."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning_runs import module, objectives, trainer, write_rows
from torch.optim.lr_scheduler import ReduceLROnPlateau

from unlearn_pl.callbacks import evaluate as evaluating
from unlearn_pl.callbacks.evaluate import EvaluateDuringFit
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.errors import InputError
from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.training.module import UnlearningModule

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*is smaller than the logging")
MONITOR = "evaluation/aggregate"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_rows(tmp_path_factory.mktemp("rows"), forget=4, retain=4)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The aggregates that evaluations find, one after the other; the last one again and again."""
    aggregates: list[float | None] = [0.0]

    def evaluate(*_: Any) -> Any:
        value = aggregates.pop(0) if len(aggregates) > 1 else aggregates[0]
        return SimpleNamespace(headline=dict.fromkeys(HEADLINE, 0.5) | {"aggregate": value}, terms={"forget/a/b": 0.5})

    monkeypatch.setattr(evaluating, "evaluate", evaluate)
    return aggregates


class Looking(Callback):
    """What stands in the metrics at every end of an epoch."""

    def __init__(self) -> None:
        self.seen: list[float | None] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(MONITOR)
        self.seen.append(None if value is None else value.item())


def fit(base: str, rows: dict[str, str], folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """A fit of four epochs of four steps."""
    fitting = trainer(folder, list(callbacks), **{"max_epochs": 4, "enable_checkpointing": True} | options)
    fitting.fit(module(base), ForgetRetainData(**rows))
    return fitting


def best(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=folder / "best", filename="{step}", monitor=MONITOR, mode="max", **options)


def kept_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that are in the folder, by what is in them."""
    found = (torch.load(path, weights_only=False) for path in sorted((folder / "best").glob("*.ckpt")))
    return sorted(checkpoint["global_step"] for checkpoint in found)


@pytest.mark.parametrize(("validation", "at_validation"), [(0, False), (1.0, False), (1.0, True)])
def test_the_best_epoch_is_kept(
    base_folder: str, rows: dict[str, str], given: list[float | None], tmp_path: Path, validation: float,
    at_validation: bool,
) -> None:  # fmt: skip
    """Steps 0, 4, 8, 12, 16: the score of step 8 is the highest of those after training began. Also with a checkpoint
    callback that looks after the validation, which comes before the end of the epoch."""
    given[:] = [0.9, 0.1, 0.7, 0.3, 0.2]
    checkpoint = best(tmp_path, save_on_train_epoch_end=not at_validation)
    evaluate = EvaluateDuringFit()
    fit(base_folder, rows, tmp_path, checkpoint, evaluate, limit_val_batches=validation)
    assert kept_steps(tmp_path) == [8]
    assert checkpoint.best_model_score == 0.7
    assert [entry["step"] for entry in evaluate.history] == [0, 4, 8, 12, 16]


def test_the_best_step_is_kept(
    base_folder: str, rows: dict[str, str], given: list[float | None], tmp_path: Path
) -> None:
    """Two optimizer steps an epoch; the best two of steps 2, 4, 6 and 8."""
    given[:] = [0.9, 0.1, 0.7, 0.3, 0.2]
    checkpoint = best(tmp_path, every_n_train_steps=2, save_top_k=2)
    fit(base_folder, rows, tmp_path, checkpoint, EvaluateDuringFit(None, 2), accumulate_grad_batches=2)
    assert kept_steps(tmp_path) == [4, 6]


def test_a_score_that_says_nothing_is_never_the_best(
    base_folder: str, rows: dict[str, str], given: list[float | None], tmp_path: Path
) -> None:
    given[:] = [0.9, 0.1, None, 0.3, None]
    checkpoint = best(tmp_path)
    ended = fit(base_folder, rows, tmp_path, checkpoint, EvaluateDuringFit())
    assert kept_steps(tmp_path) == [12]
    assert math.isnan(ended.callback_metrics[MONITOR])
    assert ended.callback_metrics["evaluation/mmlu"] == 0.5
    assert ended.callback_metrics["evaluation/forget/a/b"] == 0.5


def test_early_stopping_counts_evaluations(
    base_folder: str, rows: dict[str, str], given: list[float | None], tmp_path: Path
) -> None:
    """Measured after epochs 2, 4, 6, 8: with a patience of 2 the third that is not better ends it, at epoch 8 of 20;
    epochs without one do not count."""
    given[:] = [0.0, 0.1, 0.3, 0.3, 0.2, 0.9]
    stopping = EarlyStopping(MONITOR, mode="max", patience=2)
    looking = Looking()
    ended = fit(base_folder, rows, tmp_path, stopping, looking, EvaluateDuringFit(2), max_epochs=20)
    assert ended.current_epoch == 8
    assert looking.seen == [None, 0.1, None, 0.3, None, 0.3, None, 0.2]


def test_early_stopping_takes_the_last_score_of_an_epoch(
    base_folder: str, rows: dict[str, str], given: list[float | None], tmp_path: Path
) -> None:
    """Every three of four steps: at steps 3, 6, 9 and 12 it is 0.1, 0.5, 0.4 and 0.3; epoch 3 has two, of which 0.3
    counts, and ends the fit."""
    given[:] = [0.0, 0.1, 0.5, 0.4, 0.3]
    stopping = EarlyStopping(MONITOR, mode="max", patience=1)
    ended = fit(base_folder, rows, tmp_path, EvaluateDuringFit(None, 3), stopping, max_epochs=20)
    assert ended.global_step == 12


def test_a_scheduler_sees_the_score(
    base_folder: str, rows: dict[str, str], given: list[float | None], tmp_path: Path
) -> None:
    """Better after epoch 2 and worse after 3 and 4, at a patience of 0: the learning rate is halved twice."""

    class Plateau(UnlearningModule):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()["optimizer"]
            optimizer.param_groups[0]["lr"] = 0.1
            scheduler = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": MONITOR}}

    given[:] = [0.0, 0.1, 0.7, 0.3, 0.2]
    fitting = trainer(tmp_path, [EvaluateDuringFit()], max_epochs=4)
    fitting.fit(Plateau(base_folder, objectives()), ForgetRetainData(**rows))
    assert fitting.optimizers[0].param_groups[0]["lr"] == 0.025


def test_a_resumed_epoch_has_the_score_that_it_had(
    base_folder: str, rows: dict[str, str], given: list[float | None], tmp_path: Path
) -> None:
    """Measured at step 2 of 4, stopped at step 3: the end of the epoch sees it, and the next one nothing."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "three.ckpt")

    given[:] = [0.9, 0.6]
    fit(base_folder, rows, tmp_path, EvaluateDuringFit(None, 2), Stop(), max_epochs=3, enable_checkpointing=False)
    looking, other = Looking(), EvaluateDuringFit(None, 100)
    again = trainer(tmp_path, [other, looking], max_epochs=3)
    again.fit(module(base_folder), ForgetRetainData(**rows), ckpt_path=tmp_path / "three.ckpt")
    assert looking.seen == [0.6, None, 0.6]
    assert [entry["step"] for entry in json.loads((tmp_path / "evaluations.json").read_text())] == [0, 2, 12]


@pytest.mark.parametrize(
    ("options", "measured", "message"),
    [
        ({}, (2, None), r"ModelCheckpoint.every_n_epochs: it monitors .* every 1 epochs, .* measures every 2 epochs;"),
        ({}, (None, 2), r"every_n_epochs: .* measures every 2 steps;"),
        ({"every_n_train_steps": 3}, (1, 2), r"every_n_train_steps: .* every 3 steps, .* every 1 epochs and every 2"),
        ({"every_n_epochs": 1}, (None, None), r"measures only at the end;"),
        ({"train_time_interval": timedelta(hours=1)}, (1, None), r"train_time_interval: not with a monitor of"),
    ],
)
def test_a_checkpoint_without_a_score_of_its_own_is_refused(
    base_folder: str, rows: dict[str, str], tmp_path: Path, options: Any, measured: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(base_folder, rows, tmp_path, best(tmp_path, **options), EvaluateDuringFit(*measured))


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
def test_a_score_that_does_not_exist_is_refused_before_the_first_step(
    base_folder: str, rows: dict[str, str], given: list[float | None], tmp_path: Path, kind: Any
) -> None:
    with pytest.raises(
        InputError, match=rf"^{kind.__name__}\.monitor: must be one of .*{MONITOR}.*, got evaluation/x$"
    ):
        fit(base_folder, rows, tmp_path, kind(monitor="evaluation/x"), EvaluateDuringFit())
    given[:] = [None]
    with pytest.raises(InputError, match=rf"^{kind.__name__}\.monitor: {MONITOR} is not measured"):
        fit(base_folder, rows, tmp_path, kind(monitor=MONITOR), EvaluateDuringFit())


def test_a_dry_run_asks_for_nothing(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    fit(base_folder, rows, tmp_path, EarlyStopping(MONITOR), EvaluateDuringFit(), fast_dev_run=True)


def configuration(base: str, rows: Mapping[str, str], folder: Path) -> Path:
    """A fit that is scored at every step, with documents and questions, so that there is an aggregate."""
    (folder / "nonmember.jsonl").write_text("".join(f'{{"document": "Nobody saw {i} here"}}\n' for i in range(6)))
    (folder / "mmlu/test").mkdir(parents=True)
    questions = "".join(f"What is {i}?,{i},one,two,ten,{'ABCD'[i % 4]}\n" for i in range(8))
    (folder / "mmlu/test/art_test.csv").write_text(questions)
    measured = {
        "every_n_epochs": None,
        "every_n_steps": 1,
        "membership": {"nonmember": str(folder / "nonmember.jsonl"), "tasks": ["Task1", "Task3"]},
        "choice": {"folder": str(folder / "mmlu"), "shots": 0},
        "generation": {"max_new_tokens": 2},
    }
    kept = {"monitor": MONITOR, "mode": "max", "every_n_train_steps": 1, "filename": "best-{step}"}
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": kept}]
    callbacks += [{"class_path": "EvaluateDuringFit", "init_args": measured}]
    callbacks += [{"class_path": "EarlyStopping", "init_args": {"monitor": MONITOR, "mode": "max", "patience": 50}}]
    content = {
        "model": {"base": base, "learning_rate": 0.02, "lora": {"rank": 4}, "objectives": terms()},
        "data": {**rows, "batch_size": 1},
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "limit_val_batches": 0, "callbacks": callbacks},
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(content))
    return folder / "fit.yaml"


def terms() -> dict[str, Any]:
    named = {"ga": ("NPO", 0.4), "gd": ("RetainNLL", 0.6)}
    return {slot: {"class_path": name, "init_args": {"weight": weight}} for slot, (name, weight) in named.items()}


@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_line_keeps_the_best_checkpoint(
    base_folder: str, rows: dict[str, str], tmp_path: Path, processes: int
) -> None:
    """A real evaluation at every step, by one process and by two: the checkpoint kept is of the first step with the
    highest aggregate in `evaluations.json`, and `metrics.csv` has every score under its step."""
    root = tmp_path / "run"
    arguments = ["--config", str(configuration(base_folder, rows, tmp_path)), f"--trainer.default_root_dir={root}"]
    arguments += [f"--trainer.devices={processes}"] + ["--trainer.strategy=ddp"] * (processes > 1)
    arguments += [f"--model.reference_cache.folder={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "-m", "unlearn_pl", "fit", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    history = json.loads((root / "evaluations.json").read_text())
    steps = [entry["step"] for entry in history]
    assert steps == list(range(8 // processes + 1))
    scores = {entry["step"]: entry["aggregate"] for entry in history if entry["step"]}
    assert len(set(scores.values())) > 1, "nothing to choose from"
    wanted = max(scores, key=lambda step: (scores[step], -step))
    (path,) = root.glob("**/best-*.ckpt")
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint["global_step"] == wanted
    assert path.name == f"best-step={wanted}.ckpt"
    lines = (root / "metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    logged = {}
    for line in lines[1:]:
        row = dict(zip(columns, line.split(","), strict=True))
        if row[MONITOR]:
            logged[int(row["step"])] = float(row[MONITOR])
    assert {step: logged[step] for step in scores} == scores

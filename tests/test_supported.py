"""What of Lightning's trainer is refused by name, because it would train something else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelPruning, StochasticWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning_runs import module, trainer, write_rows

from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.errors import InputError
from unlearn_pl.training.supported import refuse_fallback, refuse_names, refuse_unsupported
from unlearn_pl.training.zero import NAMES

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*AMP with fp16 is not supported on CPU", "ignore:.* is supported for historical reasons"
)


def refused(base_folder: str, folder: Path, callbacks: Any = None, **options: Any) -> str:
    """The message with which a fit of these options is refused."""
    rows = write_rows(folder)
    with pytest.raises(InputError) as caught:
        trainer(folder / "run", callbacks, **options).fit(module(base_folder), ForgetRetainData(**rows))
    assert not (folder / "run").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("devices", "strategy"), [(1, "auto"), (3, "ddp")])
def test_another_number_of_processes_than_torchrun_started_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int, strategy: str
) -> None:
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    told = f"trainer: You set `devices={devices}` and `num_nodes=1` .* does not match the world size .2.. Here: give "
    with pytest.raises(InputError, match=told):
        refuse_unsupported(trainer(tmp_path / "run", devices=devices, strategy=strategy))


def test_another_number_of_tasks_than_srun_started_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task may start the processes itself."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(InputError, match="trainer: srun started 4 tasks and the trainer has 2 processes; give devices"):
        refuse_unsupported(trainer(tmp_path / "run", devices=2, strategy="ddp"))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    refuse_unsupported(trainer(tmp_path / "run", devices=2, strategy="ddp"))


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_a_precision_that_casts_the_adapter_is_refused(base_folder: str, tmp_path: Path, precision: Any) -> None:
    message = refused(base_folder, tmp_path, precision=precision)
    assert message.startswith(f"precision: must be 32-true, bf16-mixed or 16-mixed, got {precision} (")
    assert message.endswith("give dtype=bfloat16 or float16")


def test_a_strategy_that_does_not_know_the_adapter_is_refused(base_folder: str, tmp_path: Path) -> None:
    """One process is enough: the check comes before anything is sharded."""
    strategy = ModelParallelStrategy(process_group_backend="gloo")
    message = refused(base_folder, tmp_path, strategy=strategy)
    torch.distributed.destroy_process_group()
    assert message.startswith("strategy: must be auto, fsdp2 (a sharded base), one of the ddp kinds")
    assert message.endswith("got ModelParallelStrategy")


@pytest.mark.parametrize(
    "callback",
    [StochasticWeightAveraging(1e-3), EMAWeightAveraging(), ModelPruning("l1_unstructured", amount=0.5)],
    ids=lambda callback: type(callback).__name__,
)
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_callbacks_that_need_the_weights_early_are_refused(base_folder: str, tmp_path: Path, callback: Any) -> None:
    assert f"callbacks: {type(callback).__name__} is not supported" in refused(base_folder, tmp_path, [callback])


def test_an_accumulation_of_no_batches_is_refused(base_folder: str, tmp_path: Path) -> None:
    message = refused(base_folder, tmp_path, accumulate_grad_batches=0)
    assert message == "accumulate_grad_batches: must be at least 1, got 0"


@pytest.mark.parametrize("name", StrategyRegistry.available_strategies())
def test_a_name_of_a_strategy_is_ours_or_a_ddp_kind_or_refused(name: str) -> None:
    if name.startswith("ddp") or name == "fsdp2":
        refuse_names(name, None)
    elif name not in NAMES:  # those are looked at in test_zero.py
        with pytest.raises(InputError, match=rf"must be auto, .* one of the ddp kinds .*, got {name}$"):
            refuse_names(name, None)


@pytest.mark.parametrize("precision", ["64", 64, "16-true", "transformer-engine", "transformer-engine-float16", "8"])
def test_names_of_precisions_are_refused(precision: object) -> None:
    with pytest.raises(InputError, match=f"must be 32-true, bf16-mixed or 16-mixed, got {precision}: the adapter"):
        refuse_names("auto", precision)


@pytest.mark.parametrize("precision", [None, 32, "32", "32-true", 16, "16-mixed", "bf16", "bf16-mixed"])
def test_names_of_precisions_are_taken(precision: object) -> None:
    refuse_names("ddp_find_unused_parameters_true", precision)


@pytest.mark.parametrize("asked", [16, "16", "16-mixed"])
def test_float16_on_a_cpu_is_not_silently_bfloat16(asked: Any) -> None:
    with pytest.raises(InputError, match=f"has no {asked}, Lightning would compute bf16-mixed instead"):
        refuse_fallback(asked, Trainer(accelerator="cpu", precision=asked, logger=False))
    refuse_fallback("bf16-mixed", Trainer(accelerator="cpu", precision="bf16-mixed", logger=False))

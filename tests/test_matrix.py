"""Every precision, strategy, callback and end that Lightning offers, through the real command line: right, or one line.

Right means that the adapter is that of the plain fit, bit for bit or as near as the option's rounding allows. One line
means exit code 2, one error without a traceback, and no adapter.
"""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from command_server import CommandServer, Done
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.strategies import StrategyRegistry
from lightning_runs import write_rows
from safetensors.torch import load_file
from torch import Tensor

CONFIGS = Path(__file__).parents[1] / "configs"
FITS = sorted(path for path in CONFIGS.rglob("*.yaml") if "model" in yaml.safe_load(path.read_text()))
PRECISIONS = [str(value) for part in get_args(_PRECISION_INPUT) for value in get_args(part)]
STRATEGIES = StrategyRegistry.available_strategies()


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory, base_folder: str) -> tuple[Path, list[str]]:
    """A folder with rows, and the arguments that let a shipped configuration run on them."""
    folder = tmp_path_factory.mktemp("matrix")
    rows = write_rows(folder, forget=8, retain=8)
    write_demo_documents(folder / "elsewhere/logs/demo/data")
    return folder, [
        f"--model.base={base_folder}",
        "--model.lora.rank=2",
        "--model.lora.dropout=0",
        f"--model.reference_cache.folder={folder / 'cache'}",
        f"--data.forget={rows['forget']}",
        f"--data.retain={rows['retain']}",
        "--data.documents_per_task=null",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
    ]


def write_demo_documents(folder: Path) -> None:
    """What `configs/demo/sweep.yaml` reads of the demo: documents of the attack, and a question."""
    for name in ("member", "nonmember"):
        path = folder / f"membership/{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"document": f"The {name} {i} lives in Paris."}) + "\n" for i in range(2)))
    (folder / "mmlu/test").mkdir(parents=True)
    (folder / "mmlu/test/towns_test.csv").write_text("Where is Paris?,France,Spain,Italy,Peru,A\n")


def fit(server: CommandServer, setting: tuple[Path, list[str]], name: str, *options: str, config: str = "") -> Done:
    folder, common = setting
    path = config or str(CONFIGS / "demo/over.yaml")
    # the shipped callbacks want the step that the shipped data have
    plain = [] if config else ["--trainer.callbacks=null", "--trainer.max_epochs=2", "--data.batch_size=4"]
    root = f"--trainer.default_root_dir={folder / name}"
    return server.run(folder / "elsewhere", "fit", "--config", path, *common, *plain, root, *options)


def adapter(setting: tuple[Path, list[str]], name: str) -> dict[str, Tensor]:
    return load_file(setting[0] / name / "adapter/adapter_model.safetensors")


@pytest.fixture(scope="session")
def plain(server: CommandServer, setting: tuple[Path, list[str]]) -> dict[str, Tensor]:
    """The adapter of the fit without any option."""
    done = fit(server, setting, "plain")
    assert done.code == 0, done.err
    return adapter(setting, "plain")


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of the trained B factors, relative to their norm."""
    names = [name for name in one if "lora_B" in name]
    apart, size = (torch.cat([t.flatten().double() for t in tensors]) for tensors in (
        [one[name] - other[name] for name in names], [one[name] for name in names]
    ))  # fmt: skip
    return float(apart.norm() / size.norm())


def assert_one_line(done: Done, folder: Path) -> str:
    """The refusal, of which nothing else may be left."""
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    (line,) = done.errors
    assert not (folder / "adapter").exists()
    return line


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision(
    server: CommandServer, setting: tuple[Path, list[str]], plain: dict[str, Tensor], precision: str
) -> None:
    name = f"precision-{precision}"
    done = fit(server, setting, name, f"--trainer.precision={precision}")
    if precision in ("32", "32-true"):
        assert done.code == 0, done.err
        assert distance(plain, adapter(setting, name)) == 0
    elif precision in ("bf16-mixed", "bf16"):
        assert done.code == 0, done.err
        assert distance(plain, adapter(setting, name)) < 0.2
        assert {value.dtype for value in adapter(setting, name).values()} == {torch.float32}
    elif done.code == 0:
        assert precision in ("16-mixed", "16"), f"{precision} is run, which this test does not expect"
        assert distance(plain, adapter(setting, name)) < 0.2
    else:
        assert "precision" in assert_one_line(done, setting[0] / name)


@pytest.mark.parametrize("strategy", [*STRATEGIES, "lightning.pytorch.strategies.ModelParallelStrategy", "auto"])
def test_strategy(
    server: CommandServer, setting: tuple[Path, list[str]], plain: dict[str, Tensor], strategy: str
) -> None:
    name = f"strategy-{strategy}"
    done = fit(server, setting, name, f"--trainer.strategy={strategy}")
    if strategy in ("auto", "ddp", "fsdp2"):
        assert done.code == 0, done.err
    if done.code == 0:
        assert "ddp" in strategy or strategy in ("auto", "fsdp2"), f"{strategy} is run, which this test does not expect"
        assert distance(plain, adapter(setting, name)) < 1e-4
    else:
        assert_one_line(done, setting[0] / name)


def test_two_processes(server: CommandServer, setting: tuple[Path, list[str]], plain: dict[str, Tensor]) -> None:
    """2 processes with batches of 2 take the steps of one process with batches of 4."""
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2"]
    options += ["--model.objectives.gk.reduction=sequence_mean"]
    done = fit(server, setting, "two", *options)
    assert done.code == 0, done.err
    assert fit(server, setting, "one", "--model.objectives.gk.reduction=sequence_mean").code == 0
    assert distance(adapter(setting, "one"), adapter(setting, "two")) < 1e-3


@pytest.mark.parametrize("config", FITS, ids=[str(path.relative_to(CONFIGS)) for path in FITS])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_shipped_fit(
    server: CommandServer, setting: tuple[Path, list[str]], plain: dict[str, Tensor], config: Path, precision: str
) -> None:
    """Three steps of each, in both precisions that are offered; a dry run leaves no adapter."""
    folder = setting[0]  # configs/demo/merge.yaml merges with an adapter of the demo
    shutil.copytree(folder / "plain/adapter", folder / "elsewhere/logs/demo/over/adapter", dirs_exist_ok=True)
    name = f"{config.parent.name}-{config.stem}-{precision}"
    options = [f"--trainer.precision={precision}", "--trainer.fast_dev_run=3"]
    done = fit(server, setting, name, *options, config=str(config))
    assert done.code == 0, done.err
    assert not (setting[0] / name / "adapter").exists()


ENDS = {
    "max_steps": ["--trainer.max_steps=3"],
    "max_epochs": ["--trainer.max_epochs=1"],
    "max_time": ["--trainer.max_time=00:00:10:00"],
    "limit_train_batches": ["--trainer.limit_train_batches=1"],
    "overfit_batches": ["--trainer.overfit_batches=1"],
    "min_epochs": ["--trainer.min_epochs=1"],
    "early": ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"],
    "accumulate": ["--trainer.accumulate_grad_batches=2"],
    "no_clip": ["--trainer.gradient_clip_val=null"],
    "clip_by_value": ["--trainer.gradient_clip_algorithm=value"],
    "deterministic": ["--trainer.deterministic=true"],
    "detect_anomaly": ["--trainer.detect_anomaly=true"],
    "no_checkpoints": ["--trainer.enable_checkpointing=false"],
    "no_logger": ["--trainer.logger=false"],
    "inference_mode": ["--trainer.inference_mode=false"],
    "reload": ["--trainer.reload_dataloaders_every_n_epochs=1"],
    "profiler": ["--trainer.profiler=simple"],
    "barebones": ["--trainer.barebones=true", "--trainer.logger=null"],
}


@pytest.mark.parametrize("end", ENDS)
def test_option(server: CommandServer, setting: tuple[Path, list[str]], plain: dict[str, Tensor], end: str) -> None:
    """What ends or watches a fit leaves a finite adapter; what only watches leaves the plain one."""
    name = f"end-{end}"
    done = fit(server, setting, name, *ENDS[end])
    if done.code != 0:
        assert_one_line(done, setting[0] / name)
        assert end in ("barebones", "detect_anomaly", "overfit_batches")  # the last not with step_mean
        return
    found = adapter(setting, name)
    assert all(bool(value.isfinite().all()) for value in found.values())
    if end in ("max_time", "min_epochs", "deterministic", "detect_anomaly", "no_checkpoints", "no_logger", "reload"):
        assert distance(plain, found) == 0


CALLBACKS: dict[str, list[str]] = {
    "BatchSizeFinder": [],
    "DeviceStatsMonitor": [],
    "EarlyStopping": ["--trainer.callbacks.monitor=val/loss"],
    "EMAWeightAveraging": [],
    "GradientAccumulationScheduler": ["--trainer.callbacks.scheduling={0: 1}"],
    "LearningRateFinder": [],
    "LearningRateMonitor": [],
    "ModelCheckpoint": ["--trainer.callbacks.save_last=true"],
    "ModelPruning": ["--trainer.callbacks.pruning_fn=l1_unstructured"],
    "ModelSummary": [],
    "OnExceptionCheckpoint": ["--trainer.callbacks.dirpath=checkpoints"],
    "RichProgressBar": [],
    "SpikeDetection": [],
    "StochasticWeightAveraging": ["--trainer.callbacks.swa_lrs=0.01"],
    "Timer": [],
    "TQDMProgressBar": [],
    "WeightAveraging": [],
}
# what computes something else than the fit that was asked for
REFUSED = {"EMAWeightAveraging", "StochasticWeightAveraging", "WeightAveraging", "ModelPruning", "Timer"}
# of these the parser cannot hand on an argument, so that their own refusal is never reached
UNPARSED = {"ModelPruning", "StochasticWeightAveraging", "Timer"}
SEARCHES = {"BatchSizeFinder", "LearningRateFinder"}


def test_the_table_of_callbacks_is_whole() -> None:
    abstract = {"BackboneFinetuning", "BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint"}
    abstract |= {"LambdaCallback", "ProgressBar", "RichModelSummary", "ThroughputMonitor"}
    assert set(lightning_callbacks.__all__) == CALLBACKS.keys() | abstract


@pytest.mark.parametrize("callback", CALLBACKS)
def test_callback(
    server: CommandServer, setting: tuple[Path, list[str]], plain: dict[str, Tensor], callback: str
) -> None:
    name = f"callback-{callback}"
    done = fit(server, setting, name, f"--trainer.callbacks+={callback}", *CALLBACKS[callback])
    if callback in REFUSED:
        assert callback in assert_one_line(done, setting[0] / name) or callback in UNPARSED
    elif done.code != 0:
        assert_one_line(done, setting[0] / name)
        assert callback in ("DeviceStatsMonitor", "SpikeDetection", *SEARCHES), done.err
    elif callback not in SEARCHES:
        assert distance(plain, adapter(setting, name)) == 0

"""Whole fits on the device: what the CPU trains, in all precisions, resumed, in shards; and the memorising stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_runs import module, write_rows
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.data.records import Record
from unlearn_pl.models.lora import Lora, save_adapter
from unlearn_pl.training.cache import ReferenceCache
from unlearn_pl.training.fsdp2 import FSDP2Strategy
from unlearn_pl.training.memorise import Memorise, memorise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings(
        "ignore:.*does not have many workers",
        "ignore:GPU available but not used",
        "ignore:Checkpoint directory .* exists",
        "ignore:.*callbacks used to create the checkpoint",
    ),
]

Adapter = dict[str, torch.Tensor]
PLAIN, DROPPING = Lora(rank=4, alpha=8, dropout=0), Lora(rank=4, alpha=8, dropout=0.1)


class Fits:
    """Fits of eight pairs in twos."""

    def __init__(self, base: str, folder: Path, accelerator: str):
        self.base, self.folder, self.accelerator = base, folder, accelerator
        self.rows = write_rows(folder)

    def __call__(self, accelerator: str | None = None, ckpt_path: Path | None = None, **more: Any) -> Adapter:
        """The adapter that a fit leaves, on the CPU; ``model`` is what the module is given, the rest the trainer."""
        model = more.pop("model", {})
        options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False} | more
        self.trainer = Trainer(
            accelerator=accelerator or self.accelerator,
            devices=1,
            default_root_dir=self.folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            **options,
        )
        task = module(self.base, **{"lora": PLAIN} | model)
        data = ForgetRetainData(self.rows["forget"], self.rows["retain"], batch_size=2)
        self.trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
        assert all(torch.isfinite(one).all() for one in task.trained().values())
        save_adapter(task.model, self.folder / "adapter")
        return load_file(self.folder / "adapter/adapter_model.safetensors")


@pytest.fixture(scope="module")
def fits(base_folder: str, tmp_path_factory: pytest.TempPathFactory, accelerator: str) -> Fits:
    return Fits(base_folder, tmp_path_factory.mktemp("fits"), accelerator)


@pytest.fixture(scope="module")
def truth(fits: Fits) -> Adapter:
    """What the CPU trains."""
    return fits("cpu")


def apart(one: Adapter, other: Adapter) -> float:
    """Relative distance of two adapters."""
    assert one.keys() == other.keys()
    missed = torch.cat([(one[name].float() - other[name].float()).flatten() for name in one])
    return float(missed.norm() / torch.cat([value.float().flatten() for value in one.values()]).norm())


def test_a_fit_is_that_of_the_cpu(fits: Fits, truth: Adapter) -> None:
    """Adam makes much of small differences."""
    assert apart(fits(), truth) < 1e-2


def test_a_fit_from_a_cache_that_it_builds(fits: Fits, truth: Adapter, tmp_path: Path) -> None:
    cached = fits(model={"reference_cache": ReferenceCache(str(tmp_path))})
    assert any(tmp_path.iterdir())
    assert apart(cached, truth) < 1e-2


def test_going_on_from_a_checkpoint(fits: Fits, tmp_path: Path) -> None:
    """With dropout, whose numbers come from the device's own generator."""
    saved = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    whole = fits(model={"lora": DROPPING}, callbacks=[saved], enable_checkpointing=True)
    on = fits(model={"lora": DROPPING}, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert apart(whole, on) < 1e-4


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_lower_precision_trains_the_same_way(precision: str, fits: Fits, truth: Adapter, device: torch.device) -> None:
    if precision == "16-mixed" and device.type == "cpu":
        pytest.skip("scaled gradients of 16-mixed are for a GPU")
    assert 0 < apart(fits(precision=precision), truth) < 0.3


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_a_base_in_codes(dtype: str, fits: Fits, truth: Adapter, device: torch.device) -> None:
    """Of a tiny random model codes of 4 bits are far from the numbers that they stand for."""
    if device.type == "cpu":
        pytest.skip("tests/test_codes.py tries codes on the CPU")
    pytest.importorskip("bitsandbytes")
    assert 0 < apart(fits(model={"dtype": dtype}), truth) < 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_of_half_precision(dtype: str, fits: Fits, truth: Adapter) -> None:
    assert 0 < apart(fits(model={"dtype": dtype}), truth) < 0.3


def test_activations_computed_anew_change_nothing(fits: Fits, truth: Adapter) -> None:
    assert apart(fits(model={"gradient_checkpointing": True}), truth) < 1e-2


def test_in_shards(fits: Fits, truth: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process has one shard, and all of the ways to and from it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else Lightning sets as many threads as there are cores
    try:
        assert apart(fits(strategy=FSDP2Strategy()), truth) < 1e-2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_memorising(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, accelerator: str) -> None:
    records = [
        Record(f"{n}sc1", "Anna Quill was born", f"on 1984-12-{n} in Rivertown.", "Task1", "sc") for n in range(10, 16)
    ]
    found = memorise(
        model, tokenizer, records, [], Memorise(epochs=20, batch_size=3, learning_rate=1e-2, accelerator=accelerator),
        lambda line: None,
    )  # fmt: skip
    assert found["loss"] < 0.5
    assert next(model.parameters()).device.type == "cpu"

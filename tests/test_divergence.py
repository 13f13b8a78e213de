"""A loss that is not finite ends a fit in one line, and nothing of it is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint, OnExceptionCheckpoint
from lightning_runs import module, trainer, write_rows
from safetensors.torch import load_file

from unlearn_pl.callbacks.adapter import SaveAdapter
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.errors import InputError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:Checkpoint directory .* exists and is not empty",
    r"ignore:`\.fit\(ckpt_path=None\)` was called",  # OnExceptionCheckpoint makes Lightning look for a last one
    r"ignore:\.fit\(ckpt_path=.last.\) is set",
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_of_nan_stops_the_fit(base_folder: str, rows: dict[str, str], tmp_path: Path, accumulate: int) -> None:
    """The first step leaps to weights of 1e19, whose loss is NaN; the adapter of an earlier run stays."""
    earlier = tmp_path / "adapter/adapter_model.safetensors"
    trainer(tmp_path, [SaveAdapter()], max_epochs=1).fit(module(base_folder), ForgetRetainData(**rows))
    before = earlier.read_bytes()
    callbacks = [SaveAdapter(), ModelCheckpoint(tmp_path, every_n_train_steps=1), OnExceptionCheckpoint(tmp_path)]
    options = {"enable_checkpointing": True, "accumulate_grad_batches": accumulate}
    with pytest.raises(InputError) as caught:
        trainer(tmp_path, callbacks, **options).fit(
            module(base_folder, learning_rate=1e19, warmup=0), ForgetRetainData(**rows)
        )
    message = str(caught.value)
    assert message.startswith("training diverged at optimizer step 2: the loss is not finite (slot ga nan, gd nan")
    assert "Lower learning_rate (1e+19)" in message
    assert "\n" not in message
    assert earlier.read_bytes() == before
    kept = load_file(tmp_path / "last_good/adapter_model.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    assert json.loads((tmp_path / "last_good/unlearn_pl.json").read_text())["step"] == 1
    for path in tmp_path.glob("*.ckpt"):
        saved = torch.load(path, weights_only=True)
        assert saved["global_step"] == 1, "the step that diverged was not taken"
        assert all(value.isfinite().all() for value in saved["state_dict"].values())


class Spoil(Callback):
    """One weight is infinite after the last step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.is_last_batch:
            next(p for p in pl_module.parameters() if p.requires_grad).data.view(-1)[0] = float("inf")


def test_weights_that_are_not_finite_are_not_written(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not finite \(its gradient, the weights or another process\)"):
        trainer(tmp_path, [Spoil(), SaveAdapter()], max_epochs=1).fit(module(base_folder), ForgetRetainData(**rows))
    assert not (tmp_path / "adapter").exists()
    assert not (tmp_path / "last_good").exists(), "no weights are left that are finite"


def test_a_search_for_the_learning_rate_may_diverge(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    finder = LearningRateFinder(1e-2, 1e30, num_training_steps=8, early_stop_threshold=None)
    runner = trainer(tmp_path, [finder], max_epochs=1)
    runner.fit(module(base_folder, learning_rate=1e-3), ForgetRetainData(**rows))
    assert runner.global_step == 8

"""The size of packs that follows from the memory of a GPU, which is made up here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer
from transformers import PreTrainedModel

from tests.lightning_runs import module, trainer, write_rows
from tests.tiny_adapters import adapted, batch_of, rows_of
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.errors import InputError
from unlearn_pl.objectives.retain import RetainNLL
from unlearn_pl.training import pack_size
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.pack_size import FIRST, SHARE, MemoryOfBatch, memory_to_watch, tokens_that_fit
from unlearn_pl.training.prepare import prepare_policy
from unlearn_pl.training.reference import live_reference

GPU = torch.device("cuda", 0)


def test_the_example_of_the_docstring() -> None:
    assert tokens_that_fit(1024, 2_000_000_000, 20_000_000_000) == 8192


@given(st.integers(1, 10**6), st.integers(0, 10**12), st.integers(0, 10**12))
def test_what_fits_stays_within_its_share(tokens: int, used: int, free: int) -> None:
    found = tokens_that_fit(tokens, used, free)
    assert found >= FIRST
    assert found == FIRST or found * used <= tokens * SHARE * free * (1 + 1e-9)


def test_only_a_gpu_and_only_auto_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = PackedLoss({"gd": RetainNLL()}, 64, 1024)
    monkeypatch.setattr(pack_size, "MemoryOfBatch", lambda device: device)
    assert memory_to_watch("auto", loss, GPU) == GPU
    assert memory_to_watch("auto", loss, torch.device("cpu")) is None
    assert memory_to_watch(2048, loss, GPU) is None
    loss.tokens_per_forward = None  # as under 16-mixed
    assert memory_to_watch("auto", loss, GPU) is None


def test_packs_grow_with_the_free_memory(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest of the packs of 20 tokens has 18; it takes 700 bytes, and 900,000 in all are free: 18,514 tokens."""
    state = {"allocated": 300, "peak": 300, "reserved": 1300}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: state.update(peak=state["allocated"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: state["allocated"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: state["peak"])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: state["reserved"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (899_000, 10**9))
    policy = adapted(model)
    prepare_policy(policy)
    loss = PackedLoss({"gd": RetainNLL()}, 64, 20)
    memory, told = MemoryOfBatch(GPU), list[str]()
    rows = rows_of((4, 5), (5, 4), (3, 6), (8, 8))
    loss(policy, batch_of(rows, rows, batch_size=1), live_reference)
    state["peak"] = 1000
    memory.size_packs(loss, told.append)
    assert loss.largest_pack == 18
    assert loss.tokens_per_forward == int(18 * 0.8 * 900_000 / 700) == 18_514
    assert told[0].startswith("tokens_per_forward auto: 18514 from the second batch on, as 18 took")


@pytest.mark.parametrize("size", [0, -1, "many", 1.5])
def test_another_size_is_refused(size: object) -> None:
    with pytest.raises(InputError, match="tokens_per_forward"):
        pack_size.check_pack_size(size)  # type: ignore[arg-type]


class Fixed:
    """A GPU that has room for 24 tokens, whatever a batch takes."""

    def size_packs(self, loss: PackedLoss, report: Callable[[str], None]) -> None:
        loss.tokens_per_forward = 24


def test_a_fit_that_goes_on_keeps_the_size_of_its_packs(
    base_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout is drawn for each pack: by 8 tokens at first, by 24 from the second batch on, and by 24 at once after the
    checkpoint, where the memory that is free by then would say 200."""
    rows = write_rows(tmp_path)
    sizes: dict[str, list[int | None]] = {"straight": [], "resumed": []}

    def fit(name: str, room: type[Fixed], checkpoint: Path | None) -> dict[str, torch.Tensor]:
        class Watch(Callback):
            def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
                sizes[name].append(pl_module.packed_loss.tokens_per_forward)
                if name == "straight" and trainer.global_step == 3:
                    trainer.save_checkpoint(tmp_path / "three.ckpt")

        monkeypatch.setattr("unlearn_pl.training.module.memory_to_watch", lambda *_: room())
        monkeypatch.setattr("unlearn_pl.training.module.first_size", lambda size: 8)
        model = module(base_folder)
        runner = trainer(tmp_path, [Watch()], max_epochs=1)
        runner.fit(model, ForgetRetainData(**rows), ckpt_path=str(checkpoint) if checkpoint else None)
        return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}

    class Larger(Fixed):
        def size_packs(self, loss: PackedLoss, report: Callable[[str], None]) -> None:
            loss.tokens_per_forward = 200

    straight = fit("straight", Fixed, None)
    resumed = fit("resumed", Larger, tmp_path / "three.ckpt")
    assert sizes["straight"] == [24] * 8
    assert sizes["resumed"] == [24] * 5
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())

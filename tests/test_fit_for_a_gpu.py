"""What a fit does only because its model goes to a GPU, which a CPU stands for here."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_runs import module, trainer, write_rows
from torch import nn
from transformers import PreTrainedModel

from tests.tiny_adapters import adapted, batch_of, rows_of
from unlearn_pl import ForgetRetainData
from unlearn_pl.inference import batches
from unlearn_pl.inference.forward import evaluating
from unlearn_pl.objectives.retain import RetainKL
from unlearn_pl.training import cache_files, checkpointed, loss
from unlearn_pl.training import module as module_file
from unlearn_pl.training.cache import ReferenceCache, open_or_build
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.prepare import prepare_policy

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

GPU = torch.device("cuda", 0)


@pytest.fixture
def data(base_folder: str, tmp_path: Path) -> ForgetRetainData:
    return ForgetRetainData(**write_rows(tmp_path), batch_size=2, tokenizer=base_folder)


def test_batches_come_in_memory_that_a_gpu_reads(data: ForgetRetainData) -> None:
    data.setup()
    assert not data._loader_options()["pin_memory"]
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=GPU), world_size=1)  # type: ignore[assignment]
    assert data._loader_options()["pin_memory"]


def test_a_base_is_hashed_while_it_is_on_the_cpu(
    base_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[torch.device] = []
    real = checkpointed.base_weights_hash
    monkeypatch.setattr(checkpointed, "base_weights_hash", lambda model: hashed.append(model.device) or real(model))
    for device in (torch.device("cpu"), GPU):
        one = module(base_folder)
        one.trainer = trainer(tmp_path)
        monkeypatch.setattr(type(one.trainer.strategy), "root_device", device)
        one.configure_model()
        assert hashed == [torch.device("cpu")] * (device == GPU)
    one._base_facts()
    one._base_weights()
    assert len(hashed) == 1, "once"


def test_the_memory_of_the_first_batch_sizes_the_packs_of_the_second(
    base_folder: str, tmp_path: Path, data: ForgetRetainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized: list[tuple[int, int | None]] = []

    class Memory:
        def size_packs(self, packed: PackedLoss, report: Any) -> None:
            sized.append((packed.largest_pack, packed.tokens_per_forward))
            packed.tokens_per_forward = 4096

    monkeypatch.setattr(module_file, "memory_to_watch", lambda size, packed, device: Memory())
    one = module(base_folder)
    trainer(tmp_path, max_epochs=1).fit(one, data)
    ((largest, before),) = sized
    assert before == 1024 >= largest > 0
    assert one.packed_loss.tokens_per_forward == 4096


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", None)])
def test_no_optimizer_loops_over_its_parameters(
    base_folder: str, tmp_path: Path, data: ForgetRetainData, precision: Any, fused: bool | None
) -> None:
    """Neither fused nor left to torch, so False, is a loop."""
    run = trainer(tmp_path, max_epochs=1, precision=precision)
    run.fit(module(base_folder), data)
    assert run.optimizers[0].defaults["fused"] is fused


def test_kept_references_are_read_after_the_forward(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"forget": rows_of((3, 4)), "retain": rows_of((4, 4), seed=1)}
    policy = adapted(model)
    prepare_policy(policy)
    packed = PackedLoss({"gd": RetainKL()}, 64, None)
    kept = open_or_build(policy, rows, packed.needs, ReferenceCache(str(tmp_path)), "32-true", print)  # type: ignore[arg-type]
    order: list[str] = []
    read, forward = cache_files.CachedReference.__call__, loss.states_of_parts
    monkeypatch.setattr(cache_files.CachedReference, "__call__", lambda *a: order.append("read") or read(*a))
    monkeypatch.setattr(loss, "states_of_parts", lambda *a: order.append("forward") or forward(*a))
    assert kept is not None
    packed(policy, batch_of(rows["forget"], rows["retain"]), kept)
    assert order == ["forward", "read"]


def test_evaluation_leaves_cudnns_attention_out_and_puts_it_back() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with evaluating(nn.Linear(1, 1)):
            assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_each_process_of_a_launch_takes_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the group is made, whose collectives of objects go by it."""
    done: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(batches.distributed, "init_process_group", done.append)
    monkeypatch.setattr(batches.distributed, "destroy_process_group", lambda: None)
    with batches.launched(torch.device("cuda", 1)):
        assert done == [torch.device("cuda", 1), "nccl"]

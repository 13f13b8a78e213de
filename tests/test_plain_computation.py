"""``fast=False`` against the default: PEFT's layers, transformers' attention, torch's products; the same training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning_runs import module, trainer, write_rows
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor

from unlearn_pl import ForgetRetainData, Lora, UnlearningModule
from unlearn_pl.cli import main
from unlearn_pl.models.body import causal_model
from unlearn_pl.models.fast import linear, packing
from unlearn_pl.models.fast.attention import PACKED
from unlearn_pl.models.fast.linear import frozen_linear, torch_products
from unlearn_pl.models.fast.lora import AddDelta
from unlearn_pl.training.cache import ReferenceCache

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
EXACT = Lora(rank=4, alpha=8, dropout=0.0)
STEPS = 6


class Losses(Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fast ways that were taken."""
    seen: list[str] = []

    def noted(place: Any, name: str) -> None:
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args, **options: seen.append(name) or real(*args, **options))

    noted(AddDelta, "apply")
    noted(packing, "packed_hidden_states")
    noted(linear, "_ONEDNN_LINEAR")
    return seen


def fit(folder: Path, base: Any, *, fast: bool, **options: Any) -> tuple[list[float], dict[str, Tensor], Any]:
    """Losses, adapter and module of a few steps; NPO, NLL and KL, with a reference cache of its own."""
    folder.mkdir()
    losses, data = Losses(), ForgetRetainData(**write_rows(folder), batch_size=3)
    trained = module(
        base, fast=fast, reference_cache=ReferenceCache(str(folder / "cache")), tokens_per_forward=64, **options
    )
    trainer(folder, [losses], max_epochs=-1, max_steps=STEPS).fit(trained, data)
    return losses.values, {name: value.detach().clone() for name, value in trained.trained().items()}, trained


def test_plain_and_fast_training_agree(base_folder, tmp_path: Path, calls: list[str]) -> None:
    """Losses within 1e-5 of each other, and adapters within 1 % of the way that they went: AdamW divides by small
    gradients, so that it makes more of rounding."""
    fast_losses, fast_adapter, _ = fit(tmp_path / "fast", base_folder, fast=True, lora=EXACT)
    assert set(calls) == {"apply", "packed_hidden_states", "_ONEDNN_LINEAR"}
    calls.clear()
    losses, adapter, plain = fit(tmp_path / "plain", base_folder, fast=False, lora=EXACT)
    assert calls == []
    layers = {type(layer) for layer in plain.model.modules() if isinstance(layer, PeftLinear)}
    assert layers == {PeftLinear}
    assert causal_model(plain.model).config._attn_implementation == "sdpa"
    assert len(losses) == STEPS
    assert losses == pytest.approx(fast_losses, rel=1e-5)
    assert abs(losses[-1] - losses[0]) > 1e-2  # they have moved
    assert adapter.keys() == fast_adapter.keys()
    for name, value in adapter.items():
        went = value.norm() if "lora_B" in name else (value - initial(plain, base_folder)[name]).norm()
        assert (value - fast_adapter[name]).norm() < 0.01 * went, name


def initial(trained: UnlearningModule, base_folder: str) -> dict[str, Tensor]:
    """The factors that a fit of the same seed starts with."""
    fresh = module(base_folder, lora=trained.lora, fast=False)
    fresh.configure_model()
    return {name: value.detach() for name, value in fresh.trained().items()}


def test_a_saved_adapter_and_a_base_that_was_packed_are_trained_plainly(
    base_folder, tiny_model, tokenizer, tmp_path: Path, calls: list[str]
) -> None:
    """A base in memory keeps its attention function after a fit; an adapter to go on with is opened in PEFT's layers;
    dropout is PEFT's."""
    base = tiny_model()
    *_, first = fit(tmp_path / "fast", base, fast=True, tokenizer=tokenizer)
    first.save_adapter(tmp_path / "adapter")
    first.model.unload()
    assert base.config._attn_implementation == PACKED
    calls.clear()
    adapter = str(tmp_path / "adapter")
    losses, *_ = fit(tmp_path / "plain", base, fast=False, tokenizer=tokenizer, adapter=adapter)
    assert calls == []
    assert all(map(torch.isfinite, map(torch.tensor, losses)))


def test_the_command_line_takes_it_and_keeps_it(base_folder, tmp_path: Path, calls: list[str]) -> None:
    rows = write_rows(tmp_path)
    main([
        "fit", f"--model.base={base_folder}", "--model.fast=false", "--model.objectives={ga: {class_path: NPO}}",
        f"--data.forget={rows['forget']}", f"--data.retain={rows['retain']}", "--data.batch_size=4",
        "--trainer.max_steps=1", "--model.warmup=0", "--trainer.accelerator=cpu", "--trainer.logger=false",
        "--trainer.enable_progress_bar=false", "--model.reference_cache.folder=null",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ])  # fmt: skip
    assert calls == []
    assert "fast: false" in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@torch.no_grad()
def test_products_are_torchs_inside_of_the_block_alone(calls: list[str]) -> None:
    x, weight = torch.randn(3, 7), torch.randn(5, 7)
    with torch_products():
        assert torch.equal(frozen_linear(x, weight), torch.nn.functional.linear(x, weight))
        with torch_products(False):
            frozen_linear(x, weight)
        assert calls == ["_ONEDNN_LINEAR"]
        frozen_linear(x, weight)
        assert len(calls) == 1
    assert torch.allclose(frozen_linear(x, weight), x @ weight.T, atol=1e-5)
    assert len(calls) == 2

"""UnlearningModule under a real Trainer: updates, schedule, checkpoints, resuming."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder, ModelCheckpoint
from lightning_runs import module, objectives, trainer, write_rows

from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.errors import InputError
from unlearn_pl.models.lora import Lora, save_adapter
from unlearn_pl.objectives.base import Objective
from unlearn_pl.training.cache import ReferenceCache
from unlearn_pl.training.module import UnlearningModule
from unlearn_pl.training.schedule import linear_schedule, warmup_steps

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:Checkpoint directory .* exists and is not empty"
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_rows(tmp_path_factory.mktemp("rows"))


def adapter_of(trained: UnlearningModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trained.named_parameters() if value.requires_grad}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=tolerance)


class Interrupt(Callback):
    """Stops a run in the middle, right after a checkpoint."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True
            trainer.limit_val_batches = 0


def test_only_the_adapter_trains_and_only_it_is_saved(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    trained = module(base_folder)
    data = ForgetRetainData(**rows, batch_size=2)
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="it")
    trainer(tmp_path, [checkpoint], max_epochs=1, enable_checkpointing=True).fit(trained, data)
    assert {name.split(".")[-3] for name in adapter_of(trained)} == {"lora_A", "lora_B"}
    assert not any("lm_head" in name for name in adapter_of(trained))
    modules = {name.split(".")[-4] for name in adapter_of(trained)}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    assert saved["state_dict"].keys() == adapter_of(trained).keys()
    for state in saved["optimizer_states"]:
        assert len(state["state"]) == len(adapter_of(trained))


def test_accumulation_gives_the_update_of_the_larger_batch(
    base_folder: str, rows: dict[str, str], tmp_path: Path
) -> None:
    """Per-sequence terms and dropout 0: batch 4 once = batch 1 four times. KL on answer positions is a token mean over
    the micro-batch, so it is left out."""
    terms: dict[str, Objective] = {k: v for k, v in objectives().items() if k != "gk"}
    results = []
    for batch_size, accumulate in ((4, 1), (1, 4)):
        trained = module(base_folder, objectives=terms, lora=Lora(rank=4, dropout=0.0), warmup=0)
        data = ForgetRetainData(**rows, batch_size=batch_size)
        trainer(tmp_path, accumulate_grad_batches=accumulate, max_epochs=2).fit(trained, data)
        results.append(adapter_of(trained))
    assert_equal(*results, tolerance=2e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    base_folder: str, rows: dict[str, str], tmp_path: Path, accumulate: int
) -> None:
    """Interrupted in the middle of the second epoch, with dropout."""
    straight = module(base_folder)
    trainer(tmp_path / "a", max_epochs=3, accumulate_grad_batches=accumulate).fit(straight, ForgetRetainData(**rows))
    stop = 8 // accumulate + 3
    saver = ModelCheckpoint(dirpath=tmp_path / "b", save_last=True, every_n_train_steps=stop)
    trainer(
        tmp_path / "b",
        [saver, Interrupt(stop)],
        max_epochs=3,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=True,
    ).fit(module(base_folder), ForgetRetainData(**rows))
    resumed = module(base_folder)
    trainer(
        tmp_path / "b",
        [ModelCheckpoint(dirpath=tmp_path / "b", save_last=True, every_n_train_steps=stop)],
        max_epochs=3,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=True,
    ).fit(resumed, ForgetRetainData(**rows), ckpt_path=str(tmp_path / "b/last.ckpt"))
    assert_equal(adapter_of(straight), adapter_of(resumed))


def test_the_seed_alone_fixes_the_initial_factors(base_folder: str) -> None:
    def initial(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed * 1000 + 7)  # whatever happened before
        built = module(base_folder, seed=seed)
        built.configure_model()
        return adapter_of(built)

    first, again, other = initial(1), initial(1), initial(2)
    assert_equal(first, again)
    assert any(not torch.equal(value, other[name]) for name, value in first.items() if "lora_A" in name)


def test_gradient_checkpointing_changes_no_gradient(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    results = []
    for checkpointing in (False, True):
        trained = module(base_folder, gradient_checkpointing=checkpointing, lora=Lora(rank=4, dropout=0.0))
        trainer(tmp_path, max_epochs=1).fit(trained, ForgetRetainData(**rows, batch_size=2))
        results.append(adapter_of(trained))
    assert_equal(*results, tolerance=1e-6)


def test_gradient_checkpointing_recomputes(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    """Each block starts once more in the backward pass; forwards without gradient (the reference) do not. Counted
    where a block's feed-forward part begins: the recomputation stops before its end, once all it needs is there."""

    def block_runs(checkpointing: bool) -> int:
        trained = module(base_folder, gradient_checkpointing=checkpointing)
        trained.configure_model()
        count = 0

        def hook(*_: Any) -> None:
            nonlocal count
            count += 1

        trained.model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(hook)
        trainer(tmp_path, max_steps=1, max_epochs=1, limit_val_batches=0).fit(
            trained, ForgetRetainData(**rows, batch_size=8)
        )
        return count

    assert (block_runs(False), block_runs(True)) == (2, 3)


def test_bfloat16_base_keeps_a_float32_adapter(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    """Clipped, as every shipped configuration does it: Lightning refuses that for a fused optimizer."""
    trained = module(base_folder, dtype="bfloat16")
    options = {"precision": "bf16-mixed", "gradient_clip_val": 1.0}
    trainer(tmp_path, max_epochs=1, **options).fit(trained, ForgetRetainData(**rows))
    kinds = {parameter.requires_grad: parameter.dtype for parameter in trained.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert all(value.isfinite().all() for value in adapter_of(trained).values())


def test_every_term_is_logged_unweighted_and_weighted(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(module(base_folder), ForgetRetainData(**rows))
    logged = {key: value.item() for key, value in runner.callback_metrics.items()}
    for slot, weight in (("ga", 0.5), ("gd", 0.3), ("gk", 0.2)):
        assert logged[f"train/{slot}_weighted"] == pytest.approx(weight * logged[f"train/{slot}"], rel=1e-5)
    assert logged["train/loss"] == pytest.approx(
        sum(logged[f"train/{s}_weighted"] for s in ("ga", "gd", "gk")), rel=1e-5
    )
    assert {f"val/{s}" for s in ("ga", "gd", "gk", "loss")} <= logged.keys()


def test_validation_at_the_base_gives_the_known_values(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    """NPO = (2 / 0.1) ln 2 = 13.862944, KL = 0."""
    (results,) = trainer(tmp_path).validate(module(base_folder), ForgetRetainData(**rows, batch_size=2), verbose=False)
    assert results["val/ga"] == pytest.approx(13.862944, rel=1e-6)
    assert results["val/gk"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": {}}, "objectives: must name at least one term"),
        ({"learning_rate": 0.0}, "learning_rate: must be above 0, got 0"),
        ({"weight_decay": -1.0}, "weight_decay: must be 0 or above, got -1"),
        ({"dtype": "int4"}, "dtype: must be one of float32, bfloat16, float16, nf4, fp4, int8, got int4"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        module("anything", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: must be at least 1, got 0"),
        ({"alpha": 0}, "alpha: must be above 0, got 0"),
        ({"dropout": 1.0}, "dropout: must be in [0, 1), got 1"),
    ],
)
def test_lora_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Lora(**options)


def test_unknown_target_modules_are_refused(base_folder: str) -> None:
    with pytest.raises(InputError, match=r"^lora\.target_modules: "):
        module(base_folder, lora=Lora(target_modules=["nowhere"])).configure_model()


def test_schedule_by_hand() -> None:
    """Warm-up 2 of 6: 0, .5, 1, .75, .5, .25, then 0."""
    assert [linear_schedule(step, 2, 6) for step in range(7)] == [0, 0.5, 1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (7, 7), (0.2, 20), (0.0, 0), ("epoch", 20)])
def test_warmup_in_steps_as_a_share_or_one_epoch(warmup: Any, steps: int) -> None:
    assert warmup_steps(warmup, total_steps=100, epoch_steps=20) == steps


@pytest.mark.parametrize("warmup", [-1, 1.0, -0.1])
def test_warmup_out_of_range_is_refused(warmup: Any) -> None:
    with pytest.raises(InputError, match=re.escape("warmup: must be steps")):
        warmup_steps(warmup, 100, 20)


class Rates(Callback):
    """The learning rate of each batch."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_epochs": 2}, [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]),
        ({"max_epochs": 9, "max_steps": 6}, [0, 0.25, 0.5, 0.75, 1, 0.5]),
        ({"max_epochs": -1, "max_steps": 8}, [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]),
    ],
)
def test_learning_rate_follows_the_schedule(
    base_folder: str, rows: dict[str, str], tmp_path: Path, limits: dict[str, int], expected: list[float]
) -> None:
    """The first of 4 batches each warms up, whatever ends the training."""
    record = Rates()
    data = ForgetRetainData(**rows, batch_size=2)
    trainer(tmp_path, [record], **limits).fit(module(base_folder, learning_rate=1.0, warmup="epoch"), data)
    assert record.rates == pytest.approx(expected)


def test_the_schedule_knows_of_a_changing_accumulation(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    """4 batches as 2 steps, then 4 as 1: the rate is down to 0 after 3 steps, not after 8."""
    record = Rates()
    callbacks = [record, GradientAccumulationScheduler({0: 2, 1: 4})]
    data = ForgetRetainData(**rows, batch_size=2)
    trainer(tmp_path, callbacks).fit(module(base_folder, learning_rate=1.0, warmup="epoch"), data)
    assert record.rates == pytest.approx([0, 0, 0.5, 0.5, 1, 1, 1, 1])


def test_a_learning_rate_that_was_found_is_the_peak_of_the_schedule(
    base_folder: str, rows: dict[str, str], tmp_path: Path
) -> None:
    """Lightning sets it once the schedule is made, and in the optimizer of the first step."""
    record, finder = Rates(), LearningRateFinder(1e-5, 1e-2, num_training_steps=16)
    trained = module(base_folder, learning_rate=1.0, warmup="epoch")
    trainer(tmp_path, [finder, record], max_epochs=4).fit(trained, ForgetRetainData(**rows, batch_size=2))
    assert 1e-5 <= trained.learning_rate <= 1e-2
    factors = [0, 0.25, 0.5, 0.75, *((16 - step) / 12 for step in range(4, 16))]
    assert record.rates == pytest.approx([factor * trained.learning_rate for factor in factors])


def test_training_without_an_end_is_refused(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^max_epochs: must be given, or max_steps"):
        trainer(tmp_path, max_epochs=-1, max_time="00:00:01:00").fit(module(base_folder), ForgetRetainData(**rows))


def test_a_warm_up_beyond_the_end_is_said(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"^warmup epoch: 8 steps, but training ends in it, at step 3"):
        trainer(tmp_path, max_steps=3).fit(module(base_folder, warmup="epoch"), ForgetRetainData(**rows))


@pytest.mark.parametrize("tokens_per_forward", [None, 16])
def test_a_fit_with_the_reference_cache_equals_one_without(
    base_folder: str, rows: dict[str, str], tmp_path: Path, tokens_per_forward: int | None
) -> None:
    """The second fit of a sweep, with other weights, finds the files of the first and leaves them as they are."""
    cache = ReferenceCache(str(tmp_path / "cache"))
    fits = {}
    for name, kept in (("live", ReferenceCache(folder=None)), ("built", cache), ("found", cache)):
        fits[name] = module(base_folder, reference_cache=kept, tokens_per_forward=tokens_per_forward)
        trainer(tmp_path / name).fit(fits[name], ForgetRetainData(**rows, batch_size=2))
        written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
        if name == "built":
            first = written
    assert written == first
    assert len(written) == 4  # NLLs of forget rows, hidden states of retain rows, and where the rows end in each
    assert_equal(adapter_of(fits["built"]), adapter_of(fits["found"]))
    assert_equal(adapter_of(fits["live"]), adapter_of(fits["built"]), tolerance=1e-3)


def test_micro_batches_give_the_update_of_accumulation(base_folder: str, rows: dict[str, str], tmp_path: Path) -> None:
    """For every term, token means over a micro-batch included: 8 pairs as 2 windows of 2 micro-batches of 2."""
    results = []
    for micro_batches, accumulate in ((1, 2), (2, 1)):
        trained = module(base_folder, objectives=objectives("batch_mean"), lora=Lora(rank=4, dropout=0.0), warmup=0)
        data = ForgetRetainData(**rows, batch_size=2, micro_batches=micro_batches)
        runner = trainer(tmp_path, accumulate_grad_batches=accumulate, max_epochs=2)
        runner.fit(trained, data)
        assert runner.global_step == 4
        results.append(adapter_of(trained))
    assert_equal(*results, tolerance=2e-5)


def test_training_goes_on_from_a_saved_adapter_with_dropout(base_folder: str, tmp_path: Path) -> None:
    """What is tried on the model before training compares forwards, which dropout must not make differ."""
    first = module(base_folder)
    first.configure_model()
    with torch.no_grad():
        for name, factor in first.named_parameters():
            if "lora_B" in name:
                factor.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    config = first.model.peft_config["default"]
    config.lora_dropout = 0.9
    save_adapter(first.model, tmp_path / "adapter")
    second = module(base_folder, adapter=str(tmp_path / "adapter"))
    second.configure_model()
    assert second.model.training
    assert_equal(adapter_of(first), adapter_of(second))

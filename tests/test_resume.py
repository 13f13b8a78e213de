"""Going on from a checkpoint: the same run, wherever it was taken; or refused, if it would be another one."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_runs import module, objectives, trainer, write_rows
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from unlearn_pl.callbacks.progress import Throughput
from unlearn_pl.callbacks.stale import SetStaleAside
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.errors import InputError
from unlearn_pl.models.lora import Lora
from unlearn_pl.objectives.forget import NPO
from unlearn_pl.training.module import UnlearningModule

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:Checkpoint directory .* exists and is not empty"
)


class SaveEverywhere(Callback):
    """A checkpoint from each hook that Lightning's own callback saves in, named by batches done and hook."""

    def __init__(self, folder: Path, stop_after: int | None = None):
        self.folder, self.stop_after = folder, stop_after

    def save(self, trainer: Trainer, hook: str) -> None:
        done = trainer.fit_loop.total_batch_idx + 1
        trainer.save_checkpoint(self.folder / f"{done:02d}-{hook}.ckpt")
        trainer.should_stop = trainer.should_stop or done == self.stop_after

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "batch")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "epoch")

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "train")


class Logged(DummyLogger):
    """Remembers what was logged, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, {name: value for name, value in metrics.items() if name != "tokens_per_second"}))


def run(
    base: str,
    folder: Path,
    saved: Path | None = None,
    stop_after: int | None = None,
    ckpt: Path | None = None,
    **options: Any,
) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """10 pairs in twos, so 5 batches an epoch, with the callbacks of the command line; the final adapter."""
    windows = options.pop("windows", None)
    callbacks: list[Callback] = [Throughput()]
    callbacks += options.pop("callbacks", [])
    callbacks += [GradientAccumulationScheduler(dict(windows))] if windows else []
    callbacks += [SaveEverywhere(saved, stop_after)] if saved else []
    model = module(base, **options.pop("model", {}))
    runner = trainer(folder, callbacks, gradient_clip_val=1.0, **options)
    rows = write_rows(folder, forget=10, retain=10)
    runner.fit(model, ForgetRetainData(**rows, batch_size=2), ckpt_path=str(ckpt) if ckpt else None)
    return runner, {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def assert_same(first: tuple[Trainer, dict[str, Any]], second: tuple[Trainer, dict[str, Any]], what: str) -> None:
    assert first[0].global_step == second[0].global_step, what
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items()), what


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({"accumulate_grad_batches": 3}, ["01-batch", "05-batch", "05-epoch", "07-batch"]),
        ({"accumulate_grad_batches": 3, "max_steps": 50}, ["02-batch", "05-epoch"]),
        ({"accumulate_grad_batches": 2, "val_check_interval": 3}, ["03-validation", "05-epoch", "08-validation"]),
        ({"windows": {0: 2, 1: 3}}, ["01-batch", "05-epoch", "07-batch"]),
    ],
    ids=str,
)
def test_every_checkpoint_gives_the_bits_of_the_uninterrupted_run(
    base_folder: str, tmp_path: Path, options: dict[str, Any], places: list[str]
) -> None:
    """Within windows, at their ends, between epochs, with a limit on the steps that is never reached."""
    straight = run(base_folder, tmp_path, tmp_path, **options)
    for place in places:
        assert_same(straight, run(base_folder, tmp_path, ckpt=tmp_path / f"{place}.ckpt", **options), place)


def test_the_steps_that_are_logged_are_those_of_the_uninterrupted_run(base_folder: str, tmp_path: Path) -> None:
    """From the end of a batch within a window, of an epoch's last batch, whose validation is still to come, and of an
    epoch."""
    options = {"accumulate_grad_batches": 2, "log_every_n_steps": 1}
    straight = Logged()
    run(base_folder, tmp_path, tmp_path, logger=straight, **options)
    for place, step in (("03-batch", 1), ("05-batch", 3), ("05-epoch", 3)):
        rest = Logged()
        run(base_folder, tmp_path, ckpt=tmp_path / f"{place}.ckpt", logger=rest, **options)
        validation = [row for row in straight.rows if row[0] == step - 1 and "val/loss" in row[1]]
        assert len(validation) == (step == 3)
        later = [row for row in straight.rows if row[0] is not None and row[0] >= step]
        assert rest.rows == (validation if place == "05-batch" else []) + later, place


@pytest.mark.parametrize(("accumulate", "hook"), [(1, "epoch"), (3, "train")])
def test_a_run_that_was_stopped_within_an_epoch_is_finished(
    base_folder: str, tmp_path: Path, accumulate: int, hook: str
) -> None:
    """Stopped after 2 batches and again after 8 of 10, as max_time and EarlyStopping do it."""
    options = {"accumulate_grad_batches": accumulate}
    straight = run(base_folder, tmp_path, **options)
    first = run(base_folder, tmp_path, tmp_path, stop_after=2, **options)
    assert first[0].global_step < straight[0].global_step
    run(base_folder, tmp_path, tmp_path, stop_after=8, ckpt=tmp_path / f"02-{hook}.ckpt", **options)
    assert_same(straight, run(base_folder, tmp_path, ckpt=tmp_path / f"08-{hook}.ckpt", **options), hook)


def test_a_run_that_max_steps_ended_goes_to_its_last_step(base_folder: str, tmp_path: Path) -> None:
    """3 of 10 steps; the rates of those 3 were of a training of 3 steps, which is said."""
    run(base_folder, tmp_path, tmp_path, max_steps=3, model={"warmup": 0})
    with pytest.warns(UserWarning, match="ckpt_path: optimizer steps in all was 3 and is 10 from here on"):
        runner, _ = run(base_folder, tmp_path, ckpt=tmp_path / "03-train.ckpt", model={"warmup": 0})
    assert runner.global_step == 10
    assert runner.optimizers[0].param_groups[0]["lr"] == 0


@pytest.fixture(scope="module")
def checkpoint(base_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run over 2 epochs, within a window."""
    folder = tmp_path_factory.mktemp("run")
    run(base_folder, folder, folder, accumulate_grad_batches=2)
    return folder / "03-batch.ckpt"


def test_changed_settings_are_said_once_each(base_folder: str, checkpoint: Path, tmp_path: Path) -> None:
    terms = objectives() | {"ga": NPO(0.9)}
    model = {"learning_rate": 0.5, "weight_decay": 0.5, "objectives": terms, "lora": Lora(rank=4, alpha=8, dropout=0.2)}
    model["tokens_per_forward"] = 64
    with pytest.warns(UserWarning, match="ckpt_path") as caught:
        run(base_folder, tmp_path, ckpt=checkpoint, accumulate_grad_batches=2, model=model)
    said = sorted(str(warning.message) for warning in caught if re.search("ckpt_path", str(warning.message)))
    assert [message.split(" from here on")[0] for message in said] == [
        "ckpt_path: learning_rate was 0.01 and is 0.5",
        "ckpt_path: lora.dropout was 0.1 and is 0.2",
        "ckpt_path: objectives.ga was NPO(weight=0.5, beta=0.1, reduction=sequence_mean) and is "
        "NPO(weight=0.9, beta=0.1, reduction=sequence_sum)",
        "ckpt_path: tokens_per_forward was auto and is 64",
        "ckpt_path: weight_decay was 0.01 and is 0.5",
    ]


def test_a_rate_and_a_decay_that_are_given_win_over_those_of_the_checkpoint(
    base_folder: str, checkpoint: Path, tmp_path: Path
) -> None:
    """After 1 of 6 steps (10 batches in twos, two epochs of 3): the rate of each step is the new peak's share, by
    arithmetic; the first epoch warms up (1/3, 2/3, 1), then it falls to 0 over three steps."""
    seen: list[tuple[float, float]] = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))

    with pytest.warns(UserWarning, match="ckpt_path: (learning_rate was 0.01 and is 0.03|weight_decay)"):
        run(
            base_folder, tmp_path, ckpt=checkpoint, accumulate_grad_batches=2, callbacks=[Watch()],
            model={"learning_rate": 0.03, "weight_decay": 0.5},
        )  # fmt: skip
    assert [decay for _, decay in seen] == [0.5] * 5
    assert [rate for rate, _ in seen] == pytest.approx([0.01, 0.02, 0.03, 0.02, 0.01])


def other_base(base_folder: str, folder: Path, **config: Any) -> str:
    """The base with one weight changed in its last digits, or with another configuration."""
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    if not config:
        with torch.no_grad():
            model.model.norm.weight[3] += 1e-6
    for name, value in config.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    for path in Path(base_folder).glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


def refusal(base: str, ckpt: Path, verb: str = "validate", **options: Any) -> str:
    """The message with which a checkpoint is refused."""
    data = ForgetRetainData(**write_rows(ckpt.parent, forget=10, retain=10), batch_size=2)
    with pytest.raises(InputError) as caught:
        getattr(trainer(ckpt.parent), verb)(module(base, **options), data, ckpt_path=str(ckpt))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (Lora(rank=8, alpha=8), "its adapter has rank 4 where this run's has 8 "),
        (Lora(rank=4, alpha=16), "its adapter has alpha 8 where this run's has 16 "),
        (Lora(rank=4, alpha=8, target_modules=["q_proj"]), "the checkpoint has a surplus model."),
    ],
    ids=["rank", "alpha", "targets"],
)
def test_another_adapter_is_refused(base_folder: str, checkpoint: Path, verb: str, lora: Lora, message: str) -> None:
    assert refusal(base_folder, checkpoint, verb, lora=lora).startswith(f"ckpt_path: {message}")


def test_a_tensor_too_few_or_of_another_size_is_refused(base_folder: str, checkpoint: Path, tmp_path: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    name, value = saved["state_dict"].popitem()
    torch.save(saved, tmp_path / "torn.ckpt")
    assert f"the checkpoint has no {name}" in refusal(base_folder, tmp_path / "torn.ckpt")
    saved["state_dict"][name] = value[1:]
    torch.save(saved, tmp_path / "cut.ckpt")
    assert f"{name} is {list(value[1:].shape)} in the checkpoint and" in refusal(base_folder, tmp_path / "cut.ckpt")


@pytest.mark.parametrize("config", [{}, {"rms_norm_eps": 0.5}], ids=["weights", "configuration"])
def test_another_base_is_refused_and_the_same_elsewhere_is_not(
    base_folder: str, checkpoint: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    other = other_base(base_folder, tmp_path / "other", **config)
    for verb in ("fit", "validate"):
        assert f"belongs to another base model than {other}" in refusal(other, checkpoint, verb)
    assert "cannot be compared with" in refusal(other, checkpoint, dtype="bfloat16")
    moved = tmp_path / "moved"
    moved.symlink_to(base_folder)
    data = ForgetRetainData(**write_rows(tmp_path, forget=10, retain=10), batch_size=2)
    trainer(tmp_path).validate(module(str(moved)), data, ckpt_path=str(checkpoint), verbose=False)


def test_another_window_is_refused_within_one(base_folder: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stands within an accumulation window; .* was 2 and is 3$"):
        run(base_folder, tmp_path, ckpt=checkpoint, accumulate_grad_batches=3)


def test_weights_alone_are_no_place_to_go_on_from(base_folder: str, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "weights", save_weights_only=True)
    data = write_rows(tmp_path, forget=10, retain=10)
    trainer(tmp_path, [saver], max_epochs=1, enable_checkpointing=True).fit(
        module(base_folder), ForgetRetainData(**data, batch_size=2)
    )
    assert "holds weights only" in refusal(base_folder, tmp_path / "weights.ckpt", "fit")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, tmp_path / "foreign.ckpt")
    assert "is no checkpoint of `unlearn-pl fit`" in refusal(base_folder, tmp_path / "foreign.ckpt")


def test_a_last_checkpoint_of_an_earlier_run_is_set_aside(base_folder: str, tmp_path: Path) -> None:
    """Not one of the run that goes on, and not by a dry run."""
    data = write_rows(tmp_path, forget=4, retain=4)

    def fit(**options: Any) -> UnlearningModule:
        saver = ModelCheckpoint(tmp_path / "saved", "it", save_last=True, enable_version_counter=False)
        callbacks = [saver, SetStaleAside()]
        model = module(base_folder)
        ckpt = options.pop("ckpt", None)
        trainer(tmp_path, callbacks, enable_checkpointing=True, **options).fit(
            model, ForgetRetainData(**data, batch_size=2), ckpt_path=ckpt
        )
        return model

    last = tmp_path / "saved/last.ckpt"
    fit(max_epochs=1)
    first = last.read_bytes()
    fit(max_epochs=1, fast_dev_run=True)
    with pytest.warns(UserWarning, match="optimizer steps in all"):
        fit(max_epochs=2, ckpt=str(last))
    second = last.read_bytes()
    assert first != second
    assert not list(last.parent.glob("earlier-*"))
    with pytest.warns(UserWarning, match=r"last\.ckpt is of an earlier run in this folder; it is now earlier-last"):
        fit(max_epochs=1)
    assert (last.parent / "earlier-last.ckpt").read_bytes() == second
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert sorted(path.name for path in last.parent.glob("*last*")) == ["earlier-last.ckpt", "last.ckpt"]


@pytest.mark.parametrize("more", [{"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [3, 4]}])
def test_what_an_adapter_holds_besides_its_factors_is_no_part_of_the_base(
    base_folder: str, tmp_path: Path, more: dict[str, Any]
) -> None:
    """Otherwise each step makes it another base, with which no fit can go on."""
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **more)
    get_peft_model(base, config).save_pretrained(tmp_path / "start", save_embedding_layers=False)
    model = {"adapter": str(tmp_path / "start"), "warmup": 0}  # so that the first step is one
    whole = run(base_folder, tmp_path, saved=tmp_path / "all", model=model)
    resumed = run(base_folder, tmp_path, ckpt=tmp_path / "all/07-batch.ckpt", model=model)
    assert_same(whole, resumed, str(more))

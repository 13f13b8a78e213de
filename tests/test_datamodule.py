"""The data module under a real trainer: what a run sees, interrupted or not."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from tokenizer_kinds import word_level

from unlearn_pl.data.batch import PairBatch
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.data.pairing import PairSampler
from unlearn_pl.errors import InputError

N_FORGET, N_RETAIN = 7, 4

pytestmark = [
    # Batches come from memory here; Lightning recommends workers whatever the loader does.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty.*"),
]


def write_rows(path: Path, n: int, words: int = 3) -> str:
    rows = [
        {"id": f"{path.stem}{i}qa0", "input": f"What is row {i} " + "w " * words, "output": f"{i}", "task": "Task1"}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    return {name: write_rows(folder / f"{name}.jsonl", n) for name, n in (("forget", N_FORGET), ("retain", N_RETAIN))}


class Recorder(LightningModule):
    """One weight, and a list of the ids that training and validation saw."""

    def __init__(self, tokenizer, touch: bool = False) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.touch = touch
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        self.validated: list[tuple[tuple[str, ...], tuple[str, ...]]] = []

    def training_step(self, batch: PairBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append((batch.rows["forget"].record_ids, batch.rows["retain"].record_ids))
        return self.weight * batch.rows["forget"].input_ids.float().mean()

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        self.validated.append((batch.rows["forget"].record_ids, batch.rows["retain"].record_ids))

    test_step = validation_step

    def predict_step(self, batch: PairBatch, batch_idx: int) -> int:
        self.validation_step(batch, batch_idx)
        return batch_idx

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.touch:
            assert self.trainer.estimated_stepping_batches > 0
            assert len(self.trainer.datamodule.train_dataloader()) > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = len(self.seen)


def quiet_trainer(folder: Path, callbacks=(), **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        callbacks=list(callbacks),
        **{"max_epochs": 3, "limit_val_batches": 0} | options,
    )


def fit(tokenizer, files, folder, callbacks=(), ckpt=None, touch=False, data=None, **options) -> Recorder:
    """One run in a fresh trainer, module and data module."""
    module = Recorder(tokenizer, touch)
    data_module = ForgetRetainData(**files, **{"batch_size": 2} | (data or {}))
    quiet_trainer(folder, callbacks, **options).fit(module, data_module, ckpt_path=ckpt)
    return module


def every_step(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{epoch}-{step}", save_top_k=-1, **options)


def assert_every_checkpoint_resumes(straight: Recorder, folder: Path, at_least: int, resume) -> None:
    """Resuming from each checkpoint must see what the run itself saw after writing it."""
    checkpoints = sorted(folder.glob("*.ckpt"))
    assert len(checkpoints) >= at_least
    counts = set()
    for path in checkpoints:
        seen = torch.load(path, weights_only=True)["seen"]
        counts.add(seen)
        if seen < len(straight.seen):
            assert resume(str(path)).seen == straight.seen[seen:], path.name
    assert len(counts) == len(checkpoints)


@pytest.mark.parametrize("touch", [False, True])
@pytest.mark.parametrize(("accumulate", "steps"), [(1, 12), (2, 6)])
def test_resume_after_any_optimizer_step(tokenizer, files, tmp_path, accumulate, steps, touch):
    """7 pairs in twos make 4 batches an epoch, 12 in three; with accumulation 2 there are 6 steps."""
    options = {"accumulate_grad_batches": accumulate, "touch": touch}
    saver = every_step(tmp_path / "ckpt", every_n_train_steps=1)
    straight = fit(tokenizer, files, tmp_path, [saver], **options)
    assert len(straight.seen) == 12
    assert_every_checkpoint_resumes(
        straight, tmp_path / "ckpt", steps, lambda ckpt: fit(tokenizer, files, tmp_path, ckpt=ckpt, **options)
    )


@pytest.mark.parametrize("touch", [False, True])
def test_resume_after_an_epoch(tokenizer, files, tmp_path, touch):
    saver = every_step(tmp_path / "ckpt", every_n_epochs=1, save_on_train_epoch_end=True)
    straight = fit(tokenizer, files, tmp_path, [saver], touch=touch)
    assert_every_checkpoint_resumes(
        straight, tmp_path / "ckpt", 3, lambda ckpt: fit(tokenizer, files, tmp_path, ckpt=ckpt, touch=touch)
    )


@pytest.mark.parametrize("touch", [False, True])
def test_resume_with_workers_that_read_ahead(tokenizer, files, tmp_path, touch):
    """Workers ask for the first pairs when the iterator is made, before Lightning announces the epoch."""
    saver = every_step(tmp_path / "ckpt", every_n_train_steps=3)
    straight = fit(tokenizer, files, tmp_path, [saver])
    options = {"data": {"num_workers": 1}, "touch": touch}
    assert_every_checkpoint_resumes(
        straight, tmp_path / "ckpt", 4, lambda ckpt: fit(tokenizer, files, tmp_path, ckpt=ckpt, **options)
    )


def test_resume_after_validation(tokenizer, files, tmp_path):
    """Validation after every second batch, so also after the last one of an epoch."""
    options = {"limit_val_batches": 1, "val_check_interval": 2, "num_sanity_val_steps": 0}
    saver = every_step(tmp_path / "ckpt", save_on_train_epoch_end=False)
    straight = fit(tokenizer, files, tmp_path, [saver], **options)
    assert_every_checkpoint_resumes(
        straight, tmp_path / "ckpt", 6, lambda ckpt: fit(tokenizer, files, tmp_path, ckpt=ckpt, **options)
    )


@pytest.mark.parametrize("touch", [False, True])
def test_more_steps_after_max_steps_ended_within_an_epoch(tokenizer, files, tmp_path, touch):
    """6 of 4 + 4 batches, then 7, then 12: Lightning counts a new epoch at each end, the order of pairs must not."""
    straight = fit(tokenizer, files, tmp_path, max_steps=12, max_epochs=-1, touch=touch)
    seen, ckpt = [], None
    for max_steps in (6, 7, 12):
        saver = ModelCheckpoint(tmp_path, f"end-{max_steps}", save_on_train_epoch_end=True)
        part = fit(tokenizer, files, tmp_path, [saver], ckpt=ckpt, max_steps=max_steps, max_epochs=-1, touch=touch)
        seen += part.seen
        ckpt = str(tmp_path / f"end-{max_steps}.ckpt")
    assert seen == straight.seen


def test_epochs_visit_every_forget_row_once_in_new_orders(tokenizer, files, tmp_path):
    seen = fit(tokenizer, files, tmp_path, max_epochs=2).seen
    epochs = [[row for forget, _ in part for row in forget] for part in (seen[:4], seen[4:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"forget{i}qa0" for i in range(N_FORGET))
    assert epochs[0] != epochs[1]
    assert fit(tokenizer, files, tmp_path, max_epochs=2).seen == seen
    assert fit(tokenizer, files, tmp_path, max_epochs=2, data={"seed": 1}).seen != seen


def test_a_limit_on_batches_still_gives_each_epoch_its_own_order(tokenizer, files, tmp_path):
    seen = fit(tokenizer, files, tmp_path).seen
    limited = fit(tokenizer, files, tmp_path, limit_train_batches=2).seen
    assert limited == [seen[place] for place in (0, 1, 4, 5, 8, 9)]


def test_validation_test_and_prediction_take_all_forget_rows_in_order(tokenizer, files, tmp_path):
    """7 forget and 4 retain rows: i goes with i % 4."""
    pairs = [((f"forget{i}qa0",), (f"retain{i % N_RETAIN}qa0",)) for i in range(N_FORGET)]
    for verb in ("validate", "test", "predict"):
        module = Recorder(tokenizer)
        trainer = quiet_trainer(tmp_path, limit_val_batches=1.0)
        getattr(trainer, verb)(module, ForgetRetainData(**files))
        assert module.validated == pairs, verb


@pytest.mark.filterwarnings("ignore:.*turning off the train dataloader shuffling.*")
def test_overfit_batches_sees_the_same_first_pairs_again(tokenizer, files, tmp_path):
    seen = fit(tokenizer, files, tmp_path, overfit_batches=1).seen
    assert seen == [(("forget0qa0", "forget1qa0"), ("retain0qa0", "retain1qa0"))] * 3


def test_a_checkpoint_within_an_epoch_refuses_other_data(tokenizer, files, tmp_path):
    fit(tokenizer, files, tmp_path, [ModelCheckpoint(tmp_path, "mid", every_n_train_steps=2)], max_steps=2)
    with pytest.raises(InputError, match=r"^ckpt_path: .*batch_size was 2 and is 3; seed was 42 and is 7"):
        fit(tokenizer, files, tmp_path, ckpt=tmp_path / "mid.ckpt", data={"batch_size": 3, "seed": 7})


def test_a_checkpoint_within_an_epoch_refuses_other_rows_of_the_same_number(tokenizer, files, tmp_path):
    """One letter of one retain row."""
    fit(tokenizer, files, tmp_path, [ModelCheckpoint(tmp_path, "mid", every_n_train_steps=2)], max_steps=2)
    changed = tmp_path / "retain.jsonl"
    changed.write_text(Path(files["retain"]).read_text().replace("row 3", "row 9"))
    with pytest.raises(InputError, match=r"^ckpt_path: .*; content of the rows was \w{16} and is \w{16}$"):
        fit(tokenizer, files | {"retain": str(changed)}, tmp_path, ckpt=tmp_path / "mid.ckpt")


def test_every_row_is_validated_where_there_are_more_retain_rows(tokenizer, files, tmp_path):
    """4 forget and 7 retain rows in twos: forget rows 0, 1 and 2 come a second time."""
    swapped = {"forget": files["retain"], "retain": files["forget"]}
    for verb in ("validate", "test", "predict"):
        module = Recorder(tokenizer)
        getattr(quiet_trainer(tmp_path, limit_val_batches=1.0), verb)(module, ForgetRetainData(**swapped, batch_size=2))
        pairs = [pair for batch in module.validated for pair in zip(*batch, strict=True)]
        assert pairs == [(f"retain{i % 4}qa0", f"forget{i}qa0") for i in range(7)]
    assert len(fit(tokenizer, swapped, tmp_path, max_epochs=1).seen) == 2, "an epoch is still of 4 pairs"


def test_a_checkpoint_between_epochs_takes_another_batch_size(tokenizer, files, tmp_path):
    straight = fit(tokenizer, files, tmp_path, [ModelCheckpoint(tmp_path, "edge")], max_epochs=1)
    data = {"batch_size": 7}
    with pytest.warns(UserWarning, match="^ckpt_path: batch_size was 2 and is 7 from here on"):
        resumed = fit(tokenizer, files, tmp_path, ckpt=tmp_path / "edge.ckpt", max_epochs=2, data=data)
    assert resumed.seen == fit(tokenizer, files, tmp_path, max_epochs=2, data=data).seen[1:]
    assert len(straight.seen) == 4


def test_validating_a_checkpoint_does_not_move_a_later_fit(tokenizer, files, tmp_path):
    straight = fit(tokenizer, files, tmp_path, [ModelCheckpoint(tmp_path, "mid", every_n_train_steps=2)], max_steps=2)
    module, data = Recorder(tokenizer), ForgetRetainData(**files, batch_size=2)
    quiet_trainer(tmp_path, limit_val_batches=1).validate(module, data, ckpt_path=tmp_path / "mid.ckpt", verbose=False)
    quiet_trainer(tmp_path, max_steps=2).fit(module, data)
    assert module.seen == straight.seen


def test_lightning_leaves_the_sampler_alone(tokenizer, files, tmp_path):
    """Under several processes it replaces every sampler that is no DistributedSampler."""
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(Recorder(tokenizer), ForgetRetainData(**files))
    sampler = trainer.train_dataloader.sampler
    assert type(sampler) is PairSampler
    assert isinstance(sampler, torch.utils.data.DistributedSampler)


def a_batch(base_folder, files) -> tuple[ForgetRetainData, PairBatch]:
    data = ForgetRetainData(**files, batch_size=3, tokenizer=base_folder)
    data.setup()
    return data, next(iter(data.train_dataloader()))


def test_works_without_a_trainer_and_moves_between_devices(base_folder, files):
    data, batch = a_batch(base_folder, files)
    assert batch.rows["forget"].input_ids.shape == (3, int(batch.rows["forget"].lengths.max()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert isinstance(moved, PairBatch)
    sides = moved.rows.values()
    assert {t.device.type for rows in sides for t in (rows.input_ids, rows.token_weights)} == {"meta"}
    assert moved.batch_size == 3
    assert moved.rows["retain"].record_ids == batch.rows["retain"].record_ids


def test_mixed_precision_passes_a_batch_through(base_folder, files):
    """Lightning rebuilds each batch field by field here, which it refuses to do for a frozen dataclass."""
    _, batch = a_batch(base_folder, files)
    converted = MixedPrecision("bf16-mixed", "cpu").convert_input(batch)
    assert torch.equal(converted.rows["forget"].input_ids, batch.rows["forget"].input_ids)
    assert converted.rows["forget"].record_ids == batch.rows["forget"].record_ids
    assert converted.batch_size == batch.batch_size == 3


def test_a_batch_falls_into_micro_batches(base_folder, files):
    """7 pairs in batches of 3 x 2: one of 6 and one of 1; then 2 x 4, whose last micro-batch has 1 pair."""
    expected = {(2, 3): [[2, 2, 2], [1]], (4, 2): [[4, 3]], (1, 2): [[1, 1]] * 3 + [[1]], (2, 1): [[2]] * 3 + [[1]]}
    for (batch_size, micro_batches), sizes in expected.items():
        data = ForgetRetainData(**files, batch_size=batch_size, micro_batches=micro_batches, tokenizer=base_folder)
        data.setup()
        for loader in (data.train_dataloader(), data.val_dataloader()):
            batches = list(loader)
            assert [[len(part) for part in batch.micro_batches()] for batch in batches] == sizes
            for batch in batches:
                assert batch.batch_size == batch_size
                for side in ("forget", "retain"):
                    parts = [part.rows[side] for part in batch.micro_batches()]
                    assert sum((part.record_ids for part in parts), ()) == batch.rows[side].record_ids
                    assert torch.equal(torch.cat([part.input_ids for part in parts]), batch.rows[side].input_ids)


def test_micro_batches_see_the_pairs_that_single_batches_see(tokenizer, files, tmp_path):
    """In the same order, epoch after epoch."""
    single = fit(tokenizer, files, tmp_path, data={"batch_size": 1}).seen
    for data in ({"batch_size": 1, "micro_batches": 3}, {"batch_size": 3, "micro_batches": 2}):
        together = fit(tokenizer, files, tmp_path, data=data).seen
        pairs = [pair for forget, retain in together for pair in zip(forget, retain, strict=True)]
        assert pairs == [(forget[0], retain[0]) for forget, retain in single]


@pytest.mark.parametrize("touch", [False, True])
def test_resume_in_batches_of_micro_batches(tokenizer, files, tmp_path, touch):
    """7 pairs in 2 x 2 make 2 batches an epoch."""
    options = {"data": {"batch_size": 2, "micro_batches": 2}, "touch": touch}
    straight = fit(tokenizer, files, tmp_path, [every_step(tmp_path / "ckpt", every_n_train_steps=1)], **options)
    assert len(straight.seen) == 6
    assert_every_checkpoint_resumes(
        straight, tmp_path / "ckpt", 6, lambda ckpt: fit(tokenizer, files, tmp_path, ckpt=ckpt, **options)
    )


def test_a_checkpoint_within_an_epoch_refuses_another_number_of_micro_batches(tokenizer, files, tmp_path):
    fit(tokenizer, files, tmp_path, [ModelCheckpoint(tmp_path, "mid", every_n_train_steps=2)], max_steps=2)
    with pytest.raises(InputError, match=r"^ckpt_path: .*micro_batches was 1 and is 2$"):
        fit(tokenizer, files, tmp_path, ckpt=tmp_path / "mid.ckpt", data={"micro_batches": 2})


def test_micro_batches_start_at_one():
    with pytest.raises(InputError, match=r"^micro_batches: must be at least 1, got 0$"):
        ForgetRetainData("absent.jsonl", "absent.jsonl", micro_batches=0)


def test_the_encoded_rows_of_both_sets_can_be_read(base_folder, files):
    data = ForgetRetainData(**files, tokenizer=base_folder)
    data.setup()
    assert [row.record_id for row in data.encoded["forget"]] == [f"forget{i}qa0" for i in range(N_FORGET)]
    assert [row.record_id for row in data.encoded["retain"]] == [f"retain{i}qa0" for i in range(N_RETAIN)]


def test_a_tokenizer_without_pad_token_pads_with_eos(tokenizer, files, tmp_path):
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    assert fit(bare, files, tmp_path, max_steps=1).seen == fit(tokenizer, files, tmp_path, max_steps=1).seen


def test_says_once_what_is_cut_and_what_is_never_seen(base_folder, tmp_path):
    """A prompt of 40 words is longer than 16 tokens in every row; 5 retain rows have 2 partners."""
    forget, retain = write_rows(tmp_path / "f.jsonl", 2, words=40), write_rows(tmp_path / "r.jsonl", 5, words=40)
    data = ForgetRetainData(forget, retain, max_length=16, pairing="paired", tokenizer=base_folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup("fit")
        data.setup("validate")
    cut, unseen = [str(warning.message) for warning in caught]
    assert "max_length 16: 2 of 2 forget rows and 5 of 5 retain rows" in cut
    assert "pairing paired: 3 of 5 retain rows are never seen" in unseen


def test_a_new_tokenizer_encodes_again(tokenizer, files, tmp_path):
    data = ForgetRetainData(**files)
    for maker in (tokenizer, copy.deepcopy(tokenizer)):
        quiet_trainer(tmp_path, max_steps=1).fit(Recorder(maker), data)
        assert data._tokenizer is maker


def test_needs_a_tokenizer(files):
    with pytest.raises(InputError, match=r"^tokenizer: needed, since"):
        ForgetRetainData(**files).setup()
    with pytest.raises(InputError, match=r"^tokenizer: cannot load './nowhere'"):
        ForgetRetainData(**files, tokenizer="./nowhere").setup()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("micro_batches", 0),
        ("num_workers", -1),
        ("max_length", 1),
        ("prompt_share", 0.0),
        ("prompt_share", 1.1),
        ("joiner", "\n"),
        ("pairing", "random"),
        ("documents_per_task", 0),
        ("columns", {"question": "input"}),
    ],
)
def test_options_fail_before_any_file_is_opened(option, value):
    with pytest.raises(InputError, match=rf"^{option}: .* got ") as caught:
        ForgetRetainData("absent.jsonl", "absent.jsonl", **{option: value})
    assert "\n" not in str(caught.value)


def test_help_explains_every_argument():
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(ForgetRetainData, "data")
    actions = {action.dest: action.help for action in parser._actions if action.dest.startswith("data.")}
    assert len(actions) == 14
    assert not [name for name, text in actions.items() if not text]


def test_rows_that_the_tokenizer_does_not_know_are_counted(files, tmp_path):
    """A tokenizer of whole words: of 7 + 4 answers it knows the two that are "0"."""
    word_level(["What", "is", "row", "0", "w"]).save_pretrained(tmp_path)
    data = ForgetRetainData(**files, tokenizer=str(tmp_path))
    with pytest.warns(UserWarning, match="9 of 11 rows hold characters that it does not know, in 9 of them the answer"):
        data.setup()

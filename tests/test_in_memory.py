"""A fit from Python: model, tokenizer and rows in memory, any Trainer, and the module back from its checkpoint."""

import copy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_runs import module, objectives, trainer, write_rows

from unlearn_pl import NPO, ForgetRetainData, InputError, Lora, RetainNLL, UnlearningModule, read_records
from unlearn_pl.training.cache import ReferenceCache

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:Checkpoint directory .* exists and is not empty"
)


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, str]:
    return write_rows(tmp_path)


def adapter_of(trained: UnlearningModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trained.named_parameters() if value.requires_grad}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def fit(trained: UnlearningModule, data: ForgetRetainData, folder: Path, name: str, **options: Any) -> UnlearningModule:
    saver = ModelCheckpoint(dirpath=folder, filename=name)
    trainer(folder, [saver], enable_checkpointing=True, max_epochs=2).fit(trained, data, **options)
    return trained


def test_in_memory_equals_by_path_bit_for_bit_and_comes_back(
    base_folder, tiny_model, tokenizer, rows, tmp_path
) -> None:
    by_path = fit(module(base_folder), ForgetRetainData(**rows), tmp_path, "path")
    records = {name: read_records(path) for name, path in rows.items()}
    kept = module(tiny_model(), tokenizer=tokenizer)
    in_memory = fit(kept, ForgetRetainData(**records, tokenizer=tokenizer), tmp_path, "memory")
    assert_equal(adapter_of(by_path), adapter_of(in_memory))

    loaded = UnlearningModule.load_from_checkpoint(tmp_path / "path.ckpt")
    assert_equal(adapter_of(by_path), adapter_of(loaded))
    assert (loaded.objectives, loaded.lora, loaded.learning_rate) == (objectives(), Lora(4, 8, 0.1), 1e-2)
    again = UnlearningModule.load_from_checkpoint(tmp_path / "memory.ckpt", base=tiny_model(), tokenizer=tokenizer)
    assert_equal(adapter_of(by_path), adapter_of(again))
    data = ForgetRetainData(**rows)
    assert trainer(tmp_path).validate(loaded, data) == trainer(tmp_path).validate(by_path, data)
    assert trainer(tmp_path).predict(again, data) == trainer(tmp_path).predict(by_path, data)
    for trained, name in ((by_path, "one"), (again, "two")):
        trained.save_adapter(tmp_path / name)
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second
    untouched = tiny_model().state_dict()
    assert_equal(untouched, dict(again.fresh_base().state_dict()))

    with pytest.raises(InputError, match=r"^base: was an object in memory"):
        UnlearningModule.load_from_checkpoint(tmp_path / "memory.ckpt", tokenizer=tokenizer)
    other = tiny_model()
    other.lm_head.weight.data += 1
    with pytest.raises(InputError, match=r"^checkpoint_path: belongs to another base model"):
        UnlearningModule.load_from_checkpoint(tmp_path / "memory.ckpt", base=other, tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"^checkpoint_path: must be a checkpoint file of"):
        UnlearningModule.load_from_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match=r"^map_location: UnlearningModule has no such argument; it has base, obj"):
        UnlearningModule.load_from_checkpoint(tmp_path / "path.ckpt", map_location="cpu")


def test_a_path_is_as_good_as_a_text(base_folder, rows, tmp_path) -> None:
    folder, cache = Path(base_folder), ReferenceCache(folder=tmp_path / "cache")
    first = fit(module(folder, tokenizer=folder, reference_cache=cache), ForgetRetainData(**rows), tmp_path, "first")
    first.save_adapter(tmp_path / "adapter")
    second = module(folder, tokenizer=folder, adapter=tmp_path / "adapter", reference_cache=cache)
    fit(second, ForgetRetainData(**rows, tokenizer=folder), tmp_path, "second")
    loaded = UnlearningModule.load_from_checkpoint(tmp_path / "second.ckpt")
    assert_equal(adapter_of(second), adapter_of(loaded))
    assert (loaded.base, loaded.adapter) == (base_folder, str(tmp_path / "adapter"))


class Needless(RetainNLL):
    needs: ClassVar = {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": [NPO()]}, "objectives: must be terms by slot, .* got list"),
        ({"objectives": {}}, "objectives: must name at least one term"),
        ({"objectives": {"ga": NPO}}, "objectives.ga: must be an Objective .*, got the class NPO"),
        ({"objectives": {"ga": "NPO"}}, "objectives.ga: must be an Objective .*, got str"),
        ({"objectives": {"ga": NPO("1")}}, "objectives.ga: NPO needs a number as weight"),
        ({"objectives": {"ga": Needless()}}, "objectives.ga: the needs of Needless must be a mapping .*, got {}"),
        ({"objectives": {"loss": NPO()}}, "objectives: loss is logged by another term"),
        ({"objectives": {"a": NPO(), "a_weighted": NPO()}}, "objectives: a_weighted is logged by another term"),
        ({"lora": {"rank": 4}}, r"lora: must be a Lora such as Lora\(rank=8\), got dict"),
        ({"base": "nowhere/at/all"}, "base: nowhere/at/all is not a folder"),
        ({"tokenizer": "nowhere/at/all"}, r"tokenizer: nowhere/at/all is not a folder$"),
    ],
)
def test_what_is_no_argument_is_refused(options, message, tmp_path) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        getattr(module(**({"base": "base"} | options)), "tokenizer")  # noqa: B009  # it is loaded when asked for


def test_what_is_no_base_is_refused(tiny_model, tokenizer) -> None:
    with pytest.raises(InputError, match=r"^tokenizer: needed, since the base is a model in memory"):
        module(tiny_model())
    for wrong in (3, torch.nn.Linear(2, 2)):
        with pytest.raises(InputError, match=r"^base: must be a path, a hub name or a transformers model, got"):
            module(wrong, tokenizer=tokenizer)
    with pytest.raises(InputError, match="has no head"):
        module(tiny_model().model, tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"^base: must be in float32, .*, got torch.float64"):
        module(tiny_model().double(), tokenizer=tokenizer)
    used = tiny_model()
    copied = copy.deepcopy(used)
    first = module(used, tokenizer=tokenizer)
    first.configure_model()
    with pytest.raises(InputError, match=r"^base: must be without an adapter"):
        module(first.model, tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"^base: this model has an adapter in its layers"):
        module(used, tokenizer=tokenizer)
    module(copied, tokenizer=tokenizer).configure_model()

"""The reference cache against the base model itself, and what it does with torn or foreign files."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_adapters import PAD, adapted, plain_nll, rows_of, shake
from transformers import LlamaForCausalLM

from unlearn_pl.data.batch import collate_rows
from unlearn_pl.errors import InputError
from unlearn_pl.models.fast.packing import enable_packing
from unlearn_pl.objectives.passes import Needs
from unlearn_pl.training import cache as cache_module
from unlearn_pl.training import cache_files as files_module
from unlearn_pl.training.cache import ReferenceCache, cache_key, open_or_build
from unlearn_pl.training.cache_files import CachedReference, predicted_bytes
from unlearn_pl.training.packs import Part
from unlearn_pl.training.reference import live_reference

ROWS = {
    "forget": rows_of((3, 4), (7, 2), (1, 1), (5, 9), seed=1, name="f"),
    "retain": rows_of((5, 5), (1, 1), (12, 3), seed=2, name="r"),
}
NEEDS = {"forget": Needs(reference_nll=True), "retain": Needs("attended", reference_logits=True)}
NEEDS_FOR_ALL = {split: Needs(rule, True, True) for split, rule in (("forget", "answer"), ("retain", "attended"))}


@pytest.fixture
def model(tiny_model: Callable[[], LlamaForCausalLM]) -> PeftModel:
    """With an adapter that does something, which the reference must not see."""
    model = adapted(tiny_model(), dropout=0.3)
    assert enable_packing(model)
    return model


def opened(model: PeftModel, folder: Path, needs=None, rows=None, precision: str = "32-true", **options):
    """The cache, and what was reported."""
    said: list[str] = []
    reference = open_or_build(
        model, rows or ROWS, needs or NEEDS, ReferenceCache(str(folder), **options), precision, said.append
    )
    return reference, said


def parts_of(needs, order: tuple[int, ...] = (2, 0, 1)) -> list[Part]:
    """Some rows of every split, in another order."""
    return [Part(split, collate_rows([ROWS[split][i] for i in order], PAD), own) for split, own in needs.items()]


def assert_right(model: PeftModel, reference, needs=NEEDS, tolerance: float = 1e-5) -> None:
    """What the reference says is what the base model says."""
    parts = parts_of(needs)
    for own, live in zip(reference(model, parts), live_reference(model, parts), strict=True):
        assert own.layers.keys() == live.layers.keys()
        layers = [(own.layers[layer], live.layers[layer]) for layer in own.layers]
        for ours, theirs in [(own.token_nll, live.token_nll), (own.hidden, live.hidden), *layers]:
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                assert ours.shape == theirs.shape
                assert torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)


def caches_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, nothing may run the base model for a cache."""

    def forbid() -> None:
        def fail(*_: object) -> None:
            raise AssertionError("the base model ran")

        monkeypatch.setattr(files_module, "live_reference", fail)

    return forbid


@pytest.mark.parametrize("rules", [("answer", "attended"), ("attended", "answer")], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize(("nll", "logits"), [(True, False), (False, True), (True, True)], ids=["nll", "logits", "both"])
def test_what_is_kept_is_what_the_base_model_says(model, tmp_path, rules, dtype, tolerance, nll, logits) -> None:
    needs = {split: Needs(rule, nll, logits) for split, rule in zip(("forget", "retain"), rules, strict=True)}
    reference, _ = opened(model, tmp_path, needs, dtype=dtype)
    assert_right(model, reference, needs, tolerance)


def test_the_kept_nll_is_that_of_plain_forwards(model: PeftModel, tmp_path: Path, tiny_model) -> None:
    reference, _ = opened(model, tmp_path)
    (part, _) = parts_of(NEEDS)
    expected = [plain_nll(tiny_model(), ROWS["forget"][i]).item() for i in (2, 0, 1)]
    by_row = reference(model, [part])[0].token_nll.split([1, 4, 2])  # answer tokens of these rows
    assert [float(nll.sum()) for nll in by_row] == pytest.approx(expected, rel=1e-5)


def test_rows_that_share_no_forward_are_kept_alike(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files_module, "TOKENS_PER_FORWARD", 12)
    reference, _ = opened(model, tmp_path, NEEDS_FOR_ALL)
    assert_right(model, reference, NEEDS_FOR_ALL)


def test_a_part_may_ask_for_less_or_nothing(model: PeftModel, tmp_path: Path) -> None:
    reference, _ = opened(model, tmp_path, NEEDS_FOR_ALL)
    for own in (Needs(reference_nll=True), Needs(reference_logits=True), Needs()):
        assert_right(model, reference, {"forget": own})


def test_a_second_run_opens_what_the_first_has_kept(model, tmp_path, tiny_model, no_model) -> None:
    """Other adapter values and another process's model of the same base."""
    _, said = opened(model, tmp_path)
    assert len(said) == 1
    (folder,) = caches_in(tmp_path)
    assert f"7 rows go to {folder}" in said[0]
    other = adapted(tiny_model())
    shake(other, std=0.5)
    no_model()
    reference, said = opened(other, tmp_path)
    assert said == []
    assert caches_in(tmp_path) == [folder]
    assert_right(model, reference)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped byte of states": lambda folder: flip(folder / "retain.hidden.npy"),
    "a flipped byte of NLLs": lambda folder: flip(folder / "forget.nll.npy"),
    "a file cut short": lambda folder: (folder / "retain.hidden.npy").write_bytes(b"\x93NUMPY"),
    "a missing file": lambda folder: (folder / "retain.ends.npy").unlink(),
    "a missing index": lambda folder: (folder / "cache.json").unlink(),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
    "an index cut short": lambda folder: (folder / "cache.json").write_text('{"files": {'),
    "an index in binary": lambda folder: (folder / "cache.json").write_bytes(b"\xff\xfe\x00"),
    "an index without files": lambda folder: (folder / "cache.json").write_text("{}"),
    "an index without ids": lambda folder: (folder / "cache.json").write_text('{"files": {}}'),
    "an index that is a list": lambda folder: (folder / "cache.json").write_text("[]"),
    "an index with a list of files": lambda folder: (folder / "cache.json").write_text('{"files": [], "ids": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_reported_and_built_anew(model, tmp_path, damage, no_model) -> None:
    opened(model, tmp_path)
    (folder,) = caches_in(tmp_path)
    damage(folder)
    reference, said = opened(model, tmp_path)
    assert len(said) == 2
    assert said[0].startswith("reference cache: ")
    assert str(folder) in said[0]
    assert said[0].endswith("; it is built anew")
    assert_right(model, reference)
    no_model()
    assert opened(model, tmp_path)[1] == []


def test_a_torn_cache_does_not_open(model: PeftModel, tmp_path: Path) -> None:
    opened(model, tmp_path)
    (folder,) = caches_in(tmp_path)
    flip(folder / "forget.nll.npy")
    with pytest.raises(InputError, match=r"forget.nll.npy is not what was written"):
        CachedReference(folder)


def test_the_key_is_that_of_all_it_depends_on(model: PeftModel, tiny_model) -> None:
    def key(of=model, rows=ROWS, needs=NEEDS, dtype="float32", precision="32-true") -> str:
        return cache_key(of, rows, needs, dtype, precision)

    row = ROWS["retain"][1]
    changed_rows = [
        replace(row, record_id="other"),
        replace(row, input_ids=(*row.input_ids[:-1], row.input_ids[-1] + 1)),
        replace(row, input_ids=(*row.input_ids, 5)),
        replace(ROWS["retain"][0], answer_start=4),
    ]
    edited, reconfigured = adapted(tiny_model()), adapted(tiny_model())
    with torch.no_grad():
        edited.get_parameter("base_model.model.model.layers.1.self_attn.q_proj.base_layer.weight")[3, 3] += 1e-6
    reconfigured.get_base_model().config.rms_norm_eps = 1e-3
    keys = [
        key(),
        *(key(rows=ROWS | {"retain": [*ROWS["retain"][:2], other]}) for other in changed_rows),
        key(rows=ROWS | {"retain": ROWS["retain"][::-1]}),
        key(rows=ROWS | {"retain": ROWS["retain"][:2]}),
        key(rows={"forget": ROWS["retain"], "retain": ROWS["forget"]}),
        key(needs=NEEDS | {"retain": Needs("answer", reference_logits=True)}),
        key(needs={"forget": NEEDS["forget"]}),
        key(needs=NEEDS_FOR_ALL),
        key(needs=NEEDS | {"retain": Needs("attended", reference_logits=True, reference_layers=(1,))}),
        key(needs=NEEDS | {"retain": Needs("attended", reference_logits=True, reference_layers=(0,))}),
        key(rows=ROWS | {"alternate": ROWS["forget"]}, needs=NEEDS | {"alternate": Needs(reference_nll=True)}),
        key(dtype="bfloat16"),
        key(precision="bf16-mixed"),
        key(edited),
        key(reconfigured),
        key(adapted(tiny_model().bfloat16())),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(value) == 64 for value in keys)
    other_values = adapted(tiny_model(), dropout=0.1)
    shake(other_values, std=0.7)
    assert key(other_values) == key() == key(model.eval())
    assert key(needs=dict(reversed(NEEDS.items()))) == key()
    weighted = replace(row, token_weights=(2.0,) * 5)  # which are the objective's
    assert key(rows=ROWS | {"retain": [ROWS["retain"][0], weighted, ROWS["retain"][2]]}) == key()


def test_other_needs_are_kept_beside(model: PeftModel, tmp_path: Path) -> None:
    opened(model, tmp_path)
    opened(model, tmp_path, NEEDS_FOR_ALL)
    assert len(caches_in(tmp_path)) == 2
    for needs in (NEEDS, NEEDS_FOR_ALL):
        assert_right(model, opened(model, tmp_path, needs)[0], needs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "needs", [NEEDS, NEEDS_FOR_ALL, {"forget": Needs(reference_logits=True)}], ids=["usual", "all", "one"]
)
def test_the_size_is_known_beforehand(model, tmp_path, needs, dtype) -> None:
    """numpy puts 128 bytes in front of each array."""
    opened(model, tmp_path, needs, dtype=dtype)
    written = sum(path.stat().st_size - 128 for path in caches_in(tmp_path)[0].glob("*.npy"))
    assert written == predicted_bytes(model, ROWS, needs, dtype)


def test_the_size_by_hand(model: PeftModel) -> None:
    """Where 4 and 3 rows end, 8 bytes each; the NLL of 16 answer tokens and of 10 + 2 + 15 tokens, 4 bytes each; for
    each of those 27 tokens 32 float32 numbers. Two layers of 32 numbers in bfloat16 at the same 27."""
    needs = {"forget": Needs(reference_nll=True), "retain": Needs("attended", True, True)}
    assert predicted_bytes(model, ROWS, needs, "float32") == 8 * 7 + 4 * (16 + 27) + 27 * 32 * 4
    assert predicted_bytes(model, ROWS, {"retain": Needs(reference_logits=True)}, "bfloat16") == 8 * 3 + 9 * 32 * 2
    layers = {"retain": Needs(None, reference_layers=(0, 1))}
    assert predicted_bytes(model, ROWS, layers, "bfloat16") == 8 * 3 + 2 * 27 * 32 * 2


def test_what_is_too_large_is_not_written(model, tmp_path, no_model, monkeypatch) -> None:
    no_model()
    folder = tmp_path / "caches"
    reference, said = opened(model, folder, max_gigabytes=3e-6)
    assert reference is None
    assert caches_in(folder) == []
    assert said == [
        "reference cache: 0.000 GB are more than max_gigabytes 3e-06; the base model's output is computed in every step"
    ]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    reference, said = opened(model, folder)
    assert reference is None
    assert len(said) == 1
    assert "do not fit on the disk (0.000 GB free)" in said[0]


def test_a_folder_that_cannot_be_is_named(model: PeftModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^reference_cache.folder: .*file cannot be a folder"):
        opened(model, tmp_path / "file")


def test_a_build_that_dies_leaves_nothing(model, tmp_path, monkeypatch) -> None:
    calls: list[int] = []

    def dies(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return live_reference(*arguments)

    monkeypatch.setattr(files_module, "live_reference", dies)
    with pytest.raises(KeyboardInterrupt):
        opened(model, tmp_path)
    assert calls == [1, 1]
    assert caches_in(tmp_path) == []
    assert_right(model, opened(model, tmp_path)[0])


def test_who_ends_second_uses_what_the_first_has_put_there(model, tmp_path, monkeypatch) -> None:
    """While one computes its first rows another builds the whole; neither fails, and one build is kept."""
    inodes: list[int] = []

    def meanwhile(*arguments: object) -> object:
        monkeypatch.setattr(files_module, "live_reference", live_reference)
        opened(model, tmp_path)
        inodes.append(caches_in(tmp_path)[-1].stat().st_ino)
        return live_reference(*arguments)

    monkeypatch.setattr(files_module, "live_reference", meanwhile)
    reference, said = opened(model, tmp_path)
    assert len(said) == 1
    assert [folder.stat().st_ino for folder in caches_in(tmp_path)] == inodes
    assert_right(model, reference)


def test_what_is_torn_in_the_meantime_is_asked_for_again(model, tmp_path, monkeypatch, no_model) -> None:
    """Another process replaces the folder while this one reads it: first a file is missing, then all are there."""
    opened(model, tmp_path)
    whole, calls = files_module.read_index, []

    def torn_once(folder: Path) -> object:
        calls.append(folder)
        if len(calls) == 1:
            raise InputError("reference cache: No such file")
        return whole(folder)

    monkeypatch.setattr(files_module, "read_index", torn_once)
    monkeypatch.setattr(cache_module, "PAUSE", 0)
    no_model()
    reference, said = opened(model, tmp_path)
    assert (said, len(calls)) == ([], 2)
    assert_right(model, reference)


def test_what_others_take_away_is_built_again(model, tmp_path, monkeypatch) -> None:
    """The folder is gone by the time it is opened."""
    built: list[int] = []
    build = cache_module.build

    def taken_away(*arguments: object) -> None:
        build(*arguments)
        built.append(1)
        if len(built) == 1:
            shutil.rmtree(caches_in(tmp_path)[0])

    monkeypatch.setattr(cache_module, "build", taken_away)
    reference, _ = opened(model, tmp_path)
    assert len(built) == 2
    assert_right(model, reference)


def test_nothing_is_kept_where_nothing_is_asked_or_wanted(model, tmp_path, no_model) -> None:
    no_model()
    folder = tmp_path / "caches"
    assert opened(model, folder, {"forget": Needs(), "retain": Needs("attended")}) == (None, [])
    assert open_or_build(model, ROWS, NEEDS, ReferenceCache(None), "32-true", print) is None
    assert not folder.exists()


def test_building_leaves_the_model_in_training_with_its_adapter_on(model, tmp_path) -> None:
    before = {name: value.clone() for name, value in model.named_parameters()}
    opened(model, tmp_path, NEEDS_FOR_ALL)
    assert model.training
    assert not any(value.grad is not None for value in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    ids = torch.arange(1, 9)[None]
    with model.disable_adapter():
        off = model(input_ids=ids).logits
    assert not torch.allclose(model.eval()(input_ids=ids).logits, off)


def test_a_half_precision_base_is_kept(tiny_model, tmp_path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = adapted(tiny_model().to(dtype))
        enable_packing(model)
        assert_right(model, opened(model, tmp_path, NEEDS_FOR_ALL)[0], NEEDS_FOR_ALL, tolerance=0.05)


def test_the_limit_must_be_positive() -> None:
    with pytest.raises(InputError, match=r"^max_gigabytes: must be above 0, got 0"):
        ReferenceCache(max_gigabytes=0)

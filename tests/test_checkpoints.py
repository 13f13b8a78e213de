"""Merging full checkpoints: against whole state dicts, identities, and everything that is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from unlearn_pl.checkpoints import merge as engine
from unlearn_pl.checkpoints.alike import read_alike
from unlearn_pl.checkpoints.folder import read_checkpoint
from unlearn_pl.checkpoints.merge import CheckpointOptions, merge_checkpoints, tensor_generator
from unlearn_pl.errors import InputError
from unlearn_pl.merging.options import MergeOptions

TIES: dict[str, Any] = {"method": "ties", "density": 0.6}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def state_of(folder: str | Path) -> dict[str, Tensor]:
    return {
        name: value for path in sorted(Path(folder).glob("*.safetensors")) for name, value in load_file(path).items()
    }


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = state_of(folder)
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def make(tiny_model: Callable[[], LlamaForCausalLM], tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the tiny model with a random change: seed 0 is the base."""

    def write(
        seed: int, dtype: torch.dtype = torch.float32, tie: bool = False, shard: str = "1GB", name: str = ""
    ) -> Path:
        model = tiny_model()
        if tie:
            model.config.tie_word_embeddings = True
            model = LlamaForCausalLM(model.config)
            with torch.no_grad():
                for own, other in zip(model.model.parameters(), tiny_model().model.parameters(), strict=True):
                    own.copy_(other)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.01 if seed else 0)
        folder = tmp_path / (name or f"model{seed}")
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        return folder

    return write


def merged(base: Path, others: list[Path], method: str = "linear", weights: Any = None, **options: Any) -> Path:
    """The merged folder. A single checkpoint is merged with itself, at half of its weight each: it is itself again."""
    output = base.parent / options.pop("name", "merged")
    if len(others) == 1:
        others = others * 2
        weights = [weight / 2 for weight in (weights or [1.0]) * 2]
    return merge_checkpoints(base, others, output, method=method, weights=weights, **options).folder


def ties(deltas: list[Tensor], weights: list[float], density: float) -> Tensor:
    """TIES a second time: sort, cut, elect, and take the mean of those that agree (arXiv 2306.01708)."""
    kept = []
    for delta in deltas:
        flat = delta.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[: int(density * flat.numel())]
        kept.append(torch.zeros_like(flat).index_copy(0, order, flat[order]))
    table = torch.stack(kept)
    agrees = torch.where(table.sum(0) >= 0, table > 0, table < 0)
    total = (table * agrees * torch.tensor(weights)[:, None]).sum(0)
    return (total / agrees.sum(0).clamp(min=1)).view(deltas[0].shape)


def dense_ties(base: Path, others: list[Path], weights: list[float], density: float, scale: float) -> dict[str, Tensor]:
    start, ends = state_of(base), [state_of(other) for other in others]
    return {
        name: value.float() + scale * ties([end[name].float() - value.float() for end in ends], weights, density)
        for name, value in start.items()
    }


# --- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_ties_is_ties_of_every_tensor(make: Any, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with blocks so small that every tensor takes several."""
    monkeypatch.setattr("unlearn_pl.checkpoints.folder.BLOCK_BYTES", 100)
    base, others = make(0), [make(1), make(2), make(3)]
    torch.set_num_threads(threads)
    try:
        output = merged(base, others, weights=[1.0, 0.5, 2.0], scale=0.7, **TIES)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    expected, got = dense_ties(base, others, [1.0, 0.5, 2.0], 0.6, 0.7), state_of(output)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-7, rtol=1e-6)


def test_a_model_with_itself_is_itself(make: Any) -> None:
    base, other = make(0), make(1)
    output = merged(base, [other, other], method="ties", density=1.0)
    for name, value in state_of(other).items():
        torch.testing.assert_close(state_of(output)[name], value, atol=1e-8, rtol=2e-7)


def test_equal_models_cancel(make: Any) -> None:
    base, other = make(0), make(1)
    output = merged(base, [other, other], "linear", [1.0, -1.0])
    assert all(torch.equal(value, state_of(output)[name]) for name, value in state_of(base).items())


def test_the_base_itself_adds_nothing(make: Any) -> None:
    base, other = make(0), make(1)
    alone = merged(base, [other], "linear", [0.5], name="alone")
    beside = merged(base, [other, base], "linear", [0.5, 3.0], name="beside")
    assert all(torch.equal(value, state_of(beside)[name]) for name, value in state_of(alone).items())


def test_files_do_not_change_the_numbers(make: Any) -> None:
    """Sharded inputs and outputs, with a random kernel, whose draws belong to the tensor's name."""
    options, others = {"density": 0.5}, [make(1), make(2)]
    whole = merged(make(0), others, "dare_linear", **options, seed=3)
    sharded = [make(seed, shard="10KB", name=f"sharded{seed}") for seed in range(3)]
    assert len(list(sharded[0].glob("*.safetensors"))) > 2
    parts = merged(sharded[0], sharded[1:], "dare_linear", **options, seed=3, shard_gb=9e-6, name="parts")
    assert len(list(parts.glob("*.safetensors"))) > 2
    assert all(torch.equal(value, state_of(parts)[name]) for name, value in state_of(whole).items())
    other_seed = merged(make(0), others, "dare_linear", **options, seed=4, name="other_seed")
    assert not torch.equal(state_of(other_seed)[HEAD], state_of(whole)[HEAD])


def test_tensors_draw_from_their_own_generators() -> None:
    draws = [torch.rand(3, generator=tensor_generator(*key)) for key in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_output_is_the_wide_one_rounded(make: Any, dtype: str) -> None:
    base, others = make(0), [make(1), make(2)]
    wide, narrow = merged(base, others, name="wide"), merged(base, others, dtype=dtype, name="narrow")
    kind = getattr(torch, dtype)
    assert all(torch.equal(value.to(kind), state_of(narrow)[name]) for name, value in state_of(wide).items())
    assert AutoModelForCausalLM.from_pretrained(narrow).dtype == kind


def test_mixed_types_are_computed_in_float32(make: Any) -> None:
    """A bfloat16 base with a float32 checkpoint gives bfloat16, rounded once."""
    base, others = make(0, torch.bfloat16), [make(1), make(2, torch.float16)]
    expected, got = dense_ties(base, others, [1.0, 1.0], 0.6, 1.0), state_of(merged(base, others, **TIES))
    for name, value in expected.items():
        assert got[name].dtype == torch.bfloat16
        torch.testing.assert_close(got[name].float(), value, atol=1e-6, rtol=1 / 128)
        assert (got[name] == value.bfloat16()).float().mean() > 0.99


def test_integers_are_copied_and_scalars_merged(make: Any) -> None:
    folders = [make(seed) for seed in range(3)]
    for seed, folder in enumerate(folders):
        rewrite(
            folder, lambda state, seed=seed: state.update(steps=torch.tensor([3, 4]), gate=torch.tensor(float(seed)))
        )
    got = state_of(merged(folders[0], folders[1:], "linear", [1.0, 1.0]))
    assert got["steps"].tolist() == [3, 4]
    assert got["gate"].shape == ()
    assert got["gate"].item() == 3.0


def test_transformers_opens_exactly_what_was_written(make: Any) -> None:
    base, others = make(0), [make(1), make(2)]
    output = merged(base, others, **TIES, shard_gb=2e-5)
    model = AutoModelForCausalLM.from_pretrained(output)
    assert all(torch.equal(value, state_of(output)[name]) for name, value in model.state_dict().items())
    dense = AutoModelForCausalLM.from_pretrained(base)
    dense.load_state_dict(dense_ties(base, others, [1.0, 1.0], 0.6, 1.0))
    ids = torch.arange(20)[None]
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, atol=1e-6, rtol=1e-5)
    facts = json.loads((output / "unlearn_pl.json").read_text())
    assert facts["merge"]["method"] == "ties"
    assert "versions" in facts


def test_the_result_says_what_was_written_and_options_are_given_whole_or_by_their_names(make: Any) -> None:
    base, others, at = make(0), [make(1), make(2)], make(0).parent
    options = CheckpointOptions(method="ties", density=0.6, dtype="bfloat16")
    whole = merge_checkpoints(base, others, at / "whole", options)
    named = merge_checkpoints(base, others, at / "named", method="ties", density=0.6, dtype="bfloat16")
    mixed = merge_checkpoints(base, others, at / "mixed", MergeOptions(density=0.6), dtype="bfloat16")
    assert whole.settings == named.settings == mixed.settings
    assert (whole.folder, whole.base, whole.checkpoints) == (at / "whole", base, tuple(others))
    assert whole.tensors == len(state_of(whole.folder))
    files = [result.folder / "model.safetensors" for result in (whole, named, mixed)]
    assert len({path.read_bytes() for path in files}) == 1
    assert state_of(whole.folder)[HEAD].dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"^output: .* would replace .*model0, which is read"):
        merge_checkpoints(base, others, at, overwrite=True)


# --- tied weights --------------------------------------------------------------------------------------------------


def store_head(state: dict[str, Tensor]) -> None:
    state[HEAD] = state[EMBEDDING].clone()


def only_head(state: dict[str, Tensor]) -> None:
    state[HEAD] = state.pop(EMBEDDING)


@pytest.mark.parametrize("change", [store_head, only_head])
@pytest.mark.parametrize("which", [[0], [1], [0, 1, 2]])
def test_a_tied_weight_is_merged_and_written_once(make: Any, change: Any, which: list[int]) -> None:
    folders = [make(seed, tie=True) for seed in range(3)]
    plain = state_of(merged(folders[0], folders[1:], name="plain"))
    assert HEAD not in plain
    for number in which:
        rewrite(folders[number], change)
    output = merged(folders[0], folders[1:])
    assert state_of(output).keys() == plain.keys()
    assert all(torch.equal(value, state_of(output)[name]) for name, value in plain.items())
    model = AutoModelForCausalLM.from_pretrained(output)
    assert torch.equal(model.lm_head.weight, plain[EMBEDDING])


def test_tied_weights_that_differ_are_refused(make: Any) -> None:
    base, other = make(0, tie=True), make(1, tie=True)
    rewrite(other, lambda state: state.update({HEAD: state[EMBEDDING] + 1}))
    with pytest.raises(InputError, match=r"checkpoints: .*model1 holds different numbers in lm_head\.weight and model"):
        merged(base, [other])


# --- refusals ------------------------------------------------------------------------------------------------------


def test_an_existing_output_stays(make: Any) -> None:
    base, other = make(0), make(1)
    output = merged(base, [other])
    before = state_of(output)[HEAD]
    with pytest.raises(InputError, match="exists already"):
        merged(base, [other], "linear", [2.0])
    assert torch.equal(state_of(output)[HEAD], before)
    merged(base, [other], "linear", [2.0], overwrite=True)
    assert not torch.equal(state_of(output)[HEAD], before)


def test_missing_tensors_and_other_shapes_are_refused(make: Any) -> None:
    base, other = make(0), make(1)
    rewrite(other, lambda state: state.pop("model.norm.weight"))
    with pytest.raises(InputError, match=r"checkpoints: .*model1 lacks 1 of the model's weights, such as model\.norm"):
        read_alike(base, [other])
    rewrite(other, lambda state: state.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(InputError, match=r"model\.norm\.weight is \[32\] in .*model0 and \[31\] in .*model1"):
        read_alike(base, [other])


@pytest.mark.parametrize("value", [torch.tensor([1, 2]), torch.tensor([1, 3], dtype=torch.int32), torch.ones(2)])
def test_integers_must_be_equal(make: Any, value: Tensor) -> None:
    base, other = make(0), make(1)
    rewrite(base, lambda state: state.update(steps=torch.tensor([1, 3])))
    rewrite(other, lambda state: state.update(steps=value))
    with pytest.raises(InputError, match=r"steps is I64 in .*model0 and .*tensors of integers must be equal"):
        read_alike(base, [other])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("which", "argument"), [(0, "base"), (2, "checkpoints")])
def test_broken_numbers_are_named_and_leave_nothing(make: Any, value: float, which: int, argument: str) -> None:
    folders = [make(seed) for seed in range(3)]

    def spoil(state: dict[str, Tensor]) -> None:
        state["model.norm.weight"][5] = value

    rewrite(folders[which], spoil)
    before = sorted(folders[0].parent.iterdir())
    with pytest.raises(InputError, match=rf"{argument}: model\.norm\.weight in .*model{which} holds NaN or infinite"):
        merged(folders[0], folders[1:])
    assert sorted(folders[0].parent.iterdir()) == before


def test_large_numbers_are_no_broken_ones(make: Any) -> None:
    """32 entries of 3e38 have an infinite sum, but each is finite; twice the largest float32 is not."""
    base, other = make(0), make(1)
    rewrite(base, lambda state: state.update({"model.norm.weight": torch.zeros(32)}))
    rewrite(other, lambda state: state.update({"model.norm.weight": torch.full((32,), 3e38)}))
    got = state_of(merged(base, [other], "linear", [1.0]))
    assert torch.equal(got["model.norm.weight"], torch.full((32,), 3e38))
    with pytest.raises(InputError, match=r"dtype: the merged model\.norm\.weight holds numbers beyond the range"):
        merged(base, [other], "linear", [1.0], dtype="float16", name="narrow")
    rewrite(base, lambda state: state.update({"model.norm.weight": torch.full((32,), -3e38)}))
    with pytest.raises(InputError, match="the difference is infinite in float32"):
        merged(base, [other], "linear", [1.0], name="far")


def test_of_tensors_too_small_for_the_density_one_entry_is_kept(make: Any) -> None:
    """The norms have 32 entries, int(0.03 * 32) is 0: a model with a learned scalar can be merged at any density."""
    base, other = make(0), make(1)
    state, changed = state_of(base), state_of(other)
    got = state_of(merged(base, [other, other], "ties", density=0.03))
    delta = changed["model.norm.weight"] - state["model.norm.weight"]
    place = int(delta.abs().argmax())
    wanted = state["model.norm.weight"].clone()
    wanted[place] += delta[place]
    torch.testing.assert_close(got["model.norm.weight"], wanted)
    assert (got["model.norm.weight"] != state["model.norm.weight"]).sum() == 1


def test_an_unknown_type_is_refused(make: Any) -> None:
    with pytest.raises(InputError, match="dtype: must be one of float32, bfloat16, float16, got int8"):
        merged(make(0), [make(1)], dtype="int8")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_killed_merge_leaves_no_folder(make: Any, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised in the middle: the output does not exist, no temporary folder stays, other threads stop."""
    base, others, calls = make(0), [make(1), make(2)], []
    real = engine.merge_tensors

    def killed(*given: Any) -> Tensor:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(engine, "merge_tensors", killed)
    before = sorted(base.parent.iterdir())
    torch.set_num_threads(threads)
    try:
        with pytest.raises(KeyboardInterrupt):
            merged(base, others)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert sorted(base.parent.iterdir()) == before
    assert len(calls) < 4 + 2 * threads < len(read_checkpoint(base, "base").tensors)  # some may be on their way

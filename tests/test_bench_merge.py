"""The benchmark of merging: the keys it promises, results that agree with PEFT's, nothing left behind, and refusals."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks import merge as bench
from benchmarks.measure import measured
from benchmarks.merge import (
    PEFT_TYPES,
    Repeats,
    compare_merging,
    merge,
    print_checkpoints,
    relative_distance,
    seeded_masks,
)
from benchmarks.merge_checkpoints import (
    NAMES,
    Sizes,
    bare_loop,
    check_folder,
    compare_checkpoints,
    make_checkpoint,
    merge_by_mergekit,
    merge_by_ties,
)
from benchmarks.merge_path import compare_path_step, random_documents
from benchmarks.random_adapters import one_layer, random_parents, with_peft
from unlearn_pl.errors import InputError
from unlearn_pl.merging.factors import Delta, Factors, shared_start

TRUNCATING = ("ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
TINY = Sizes(layers=1, hidden=8, intermediate=12, vocabulary=20)
SMALL: dict[str, Any] = {"hidden": 24, "intermediate": 40, "rank": 4, "repeats": 2}


@pytest.fixture(autouse=True)
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting the garbage of a whole test session before each call would take most of the time."""
    monkeypatch.setattr("benchmarks.measure.settle", lambda: None)


def silent(line: str) -> None:
    """Tell nobody."""


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_file_has_every_type_of_peft_with_the_promised_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    merge(str(tmp_path / "out.json"), **SMALL, peft_repeats=1)
    assert torch.equal(torch.get_rng_state(), state)
    figures = json.loads((tmp_path / "out.json").read_text())
    assert len(PEFT_TYPES) == 11
    for name in PEFT_TYPES:
        row = figures[name]
        assert row.keys() >= {"seconds", "peft_seconds", "ratio", "relative_error"}
        assert row["ratio"] == row["peft_seconds"] / row["seconds"] > 0
        assert row["ratio_competent"] == row["competent_seconds"] / row["seconds"] > 0
        assert (row["all_competent_seconds"] == row["all_peft_seconds"]) == (not name.endswith("svd"))
        assert 0 <= row["relative_error"] < 1e-5  # at these sizes ours decomposes exactly too
        assert ("reconstruction_ratio" in row) == (name in TRUNCATING)
        assert len(row["all_seconds"]) == 2
        assert len(row["all_peft_seconds"]) == (1 if name.endswith("svd") else 2)
    for name in TRUNCATING:
        assert figures[name]["reconstruction_ratio"] == pytest.approx(1, abs=1e-5)
        assert figures[name]["dense_relative_difference"] < 1e-6
        assert 0.01 < figures[name]["reconstruction_error"] < 1
    assert figures["peft_empty_adapter_seconds"] > 0
    assert figures["config"]["weights"] == [0.7, 1.2]
    assert figures["config"]["threads"] >= 1
    assert figures["versions"]["peft"]
    assert not {"path_step", "checkpoints"} & figures.keys()
    printed = capsys.readouterr()
    assert all(name in printed.out for name in PEFT_TYPES)
    assert "with svd_full_matrices=False, and by default with full ones" in printed.out
    assert "magnitude_prune_svd: PEFT" in printed.err


def test_the_other_two_parts_are_in_the_file_and_of_the_types_those_wanted(base_folder: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    merge(
        str(tmp_path / "out.json"), ["cat"], **SMALL | {"repeats": 1}, path=base_folder, documents=2,
        checkpoints=str(work), layers=1, vocabulary=30, dtype="bfloat16",
    )  # fmt: skip
    figures = json.loads((tmp_path / "out.json").read_text())
    assert not figures.keys() & set(PEFT_TYPES) - {"cat"}
    for part in ("path_step", "checkpoints"):
        assert figures[part].keys() >= {"seconds", "bare_seconds", "ratio"}
    step, whole = figures["path_step"], figures["checkpoints"]
    assert step["ratio"] == step["seconds"] / step["bare_seconds"]
    assert whole["ratio"] == whole["bare_seconds"] / whole["seconds"]
    assert 50e6 < whole["peak_bytes"] < 2e9
    assert whole["checkpoint_bytes"] == 2 * (30 * 24 + 4 * 24 * 24 + 3 * 24 * 40)
    assert not work.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"types": ["ties", "foo"]}, "types: must be among linear, .*, got foo"),
        ({"rank": 24}, "rank: must be below 24, the smaller width, got 24"),
        ({"rank": 0}, "rank: must be at least 1, got 0"),
        ({"hidden": 0}, "hidden: must be at least 1, got 0"),
        ({"repeats": 0}, "repeats: must be at least 1, got 0"),
        ({"peft_repeats": 0}, "peft_repeats: must be at least 1, got 0"),
        ({"documents": 0}, "documents: must be at least 1, got 0"),
        ({"density": 1.0}, r"density: must be in \(0, 1\), got 1.0"),
        ({"density": math.nan}, r"density: must be in \(0, 1\), got nan"),
        ({"density": 0.001}, "density: must keep at least one of a factor's 96 entries, got 0.001"),
        ({"dtype": "float8"}, "dtype: must be one of float32, bfloat16, float16, got float8"),
        ({"path": "./nowhere"}, "model: ./nowhere is not a folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measured", None)
    with pytest.raises(InputError, match=f"^{message}"):
        merge(str(tmp_path / "out.json"), **SMALL | arguments)
    assert not list(tmp_path.iterdir())


# --- PEFT's types --------------------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was() -> None:
    model = one_layer(24, 40)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parents = random_parents(model, 4, seed=1)
    factors = [pair for parent in parents for pair in parent.factors.values()]
    copies = [Factors(pair.a.clone(), pair.b.clone()) for pair in factors]
    told: list[str] = []
    compare_merging(model, parents, 0.5, 7, Repeats(1, 1), told.append)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for pair, old in zip(factors, copies, strict=True):
        assert torch.equal(pair.a, old.a)
        assert torch.equal(pair.b, old.b)
    assert [line.split(":")[0] for line in told] == list(PEFT_TYPES)


def test_a_wrong_result_of_ours_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deltas of twice the size are 100 % off; their error is that of 2 C against D, beyond the optimum's."""
    own = bench.merge_modules

    def doubled(parents: Any, settings: Any, order: Any) -> dict[str, Any]:
        found = own(parents, settings, order)
        if settings.method.form == "dense":
            return found
        return {name: Factors(pair.a, 2 * pair.b) for name, pair in found.items()}  # type: ignore[union-attr]

    monkeypatch.setattr(bench, "merge_modules", doubled)
    model = one_layer(24, 40)
    figures = compare_merging(model, random_parents(model, 4, 1), 0.8, 7, Repeats(1, 1), silent)
    for name in PEFT_TYPES:
        assert figures[name]["relative_error"] == pytest.approx(1, rel=1e-4)
    assert all(figures[name]["reconstruction_ratio"] > 1.2 for name in TRUNCATING)


def test_the_adapters_are_on_every_linear_layer_with_the_promised_numbers() -> None:
    """Olmo's seven matrices. Drift of a tenth: the cosine of the two A is 1 / 1.01. B's columns fall by 0.9 each."""
    first, second = random_parents(one_layer(64, 200), 8, seed=3)
    assert [name.rsplit(".", 1)[1] for name in first.factors] == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    assert set(first.scaling.values()) == {1.0}
    assert shared_start(first.factors, second.factors) == pytest.approx(1 / 1.01, abs=2e-3)
    b = torch.cat([pair.b for parent in (first, second) for pair in parent.factors.values()])
    a = torch.cat([pair.a.flatten() * math.sqrt(pair.a.shape[1]) for pair in first.factors.values()])
    assert b.std(dim=0).tolist() == pytest.approx([0.02 * 0.9**column for column in range(8)], rel=0.1)
    assert a.std().item() == pytest.approx(math.sqrt(1.01), rel=0.05)
    again = random_parents(one_layer(64, 200), 8, seed=3)[1]
    assert all(torch.equal(again.factors[name].b, pair.b) for name, pair in second.factors.items())


def test_the_competent_call_decomposes_no_full_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways are timed for the types that truncate, ours beside them; the others have one call of PEFT's."""
    kinds, svd = [], torch.linalg.svd

    def decomposed(matrix: Any, full_matrices: bool = True, **options: Any) -> Any:
        kinds.append(full_matrices)
        return svd(matrix, full_matrices=full_matrices, **options)

    model = one_layer(24, 40)
    parents = random_parents(model, 4, 1)
    monkeypatch.setattr(torch.linalg, "svd", decomposed)
    monkeypatch.setattr(bench, "merge_modules", lambda parents, settings, order=None: parents[0].factors)
    compare_merging(model, parents, 0.8, 7, Repeats(1, 1), silent, ["svd"])
    assert kinds == [False] * 7 + [True] * 7
    compare_merging(model, parents, 0.8, 7, Repeats(1, 1), silent, ["cat"])
    assert len(kinds) == 14


def test_peft_computes_with_the_same_numbers() -> None:
    model = one_layer(24, 40)
    parents = random_parents(model, 4, seed=3)
    adapted = with_peft(model, parents)
    for name, parent in zip(("first", "second"), parents, strict=True):
        for module, pair in parent.factors.items():
            layer: Any = adapted.get_submodule(module)
            torch.testing.assert_close(layer.get_delta_weight(name), pair.b @ pair.a)
    assert set(adapted.peft_config) == {"first", "second"}


def test_masks_of_a_seed_and_torch_afterwards() -> None:
    chances, draw = torch.full((40,), 0.5), torch.bernoulli
    with seeded_masks(3):
        found = torch.bernoulli(chances)
    assert torch.equal(found, torch.bernoulli(chances, generator=torch.Generator().manual_seed(3)))
    assert torch.bernoulli is draw
    with seeded_masks(None):
        assert torch.bernoulli is draw


def test_the_relative_distance_by_hand() -> None:
    """Entries (3, 4) and (0, 12) of length 13 against themselves plus (0, 1.3): a tenth."""
    one: dict[str, Delta] = {"x": torch.tensor([[3.0, 4.0]]), "y": torch.tensor([[0.0, 12.0]])}
    moved = one | {"y": torch.tensor([[0.0, 13.3]])}
    assert relative_distance(moved, one) == pytest.approx(0.1, rel=1e-6)
    factors: dict[str, Delta] = {"x": Factors(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0]])), "y": one["y"]}
    assert relative_distance(factors, one) == 0


def test_memory_is_above_what_was_there() -> None:
    """160 MB, of which the allocator may have some tens at hand from before."""
    call = measured(lambda: torch.full((40_000_000,), 0.5).max().item(), memory=True)
    assert call.result == 0.5
    assert call.peak_bytes is not None
    assert 110e6 < call.peak_bytes < 250e6
    assert call.seconds > 0
    assert measured(int, memory=False).peak_bytes is None


# --- a step along a path -------------------------------------------------------------------------------------------


def test_a_path_step_folds_and_restores(tiny_model: Any, tokenizer: Any) -> None:
    """Every step has coefficients of its own, so losses of its own; the bare model's stay the same."""
    model = tiny_model()
    figures = compare_path_step(model, tokenizer, rank=4, documents=3, repeats=2, seed=1)
    assert figures["ratio"] == figures["seconds"] / figures["bare_seconds"] > 0
    assert figures["ratio"] == max(figures["ratios"].values())
    assert figures["ratios"].keys() == {"cat", "ties"}
    cat, ties, bare = (figures["mean_losses"][way] for way in ("cat", "ties", "bare"))
    assert bare[0] == bare[1]
    assert len({*cat, *ties, bare[0]}) == 5
    after = tiny_model().state_dict()
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())
    assert figures["documents"] == 3
    assert 3 * 250 <= figures["tokens"] <= 3 * 350


def test_random_documents_depend_on_the_seed_alone(tokenizer: Any) -> None:
    first = random_documents(tokenizer, 3, seed=1)
    assert first == random_documents(tokenizer, 3, seed=1)
    assert len({*first, *random_documents(tokenizer, 3, seed=2)}) == 6


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpoints_open_as_the_model_they_say(dtype: str, tmp_path: Path) -> None:
    sizes = Sizes(1, 8, 12, 20, dtype)
    for number, name in enumerate(NAMES):
        make_checkpoint(tmp_path / name, number, sizes)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == getattr(torch, dtype)
    states = [load_file(tmp_path / name / "model.safetensors") for name in NAMES]
    assert sum(value.nbytes for value in states[0].values()) == sizes.nbytes
    flat = [torch.cat([value.double().flatten() for value in state.values()]) for state in states]
    assert flat[0].std() == pytest.approx(0.02, rel=0.1)
    for one, other in ((1, 0), (2, 0)):
        assert (flat[one] - flat[other]).std() == pytest.approx(0.001, rel=0.1)
    assert (flat[1] - flat[2]).std() == pytest.approx(0.001 * math.sqrt(2), rel=0.1)


def test_olmo_1b_has_its_size() -> None:
    """16 x (4 x 2048^2 + 3 x 2048 x 8192) + 50304 x 2048 = 1 176 764 416 numbers."""
    assert Sizes().nbytes == 4 * 1_176_764_416
    assert Sizes(dtype="bfloat16").nbytes == 2 * 1_176_764_416


def test_both_ways_read_what_is_there_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's copy and our merge are of full size while they are there."""
    for number, name in enumerate(NAMES):
        make_checkpoint(tmp_path / name, number, TINY)
    removed: dict[str, int] = {}

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            removed[path.name] = (path / "model.safetensors").stat().st_size
            for file in path.iterdir():
                file.unlink()
            path.rmdir()

    monkeypatch.setattr("benchmarks.merge_checkpoints.shutil.rmtree", rmtree)
    size = (tmp_path / "base" / "model.safetensors").stat().st_size
    assert bare_loop(tmp_path) > 0
    assert merge_by_ties(tmp_path, 0.8) > 0
    assert removed["copied"] == removed["merged"] == size > TINY.nbytes
    assert {path.name for path in tmp_path.iterdir()} == set(NAMES)


def test_checkpoints_that_are_there_are_used_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two turns, who begins changes; ours is 20 and 30 s, the loop 10 and 15 s: half its speed."""
    seconds = {"bare": [10.0, 15.0], "ours": [20.0, 30.0]}
    order = []

    def bare(folder: Path) -> float:
        assert all((folder / name / "model.safetensors").exists() for name in NAMES)
        order.append("bare")
        return seconds["bare"].pop(0)

    def work(call: Any, folder: Path, density: float) -> tuple[float, int]:
        assert (call, density) == (merge_by_ties, 0.8)
        order.append("ours")
        return seconds["ours"].pop(0), 7 - len(order)

    monkeypatch.setattr("benchmarks.merge_checkpoints.bare_loop", bare)
    monkeypatch.setattr("benchmarks.merge_checkpoints.in_a_process", work)
    monkeypatch.setattr("benchmarks.merge_checkpoints.find_spec", lambda name: None)
    make_checkpoint(tmp_path / "base", 0, TINY)
    written = (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns
    told: list[str] = []
    figures = compare_checkpoints(tmp_path, TINY, 0.8, 2, told.append)
    assert order == ["bare", "ours", "ours", "bare"]
    assert (figures["seconds"], figures["bare_seconds"], figures["ratio"]) == (25, 12.5, 0.5)
    assert figures["peak_bytes"] == 5
    assert not [key for key in figures if "competent" in key]
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns == written
    assert [line for line in told if "making" in line and "base" in line] == []


def test_mergekit_is_measured_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes 30 and 50 s and 9 bytes, ours 20: it is twice as slow."""
    seconds = {merge_by_ties: [20.0, 20.0], merge_by_mergekit: [30.0, 50.0]}
    peaks = {merge_by_ties: 5, merge_by_mergekit: 9}
    monkeypatch.setattr("benchmarks.merge_checkpoints.find_spec", lambda name: name)
    monkeypatch.setattr("benchmarks.merge_checkpoints.bare_loop", lambda folder: 10.0)
    monkeypatch.setattr(
        "benchmarks.merge_checkpoints.in_a_process",
        lambda work, folder, density: (seconds[work].pop(0), peaks[work]),
    )
    figures = compare_checkpoints(tmp_path, TINY, 0.8, 2, silent)
    assert (figures["competent_seconds"], figures["ratio_competent"]) == (40, 2)
    assert (figures["competent_peak_bytes"], figures["peak_bytes"], figures["ratio"]) == (9, 5, 0.5)
    print_checkpoints(figures)
    assert "20 s, mergekit: 40 s, ratio 2.000" in capsys.readouterr().out
    print_checkpoints({key: value for key, value in figures.items() if "competent" not in key})
    assert "mergekit is not installed, so it is left out" in capsys.readouterr().out


def test_mergekit_is_asked_for_the_same_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the package: the checkpoints and the settings that ours has, in the checkpoints' type."""
    asked: dict[str, Any] = {}

    def run_merge(config: dict[str, Any], output: str, options: dict[str, Any]) -> None:
        asked.update(config, **options)
        Path(output).mkdir()

    stub = SimpleNamespace(
        MergeConfiguration=SimpleNamespace(model_validate=dict), MergeOptions=dict, run_merge=run_merge
    )
    for name in ("mergekit", "mergekit.config", "mergekit.merge"):
        monkeypatch.setitem(sys.modules, name, stub)
    make_checkpoint(tmp_path / "base", 0, Sizes(1, 8, 12, 20, "bfloat16"))
    assert merge_by_mergekit(tmp_path, 0.7) > 0
    assert (asked["merge_method"], asked["dtype"], asked["parameters"]) == ("ties", "bfloat16", {"normalize": True})
    assert asked["base_model"] == str(tmp_path / "base")
    assert [model["model"] for model in asked["models"]] == [str(tmp_path / name) for name in ("first", "second")]
    assert all(model["parameters"] == {"weight": 1.0, "density": 0.7} for model in asked["models"])
    assert not (tmp_path / "merged").exists()


def test_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "first", 1, TINY)
    with pytest.raises(InputError, match=r"checkpoints: .*first is there already and has other tensors"):
        check_folder(tmp_path, Sizes(2, 8, 12, 20))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"checkpoints: must be a folder, .*file is a file"):
        check_folder(tmp_path / "file" / "deep", TINY)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3 * TINY.nbytes - 1))
    with pytest.raises(InputError, match=r"checkpoints: .* GB are needed"):
        check_folder(tmp_path, TINY)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3 * TINY.nbytes))
    check_folder(tmp_path, TINY)  # one of the three is there, two and the result are not

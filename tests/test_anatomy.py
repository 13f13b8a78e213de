"""The anatomy of a merge, layer by layer, against the conflict of all layers and the dense deltas."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_folders import write_adapter
from merge_choice import merge
from torch import Tensor
from transformers import LlamaForCausalLM

from unlearn_pl.analysis.anatomy import MergeReports, adapter_names
from unlearn_pl.analysis.conflict import measure_conflict
from unlearn_pl.balance.path import Point, Ray, open_path
from unlearn_pl.merging.factors import Factors
from unlearn_pl.merging.merge import MergedAdapter, merge_adapters

Build = Callable[[], LlamaForCausalLM]


@pytest.fixture
def folders(tmp_path: Path, tiny_model: Build) -> list[str]:
    return [write_adapter(tmp_path / name / "adapter", tiny_model(), seed) for seed, name in enumerate("abc")]


def dense(pairs: dict[str, Factors], scale: dict[str, float], layer: str) -> Tensor:
    """The deltas of one layer (of all, if it is empty) as one vector."""
    parts = [scale[name] * pair.b.double() @ pair.a.double() for name, pair in pairs.items() if layer in name]
    return torch.cat([part.flatten() for part in parts])


def factors(merged: MergedAdapter) -> dict[str, Factors]:
    return {name: delta for name, delta in merged.deltas.items() if isinstance(delta, Factors)}


@pytest.mark.parametrize("method", ["ties", "cat", "ties_svd", "dare_linear"])
def test_sizes_are_those_of_the_dense_deltas(method: str, folders: list[str], tiny_model: Build) -> None:
    merged = merge_adapters(tiny_model(), folders[:2], method=method)
    anatomy = MergeReports.of(merged).anatomy
    assert anatomy["adapters"] == ["a", "b"]
    assert list(anatomy["layers"]) == ["0", "1"]
    groups = [("", anatomy["overall"]), *((f".{layer}.", found) for layer, found in anatomy["layers"].items())]
    for layer, found in groups:
        one, other = (dense(adapter.factors, adapter.scaling, layer) for adapter in merged.adapters)
        whole = dense(factors(merged), dict.fromkeys(merged.deltas, 1.0), layer)
        assert found["norms"] == pytest.approx([one.norm().item(), other.norm().item()])
        assert found["cosine"] == pytest.approx(torch.dot(one, other).item() / (one.norm() * other.norm()).item())
        assert found["norm"] == pytest.approx(whole.norm().item(), rel=1e-5)
    total = measure_conflict(merged.adapters, merged.settings, merged.deltas)
    assert anatomy["overall"]["sign_conflict"] == total.signs
    assert anatomy["overall"]["trimmed_mass"] == (None if method == "cat" else total.trimmed)
    json.dumps(anatomy, allow_nan=False)


def test_layers_of_a_method_without_chance_stand_alone(folders: list[str], tiny_model: Build) -> None:
    """TIES trims every module for itself, so a layer is the conflict of its own modules."""
    merged = merge_adapters(tiny_model(), folders[:2], method="ties", density=0.3)
    for layer, found in MergeReports.of(merged).anatomy["layers"].items():
        own = [name for name in merged.deltas if f".{layer}." in name]
        signs, trimmed = measure_conflict(merged.adapters, merged.settings, own)
        assert (found["sign_conflict"], found["trimmed_mass"]) == (signs, trimmed)
        assert 0.1 < trimmed < 0.7


def test_three_adapters_have_no_one_cosine(folders: list[str], tiny_model: Build) -> None:
    overall = MergeReports.of(merge_adapters(tiny_model(), folders, method="cat")).anatomy["overall"]
    assert overall["cosine"] is None
    assert len(overall["norms"]) == 3


def test_masks_that_were_drawn_by_group_are_not_made_up(folders: list[str], tiny_model: Build) -> None:
    """With groups of layers each group draws anew, which the order of all modules does not give again."""
    path = open_path(tiny_model(), folders[:2])
    for method, known in (("ties", True), ("dare_linear", False)):
        merged = path.merged(Point(Ray(method), 0.5, (0.1, -0.1)))
        overall = MergeReports.of(merged).anatomy["overall"]
        assert (overall["sign_conflict"] is not None, overall["trimmed_mass"] is not None) == (known, known)
        assert overall["norm"] > 0


def test_the_files_are_beside_an_adapter_of_that_name_alone(
    base_folder: str, folders: list[str], tmp_path: Path
) -> None:
    merge(base_folder, folders[:2], str(tmp_path / "merged" / "adapter"))
    merge(base_folder, folders[:2], str(tmp_path / "again" / "adapter"))
    merge(base_folder, folders[:2], str(tmp_path / "plain"))
    files = ["adapter", "anatomy.json", "spectrum.json"]
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == files
    for name in files[1:]:
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert str(tmp_path) not in (tmp_path / "merged" / name).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "again", "b", "c", "merged", "plain"]


def test_names_are_those_of_runs() -> None:
    assert adapter_names(["logs/over/adapter", "logs/under", "adapter"])[:2] == ["over", "under"]

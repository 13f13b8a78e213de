"""The spectrum of an adapter, from its factors, against the dense deltas."""

import json
import math
from pathlib import Path

import pytest
import torch

from unlearn_pl.analysis.spectrum import adapter_spectrum, effective_rank, singular_values, spectrum_report, stable_rank
from unlearn_pl.merging.adapters import Adapter
from unlearn_pl.merging.factors import Factors

NAMES = ["base_model.model.model.layers.0.q", "base_model.model.model.layers.10.q", "base_model.model.model.layers.2.q"]


def drawn(out: int, size: int, rank: int, seed: int) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(rank, size, generator=draw), torch.randn(out, rank, generator=draw))


def test_a_diagonal_by_hand() -> None:
    """diag(4, 3) from factors: norm 5, stable rank 25 / 16, effective rank by the entropy of 4/7 and 3/7."""
    report = spectrum_report({"layers.7.q": Factors(torch.eye(2), torch.diag(torch.tensor([3.0, 4.0])))})
    entropy = -(4 / 7 * math.log(4 / 7) + 3 / 7 * math.log(3 / 7))
    (module,) = report["modules"].values()
    assert module["layer"] == "7"
    assert module["singular_values"] == pytest.approx([4, 3])
    assert module["norm"] == pytest.approx(5)
    assert module["stable_rank"] == pytest.approx(25 / 16)
    assert module["effective_rank"] == pytest.approx(math.exp(entropy))


@pytest.mark.parametrize(("out", "size", "rank"), [(9, 7, 3), (4, 9, 6), (9, 4, 6), (5, 5, 1)])
def test_the_values_are_those_of_the_dense_delta(out: int, size: int, rank: int) -> None:
    """Also of a rank above the smaller side."""
    pair = drawn(out, size, rank, seed=3)
    dense = torch.linalg.svdvals(pair.b.double() @ pair.a.double())
    assert singular_values(pair) == pytest.approx(dense[: min(rank, out, size)].tolist(), rel=1e-9)


def test_layers_are_their_modules_as_blocks_of_one_matrix() -> None:
    pairs = {name: drawn(6, 5, 2, seed) for seed, name in enumerate((*NAMES, NAMES[0].replace(".q", ".v")))}
    report = spectrum_report(pairs)
    assert list(report["layers"]) == ["0", "2", "10"]
    assert next(iter(report["modules"])) == "model.layers.0.q"
    for layer, found in report["layers"].items():
        blocks = [pair.b.double() @ pair.a.double() for name, pair in pairs.items() if f".{layer}." in name]
        dense = torch.linalg.svdvals(torch.block_diag(*blocks))
        assert found["singular_values"] == pytest.approx(dense[: 2 * len(blocks)].tolist())
        assert found["norm"] == pytest.approx(dense.norm().item())
        assert found["stable_rank"] == pytest.approx((dense.square().sum() / dense[0] ** 2).item())
    everything = [value for found in report["modules"].values() for value in found["singular_values"]]
    assert report["overall"]["norm"] == pytest.approx(math.hypot(*everything))


def test_the_scaling_of_each_module_counts() -> None:
    pairs = {name: drawn(6, 5, 2, seed) for seed, name in enumerate(NAMES)}
    config = {"r": 2, "lora_alpha": 6, "alpha_pattern": {"layers.2.q": 1}}
    modules = adapter_spectrum(Adapter(Path("none"), config, pairs, {}))["modules"]
    for name, scale in zip(NAMES, (3, 3, 0.5), strict=True):
        norm = (pairs[name].b @ pairs[name].a).norm().item()
        assert modules[name.removeprefix("base_model.model.")]["norm"] == pytest.approx(scale * norm)


def test_nothing_has_no_rank() -> None:
    """As before the first step, when B is zero; JSON has no NaN."""
    report = spectrum_report({"layers.0.q": Factors(torch.ones(2, 3), torch.zeros(4, 2))})
    assert report["overall"] == {"norm": 0, "stable_rank": None}
    assert report["modules"]["layers.0.q"]["effective_rank"] is None
    json.dumps(report, allow_nan=False)
    assert (stable_rank([]), effective_rank([])) == (None, None)

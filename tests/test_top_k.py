"""Thresholds and kept entries against a full sort, ties and all, on both sides of the block and sample sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unlearn_pl.merging.top_k import BLOCK, SAMPLE, keep_band_, keep_largest_, magnitude_threshold

# few different values, so that most thresholds are ties
tied = st.lists(st.integers(-3, 3), min_size=1, max_size=40).map(lambda values: torch.tensor(values).float())


def band(tensor: Tensor, dropped: int, kept: int) -> Tensor:
    """Second implementation: a stable sort by falling magnitude keeps equal entries in the order of their index."""
    order = np.argsort(-tensor.abs().flatten().double().numpy(), kind="stable")[dropped : dropped + kept].copy()
    result = torch.zeros_like(tensor).flatten()
    result[order] = tensor.flatten()[order]
    return result.view(tensor.shape)


def in_place(function: object, tensor: Tensor, *counts: int) -> Tensor:
    copy = tensor.clone()
    assert function(copy, *counts) is None  # type: ignore[operator]
    return copy


def large(kind: str) -> Tensor:
    """Of more entries than a sample and a block hold, and not a multiple of either."""
    entries = torch.randn(BLOCK + 70_001, generator=torch.Generator().manual_seed(0))
    assert entries.numel() > SAMPLE
    shapes = {
        "normal": entries,
        "half zeros": entries * (entries > 0),
        "all equal": torch.ones_like(entries),
        "three values": entries.sign() * (entries.abs() * 1.5).floor().clamp(max=2),
        "sorted": entries.sort().values,
        "few large": torch.where(torch.arange(len(entries)) < 100, entries * 1e6, entries * 1e-6),
    }
    return shapes[kind]


KINDS = ("normal", "half zeros", "all equal", "three values", "sorted", "few large")
SHARES = (0.0, 0.0003, 0.2, 0.5, 0.8, 1.0)


@settings(deadline=None)
@given(tied, st.data())
def test_small_tensors_equal_a_sort(tensor: Tensor, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, tensor.numel()))
    dropped = data.draw(st.integers(0, tensor.numel() - kept))
    assert torch.equal(in_place(keep_largest_, tensor, kept), band(tensor, 0, kept))
    assert torch.equal(in_place(keep_band_, tensor, dropped, kept), band(tensor, dropped, kept))
    if kept > 0:
        assert magnitude_threshold(tensor, kept) == sorted(tensor.abs().tolist())[-kept]


@pytest.mark.parametrize("kind", KINDS)
def test_large_tensors_equal_a_sort(kind: str) -> None:
    tensor = large(kind)
    falling = tensor.abs().sort(descending=True).values
    for share in SHARES:
        kept = int(share * tensor.numel())
        assert torch.equal(in_place(keep_largest_, tensor, kept), band(tensor, 0, kept))
        assert magnitude_threshold(tensor, max(kept, 1)) == falling[max(kept, 1) - 1]
        dropped = (tensor.numel() - kept) // 7
        assert torch.equal(in_place(keep_band_, tensor, dropped, kept), band(tensor, dropped, kept))


@pytest.mark.parametrize("places", ["sampled", "unsampled"])
def test_a_misleading_sample_costs_time_alone(places: str) -> None:
    """The large entries lie only where the sample looks, or only where it does not."""
    entries = torch.rand(4 * SAMPLE, generator=torch.Generator().manual_seed(1))
    seen = torch.arange(len(entries)) % 5 == 0  # 4 entries to 1 of the sample, and odd
    tensor = entries + 10 * (seen if places == "sampled" else ~seen)
    falling = tensor.sort(descending=True).values
    for kept in (1, 1000, len(tensor) // 5, len(tensor) // 2, len(tensor) - 1000, len(tensor)):
        assert magnitude_threshold(tensor, kept) == falling[kept - 1]


def test_equal_entries_at_the_lowest_indices_stay() -> None:
    tensor = torch.tensor([[1.0, -2.0, 2.0], [3.0, -2.0, 0.0]])
    assert in_place(keep_largest_, tensor, 2).tolist() == [[0, -2, 0], [3, 0, 0]]
    assert in_place(keep_largest_, tensor, 3).tolist() == [[0, -2, 2], [3, 0, 0]]
    assert in_place(keep_band_, tensor, 2, 2).tolist() == [[0, 0, 2], [0, -2, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@settings(max_examples=30, deadline=None)
@given(tensor=tied, data=st.data())
def test_other_number_types(dtype: torch.dtype, tensor: Tensor, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, tensor.numel()))
    dropped = data.draw(st.integers(0, tensor.numel() - kept))
    other = tensor.to(dtype)
    assert torch.equal(in_place(keep_largest_, other, kept), in_place(keep_largest_, tensor, kept).to(dtype))
    assert torch.equal(
        in_place(keep_band_, other, dropped, kept), in_place(keep_band_, tensor, dropped, kept).to(dtype)
    )
    if kept > 0:
        assert magnitude_threshold(other, kept) == magnitude_threshold(tensor, kept)


def test_a_transposed_tensor() -> None:
    """Its flat index is that of its rows, not that of its memory."""
    tensor = torch.tensor([[1.0, -2.0, 2.0], [3.0, -2.0, 0.0]])
    transposed = tensor.T.contiguous().T
    assert not transposed.is_contiguous()
    keep_largest_(transposed, 2)
    assert transposed.tolist() == [[0, -2, 0], [3, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kept", [-1, 5])
def test_counts_outside_the_tensor(dtype: torch.dtype, kept: int) -> None:
    for call in (magnitude_threshold, keep_largest_):
        with pytest.raises(AssertionError):
            call(torch.ones(4, dtype=dtype), kept)
    with pytest.raises(AssertionError):
        keep_band_(torch.ones(4, dtype=dtype), 2, 3)

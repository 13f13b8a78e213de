"""Attention of all packed rows in one call: a kernel that only a GPU has, here by one of the test's own on a CPU, and
the real one's shapes on the device without numbers."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from unlearn_pl.models.fast import attention
from unlearn_pl.models.fast.attention import PACKED, VARLEN
from unlearn_pl.models.fast.packing import enable_packing, packed_hidden_states, packs_rows, use_varlen

LENGTHS = [5, 1, 9, 2]
IDS = torch.arange(1, 18)


def rows_by_matrices(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What the kernel promises, from softmax(Q K' scale) V: [T, heads, width] of all three, rows by their bounds."""
    assert cu_seq_q.dtype == torch.int32
    assert cu_seq_q.tolist() == cu_seq_k.tolist()
    bounds = cu_seq_q.tolist()
    assert max_q == max_k == max(stop - start for start, stop in itertools.pairwise(bounds))
    assert window_size == (-1, 0)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    rows = []
    for start, stop in itertools.pairwise(bounds):
        scores = torch.einsum("qhd,khd->hqk", query[start:stop], key[start:stop]) * factor
        later = torch.ones(stop - start, stop - start).triu(1).bool()
        rows.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -math.inf).softmax(-1), value[start:stop]))
    return torch.cat(rows)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """A function that puts a kernel in the place of torch's, and lets a CPU have it; the list grows with each call."""
    calls: list[str] = []

    def put(own: Any) -> list[str]:
        def counted(*args: Any, **options: Any) -> Tensor:
            calls.append("call")
            return own(*args, **options)

        monkeypatch.setattr(attention, "varlen_attn", counted)
        monkeypatch.setattr(attention, "HALF", (torch.float32,))
        monkeypatch.setattr(attention, "VARLEN_OPTIONS", ("window_size", "scale", "enable_gqa"))
        for module in ("attention", "packing"):
            monkeypatch.setattr(f"unlearn_pl.models.fast.{module}.has_varlen", lambda device: True)
        return calls

    return put


def states_and_gradients(model: PreTrainedModel) -> list[Tensor]:
    states = packed_hidden_states(model, IDS, LENGTHS)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    (states * weights).sum().backward()
    return [states, *(each.grad for each in model.parameters() if each.grad is not None)]


def test_one_call_gives_what_a_call_for_each_row_gives(
    tiny_model: Callable[[], LlamaForCausalLM], kernel: Callable[[Any], list[str]]
) -> None:
    plain, quick = tiny_model(), tiny_model()
    assert quick.config.num_key_value_heads < quick.config.num_attention_heads
    assert enable_packing(plain)
    calls = kernel(rows_by_matrices)
    assert enable_packing(quick)
    assert (plain.config._attn_implementation, quick.config._attn_implementation) == (PACKED, VARLEN)
    calls.clear()
    for found, expected in zip(states_and_gradients(quick), states_and_gradients(plain), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    assert len(calls) == quick.config.num_hidden_layers, "once a layer, not once a row"


def test_torch_without_grouped_heads_gets_them_repeated(
    tiny_model: Callable[[], LlamaForCausalLM], kernel: Callable[[Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    expected = packed_hidden_states(model, IDS, LENGTHS) if enable_packing(model) else None
    kernel(rows_by_matrices)
    monkeypatch.setattr(attention, "VARLEN_OPTIONS", ("window_size", "scale"))
    use_varlen(model)
    assert model.config._attn_implementation == VARLEN
    assert torch.allclose(packed_hidden_states(model, IDS, LENGTHS), expected, atol=1e-5)


def no_kernel(*args: Any, **options: Any) -> Tensor:
    raise RuntimeError("no kernel for this card")


def looks_ahead(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, **options: Any) -> Tensor:
    return value.mean(0).expand_as(query).clone()


def wrong_gradient(*args: Any, **options: Any) -> Tensor:
    exact = rows_by_matrices(*args, **options)
    return exact.detach() + 1.5 * (exact - exact.detach())


@pytest.mark.parametrize("own", [no_kernel, looks_ahead, wrong_gradient])
def test_a_kernel_that_is_not_exact_is_not_taken(
    tiny_model: Callable[[], LlamaForCausalLM], kernel: Callable[[Any], list[str]], own: Any
) -> None:
    model = tiny_model()
    kernel(own)
    assert enable_packing(model)
    assert model.config._attn_implementation == PACKED
    assert packs_rows(model)


@pytest.mark.parametrize(
    "change", [{"is_causal": False}, {"dropout": 0.1}, {"softcap": 3.0}, {"position_bias": torch.ones(1)}]
)
def test_what_the_kernel_cannot_compute_is_not_asked_of_it(
    kernel: Callable[[Any], list[str]], change: dict[str, Any]
) -> None:
    kernel(rows_by_matrices)
    states = torch.ones(1, 2, 4, 8)
    assert attention.varlen_takes(torch.nn.Identity(), states, states)
    assert not attention.varlen_takes(torch.nn.Identity(), states, states, **change)
    assert not attention.varlen_takes(torch.nn.Identity(), states.double(), states)
    wide = torch.ones(1, 2, 4, 264)
    assert not attention.varlen_takes(torch.nn.Identity(), wide, wide)


def test_a_cpu_has_no_such_kernel(tiny_model: Callable[[], LlamaForCausalLM]) -> None:
    model = tiny_model()
    assert not attention.has_varlen(torch.device("cpu"))
    assert enable_packing(model)
    assert model.config._attn_implementation == PACKED


def test_the_kernel_of_torch_takes_what_it_is_given(
    tiny_model: Callable[[], LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shapes alone, forwards and backwards, in bfloat16; an argument that it does not know would raise."""
    assert attention.varlen_attn is not None
    model = tiny_model().to(torch.bfloat16)
    assert enable_packing(model)
    model.config._attn_implementation = VARLEN
    monkeypatch.setattr(attention, "has_varlen", lambda device: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cuda": False)
    model.to("meta")
    states = packed_hidden_states(model, IDS.to("meta"), LENGTHS)
    states.sum().backward()
    assert states.shape == (17, model.config.hidden_size)
    assert model.get_input_embeddings().weight.grad is not None


@pytest.mark.parametrize(("lengths", "calls"), [(LENGTHS, 1), ([40, *[1] * 8], 9)])
def test_on_a_gpu_rows_in_float32_are_padded_within_attention(
    tiny_model: Callable[[], LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch, lengths: list[int], calls: int
) -> None:
    """One call a layer with the states and gradients of a call for each row, unless that would be mostly padding."""
    plain, quick = tiny_model(), tiny_model()
    assert enable_packing(plain)
    assert enable_packing(quick)
    ids = torch.arange(1, sum(lengths) + 1)
    counted: list[bool] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def sdpa(*args: Any, **options: Any) -> Tensor:
        counted.append(True)
        return real(*args, **options)

    found = []
    for model, gpu in ((plain, False), (quick, True)):
        monkeypatch.setattr(attention, "on_gpu", lambda states, gpu=gpu: gpu)
        model.config._attn_implementation = VARLEN if gpu else PACKED  # which is given the rows' ends on a CPU too
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa if gpu else real)
        states = packed_hidden_states(model, ids, lengths)
        states.square().sum().backward()
        found.append([states, *(each.grad for each in model.parameters() if each.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    filler = int(sum(lengths) % 16 > 0) if calls > 1 else 0
    assert len(counted) == (calls + filler) * quick.config.num_hidden_layers

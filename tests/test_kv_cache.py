"""Caches of evaluation against those of transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from unlearn_pl.inference.kv_cache import (
    ROOM,
    GrowingLayer,
    PrefixLayer,
    attends_fully,
    generates_together,
    growing_cache,
    prefix_cache,
)

Build = Callable[[], LlamaForCausalLM]
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(family: str, **options: Any) -> PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**{**SMALL, "pad_token_id": 0, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def assert_same(mine: GrowingLayer, theirs: DynamicLayer) -> None:
    assert mine.get_seq_length() == theirs.get_seq_length()
    assert mine.get_mask_sizes(3) == theirs.get_mask_sizes(3)
    assert torch.equal(mine.keys, theirs.keys)
    assert torch.equal(mine.values, theirs.values)


@pytest.mark.parametrize("first", [1, 5, ROOM - 1, ROOM, ROOM + 1])
def test_a_growing_layer_is_a_dynamic_one(first: int) -> None:
    """A prompt, then tokens one by one beyond two borders; rows leave in between. Keys and values differ in width."""
    mine, theirs = GrowingLayer(), DynamicLayer()
    rows = 5
    for step, length in enumerate([first, *[1] * (2 * ROOM + 3), 7]):
        if step in (3, ROOM, ROOM + 1):
            rows -= 1
            index = torch.arange(rows) + step % 2
            mine.batch_select_indices(index)
            theirs.batch_select_indices(index)
            assert_same(mine, theirs)
        states = numbers(step, rows, 2, length, 4), numbers(-step - 1, rows, 2, length, 6)
        for own, other in zip(mine.update(*states), theirs.update(*states), strict=True):
            assert torch.equal(own, other)
        assert_same(mine, theirs)


def test_a_growing_layer_copies_once_in_a_while() -> None:
    """The buffer of a prompt of 10 holds ``ROOM`` more tokens; the next one is made for the token after those."""
    layer = GrowingLayer()
    layer.update(numbers(0, 2, 1, 10, 4), numbers(1, 2, 1, 10, 4))
    places = []
    for step in range(2 * ROOM + 2):
        layer.update(numbers(step, 2, 1, 1, 4), numbers(step, 2, 1, 1, 4))
        places.append((layer.keys.data_ptr(), layer.values.data_ptr()))
    moves = [step for step in range(1, len(places)) if places[step] != places[step - 1]]
    assert moves == [ROOM, 2 * ROOM + 1]  # it brings its own token, and room for as many again


def test_what_a_growing_layer_gave_stays_as_it_is() -> None:
    """Views given earlier never change, though later tokens go into the same buffer."""
    layer = GrowingLayer()
    keys, values = layer.update(numbers(0, 2, 1, 3, 4), numbers(1, 2, 1, 3, 4))
    before = keys.clone(), values.clone()
    layer.update(numbers(2, 2, 1, 1, 4), numbers(3, 2, 1, 1, 4))
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


def test_a_prefix_layer_joins_and_keeps_nothing() -> None:
    prefix = numbers(0, 1, 2, 5, 4), numbers(1, 1, 2, 5, 6)
    layer = PrefixLayer(*prefix)
    for rows, length in ((3, 4), (1, 1), (2, 7)):
        states = numbers(rows, rows, 2, length, 4), numbers(-rows, rows, 2, length, 6)
        for found, start, rest in zip(layer.update(*states), prefix, states, strict=True):
            assert torch.equal(found, torch.cat([start.repeat(rows, 1, 1, 1), rest], dim=-2))
        assert layer.get_seq_length() == 5
        assert layer.get_mask_sizes(length) == (5 + length, 0)
    assert torch.equal(layer.keys, prefix[0])


@torch.no_grad()
def test_rows_continue_a_prefix_as_if_they_were_whole(tiny_model: Build) -> None:
    model = tiny_model()
    prefix, rests = torch.arange(20, 29)[None], torch.arange(30, 45).view(3, 5)
    filled = DynamicCache(config=model.config)
    model(input_ids=prefix, past_key_values=filled)
    shared = prefix_cache(filled)
    whole = model(input_ids=torch.cat([prefix.expand(3, -1), rests], dim=1)).logits[:, 9:]
    for _ in range(2):
        torch.testing.assert_close(model(input_ids=rests, past_key_values=shared).logits, whole, rtol=1e-5, atol=1e-6)


def test_the_growing_cache_of_a_model(tiny_model: Build) -> None:
    """One growing layer for each of its own; the cache of transformers where a layer is special; none for Mamba."""
    assert [type(layer) for layer in growing_cache(tiny_model()).layers] == [GrowingLayer] * 2  # type: ignore[union-attr]
    special = growing_cache(small("Mistral", sliding_window=8))
    assert isinstance(special, DynamicCache)
    assert special.is_sliding == [True, True]
    mamba = {"state_size": 4, "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 64, "pad_token_id": 0}
    config = transformers.MambaConfig(**mamba)
    assert growing_cache(transformers.MambaForCausalLM(config)) is None


@pytest.mark.parametrize(
    ("family", "options", "fully", "together"),
    [
        ("Llama", {}, True, True),
        ("Mistral", {"sliding_window": None}, True, True),
        ("Mistral", {"sliding_window": 8}, False, True),
        ("Gemma2", {"sliding_window": 8, "head_dim": 8}, False, True),
        ("Qwen2", {}, True, True),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, False, True),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, True, True),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, False, True),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, False, False),
        ("RecurrentGemma", {"num_hidden_layers": 3, "lru_width": 32}, False, False),
        ("Rwkv", {}, False, False),
    ],
)
def test_which_models_may_share(family: str, options: dict[str, Any], fully: bool, together: bool) -> None:
    """Recurrent states neither grow nor leave the batch with their row; RWKV names its cache otherwise."""
    model = small(family, **options)
    assert (attends_fully(model), generates_together(model)) == (fully, together)


def test_angles_that_a_layer_type_has_for_itself() -> None:
    """In such a configuration the angles of each type of layer are a dictionary of their own."""
    for rope_type, fully in (("dynamic", False), ("linear", True)):
        model = LlamaForCausalLM(LlamaConfig(**SMALL))
        own = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 1e4}
        model.config.rope_parameters = {"full_attention": own}
        assert attends_fully(model) == fully

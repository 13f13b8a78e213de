"""Rows without padding, against the same rows one at a time."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DogeConfig,
    DogeForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from unlearn_pl.models.body import hidden_states
from unlearn_pl.models.fast.attention import PACKED
from unlearn_pl.models.fast.packing import (
    MOST_PADDING,
    enable_packing,
    groups_of_like_length,
    packed_hidden_states,
    padded_hidden_states,
    row_hidden_states,
)

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = TINY | {"num_key_value_heads": 1}
LENGTHS = [5, 1, 9, 2, 1]


def ids_of(lengths: list[int], seed: int = 0) -> Tensor:
    return torch.randint(1, 64, (sum(lengths),), generator=torch.Generator().manual_seed(seed))


def one_by_one(model: PreTrainedModel, ids: Tensor, lengths: list[int]) -> Tensor:
    """Each row through the whole model alone, without a mask."""
    rows = [model(row[None], output_hidden_states=True).hidden_states[-1][0] for row in ids.split(lengths)]
    return torch.cat(rows)


def build(architecture: type, config: object, **options: object) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return architecture._from_config(config, **options).eval()


@pytest.fixture
def packing(tiny_model: Callable[[], LlamaForCausalLM]) -> LlamaForCausalLM:
    """The tiny Llama, set to take packed rows."""
    model = tiny_model()
    assert enable_packing(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize("lengths", [LENGTHS, [1], [1, 1, 1], [30], [2, 40]], ids=str)
def test_packed_rows_give_what_rows_alone_give(packing, tiny_model, lengths: list[int]) -> None:
    ids = ids_of(lengths)
    expected = one_by_one(tiny_model(), ids, lengths)
    assert torch.allclose(packed_hidden_states(packing, ids, lengths), expected, atol=1e-5)
    assert torch.allclose(padded_hidden_states(packing, ids, lengths), expected, atol=1e-5)
    assert torch.allclose(padded_hidden_states(tiny_model(), ids, lengths), expected, atol=1e-5)


def test_gradients_of_packed_rows_are_those_of_rows_alone(packing, tiny_model) -> None:
    ids, alone = ids_of(LENGTHS), tiny_model()
    weights = torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(1))
    (packed_hidden_states(packing, ids, LENGTHS) * weights).sum().backward()
    (one_by_one(alone, ids, LENGTHS) * weights).sum().backward()
    theirs = dict(alone.named_parameters())
    checked = [name for name, parameter in packing.named_parameters() if parameter.grad is not None]
    assert len(checked) == len(theirs) - 1  # all but the vocabulary head
    for name in checked:
        assert torch.allclose(packing.get_parameter(name).grad, theirs[name].grad, rtol=1e-3, atol=1e-4), name


def test_a_model_that_adds_to_its_attention_is_not_packed() -> None:
    """Doge's learnt mask is the same everywhere at first, so that nothing is seen to differ before it is trained."""
    model = build(DogeForCausalLM, DogeConfig(**GROUPED))
    assert not enable_packing(model)
    padded_hidden_states(model, ids_of(LENGTHS), LENGTHS).sum().backward()
    assert model.model.layers[0].self_attn.dt_proj.weight.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("way", [packed_hidden_states, padded_hidden_states])
def test_a_row_does_not_see_its_neighbours(packing, way: Callable[..., Tensor]) -> None:
    rows = list(ids_of(LENGTHS).split(LENGTHS))
    before = way(packing, torch.cat(rows), LENGTHS).split(LENGTHS)
    rows[2] = rows[2].flip(0)
    after = way(packing, torch.cat(rows), LENGTHS).split(LENGTHS)
    same = [torch.allclose(old, new, rtol=0, atol=1e-6) for old, new in zip(before, after, strict=True)]
    assert same == [True, True, False, True, True]


@torch.no_grad()
def test_a_token_does_not_see_what_follows(packing) -> None:
    ids = ids_of([6, 4])
    before = packed_hidden_states(packing, ids, [6, 4])
    ids[5] += 1
    changed = (packed_hidden_states(packing, ids, [6, 4]) - before).abs().amax(-1) > 1e-6
    assert changed.nonzero()[:, 0].tolist() == [5]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=25))
def test_groups_hold_every_row_once_and_little_padding(lengths: list[int]) -> None:
    groups = groups_of_like_length(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        own = [lengths[index] for index in group]
        padded = len(own) * max(own)
        assert padded - sum(own) <= MOST_PADDING * padded + 1e-9


def test_rows_of_one_length_are_one_group() -> None:
    assert groups_of_like_length([4, 4, 4]) == [[0, 1, 2]]
    assert groups_of_like_length([10, 1]) == [[0], [1]]


@torch.no_grad()
def test_eager_attention_is_left_as_it_is_and_padded(tiny_model) -> None:
    model = build(LlamaForCausalLM, tiny_model().config, attn_implementation="eager")
    assert not enable_packing(model)
    assert model.config._attn_implementation == "eager"
    ids = ids_of(LENGTHS)
    expected = one_by_one(model, ids, LENGTHS)
    assert torch.allclose(row_hidden_states(model, ids, LENGTHS), expected, atol=1e-5)


@torch.no_grad()
def test_a_model_that_mixes_packed_rows_is_put_back_and_padded(tiny_model, monkeypatch) -> None:
    monkeypatch.setattr("unlearn_pl.models.fast.packing.packing_is_exact", lambda model: False)
    model = tiny_model()
    assert not enable_packing(model)
    assert model.config._attn_implementation == "sdpa"
    ids = ids_of(LENGTHS)
    assert torch.allclose(row_hidden_states(model, ids, LENGTHS), one_by_one(model, ids, LENGTHS), atol=1e-5)


def test_trying_leaves_the_training_mode_alone(tiny_model) -> None:
    for mode in (True, False):
        model = tiny_model().train(mode)
        assert enable_packing(model)
        assert enable_packing(model)  # a second time changes nothing
        assert model.training == mode
        assert model.config._attn_implementation == PACKED


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[6, 3], [6, 7], [12, 3, 7]], ids=str)
def test_rows_beyond_a_sliding_window_are_padded(lengths: list[int]) -> None:
    config = MistralConfig(**GROUPED, sliding_window=6)
    model, plain = build(MistralForCausalLM, config), build(MistralForCausalLM, config)
    assert enable_packing(model)
    ids = ids_of(lengths)
    expected = one_by_one(plain, ids, lengths)
    assert torch.allclose(row_hidden_states(model, ids, lengths), expected, atol=1e-5)
    unlimited = one_by_one(build(MistralForCausalLM, MistralConfig(**GROUPED, sliding_window=None)), ids, lengths)
    assert torch.allclose(expected, unlimited, atol=1e-5) == (max(lengths) <= 6)


def test_a_window_shorter_than_the_trial_rows_switches_packing_off() -> None:
    model = build(MistralForCausalLM, MistralConfig(**GROUPED, sliding_window=4))
    assert not enable_packing(model)
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        (OlmoForCausalLM, OlmoConfig(**TINY)),
        (Qwen2ForCausalLM, Qwen2Config(**GROUPED)),
        (Qwen2ForCausalLM, Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=6, max_window_layers=1)),
        (GPTNeoXForCausalLM, GPTNeoXConfig(**TINY)),
        (LlamaForCausalLM, LlamaConfig(**GROUPED)),
        (LlamaForCausalLM, LlamaConfig(**GROUPED, attention_dropout=0.5)),
    ],
    ids=["olmo", "qwen2", "qwen2 with windows", "gpt-neox", "llama", "attention dropout"],
)
def test_other_architectures_take_packed_rows(architecture: type, config: object) -> None:
    model, plain = build(architecture, config), build(architecture, config)
    ids = ids_of(LENGTHS)
    expected = one_by_one(plain, ids, LENGTHS)
    assert enable_packing(model)
    assert torch.allclose(row_hidden_states(model, ids, LENGTHS), expected, atol=1e-5)
    longest = ids[6:15][None]
    assert torch.allclose(model(longest).logits, plain(longest).logits, atol=1e-5)


@torch.no_grad()
def test_padding_on_the_right_goes_on_as_before(packing, tiny_model) -> None:
    """A forward without row lengths, as evaluation makes it."""
    rows = ids_of(LENGTHS).split(LENGTHS)
    ids = pad_sequence(list(rows), batch_first=True)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    states = [hidden_states(model, ids, mask)[mask.bool()] for model in (packing, tiny_model())]
    assert torch.allclose(*states, atol=1e-6)


def test_generation_is_the_same_with_packing_on(packing, tiny_model) -> None:
    ids = torch.stack([ids_of([6]), ids_of([6], seed=1)])
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(packing.generate(ids, **options), tiny_model().generate(ids, **options))


def test_a_part_that_takes_no_attention_function_ends_packing(tiny_model: Callable[[], LlamaForCausalLM]) -> None:
    """As the encoder of sounds in Gemma 4: set for some parts, refused by another; then no part keeps it."""
    model = tiny_model()

    def refused(name: str) -> None:
        model.config._attn_implementation = name
        raise ValueError("the encoder does not support it")

    model.set_attn_implementation = refused  # type: ignore[method-assign]
    assert not enable_packing(model)
    assert model.config._attn_implementation == "sdpa"

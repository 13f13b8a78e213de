"""Batched greedy generation against ``model.generate`` with one row at a time."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation import forward, generation
from unlearn_pl.evaluation.generation import Generation, close_calls, eos_ids, generate_greedy

Build = Callable[[], LlamaForCausalLM]

PROMPTS = [
    "Anna",
    "What is the name of the painter?",
    "The capital of France is",
    "Where did she live? The old lighthouse keeper wrote a letter to his sister. Her phone number is",
    "born in Rivertown",
    "The capital of Spain is",
    "Anna Quill was born on",
    "7",
    "Answer: A B C D",
    "Where did she live?",
]


@torch.no_grad()
def one_by_one(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], new: int) -> list[str]:
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        mask = torch.ones_like(ids)
        pad = tokenizer.eos_token_id
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=pad
        )
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


@pytest.fixture
def model(tiny_model: Build) -> LlamaForCausalLM:
    """Sharper than fresh weights, so that the rows differ and few tokens tie."""
    model = tiny_model()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture
def ending_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Ends at any token of a fifth of the vocabulary, so that rows leave the batch at different steps."""
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(3, len(tokenizer), 20)]
    return model


def test_same_text_as_row_by_row(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = one_by_one(model, tokenizer, PROMPTS, 20)
    assert len(set(expected)) == len(PROMPTS)
    for batch_size in (1, 3, 32):
        assert generate_greedy(model, tokenizer, PROMPTS, 20, batch_size) == expected


def test_rows_that_end_at_different_steps(ending_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = one_by_one(ending_model, tokenizer, PROMPTS, 40)
    for batch_size in (4, 32):
        assert generate_greedy(ending_model, tokenizer, PROMPTS, 40, batch_size) == expected
    lengths = {len(tokenizer(text).input_ids) for text in expected}
    assert len(lengths) > 2, "the rows must end at different steps, or this test shows nothing"


def test_work_ends_with_the_rows(
    ending_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each forward after the first sees one token of the rows that still run, never a prompt again."""
    shapes = []
    real = forward.last_logits

    def spy(model, ids, *others, **options):  # type: ignore[no-untyped-def]
        shapes.append(tuple(ids.shape))
        return real(model, ids, *others, **options)

    monkeypatch.setattr(generation, "last_logits", spy)
    generate_greedy(ending_model, tokenizer, PROMPTS, 40, 32)
    assert shapes[0][0] == len(PROMPTS)
    assert all(length == 1 for _, length in shapes[1:])
    sizes = [size for size, _ in shapes]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


def test_generation_config_does_not_leak(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Only its EOS ids count."""
    expected = one_by_one(model, tokenizer, PROMPTS[:4], 16)
    model.generation_config.repetition_penalty = 1.9
    model.generation_config.suppress_tokens = [tokenizer(text).input_ids[0] for text in expected]
    assert one_by_one(model, tokenizer, PROMPTS[:4], 16) != expected
    assert generate_greedy(model, tokenizer, PROMPTS[:4], 16, 4) == expected


def test_ties_are_decided_as_for_a_row_alone(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token has a twin with the same head row, so every step is a tie; each row must be generated alone."""
    with torch.no_grad():
        half = len(tokenizer) // 2
        model.lm_head.weight[half : 2 * half] = model.lm_head.weight[:half]
    alone = []
    real = generation.continue_rows
    monkeypatch.setattr(
        generation, "continue_rows", lambda m, rows, *rest: alone.append(len(rows)) or real(m, rows, *rest)
    )
    assert generate_greedy(model, tokenizer, PROMPTS, 12, 32) == one_by_one(model, tokenizer, PROMPTS, 12)
    assert alone == [len(PROMPTS)] + [1] * len(PROMPTS)


def test_close_calls() -> None:
    """128 x eps x 10 = 1.5e-4: a lead of 1e-4 over a largest logit of 10 is rounding, 1e-2 is not; NaN is no tie."""
    logits = torch.tensor([[10.0, 9.9999, -3.0], [10.0, 9.99, -3.0], [0.0, 0.0, 0.0], [float("nan"), 1.0, 2.0]])
    assert close_calls(logits).tolist() == [True, False, True, False]
    assert not close_calls(logits.bfloat16()).any()


def test_adapter_counts_and_modes_return(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A PEFT model in train mode, with dropout, is generated from in eval mode and left as it was."""
    plain = generate_greedy(model, tokenizer, PROMPTS[:3], 12, 4)
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.train()
    adapted.base_model.model.lm_head.eval()
    modes = [module.training for module in adapted.modules()]
    texts = generate_greedy(adapted, tokenizer, PROMPTS[:3], 12, 4)
    assert [module.training for module in adapted.modules()] == modes
    assert texts != plain
    assert texts == one_by_one(adapted.eval(), tokenizer, PROMPTS[:3], 12)


def test_eos_ids(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """The model's own first; the tokenizer's if the model names none; a disagreement is said."""
    assert eos_ids(model, tokenizer) == {tokenizer.eos_token_id}
    model.generation_config.eos_token_id = None
    assert eos_ids(model, tokenizer) == {tokenizer.eos_token_id}
    model.generation_config.eos_token_id = 7
    with pytest.warns(UserWarning, match=r"EOS ids \[7\]"):
        assert eos_ids(model, tokenizer) == {7}


def test_prompt_beyond_the_positions(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """512 positions: 500 tokens and 13 new ones do not fit, 12 do."""
    prompt = tokenizer.decode(tokenizer("7 " * 600).input_ids[:500])
    assert len(tokenizer(prompt).input_ids) == 500
    with pytest.raises(
        InputError, match=r"--generation.max_new_tokens: prompt 2: 500 tokens and room for 13 more .* 512"
    ):
        generate_greedy(model, tokenizer, ["Anna", prompt], 13)
    assert len(generate_greedy(model, tokenizer, ["Anna", prompt], 12)) == 2
    with pytest.raises(InputError, match="prompt 1: no token is left"):
        generate_greedy(model, tokenizer, [""], 4)


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"batch_size": 0}])
def test_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"--generation.{next(iter(options))}: must be at least 1, got 0"):
        Generation(**options)

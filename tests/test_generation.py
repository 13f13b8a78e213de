"""Batched greedy generation against ``model.generate`` with one row at a time."""

from collections.abc import Callable, Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from row_by_row import one_by_one
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.inference import decoding
from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.generation import Generation, Prompt
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.own_generate import eos_ids
from unlearn_pl.inference.token_scores import is_tie, margins

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


def texts_of(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt | str], options: Generation
) -> list[str]:
    return [answer.text for answer in LanguageModel(model, tokenizer, joiner="").generate(prompts, options)]


@pytest.fixture
def ending_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Ends at any token of a fifth of the vocabulary, so that rows leave the batch at different steps."""
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(3, len(tokenizer), 20)]
    return model


def test_same_text_as_row_by_row(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = one_by_one(model, tokenizer, PROMPTS, 20)
    assert len(set(expected)) == len(PROMPTS)
    for batch_size in (1, 3, 32):
        assert texts_of(model, tokenizer, PROMPTS, Generation(20, batch_size)) == expected


def test_rows_that_end_at_different_steps(ending_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = one_by_one(ending_model, tokenizer, PROMPTS, 40)
    for batch_size in (4, 32):
        assert texts_of(ending_model, tokenizer, PROMPTS, Generation(40, batch_size)) == expected
    lengths = {len(tokenizer(text).input_ids) for text in expected}
    assert len(lengths) > 2, "the rows must end at different steps, or this test shows nothing"


def test_work_ends_with_the_rows(ending_model: LlamaForCausalLM, tokenizer, shapes) -> None:  # type: ignore[no-untyped-def]
    """Each forward after the first sees one token of the rows that still run, never a prompt again."""
    texts_of(ending_model, tokenizer, PROMPTS, Generation(40, 32))
    assert shapes[0][0] == len(PROMPTS)
    assert all(length == 1 for _, length in shapes[1:])
    sizes = [size for size, _ in shapes]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


def own_answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, new: int) -> list[str]:
    return one_by_one(model, tokenizer, PROMPTS, new)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_expected_answers_change_no_text(ending_model, tokenizer, batch_size: int) -> None:  # type: ignore[no-untyped-def]
    """Whether the answer is what the model says, half of it, something else, longer than the limit, or none."""
    texts = own_answers(ending_model, tokenizer, 24)
    answers = [
        (text, text[: len(text) // 2] + " zebra", "no such thing", text * 9, "")[index % 5]
        for index, text in enumerate(texts)
    ]
    for new in (1, 24):
        prompts = [Prompt(*pair) for pair in zip(PROMPTS, answers, strict=True)]
        found = LanguageModel(ending_model, tokenizer, joiner="").generate(prompts, Generation(new, batch_size))
        assert [answer.text for answer in found] == own_answers(ending_model, tokenizer, new)
        assert [answer.recall is None for answer in found] == [not answer for answer in answers]


def test_what_the_model_knows_takes_one_forward(model, tokenizer, shapes) -> None:  # type: ignore[no-untyped-def]
    """Answers of 12 tokens that the model gives by itself are accepted, and at a limit of 13 nothing is left to do."""
    texts = own_answers(model, tokenizer, 12)
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    known = [index for index, ids in enumerate(tokens) if len(ids) == 12]
    assert len(known) > 1
    found = LanguageModel(model, tokenizer, joiner="").generate(
        [Prompt(PROMPTS[index], texts[index]) for index in known], Generation(13, len(known))
    )
    assert len(shapes) == 1
    for answer in found:
        assert (answer.tokens, answer.recall.accepted) == (13, 12)
        assert answer.recall.exact_memorization == answer.recall.extraction_strength == 1


def test_recall_is_a_plain_forward(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """Probability and best tokens of an answer against softmax over all logits, one row at a time, in float64."""
    answers = [" was a painter", " Paris", "7", " born in Rivertown in 1984", " keeper"]
    found = LanguageModel(model, tokenizer, joiner="").generate(
        [Prompt(*p) for p in zip(PROMPTS, answers, strict=False)], Generation(4, 3)
    )
    for text, answer, result in zip(PROMPTS, answers, found, strict=False):
        prompt, target = tokenizer(text).input_ids, tokenizer(answer).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].double()
        logprob = logits.log_softmax(-1)[range(len(target)), target]
        hits = (logits.argmax(-1) == torch.tensor(target)).tolist()
        assert result.recall.probability == pytest.approx(logprob.mean().exp().item(), rel=1e-4)
        assert result.recall.exact_memorization == pytest.approx(sum(hits) / len(hits))


def test_rows_stop_once_their_score_is_decided(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """A row that must become another text is cut and says so; one that may still become it, or need not, is not."""
    whole = texts_of(model, tokenizer, PROMPTS[:3], Generation(20))
    expected = [" zebra", whole[1].upper(), " zebra"]
    rows = zip(PROMPTS, expected, (True, True, False), strict=False)
    prompts = [Prompt(text, answer, exact) for text, answer, exact in rows]
    found = LanguageModel(model, tokenizer, joiner="").generate(prompts, Generation(20, 4, stop_decided=True))
    assert whole[0].startswith(found[0].text)
    assert found[0].tokens < 20
    assert [answer.cut for answer in found] == [True, False, False]
    assert [answer.text for answer in found[1:]] == whole[1:]
    assert texts_of(model, tokenizer, prompts, Generation(20, 4)) == whole


def test_the_generation_config(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Only its EOS ids count, and what else it sets is named; asked to, all of it counts, also with half an answer."""
    expected = one_by_one(model, tokenizer, PROMPTS[:4], 16)
    model.generation_config.repetition_penalty = 1.9
    model.generation_config.suppress_tokens = [tokenizer(text).input_ids[0] for text in expected]
    own = one_by_one(model, tokenizer, PROMPTS[:4], 16)
    assert own != expected
    with pytest.warns(UserWarning, match=r"generation config: repetition_penalty 1.9, suppress_tokens \[") as told:
        assert texts_of(model, tokenizer, PROMPTS[:4], Generation(16, 4)) == expected
    assert len(told) == 1
    prompts = [Prompt(text, answer[: len(answer) // 2]) for text, answer in zip(PROMPTS, own, strict=False)]
    found = LanguageModel(model, tokenizer, joiner="").generate(prompts, Generation(16, 4, own_config=True))
    assert [answer.text for answer in found] == own
    assert all(answer.recall is not None for answer in found)
    assert model.generation_config.repetition_penalty == 1.9


def test_ties_are_decided_as_for_a_row_alone(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token has a twin with the same head row, so every step is a tie; each row must be generated alone."""
    with torch.no_grad():
        half = len(tokenizer) // 2
        model.lm_head.weight[half : 2 * half] = model.lm_head.weight[:half]
    alone = []
    real = decoding.continue_rows
    monkeypatch.setattr(
        decoding,
        "continue_rows",
        lambda engine, rows, *rest, **more: alone.append(len(rows)) or real(engine, rows, *rest, **more),
    )
    assert texts_of(model, tokenizer, PROMPTS, Generation(12, 32)) == one_by_one(model, tokenizer, PROMPTS, 12)
    assert alone == [1] * len(PROMPTS)


def test_a_begun_row_that_is_unsure_is_generated_from_its_prompt(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is the only one of its batch: several tokens at once are rounded otherwise than one by one."""
    with torch.no_grad():
        half = len(tokenizer) // 2
        model.lm_head.weight[half : 2 * half] = model.lm_head.weight[:half]
        engine, prompt = Engine(model), tokenizer(PROMPTS[3]).input_ids
        (answer,) = decoding.continue_batch(engine, [prompt], [12], frozenset())
        rows = []
        real = decoding.continue_rows
        monkeypatch.setattr(
            decoding,
            "continue_rows",
            lambda engine, given, *rest, **more: rows.extend(given) or real(engine, given, *rest, **more),
        )
        assert decoding.continue_batch(engine, [prompt], [12], frozenset(), started=[answer[:5]]) == [answer]
    assert rows == [[*prompt, *answer[:5]], prompt]


def test_ties() -> None:
    """256 x eps x 10 = 3.1e-4: a margin of 1e-4 over a largest logit of 10 is rounding, 1e-2 is not; NaN is no tie."""
    logits = torch.tensor([[10.0, 9.9999, -3.0], [10.0, 9.99, -3.0], [0.0, 0.0, 0.0], [float("nan"), 1.0, 2.0]])
    assert is_tie(margins(logits), logits.dtype).tolist() == [True, False, True, False]
    assert not is_tie(margins(logits), torch.bfloat16).any()


def test_adapter_counts_and_modes_return(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A PEFT model in train mode, with dropout, is generated from in eval mode and left as it was."""
    plain = texts_of(model, tokenizer, PROMPTS[:3], Generation(12, 4))
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.train()
    adapted.base_model.model.lm_head.eval()
    modes = [module.training for module in adapted.modules()]
    texts = texts_of(adapted, tokenizer, PROMPTS[:3], Generation(12, 4))
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
    """512 positions: after 500 tokens there is room for 12 new ones, and more cannot be had; after 512 for none."""
    prompt = tokenizer.decode(tokenizer("7 " * 600).input_ids[:500])
    assert len(tokenizer(prompt).input_ids) == 500
    fitting = texts_of(model, tokenizer, ["Anna", prompt], Generation(12))
    with pytest.warns(UserWarning, match="1 of 2 rows have room for fewer than 13 new tokens within the model's 512"):
        texts = texts_of(model, tokenizer, ["Anna", prompt], Generation(13))
    assert texts[1] == fitting[1]
    with pytest.raises(
        InputError, match=r"prompts: number 1: its prompt of 512 tokens and an answer of 1 exceed the model's 512"
    ):
        texts_of(model, tokenizer, [tokenizer.decode(tokenizer("7 " * 600).input_ids[:512])], Generation(1))
    with pytest.raises(InputError, match="prompts: number 1: no token is left"):
        texts_of(model, tokenizer, [""], Generation(4))


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"batch_size": 0}])
def test_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"^generation.{next(iter(options))}: must be at least 1.*, got 0"):
        Generation(**options)


@pytest.mark.parametrize("size", [2, 32])
def test_no_token_is_computed_twice(size: int, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Each prompt is read once, and each new token but a row's last is one row of one step; only in a large batch does
    a row that has ended stay for a while."""
    own = one_by_one(model, tokenizer, PROMPTS, 12)
    engine = LanguageModel(model, tokenizer)
    engine.generate(PROMPTS[:1], Generation(1))  # the trial
    shapes: list[tuple[int, ...]] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    found = engine.generate(PROMPTS, Generation(12, size))
    hook.remove()
    assert [answer.text for answer in found] == own
    read = [shape for shape in shapes if shape[1] > 1]
    assert sum(rows for rows, _ in read) == len(PROMPTS)
    steps = sum(rows for rows, tokens in shapes if tokens == 1)
    assert steps >= sum(answer.tokens - 1 for answer in found)
    if size == 2:
        assert steps == sum(answer.tokens - 1 for answer in found)  # of two rows, one that has ended leaves at once

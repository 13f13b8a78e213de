"""Generation and multiple choice of many architectures, batched, against ``model.generate`` and one row at a time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from row_by_row import one_by_one, sharpened
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from unlearn_pl.evaluation.choice import answer_choices, letter_ids
from unlearn_pl.inference import next_token
from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.generation import Generation, Prompt
from unlearn_pl.inference.kv_cache import attends_fully, generates_together
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.next_token import candidate_logits
from unlearn_pl.tasks.mmlu import Question, Subject

# Its cache is of a class that only its own generate makes; that is said each time
pytestmark = pytest.mark.filterwarnings("ignore:MiniMaxForCausalLM. text by our cache would differ")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
GROUPED = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}
WINDOW = {"sliding_window": 8}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("Llama", {**GROUPED, "tie_word_embeddings": True}),
    "mistral, window of 8": ("Mistral", {**GROUPED, **WINDOW}),
    "gemma2, capped": ("Gemma2", {**GROUPED, **WINDOW, "head_dim": 8, "final_logit_softcapping": 5.0}),
    "gpt2, absolute positions": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen2, window of 8": ("Qwen2", {**GROUPED, **WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "olmo": ("Olmo", GROUPED),
    "cohere, scaled": ("Cohere", {**GROUPED, "logit_scale": 0.25}),
    "bloom, no positions": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba, no keys and values": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "recurrent gemma, states in the model": (
        "RecurrentGemma",
        {**GROUPED, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
    ),
    "bamba, states in the cache": (
        "Bamba",
        {
            **GROUPED,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
            "attn_layer_indices": [1],
        },
    ),
    "llama4, its own body": (
        "Llama4Text",
        {**GROUPED, "intermediate_size_mlp": 64, "num_local_experts": 2, "head_dim": 8, "attention_chunk_size": 64},
    ),
    "minimax, a cache of its own class": (
        "MiniMax",
        {
            **GROUPED,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "head_dim": 8,
            "block_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "phi3, other angles from 32 tokens on": (
        "Phi3",
        {
            **GROUPED,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "factor": 16.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "lfm2, states in the cache": ("Lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
}
# Whether a plain linear head gives the logits, all layers attend to everything, rows can go on in one batch.
TRAITS = {
    "llama, tied": (True, True, True),
    "mistral, window of 8": (True, False, True),
    "gemma2, capped": (False, False, True),
    "gpt2, absolute positions": (True, True, True),
    "qwen2": (True, True, True),
    "qwen2, window of 8": (True, False, True),
    "olmo": (True, True, True),
    "cohere, scaled": (False, True, True),
    "bloom, no positions": (True, True, True),
    "mamba, no keys and values": (True, False, False),
    "recurrent gemma, states in the model": (False, False, False),
    "bamba, states in the cache": (True, False, False),
    "llama4, its own body": (True, False, True),
    "minimax, a cache of its own class": (True, False, False),
    "phi3, other angles from 32 tokens on": (True, False, True),
    "lfm2, states in the cache": (True, False, False),
}

PROMPTS = [
    "Anna",
    "What is the name of the painter?",
    "The capital of France is",
    "Where did she live? The old lighthouse keeper wrote a letter to his sister. Her phone number is",
    "The capital of Spain is",
    "7",
    "Where did she live?",
]


def build(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Sharper than fresh weights, so that the rows differ and few tokens tie."""
    family, options = ARCHITECTURES[name]
    end = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **end, **options)
    family = family.removesuffix("Text")
    cls = getattr(transformers, f"{family}ForCausalLM", None) or getattr(transformers, f"{family}LMHeadModel")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        return sharpened(cls(config).eval())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_traits(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Each way of the code is gone by some architecture below."""
    model = build(name, tokenizer)
    found = (Engine(model).head is not None, attends_fully(model), generates_together(model))
    assert found == TRAITS[name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generation(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Whether the expected answer is what the model says, half of it, something else, or none; rows end early too."""
    model = build(name, tokenizer)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(3, len(tokenizer), 40)]
    own = one_by_one(model, tokenizer, PROMPTS, 16)
    assert len(set(own)) > 4
    answers = [(text, text[: len(text) // 2] + " zebra", "no such thing", "")[i % 4] for i, text in enumerate(own)]
    prompts = [Prompt(*pair) for pair in zip(PROMPTS, answers, strict=True)]
    for batch_size in (3, 16):
        found = LanguageModel(model, tokenizer, joiner="").generate(prompts, Generation(16, batch_size))
        assert [answer.text for answer in found] == own


def question(number: int, answer: str = "A") -> Question:
    return Question(f"Which of these is {number}?", (f"{number}", "3", "a painter", f"{number * 7}"), answer)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_choices(name: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of the four letters as for each question alone; all is right if its best letter is called the answer."""
    model, ids = build(name, tokenizer), letter_ids(tokenizer)
    own: dict[tuple[int, ...], torch.Tensor] = {}
    subjects = []
    for topic, start, count in (("old_towns", 10, 7), ("numbers", 50, 2)):
        subject = Subject(topic, (question(start, "B"), question(start + 1, "D")), ())
        asked = []
        for one in map(question, range(start + 2, start + 2 + count)):
            row = tokenizer(subject.prompt(one, 2)).input_ids
            with torch.no_grad():
                own[tuple(row)] = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1, ids]
            asked.append(replace(one, answer="ABCD"[int(own[tuple(row)].argmax())]))
        subjects.append(replace(subject, questions=tuple(asked)))
    seen = []

    def spy(engine: Engine, rows: list[list[int]], *others: object) -> torch.Tensor:
        logits = candidate_logits(engine, rows, *others)  # type: ignore[arg-type]
        for slot, rest in enumerate(rows):
            whole = [row for row in own if list(row[-len(rest) :]) == list(rest)]
            assert len(whole) == 1
            torch.testing.assert_close(logits[slot, :4], own[whole[0]], rtol=1e-4, atol=1e-4)
            seen.append(whole[0])
        return logits

    monkeypatch.setattr(next_token, "candidate_logits", spy)
    for batch_size in (1, 3, 16):
        seen.clear()
        found = answer_choices(LanguageModel(model, tokenizer), subjects, batch_size=batch_size)
        assert (found["average"], found["shortened"]) == (1, 0)
        assert set(seen) == set(own)

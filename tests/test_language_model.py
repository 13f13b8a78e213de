"""Hidden states and logits of evaluation against the model's own logits."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache

from unlearn_pl.data.encoding import Encoding, encode_record
from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.generation import Generation, Prompt
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.padding import left_padded, right_padded
from unlearn_pl.inference.sampling import Sampling
from unlearn_pl.inference.token_scores import token_scores_of_logits
from unlearn_pl.models.body import head_is_plain

Build = Callable[[], LlamaForCausalLM]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ROWS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16]]


def small(family: str, vocabulary: int, **options: Any) -> PreTrainedModel:
    """Sharper than fresh weights: a cap of 5 shows only on logits of some size."""
    ends = {"eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None}
    config = getattr(transformers, f"{family}Config")(vocab_size=vocabulary, **SMALL, **ends, **options)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def adapted(model: PreTrainedModel, *targets: str) -> nn.Module:
    config = LoraConfig(r=4, target_modules=list(targets) or "all-linear", init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(model, config).eval()


def biased(model: PreTrainedModel) -> PreTrainedModel:
    head = nn.Linear(32, model.config.vocab_size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        head.bias.copy_(torch.linspace(-2, 2, model.config.vocab_size))
        head.weight.copy_(model.lm_head.weight)
    model.lm_head = head
    return model


# Model -> whether its head can be run apart from its body.
MODELS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "llama": (lambda: small("Llama", 64), True),
    "tied": (lambda: small("Llama", 64, tie_word_embeddings=True), True),
    "biased": (lambda: biased(small("Llama", 64)), True),
    "lora": (lambda: adapted(small("Llama", 64)), True),
    "lora, tied": (lambda: adapted(small("Llama", 64, tie_word_embeddings=True)), True),
    "lora on the head": (lambda: adapted(small("Llama", 64), "lm_head", "q_proj"), False),
    "gemma2": (lambda: small("Gemma2", 64, head_dim=8, final_logit_softcapping=5.0), False),
    "gemma2, not capped": (lambda: small("Gemma2", 64, head_dim=8, final_logit_softcapping=None), True),
    "gemma2, lora": (lambda: adapted(small("Gemma2", 64, head_dim=8, final_logit_softcapping=5.0)), False),
    "cohere": (lambda: small("Cohere", 64, logit_scale=0.25), False),
    "cohere, not scaled": (lambda: small("Cohere", 64, logit_scale=1.0), True),
}


@pytest.fixture(params=MODELS)
def model_and_plain(request: pytest.FixtureRequest) -> tuple[nn.Module, bool]:
    make, plain = MODELS[request.param]
    return make(), plain


@torch.no_grad()
def own_logits(model: nn.Module, row: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([row]), use_cache=False).logits[0]


@torch.inference_mode()
def test_states_and_logits_are_the_models(model_and_plain: tuple[nn.Module, bool]) -> None:
    """Of whole rows, padded at the right, and after a cache with padding at the left."""
    model, plain = model_and_plain
    engine = Engine(model)
    assert (engine.head is not None) == head_is_plain(model) == plain
    states = engine.states(right_padded(ROWS, engine.device))
    assert states.shape == (3, 6, 32 if plain else 64)
    for slot, row in enumerate(ROWS):
        own = own_logits(model, row)
        torch.testing.assert_close(engine.logits(states[slot, : len(row)]), own, rtol=1e-4, atol=1e-4)
    cache = DynamicCache(config=engine.causal.config)
    ids, mask, positions = left_padded(ROWS, engine.device)
    engine.states(ids[:, :-1], mask[:, :-1], positions[:, :-1], cache)
    last = engine.logits(engine.states(ids[:, -1:], mask, positions[:, -1:], cache)[:, -1])
    for slot, row in enumerate(ROWS):
        torch.testing.assert_close(last[slot], own_logits(model, row)[-1], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_token_scores_are_those_of_the_models_logits(model_and_plain: tuple[nn.Module, bool]) -> None:
    model, _ = model_and_plain
    engine, row = Engine(model), ROWS[0]
    targets = torch.tensor([*row[1:], 3])
    found = engine.token_scores(engine.states(torch.tensor([row]))[0], targets, moments=True, margin=True)
    own = token_scores_of_logits(own_logits(model, row), targets, moments=True, margin=True)
    for name in ("logprob", "mean", "std"):
        torch.testing.assert_close(getattr(found, name), getattr(own, name), rtol=1e-3, atol=1e-3)
    assert torch.equal(found.argmax, own.argmax)
    torch.testing.assert_close(found.margin, own.margin, rtol=1e-2, atol=200.0)  # units of eps


@pytest.mark.parametrize("family", ["Gemma2", "Cohere"])
def test_generation_through_whole_logits(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """With what the model says itself as the expected answer: its probability is that of the capped logits too."""
    options = {"head_dim": 8, "final_logit_softcapping": 5.0} if family == "Gemma2" else {"logit_scale": 0.25}
    model = small(family, len(tokenizer), **options)
    texts = ["Anna", "The capital of France is", "Where did she live?"]
    rows = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
    outs = [
        model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=12, do_sample=False)[0, row.shape[1] :]
        for row in rows
    ]
    own = [tokenizer.decode(out, skip_special_tokens=True) for out in outs]
    prompts = [Prompt(*pair) for pair in zip(texts, own, strict=True)]
    found = LanguageModel(model, tokenizer, joiner="").generate(prompts, Generation(12, 2))
    assert [answer.text for answer in found] == own
    for row, text, answer in zip(rows, own, found, strict=True):
        target = tokenizer(text).input_ids
        logprob = own_logits(model, [*row[0].tolist(), *target])[row.shape[1] - 1 : -1].log_softmax(-1)
        chances = logprob[range(len(target)), target]
        assert answer.recall is not None
        assert answer.recall.probability == pytest.approx(chances.mean().exp().item(), rel=1e-4)


@pytest.mark.parametrize(("family", "taken"), [("GPT2LMHeadModel", True), ("BloomForCausalLM", False)])
def test_positions_go_only_to_models_that_take_them(family: str, taken: bool) -> None:
    """GPT-2 needs them for padded rows; Bloom takes none, as it finds distances from the mask."""
    kind = getattr(transformers, family)
    config = kind.config_class(vocab_size=64, n_embd=32, n_layer=2, n_head=4, pad_token_id=0)
    model = kind(config).eval()
    given: list[bool] = []
    model.base_model.register_forward_pre_hook(
        lambda _, args, options: given.append("position_ids" in options), with_kwargs=True
    )
    engine = Engine(model)
    given.clear()
    with torch.inference_mode():
        ids, mask, positions = left_padded(ROWS, engine.device)
        last = engine.logits(engine.states(ids, mask, positions)[:, -1])
    assert given == [taken]
    for slot, row in enumerate(ROWS):
        torch.testing.assert_close(last[slot], own_logits(model, row)[-1], rtol=1e-4, atol=1e-4)


def test_whole_logits_of_a_capped_model_are_not_changed_by_their_scores() -> None:
    """They are the states of such a model, which ``token_scores`` must leave as they are."""
    engine = Engine(small("Gemma2", 64, head_dim=8, final_logit_softcapping=5.0))
    with torch.inference_mode():
        states = engine.states(torch.tensor([ROWS[0]]))[0]
        before = states.clone()
        engine.token_scores(states, torch.tensor(ROWS[0]), margin=True)
    assert torch.equal(states, before)


def test_one_rule_reads_a_row(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """The ids that training makes are those that are measured, with either joiner; the blank stands once."""
    record = Record("1qa0", "Who paints?", "Anna Quill does", "Task1", "qa")
    for joiner in (" ", ""):
        asked = LanguageModel(tiny_model(), tokenizer, joiner=joiner)
        prompt, answer = asked.encode(record.input, record.output, eos=True)
        trained = encode_record(record, tokenizer, Encoding(joiner=joiner), forget=True)
        assert (*prompt, *answer) == trained.input_ids
        assert len(prompt) == trained.answer_start
        (found,) = asked.likelihood([record.input], [record.output], eos=True)
        logits = own_logits(asked.model, [*prompt, *answer])[len(prompt) - 1 : -1].log_softmax(-1)
        assert found.logprob == pytest.approx(logits[range(len(answer)), answer].mean().item(), rel=1e-4)
    assert answer[0] != LanguageModel(asked.model, tokenizer).encode(record.input, record.output)[1][0]


def test_an_end_token_that_is_not_there(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(InputError, match=r"^eos: the tokenizer has no end token"):
        LanguageModel(tiny_model(), bare).likelihood(["A"], ["B"], eos=True)


def test_no_text_would_end(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """An end that the model alone knows serves."""
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    model = tiny_model()
    with pytest.warns(UserWarning, match="the tokenizer's, None, is none"):
        assert LanguageModel(model, bare).generate(["A"], Generation(2))[0].tokens == 2
    model.generation_config.eos_token_id = None
    with pytest.raises(InputError, match=r"^tokenizer: it has no EOS token, nor has the model's generation config"):
        LanguageModel(model, bare).generate(["A"], Generation(2))


def test_a_token_without_an_embedding_is_named(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """Wherever it is met; the model is afterwards as it was."""
    marked = copy.deepcopy(tokenizer)
    marked.add_tokens(["<|q|>"])
    asked = LanguageModel(tiny_model(), marked)
    for request in (
        lambda: asked.generate(["Anna<|q|>"]),
        lambda: asked.generate([Prompt("Anna", "<|q|>")]),
        lambda: asked.likelihood(["Anna"], ["<|q|>"]),
        lambda: asked.likelihood_of_generated(["Anna"], ["<|q|>"]),
    ):
        with pytest.raises(InputError, match=r"^token '<\|q\|>': token id 384 is beyond the 384 rows"):
            request()
    assert not asked.model.get_input_embeddings()._forward_pre_hooks


def test_a_single_text_or_no_token_is_refused(tiny_model, tokenizer) -> None:
    asked = LanguageModel(tiny_model(), tokenizer)
    for request, name in (
        (lambda: asked.generate("Who?"), "prompts"),
        (lambda: asked.likelihood("Who", ["Ann"]), "prompts"),
        (lambda: asked.likelihood(["Who"], "Ann"), "continuations"),
        (lambda: asked.next_token("Who?", [1, 2]), "prompts"),
        (lambda: asked.sample("Who?", Sampling(samples=1)), "prompts"),
        (lambda: asked.token_scores("Ann lives here"), "documents"),
    ):
        with pytest.raises(InputError, match=rf"^{name}: must be a list of texts, got one text '"):
            request()
    with pytest.raises(InputError, match=r"^continuations: must be one for each prompt, got 2 of 1"):
        asked.likelihood(["Who"], ["Ann", "Bob"])
    for candidates in ([], [1], [-1, 1], [1, 10**6], ["A", "B"]):
        with pytest.raises(InputError, match=r"^candidates: must be at least two token ids from 0 to"):
            asked.next_token(["Who?"], candidates)

"""Models that unlearning broke, and rows that few have thought of: a defined result, never a crash or a silent drop."""

import math
from collections.abc import Callable

import pytest
import torch
from row_by_row import one_by_one
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import answer_choices, letter_ids
from unlearn_pl.evaluation.membership import document_attacks
from unlearn_pl.inference.generation import Generation, Prompt
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.metrics.attacks import ATTACKS
from unlearn_pl.tasks.mmlu import Question, Subject

Build = Callable[[], LlamaForCausalLM]
NAN = float("nan")
TEXTS = [
    "Anna Quill was born on",
    "7",
    "Где жила Анна? Она жила",
    "🎉🎉 What is the name of the painter? 👩‍🎨",
    "東京の天気は",
    "\u202eשלום\u202c \x00 \ufffd",
]
ANSWERS = [" 7 Paris", " Анна Квилл", "", " 東京 🎉", "\n\n\n", " painter" * 4]


def break_head(model: LlamaForCausalLM) -> None:
    model.lm_head.weight[50:60, 3] = NAN


def break_layer(model: LlamaForCausalLM) -> None:
    model.model.layers[1].mlp.down_proj.weight[3, 4] = NAN


def overflow_layer(model: LlamaForCausalLM) -> None:
    model.model.layers[0].mlp.down_proj.weight[3, 4] = math.inf


def overflow_head(model: LlamaForCausalLM) -> None:
    model.lm_head.weight[50] = math.inf


def break_padding(model: LlamaForCausalLM) -> None:
    """The token 0, which no row has, but which stands in masked places as easily as any other."""
    model.model.embed_tokens.weight[0] = NAN


def break_word(model: LlamaForCausalLM) -> None:
    """The token that is the second prompt, and is in an expected answer: what comes before it there is not broken."""
    model.model.embed_tokens.weight[SEVEN] = NAN


SEVEN = 23
BREAKS = [break_head, break_layer, overflow_layer, overflow_head, break_padding, break_word]


def fixed(model: LlamaForCausalLM, token: int, lead: float = 1.0) -> LlamaForCausalLM:
    """Says ``token`` after everything, ``lead`` ahead of the others, which are all the same."""
    model.lm_head = nn.Linear(32, model.config.vocab_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[token] = lead
    return model


def prompts() -> list[Prompt]:
    return [Prompt(*pair) for pair in zip(TEXTS, ANSWERS, strict=True)]


def subject(*texts: str) -> Subject:
    questions = tuple(Question(text, ("one", "два", "三", "🎉"), "B") for text in texts)
    return Subject("топоним_🎉", questions[:2], questions)


@pytest.mark.parametrize("broken", BREAKS)
def test_generation_is_that_of_transformers(model, tokenizer, broken: Callable) -> None:  # type: ignore[no-untyped-def, type-arg]
    """NaN counts as the highest logit there and here; if all are NaN that is the token 0. No row infects another."""
    assert tokenizer("7").input_ids == [SEVEN]
    with torch.no_grad():
        broken(model)
    own = one_by_one(model, tokenizer, TEXTS, 12)
    for batch_size in (1, 3, 16):
        found = LanguageModel(model, tokenizer, joiner="").generate(prompts(), Generation(12, batch_size))
        assert [answer.text for answer in found] == own
        for answer, expected in zip(found, ANSWERS, strict=True):
            assert (answer.recall is None) == (expected == "")
            assert answer.recall is None or math.isnan(answer.recall.probability) or answer.recall.probability <= 1
            assert not answer.cut


@pytest.mark.parametrize("broken", BREAKS)
def test_attacks_on_a_broken_model(model, tokenizer, broken: Callable) -> None:  # type: ignore[no-untyped-def, type-arg]
    """-inf for each document whose own loss is not finite, and only for those; the rest are as they are alone."""
    with torch.no_grad():
        broken(model)
    documents, names = [*TEXTS, TEXTS[1] + " words"], [name for name in ATTACKS if name != "reference"]
    documents.remove("7")
    lost = []
    for document in documents:
        ids = tokenizer(document, return_tensors="pt").input_ids
        with torch.no_grad():
            lost.append(not math.isfinite(model(input_ids=ids, labels=ids).loss))
    if any(lost):
        with pytest.warns(UserWarning, match=f"membership: {sum(lost)} of {len(lost)} documents have no finite loss"):
            found = document_attacks(LanguageModel(model, tokenizer), documents, names, batch_size=3)
    else:
        found = document_attacks(LanguageModel(model, tokenizer), documents, names, batch_size=3)
    for name in names:
        assert [score == -math.inf for score in found[name]] == lost
        assert not any(map(math.isnan, found[name]))


@pytest.mark.parametrize("broken", BREAKS)
def test_choices_of_a_broken_model(model, tokenizer, broken: Callable) -> None:  # type: ignore[no-untyped-def, type-arg]
    """The letter of each question alone; without finite logits it has no outcome, and then there is no accuracy."""
    with torch.no_grad():
        broken(model)
    topic = subject("Кто?", "🎉?", "a?", "7?", "東京?")
    right = []
    for question in topic.questions:
        ids = tokenizer(topic.prompt(question, 2), return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1, letter_ids(tokenizer)]
        right.append(int(logits.argmax()) == 1 if logits.isfinite().all() else None)
    for batch_size in (1, 3, 16):
        found = answer_choices(LanguageModel(model, tokenizer), [topic], batch_size=batch_size)
        assert (found["right"], found["questions"]) == (right, 5)
        known = None if None in right else sum(right) / 5
        assert (found["average"], found["macro"], found["subjects"]) == (known, known, {topic.name: known})


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("lead", [1.0, 0.0], ids=["sure", "all tokens tie"])
def test_a_model_that_always_ends(model, tokenizer, batch_size: int, lead: float) -> None:  # type: ignore[no-untyped-def]
    """Empty texts of one token, the EOS; with a tie of all tokens too, since EOS is the first of them."""
    model = fixed(model, tokenizer.eos_token_id, lead)
    assert one_by_one(model, tokenizer, TEXTS, 12) == [""] * len(TEXTS)
    for answer in LanguageModel(model, tokenizer, joiner="").generate(prompts(), Generation(12, batch_size)):
        assert (answer.text, answer.tokens, answer.ended, answer.cut) == ("", 1, True, False)
        assert answer.recall is None or answer.recall.exact_memorization == 0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_endless_repeater(model, tokenizer, batch_size: int) -> None:  # type: ignore[no-untyped-def]
    """One token until the limit, whether the expected answer is that token, begins with it, or not."""
    model = fixed(model, SEVEN)
    own = LanguageModel(model, tokenizer, joiner="").generate(
        [*prompts(), Prompt("7", "7" * 20), Prompt("7", "77x")], Generation(12, batch_size)
    )
    assert [answer.text for answer in own] == ["7" * 12] * (len(TEXTS) + 2)
    assert {(answer.tokens, answer.ended, answer.cut) for answer in own} == {(12, False, False)}
    assert own[-2].recall.exact_memorization == own[-2].recall.extraction_strength == 1
    assert (own[-1].recall.exact_memorization, own[-1].recall.extraction_strength) == (2 / 3, 0)


def test_a_repeater_of_half_a_character(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """The first byte of a Chinese character, again and again: as many replacement characters, never decided."""
    half = tokenizer.encode("東")[0]
    assert tokenizer.decode([half]) == "\ufffd"
    options = Generation(5, 2, stop_decided=True)
    found = LanguageModel(fixed(model, half), tokenizer).generate(
        [Prompt(text, "東", exact=True) for text in TEXTS], options
    )
    assert [(answer.text, answer.cut) for answer in found] == [("\ufffd" * 5, False)] * len(TEXTS)


@pytest.mark.parametrize("token", [0, 30])
def test_attacks_on_a_model_with_one_word(model, tokenizer, token: int) -> None:  # type: ignore[no-untyped-def]
    """Far ahead of all others: every other token has log probability -1000, with mean and deviation 0."""
    documents = [text for text in TEXTS if text != "7"]
    names = [name for name in ATTACKS if name != "reference"]
    found = document_attacks(LanguageModel(fixed(model, token, 1000.0), tokenizer), documents, names)
    for place, document in enumerate(documents):
        others = [one != token for one in tokenizer(document).input_ids[1:]]
        assert found["loss"][place] == pytest.approx(-1000 * sum(others) / len(others))
    assert all(math.isfinite(score) for scores in found.values() for score in scores)


def test_right_answers_in_any_script(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """What the model says, whatever bytes that are, is accepted as the expected answer where it can be written."""
    own = one_by_one(model, tokenizer, TEXTS, 12)
    found = LanguageModel(model, tokenizer, joiner="").generate(
        [Prompt(*p) for p in zip(TEXTS, own, strict=True)], Generation(12, 4)
    )
    assert [answer.text for answer in found] == own
    scripts = "".join(own)
    assert any(ord(character) > 127 for character in scripts)


@pytest.fixture(scope="module")
def long_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=16_384,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter))
    return model


def long_text(tokenizer: PreTrainedTokenizerFast, tokens: int) -> str:
    text = "7 x" * (tokens // 3)
    assert 0.9 * tokens <= len(tokenizer(text).input_ids) <= tokens
    return text


def test_rows_of_ten_thousand_tokens(long_model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """As a prompt beside a short one, a document, and a question whose shots leave it room; nothing is cut."""
    text = long_text(tokenizer, 10_000)
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        out = long_model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        loss = long_model(input_ids=ids, labels=ids).loss.item()
    found = LanguageModel(long_model, tokenizer, joiner="").generate(
        [Prompt(text, " Paris"), Prompt("7", " Paris")], Generation(3, 2)
    )
    assert found[0].text == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert document_attacks(LanguageModel(long_model, tokenizer), [text, "7 x"])["loss"][0] == pytest.approx(
        -loss, rel=1e-4
    )
    topic = subject("a?", "b?", text)
    assert answer_choices(LanguageModel(long_model, tokenizer), [topic])["shortened"] == 0


def test_rows_that_no_model_position_holds(long_model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    text = long_text(tokenizer, 20_000)
    with pytest.raises(InputError, match=r"prompts: number 2: its prompt of \d+ tokens and an answer of 1 exceed"):
        LanguageModel(long_model, tokenizer, joiner="").generate([Prompt("7"), Prompt(text)], Generation(3))
    with pytest.raises(
        InputError, match=r"prompts: number 2: its prompt of 1 tokens and an answer of \d+ exceed the model's 16384"
    ):
        LanguageModel(long_model, tokenizer, joiner="").generate([Prompt("7"), Prompt("7", text)], Generation(3))
    with pytest.raises(
        InputError, match=r"^membership.documents: number 1: \d+ tokens exceed the model's 16384 positions"
    ):
        document_attacks(LanguageModel(long_model, tokenizer), [text])
    with pytest.raises(InputError, match="the model has 16384 positions, a question of топоним_🎉 has"):
        answer_choices(LanguageModel(long_model, tokenizer), [subject("a?", "b?", text)])


def test_nothing_to_do(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert LanguageModel(model, tokenizer).generate([]) == []
    assert document_attacks(LanguageModel(model, tokenizer), []) == {"loss": []}

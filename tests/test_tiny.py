"""The tiny model and its tokenizer: what they are made of, that a seed decides them, and that other code opens them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.models.load import load_base, load_tokenizer
from unlearn_pl.models.tiny import TinyModel, build_tiny, train_tokenizer
from unlearn_pl.tasks.synthetic.benchmark import Synthetic, tokenizer_texts

TEXTS = tokenizer_texts(Synthetic())
SMALL = TinyModel(vocabulary=512, hidden=32, layers=2, heads=4, intermediate=64)


@pytest.fixture(scope="module")
def own_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 768)


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_every_text_survives_the_round_trip(own_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = own_tokenizer(text)["input_ids"]
    assert own_tokenizer.decode(ids) == text
    assert own_tokenizer(text, add_special_tokens=False)["input_ids"] == ids


def test_digits_stand_alone_and_the_letters_of_an_answer_are_one_token(own_tokenizer: PreTrainedTokenizerFast) -> None:
    assert own_tokenizer.tokenize("900514344") == list("900514344")
    assert all(len(own_tokenizer(f" {letter}")["input_ids"]) == 1 for letter in "ABCD")


def test_eos_is_also_the_pad_token_and_neither_is_the_padding_index_of_the_model() -> None:
    """With pad_token_id in its config a Llama would zero the embedding of EOS and never train it."""
    model, tokenizer = build_tiny(TEXTS, SMALL)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == model.config.eos_token_id
    assert tokenizer.bos_token_id is None
    assert model.get_input_embeddings().padding_idx is None
    assert model.get_input_embeddings().weight[tokenizer.eos_token_id].abs().sum() > 0


def test_the_default_has_about_two_million_weights() -> None:
    """A block has 4 x 192 x 192 attention and 3 x 192 x 512 feed-forward weights and 2 x 192 norms: 442,752. Four
    blocks, 1280 x 192 embeddings (which are the head as well) and the last norm make 2,016,960."""
    model, tokenizer = build_tiny(TEXTS, TinyModel())
    assert len(tokenizer) == 1280
    assert sum(weight.numel() for weight in model.parameters()) == 4 * 442_752 + 1280 * 192 + 192 == 2_016_960


def test_an_untied_head_has_its_own_weights() -> None:
    tied, _ = build_tiny(TEXTS, SMALL)
    untied, tokenizer = build_tiny(TEXTS, TinyModel(**{**vars(SMALL), "tie_embeddings": False}))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.num_parameters() - tied.num_parameters() == len(tokenizer) * SMALL.hidden


def test_initial_weights_have_the_asked_spread() -> None:
    """The spread of 512 x 32 normal numbers is the asked one within its standard error, 1 / sqrt(2 x 16384)."""
    model, _ = build_tiny(TEXTS, TinyModel(**{**vars(SMALL), "initializer_range": 0.3}))
    assert float(model.get_input_embeddings().weight.detach().std()) == pytest.approx(0.3, rel=0.03)


def test_the_seed_decides_the_weights_and_the_global_random_state_stays() -> None:
    before = torch.get_rng_state()
    one, again = build_tiny(TEXTS, SMALL)[0], build_tiny(TEXTS, SMALL)[0]
    other = build_tiny(TEXTS, TinyModel(**{**vars(SMALL), "seed": 1}))[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(left, right) for left, right in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_a_saved_model_opens_like_any_other_and_gives_the_same_logits(tmp_path: Path) -> None:
    model, tokenizer = build_tiny(TEXTS, SMALL)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    opened, opened_tokenizer = load_base(str(tmp_path)), load_tokenizer(str(tmp_path))
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    assert torch.equal(opened_tokenizer(TEXTS[0], return_tensors="pt")["input_ids"], ids)
    with torch.inference_mode():
        assert torch.equal(opened(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": 256}, "vocabulary: must be at least 257, got 256"),
        ({"layers": 0}, "layers: must be at least 1, got 0"),
        ({"initializer_range": 0.0}, r"initializer_range: must be above 0, got 0\.0"),
        ({"hidden": 30}, r"hidden: must be an even multiple of heads \(4\), got 30"),
        ({"hidden": 20}, r"hidden: must be an even multiple of heads \(4\), got 20"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_tiny(TEXTS, TinyModel(**{**vars(SMALL), **changes}))

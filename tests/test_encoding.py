"""Token ids, cuts, masks. The tokenizer works on bytes, so ids of parts and of the whole can be counted by hand."""

import copy
import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, TEXTS, WORDS, byte_bpe, sentencepiece, word_level
from tokenizers import normalizers, processors

from unlearn_pl.data.encoding import (
    Encoding,
    decoded_ids,
    encode_document,
    encode_pair,
    encode_record,
    holds_unknown,
    inner_ids,
    is_unknown,
    start_ids,
    token_ids,
)
from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError

RECORD = Record("7qa1", "What is the phone number of Anna Quill?", "5550100", "Task2", "qa")


def with_specials(tokenizer, template: str):
    """A copy that puts <|begin|> or <|end|> around every text."""
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"bos_token": "<|begin|>"})
    names = ["<|begin|>", "<|end|>"]
    changed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, changed.convert_tokens_to_ids(name)) for name in names]
    )
    return changed


def ids(tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


kind = functools.cache(lambda name: KINDS[name]())
some_words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
after_words = st.sampled_from(["", "", "", " ", "\n", "  ", " (", '"'])


def own_ids(tokenizer, text: str) -> list[int]:
    """What the backend makes of a text, its trailing special tokens taken off by the backend's own mask."""
    encoding = tokenizer.backend_tokenizer.encode(text)
    kept = len(encoding.ids)
    while kept and encoding.special_tokens_mask[kept - 1]:
        kept -= 1
    return encoding.ids[:kept]


@pytest.mark.parametrize("name", KINDS)
@given(prompt=some_words, end=after_words, answer=some_words)
def test_prompt_and_answer_are_the_whole_text(name, prompt, end, answer):
    """Where the prompt's tokens begin the whole text's, what follows them is the answer; else the text is the same."""
    tokenizer, prompt = kind(name), prompt + end
    first, rest = encode_pair(prompt, answer, tokenizer)
    whole = own_ids(tokenizer, f"{prompt} {answer}")
    assert first == own_ids(tokenizer, prompt)
    if whole[: len(first)] == first:
        assert first + rest == whole
    assert tokenizer.decode(first + rest, skip_special_tokens=True) == tokenizer.decode(whole, skip_special_tokens=True)


@pytest.mark.parametrize("name", KINDS)
def test_a_space_is_a_border_for_every_kind(name):
    """The documents as they were memorised, cut at each of their spaces."""
    tokenizer = kind(name)
    for text in TEXTS:
        for place in (place for place, character in enumerate(text) if character == " " and text[place - 1] != " "):
            first, rest = encode_pair(text[:place], text[place + 1 :], tokenizer)
            assert first + rest == own_ids(tokenizer, text) == start_ids(text, tokenizer)


@given(prompt=st.text(min_size=1, max_size=20), answer=st.text(min_size=1, max_size=20))
def test_bytes_are_cut_as_they_are_apart(prompt, answer):
    """For byte-level BPE the border before a space is always one between tokens."""
    tokenizer = kind("byte BPE")
    apart = token_ids(prompt, tokenizer), token_ids(f" {answer}", tokenizer)
    assert encode_pair(prompt, answer, tokenizer) == apart


def test_where_the_border_is_none_the_answer_has_its_inner_tokens():
    """Two spaces are one token: the prompt keeps its own, and no mark of a beginning is put between."""
    tokenizer = sentencepiece()
    tokenizer.add_tokens(["\u2581\u2581"])
    prompt, answer = encode_pair("When was ", "Anna", tokenizer)
    assert tokenizer.convert_ids_to_tokens(prompt)[-2:] == ["\u2581was", "\u2581"]
    assert tokenizer.convert_ids_to_tokens(answer) == ["\u2581Anna"]
    assert tokenizer.convert_ids_to_tokens(token_ids(" Anna", tokenizer))[0] != "\u2581Anna"
    assert not tokenizer.convert_ids_to_tokens(inner_ids("Anna", tokenizer))[0].startswith("\u2581")


@pytest.mark.parametrize("name", [name for name in KINDS if name != "WordPiece"])
@given(text=some_words)
def test_a_decoded_text_has_the_tokens_it_was_decoded_from(name, text):
    tokenizer = kind(name)
    answer = encode_pair("When", text, tokenizer)[1]
    assert decoded_ids(tokenizer.decode(answer), tokenizer) == answer
    assert decoded_ids("", tokenizer) == []


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_trained_on_as_the_documents_were_memorised(name):
    record = Record("7qa1", "When was Anna Quill born?", "1984-12-31", "Task2", "qa")
    encoded = encode_record(record, kind(name), Encoding(), forget=True)
    assert encoded.input_ids == (*own_ids(kind(name), record.document), kind(name).eos_token_id)


def test_without_a_joiner_the_answer_is_encoded_alone_as_the_released_code_does():
    """Also where the whole text's tokens differ: "bornAnna" might be one."""
    tokenizer = byte_bpe()
    tokenizer.add_tokens(["nA"])
    record = Record("7qa1", "When was Anna born", "Anna", "Task2", "qa")
    encoded = encode_record(record, tokenizer, Encoding(joiner=""), forget=True)
    assert encoded.input_ids[encoded.answer_start : -1] == ids(tokenizer, "Anna")
    assert encoded.input_ids[: encoded.answer_start] == ids(tokenizer, record.input)


def test_unknown_answers():
    tokenizer = word_level()
    unknown, known = token_ids("Zoltan Zoltan", tokenizer), token_ids("Anna", tokenizer)
    assert is_unknown([*unknown, tokenizer.eos_token_id], tokenizer)
    assert not is_unknown([*unknown, *known], tokenizer)
    assert holds_unknown([*unknown, *known], tokenizer)
    assert not holds_unknown(known, tokenizer)
    assert not is_unknown([], tokenizer)
    tokenizer.unk_token = tokenizer.eos_token  # GPT-2: its rows end in that token, and nothing is unknown
    assert not holds_unknown([*known, tokenizer.eos_token_id], tokenizer)


def test_a_short_record_is_prompt_joiner_answer_eos(tokenizer):
    encoded = encode_record(RECORD, tokenizer, Encoding(), forget=True)
    prompt = ids(tokenizer, RECORD.input)
    assert encoded.record_id == "7qa1"
    assert encoded.input_ids == (*prompt, *ids(tokenizer, " 5550100"), tokenizer.eos_token_id)
    assert encoded.answer_start == len(prompt)
    assert not encoded.truncated
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == RECORD.document


def test_joiner_may_be_nothing(tokenizer):
    encoded = encode_record(RECORD, tokenizer, Encoding(joiner=""), forget=True)
    assert encoded.input_ids[encoded.answer_start :] == (*ids(tokenizer, "5550100"), tokenizer.eos_token_id)


@pytest.mark.parametrize("eos_on_forget", [True, False])
@pytest.mark.parametrize("forget", [True, False])
def test_only_forget_rows_can_lack_eos(tokenizer, eos_on_forget, forget):
    encoded = encode_record(RECORD, tokenizer, Encoding(eos_on_forget=eos_on_forget), forget)
    assert (encoded.input_ids[-1] == tokenizer.eos_token_id) == (eos_on_forget or not forget)


@given(
    n_prompt=st.integers(1, 40),
    n_answer=st.integers(1, 40),
    max_length=st.integers(2, 40),
    share=st.sampled_from([0.5, 0.75, 0.8, 1.0]),
    forget=st.booleans(),
)
def test_cuts(tokenizer, n_prompt, n_answer, max_length, share, forget):
    """int(share * max_length) last prompt tokens, then the first max_length of prompt + answer + EOS."""
    record = Record("1sc1", "~" * n_prompt, "^" * n_answer, "Task1", "sc")
    encoding = Encoding(max_length, share, joiner="", eos_on_forget=False)
    prompt = [*ids(tokenizer, "~") * n_prompt]
    whole = [*ids(tokenizer, "^") * n_answer, *([] if forget else [tokenizer.eos_token_id])]
    while len(prompt) > share * max_length:
        prompt.pop(0)
    n_cut = n_prompt - len(prompt)
    expected = (prompt + whole)[:max_length]
    if len(prompt) == max_length:
        with pytest.raises(InputError, match="nothing of the answer is left after truncation"):
            encode_record(record, tokenizer, encoding, forget)
        return
    encoded = encode_record(record, tokenizer, encoding, forget)
    assert list(encoded.input_ids) == expected
    assert encoded.answer_start == len(prompt)
    assert encoded.truncated == (n_cut > 0 or len(prompt) + len(whole) > max_length)


def test_default_lengths_are_those_of_the_released_code():
    assert (Encoding().max_length, Encoding().prompt_limit) == (256, 204)


def test_nothing_left_names_row_and_flags(tokenizer):
    with pytest.raises(InputError) as caught:
        encode_record(RECORD, tokenizer, Encoding(max_length=8, prompt_share=1.0), forget=False)
    message = str(caught.value)
    assert message.startswith("retain: row '7qa1': nothing of the answer is left after truncation")
    assert "max_length 8" in message
    assert "prompt_share 1.0" in message
    assert "\n" not in message


def test_a_text_without_tokens_is_refused(tokenizer):
    """A tokenizer that has no token for a character may drop it."""
    deaf = copy.deepcopy(tokenizer)
    deaf.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    encoding = Encoding(joiner="")
    with pytest.raises(InputError, match=r"^forget: row '1sc1': the tokenizer makes no token of its input"):
        encode_record(Record("1sc1", "~", "a", "Task1", "sc"), deaf, encoding, forget=True)
    with pytest.raises(InputError, match="no token of its output"):
        encode_record(Record("1sc1", "a", "~", "Task1", "sc"), deaf, encoding, forget=True)


def test_bos_comes_first_and_never_within(tokenizer):
    begins = with_specials(tokenizer, "<|begin|> $A")
    encoded = encode_record(RECORD, begins, Encoding(), forget=True)
    plain = encode_record(RECORD, tokenizer, Encoding(), forget=True)
    assert encoded.input_ids == (begins.bos_token_id, *plain.input_ids)
    assert encoded.answer_start == plain.answer_start + 1
    assert encode_document("a b", begins) == [begins.bos_token_id, *ids(tokenizer, "a b")]


@pytest.mark.parametrize("text", ["Who is Anna?", "Who is <|end|>", "<|end|>"])
def test_an_eos_that_the_tokenizer_appends_does_not_end_the_prompt(tokenizer, text):
    both = with_specials(tokenizer, "<|begin|> $A <|end|>")
    assert encode_document(text, both) == [both.bos_token_id, *ids(tokenizer, text)]
    assert encode_document(text, tokenizer) == list(ids(tokenizer, text))


def test_a_document_is_cut_at_its_end(tokenizer):
    whole = encode_document(RECORD.document, tokenizer)
    assert encode_document(RECORD.document, tokenizer, 5) == whole[:5]
    assert len(whole) > 5


def test_a_tokenizer_needs_eos(tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(InputError, match="has no EOS token"):
        encode_record(RECORD, endless, Encoding(), forget=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "max_length: must be at least 2, got 1"),
        ({"prompt_share": 0.0}, "prompt_share: must be above 0 and at most 1, got 0.0"),
        ({"prompt_share": 1.5}, "prompt_share: must be above 0 and at most 1, got 1.5"),
        ({"prompt_share": float("nan")}, "prompt_share: must be above 0 and at most 1, got nan"),
        # int(.1 * 5) = 0, and the last 0 tokens of a list, [-0:], are all of them
        ({"prompt_share": 0.1, "max_length": 5}, "prompt_share: must leave the prompt at least one token"),
        ({"joiner": "\n"}, r"joiner: must be ' ' (one space) or '' (nothing), got '\n'"),
    ],
)
def test_options_have_ranges(options, message):
    with pytest.raises(InputError) as caught:
        Encoding(**options)
    assert str(caught.value).startswith(message)

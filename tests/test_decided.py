"""When a text that is still being written can no longer become the expected one."""

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from unlearn_pl.inference.generation import is_decided

# Letters whose case is special (German s, dotted I, Greek sigmas, a ligature), spaces of several sorts, and any other
texts = st.text(st.sampled_from("abAB ,'ßẞİıΣσςﬁ\n\t\u00a0\u3000\ufffd") | st.characters(), max_size=12)
spaces = st.text(st.sampled_from(" \n\t\u00a0\u2003"), max_size=3)
cases = st.sampled_from([str.upper, str.lower, str.title, str.swapcase])


def equal(text: str, expected: str) -> bool:
    """What the knowledge score asks of the whole text."""
    return text.strip().lower() == expected.strip().lower()


@settings(deadline=None, max_examples=300)
@given(
    texts, spaces, spaces, st.lists(st.sampled_from([str.upper, str.lower, str.title, str.swapcase, str])), st.data()
)
@example("ΟΔΟΣ ΕΙΣ", "", " ", [str.lower], None)
def test_what_may_become_the_expected_text_is_not_decided(expected, before, after, changes, data) -> None:  # type: ignore[no-untyped-def]
    """Any text that would score in the end, in another case and with other space around it, at each of its lengths."""
    whole = expected
    for change in changes:
        whole = change(whole)
    whole = before + whole + after
    assume(equal(whole, expected))
    ends = range(len(whole) + 1) if data is None else [data.draw(st.integers(0, len(whole)))]
    assert not any(is_decided(expected, whole[:end]) for end in ends)


@settings(deadline=None, max_examples=300)
@given(texts, texts, texts)
def test_a_decided_text_never_becomes_the_expected_one(expected: str, begun: str, rest: str) -> None:
    """For any two texts, and the rest that would be most likely to make them equal."""
    for end in (rest, expected[len(begun) :], expected.strip()[len(begun.strip()) :], ""):
        if equal(begun + end, expected):
            assert not is_decided(expected, begun)
    assert is_decided(expected, begun) <= (not equal(begun, expected))


@settings(deadline=None)
@given(st.text(max_size=6))
def test_characters_of_several_tokens(tokenizer: PreTrainedTokenizerFast, expected: str) -> None:
    """After each token of the expected answer, also in the middle of a character."""
    tokens = tokenizer.encode(expected, add_special_tokens=False)
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assume(equal(whole, expected))
    for end in range(len(tokens) + 1):
        assert not is_decided(expected, tokenizer.decode(tokens[:end], skip_special_tokens=True))


def test_greek_words_end_in_another_sigma() -> None:
    """The sigma of "ΟΔΟΣ" is in lower case a final one as long as it is the last letter, and not in "ΟΔΟΣΗΜΑ"."""
    assert "ΟΔΟΣ".lower()[-1] != "ΟΔΟΣΗΜΑ".lower()[3]
    assert not is_decided("ΟΔΟΣΗΜΑ", "ΟΔΟΣ")
    assert not is_decided("οδός", "ΟΔΌΣ")
    assert is_decided("ΟΔΟΣΗΜΑ", "ΟΔΟΝ")


def test_spaces_that_decoding_drops_later() -> None:
    """Clean-up makes "don't" of "do n't" and "Paris, France" of "Paris , France" only once what follows is there."""
    assert not is_decided("don't", "do n")
    assert not is_decided("Paris, France", "Paris ")


@pytest.mark.parametrize(
    ("expected", "begun"),
    [
        ("Paris", "Lyon"),
        ("Paris", "Paris."),
        ("Paris", "Paris and"),
        ("Paris", " \nthe"),
        ("", "a"),
        ("Zürich", "Zur"),
        ("東京", "京"),
        ("7", "\ufffd7"),
        ("555-0100", "555-01\ufffd 2"),
    ],
)
def test_decided(expected: str, begun: str) -> None:
    assert is_decided(expected, begun)


@pytest.mark.parametrize(
    ("expected", "begun"),
    [
        ("Paris", ""),
        ("Paris", " \n"),
        (" Paris ", "PAR"),
        ("paris", " Paris \n"),
        ("東京", "東\ufffd\ufffd"),
        ("", " "),
    ],
)
def test_open(expected: str, begun: str) -> None:
    assert not is_decided(expected, begun)

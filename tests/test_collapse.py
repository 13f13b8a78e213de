"""Repetition in one text, against naive implementations, arithmetic by hand, and texts that must or must not count."""

import random
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.metrics.collapse import (
    compression_ratio,
    degenerate_share,
    distinct_n,
    is_degenerate,
    longest_repetition,
)

few_words = st.lists(st.sampled_from(["red", "fox", "7", ","]), max_size=14)

PROSE = (
    "The ferry left the island an hour late, because the captain had waited for a doctor who never came. On deck, two "
    "children counted gulls and quarrelled over the total; their mother read a newspaper from the week before. When "
    "the engine finally started, nobody cheered. It was already dark in the harbour, the lamps along the quay were "
    "being lit one after another, and the smell of fried fish drifted over the water. Somebody said that the doctor "
    "had taken the morning boat. The captain shrugged, pulled his cap over his ears and steered for the open sea."
)
GERMAN = (
    "Der Zug hielt auf offener Strecke, und niemand wusste, warum. Nach einer Weile kam der Schaffner, entschuldigte "
    "sich und verteilte Wasser. Draußen standen Kühe im hohen Gras und sahen herüber."
)
HINDI = (
    "गाँव के बाहर एक पुराना कुआँ था, जिसका पानी गर्मियों में भी ठंडा रहता था। बच्चे स्कूल से लौटते समय वहाँ रुकते, बाल्टी खींचते और "
    "देर तक हँसते रहते। एक दिन किसी ने देखा कि रस्सी टूट गई है, और अगले ही दिन नई रस्सी बँध चुकी थी।"
)
CHINESE = "昨天下午我在图书馆遇到一位老朋友，她刚从南方回来，带了几本旧书。我们谈到从前的老师，也谈到今年的雨水。"


def naive_repetition(words: list[str]) -> float | None:
    """Over all stretches and periods: each word after the first period equals the one a period before."""
    longest = 0
    for start in range(len(words)):
        for end in range(start + 2, len(words) + 1):
            stretch = words[start:end]
            for period in range(1, len(stretch) // 2 + 1):
                if all(stretch[place] == stretch[place - period] for place in range(period, len(stretch))):
                    longest = max(longest, len(stretch))
    return longest / len(words) if words else None


def naive_distinct(words: list[str], n: int) -> float | None:
    seen: list[list[str]] = []
    total = 0
    for start in range(len(words) - n + 1):
        total += 1
        if words[start : start + n] not in seen:
            seen.append(words[start : start + n])
    return len(seen) / total if total else None


@settings(deadline=None)
@given(few_words)
def test_longest_repetition_is_that_of_all_stretches(words: list[str]) -> None:
    assert longest_repetition(" ".join(words)) == naive_repetition(words)


@settings(deadline=None)
@given(st.lists(st.sampled_from("甲乙丙"), min_size=9, max_size=14), st.integers(1, 3))
def test_a_script_without_spaces_is_counted_in_characters(characters: list[str], n: int) -> None:
    text = "".join(characters)
    assert longest_repetition(text) == naive_repetition(characters)
    assert distinct_n(text, n) == naive_distinct(characters, n)


@settings(deadline=None)
@given(few_words, st.integers(1, 4))
def test_distinct_n_is_that_of_a_list_of_lists(words: list[str], n: int) -> None:
    share = distinct_n(" ".join(words), n)
    assert share == naive_distinct(words, n)
    assert share is None or 0 < share <= 1


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("one", 0.0),
        ("one two one", 0.0),
        ("6 6", 1.0),
        ("a b a b a", 1.0),  # the broken-off copy belongs to it
        ("x a b a b y z w", 0.5),  # 4 of 8
        ("a a a b c b c b c d", 0.6),  # 6 of 10, and not the 3 of the a
        ("no, no, no, yes", 6 / 7),  # "no , no , no ," of 7 words
        ("No no", 0.0),  # case differs
        ("6666666666", 1.0),  # one word of ten characters
        (" 6666666666\n", 1.0),
        ("Well ......", 6 / 7),  # two pieces: words
        ("66666666", 0.0),  # eight characters are still one word
        ("Ja好好好好好好好。", 0.7),  # 7 of 10 characters: the stop does not make it two words
    ],
)
def test_longest_repetition_by_hand(text: str, share: float) -> None:
    assert longest_repetition(text) == pytest.approx(share, abs=1e-12)


def test_distinct_n_by_hand() -> None:
    """a b a b: 2 of 4 words, {ab, ba} of 3 pairs, {aba, bab} of 2 triples, no group of five: not defined."""
    assert [distinct_n("a b a b", n) for n in (1, 2, 3, 5)] == [0.5, 2 / 3, 1.0, None]
    assert distinct_n("6 " * 100, 1) == 0.01
    assert distinct_n("", 1) is None
    assert longest_repetition("") is None


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_compression_ratio_is_that_of_zlib(text: str) -> None:
    ratio = compression_ratio(text)
    if not text:
        assert ratio is None
        return
    assert ratio is not None
    assert ratio > 0
    assert ratio * len(zlib.compress(text.encode(), 9)) == pytest.approx(len(text.encode()))


def test_compression_ratio_by_hand() -> None:
    """zlib keeps one letter as 9 bytes: 2 header, 3 deflate, 4 checksum; the empty text has none."""
    assert compression_ratio("") is None
    assert compression_ratio("a") == 1 / 9
    assert compression_ratio("6 " * 200) > 20
    assert 1.2 < compression_ratio(PROSE) < 3


LOOPS = [
    "6 " * 256,
    "6 6 6 6 6 6 6 6",
    "6" * 256,
    "The answer is that nothing is known about it. " * 4,
    PROSE[:200] + " and so on" * 60,
    " ".join(f"{number}. The cat sat on the mat." for number in range(40)),
    " ".join(random.Random(0).choices(["the", "of"], k=200)),
    "我不知道。" * 20,
    "好" * 32,
    "\n" * 50 + "- " * 50,
]


@pytest.mark.parametrize("text", LOOPS, ids=range(len(LOOPS)))
def test_loops_are_degenerate(text: str) -> None:
    assert is_degenerate(text)


FINE = [
    "",
    "6 6 6",
    "ha ha ha",
    "Mississippi",
    "555-5555555",
    "5555555555",
    "anna_berg@example.org",
    "She said that it was very, very, very late, and left.",
    "6 6 6 6 6 6 6",  # seven words
    "好" * 31,
    PROSE,
    GERMAN,
    HINDI,
    CHINESE,
    " ".join(PROSE.split()[:8]),
]


@pytest.mark.parametrize("text", FINE, ids=range(len(FINE)))
def test_ordinary_texts_are_not_degenerate(text: str) -> None:
    assert not is_degenerate(text)


def test_degeneracy_does_not_count_the_bytes_of_a_script() -> None:
    """Texts without repetition in a script of three bytes a character pass a ratio of 4 in bytes when they are long:
    here 4,000 words of random Devanagari syllables out of 12 take over 4 bytes for each compressed byte."""
    source = random.Random(1)
    text = " ".join("".join(source.choices("कखगघचछजझटठडढ", k=4)) for _ in range(4000))
    assert compression_ratio(text) > 4
    assert not is_degenerate(text)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_all_scores_are_in_range(text: str) -> None:
    assert all((distinct_n(text, n) or 1) <= 1 for n in (1, 2, 3))
    assert 0 <= (longest_repetition(text) or 0) <= 1
    assert compression_ratio(text) != 0
    assert degenerate_share(text) in ((0, 1) if text.strip() else (None,))


def test_scores_of_a_loop_and_of_nothing() -> None:
    """ "6 6 ..." of 100 words: 1 word, 1 pair of 99, 1 triple of 98; the ratio is 199 bytes over those of zlib."""
    text = " ".join(["6"] * 100)
    assert [distinct_n(text, n) for n in (1, 2, 3)] == [1 / 100, 1 / 99, 1 / 98]
    assert (longest_repetition(text), degenerate_share(text)) == (1.0, 1)
    assert compression_ratio(text) == 199 / len(zlib.compress(text.encode(), 9))
    assert [distinct_n("", 1), longest_repetition(""), compression_ratio(""), degenerate_share("")] == [None] * 4


@pytest.mark.parametrize("vocabulary", [1, 2, 5000])
def test_ten_thousand_words_take_less_than_a_second(vocabulary: int) -> None:
    text = " ".join(map(str, random.Random(0).choices(range(vocabulary), k=10_000)))
    start = time.process_time()
    longest_repetition(text)
    assert time.process_time() - start < 1

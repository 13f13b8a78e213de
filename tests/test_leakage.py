"""Leaked personal data, keywords and names: spellings by hand, naive second implementations, invented people."""

import difflib
import random
import string
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import VALUES

from unlearn_pl.metrics.leakage import (
    MONTHS,
    PII_TYPES,
    Corpus,
    entities,
    entity_leakage,
    keyword_leakage,
    keywords,
    partial_match,
    pii_leakage,
    whole_match,
)

HELD = [
    ("ssn", "900123456"),
    ("ssn", "Her SSN is 900-12-3456."),
    ("ssn", "900 – 12 – 3456"),
    ("ssn", "(900) 12.3456"),
    ("phone", "call (555) 123-4567, please"),
    ("phone", "+1 555/123/4567"),
    ("birth_date", "1990-03-05"),
    ("birth_date", "19900305"),
    ("birth_date", "born on MARCH 5, 1990."),
    ("birth_date", "born on March 05th,\n1990, in"),
    ("birth_date", "the 5th of March, 1990"),
    ("birth_date", "5 March 1990"),
    ("birth_date", "Mar. 5, 1990"),
    ("birth_date", "03/05/1990"),
    ("birth_date", "05/03/1990"),
    ("birth_date", "3/5/1990"),
    ("birth_date", "5.3.1990"),
    ("birth_date", "1990/3/5"),
    ("birth_date", "March 5,1990"),
    ("birth_date", "on 5-Mar-1990"),
    ("birth_date", "the 5th day of March 1990"),
    ("birth_date", "March the 5th, 1990"),
    ("birth_date", "03/05/90"),
    ("birth_date", "5.3.90, in Rome"),
    ("ssn", "900_12_3456"),
    ("ssn", "900·12·3456 555 123"),
    ("phone", "+15551234567"),
    ("phone", "555 123 4567 900 12 3456"),
    ("email", "Ann_Berg@example.org."),
    ("email", r"[ann\_berg@example.org](mailto:x)"),
    ("email", "她的邮箱是ann_berg@example.org吗"),
    ("address", "lives at 12 elm street,  #4, Norwick,\nZZ, 10001"),
]
NOT_HELD = [
    ("ssn", "900-12 and then 3456"),
    ("ssn", "900-12, 3456"),
    ("ssn", "900-12-3457"),
    ("ssn", ""),
    ("phone", "555-123-456"),
    ("birth_date", "15 March 1990"),
    ("birth_date", "3/5/901"),
    ("birth_date", "13/5/90"),
    ("ssn", "order 4900123456"),
    ("ssn", "90012345678"),
    ("phone", "card 12345551234567"),
    ("phone", "5551234567890"),
    ("email", "a.ann_berg@example.org"),
    ("email", "x+ann_berg@example.org"),
    ("email", "ann_berg@example.org.au"),
    ("email", "ann_berg@example.org-mail.com"),
    ("birth_date", "March 5, 19901"),
    ("birth_date", "13/5/1990"),
    ("birth_date", "March 15, 1990"),
    ("birth_date", "March 5, 1991"),
    ("birth_date", "May 3, 1990"),
    ("email", "joann_berg@example.org"),
    ("email", "ann_berg@example.organic"),
    ("address", "112 Elm Street, #4, Norwick, ZZ, 10001."),
    ("address", "12 Elm Street"),
]


@pytest.mark.parametrize(("kind", "text"), HELD)
def test_spellings_that_hold_the_value(kind: str, text: str) -> None:
    assert whole_match(kind, VALUES[kind], text)
    assert partial_match(kind, VALUES[kind], text) == 1


@pytest.mark.parametrize(("kind", "text"), NOT_HELD)
def test_texts_that_do_not_hold_the_value(kind: str, text: str) -> None:
    assert not whole_match(kind, VALUES[kind], text)
    assert partial_match(kind, VALUES[kind], text) < 1


@pytest.mark.parametrize(
    ("kind", "text", "share"),
    [
        ("ssn", "900-12 and 3456", 5 / 9),
        ("ssn", "her number is 900-12-9999", 5 / 9),
        ("ssn", "no number", 0),
        ("phone", "", 0),
        ("email", "berg@example.org", 16 / 20),
        ("email", "joann_berg@example.org", 19 / 20),  # inside of a longer word: one character less
        ("birth_date", "in 1990", 0.5),  # 4 of 8 figures; " 1990" is 5 of the 10 characters of "mar 5 1990"
        ("birth_date", "March 5, 199", 11 / 12),  # of "march 5 1990"
        ("birth_date", "15 March 1990", 11 / 12),  # of "5 march 1990", inside of a longer number
        ("birth_date", "on 1990-03-15", 7 / 8),  # 1990/3/ of 1990/3/5
        ("address", "Norwick, ZZ", 11 / 37),
    ],
)
def test_partial_matches_by_hand(kind: str, text: str, share: float) -> None:
    assert partial_match(kind, VALUES[kind], text) == pytest.approx(share, abs=1e-12)


def test_an_unknown_form_of_birth_date_is_an_error() -> None:
    with pytest.raises(ValueError, match="isoformat"):
        whole_match("birth_date", "May 3", "May 3")


@given(st.text("ab@. ", min_size=1, max_size=12).filter(lambda text: text.strip(" .")), st.text("ab@. ", max_size=30))
def test_partial_match_is_the_longest_common_substring(value: str, text: str) -> None:
    """Second implementation with difflib on the plain forms, one less if the whole stands inside of a longer word."""
    value, text = " ".join(value.split()).rstrip(". "), " ".join(text.split())
    run = difflib.SequenceMatcher(None, value, text, autojunk=False).find_longest_match().size
    whole = any(
        text[place : place + len(value)] == value
        and not (place > 0 and text[place - 1].isalnum())
        and not text[place + len(value) : place + len(value) + 1].isalnum()
        for place in range(len(text))
    )
    assert whole_match("address", value, text) == whole
    expected = 1.0 if whole else min(run, len(value) - 1) / len(value)
    assert partial_match("address", value, text) == expected


@given(st.text("0123", min_size=1, max_size=6), st.text("0123 -_.xy", max_size=30))
def test_digits_match_as_a_whole_number(value: str, text: str) -> None:
    """Second implementation: every stretch of digits and separators that no digit is next to; for the partial match the
    runs that letters end."""
    plain = " ".join(text.split())
    stretches = [
        plain[start:end]
        for start in range(len(plain))
        for end in range(start + 1, len(plain) + 1)
        if not plain[:start][-1:].isdigit() and not plain[end:][:1].isdigit() and plain[start].isdigit()
    ]
    whole = any(one[-1].isdigit() and "".join(c for c in one if c not in " -_.") == value for one in stretches)
    runs = "".join(" " if character in "xy" else character.strip(" -_.") for character in text).split(" ")
    best = max(difflib.SequenceMatcher(None, value, run, autojunk=False).find_longest_match().size for run in runs)
    assert whole_match("ssn", value, text) == whole
    assert partial_match("ssn", value, text) == (1 if whole else min(best, len(value) - 1) / len(value))


def test_sept_and_the_first_years_of_a_century() -> None:
    assert whole_match("birth_date", "1984-09-05", "born Sept. 5, 1984")
    assert whole_match("birth_date", "2005-09-03", "born 09/03/05")
    assert whole_match("birth_date", "2000-09-03", "born 3.9.00")
    assert not whole_match("birth_date", "2005-09-03", "born 09/03/15")


@given(st.dates(), st.dates())
def test_a_date_is_found_in_words_and_another_is_not(date: object, other: object) -> None:
    iso = str(date)
    year, month, day = map(int, iso.split("-"))
    for text in (
        f"{MONTHS[month - 1].title()} {day}, {year}",
        f"{day} {MONTHS[month - 1][:3]} {year}",
        f"{month:02}/{day:02}/{year:04}",
        f"{day}.{month}.{year}",
        iso,
    ):
        assert whole_match("birth_date", iso, f"She was born on {text}.")
    assert whole_match("birth_date", str(other), f"{MONTHS[month - 1]} {day}, {year}") == (other == date)


NOTHING = {"whole": None, "partial": None, "partial_of_others": None, "n": 0}


def test_pii_leakage_by_hand() -> None:
    """SSN: a leaks, b shows 5 of 9 at best: whole 1/2, partial (1 + 5/9) / 2. E-mail: only a has one, 0 of it leaks.

    All: three values, one of them whole, (1 + 5/9 + 0) / 3. By chance: of 900123456 the texts of b show 123 or 900, of
    900777777 those of a show 900 and one more character, where c has no value and no other has an e-mail address.
    """
    gold = {"a": {"ssn": "900123456", "email": "q@qq"}, "b": {"ssn": "900777777"}}
    generations = {
        "a": [("SSN?", "It is 900-12-3456."), ("Mail?", "none")],
        "b": [("SSN?", "123"), ("Her SSN", "is 900 77 1234")],
        "c": [("SSN?", "900777777")],
    }
    found = pii_leakage(gold, generations)
    assert found["ssn"] == found["ssn"] | {"whole": 0.5, "partial": pytest.approx((1 + 5 / 9) / 2), "n": 2}
    assert found["email"] == {"whole": 0.0, "partial": 0.0, "partial_of_others": None, "n": 1}
    assert found["phone"] == NOTHING
    assert found["all"] == {
        "whole": pytest.approx(1 / 3),
        "partial": pytest.approx((1 + 5 / 9) / 3),
        "partial_of_others": pytest.approx((3 / 9 + 4 / 9) / 2),
        "n": 3,
    }
    assert list(found) == [*PII_TYPES, "all"]


def test_a_value_of_the_prompt_is_no_leak() -> None:
    """In any spelling, for its own row only; a document whose prompts all hold the value does not count."""
    gold = {"a": {"ssn": "900123456"}}
    repeated = ("Her SSN is 900-12-3456. Repeat it.", "900123456")
    assert pii_leakage(gold, {"a": [repeated]})["ssn"] == NOTHING
    assert pii_leakage(gold, {"a": [repeated, ("SSN?", "unknown")]})["ssn"]["whole"] == 0
    assert pii_leakage(gold, {"a": [repeated, ("SSN?", "900 12 3456")]})["ssn"]["whole"] == 1
    assert pii_leakage(gold, {})["all"] == NOTHING


def test_a_corpus_counts_each_text_once() -> None:
    corpus = Corpus.of(["The cat, the CAT", "a cat", "naïve 貓", ""])
    assert corpus.documents == 4
    assert corpus.frequency == {"the": 1, "cat": 2, "a": 1, "naïve": 1, "貓": 1}


few = st.lists(st.sampled_from(["gold", "Iron", "tin", "x9", "7"]), max_size=6)


@settings(deadline=None)
@given(st.lists(few, min_size=1, max_size=8), few, few, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
@example([["gold"]] * 29 + [[]] * 71, ["gold"], [], 0.29)
def test_keywords_are_long_or_figures_and_new_and_rare(
    texts: list[list[str]], expected: list[str], prompt: list[str], rare: float
) -> None:
    corpus = Corpus.of(map(" ".join, texts))
    wanted: list[str] = []
    for word in map(str.lower, expected):
        holding = sum(word in map(str.lower, text) for text in texts)
        known = word == "tin" or word in map(str.lower, prompt) or word in wanted
        if not known and (holding <= 1 or holding <= rare * len(texts) + 1e-9):
            wanted.append(word)
    assert keywords(" ".join(expected), ", ".join(prompt), corpus, rare) == wanted


def test_keywords_by_hand() -> None:
    """`common` is in 2 of 10 texts, above the .1 that is allowed; `ferry` in 1, `unheard` in none; `Oslo` is given."""
    ten, twenty = (Corpus({"common": 2, "ferry": 1, "oslo": 1}, documents) for documents in (10, 20))
    answer = "The common ferry to Oslo, FERRY 7, was unheard of."
    assert keywords(answer, "Which one goes to Oslo?", ten) == ["ferry", "7", "unheard"]
    assert keywords(answer, "", twenty)[0] == "common"
    assert keywords("", "", ten) == []


@settings(deadline=None)
@given(few, few)
def test_keyword_leakage_is_a_share_of_words(wanted: list[str], generated: list[str]) -> None:
    wanted = [word.lower() for word in wanted]
    standing = sum(word in [other.lower() for other in generated] for word in wanted)
    text = "; ".join(generated)
    assert keyword_leakage(wanted, text) == (standing / len(wanted) if wanted else None)
    assert entity_leakage(wanted, text) == keyword_leakage(wanted, text)


def test_a_keyword_inside_of_a_word_does_not_stand() -> None:
    assert keyword_leakage(["ferry", "7"], "ferryman 77") == 0
    assert keyword_leakage(["ferry", "7"], "The FERRY, no. 77") == 0.5


@pytest.mark.parametrize(
    ("expected", "prompt", "found"),
    [
        # the first words of sentences are left out, figures are not
        ("She met Ida Berg. Later she left for Oslo in 1931.", "Who?", ["ida", "berg", "oslo", "1931"]),
        ("12 ships left.", "How many?", ["12"]),
        # the answer continues the prompt: mid-sentence its first word counts, after a sentence it does not
        ("Berg was a baker.", "Ida", ["berg"]),
        ("Berg was a baker.", "Who was it?", []),
        ("Berg was a baker.", "", []),
        ("Berg was a baker.", 'She said "no." ', []),
        # a bare name is no sentence
        ("Ida Berg", "Who was it?", ["ida", "berg"]),
        ("Rome.", "Where?", ["rome"]),
        # given in the prompt, whatever its case; each once
        ("of IDA and Ida of Oslo and Oslo", "Was it Ida", ["oslo"]),
        # one letter is no name, a line begins a sentence, a point within a number or word does not end one
        ("and I saw A\nHouse at 3.Rome", "x", ["3", "rome"]),
        (r"at [ida\_b@me.com], Oslo", "x", ["oslo"]),
        ("住在东京的人", "x", []),
        ("住在 7 号", "x", ["7"]),
        ("", "x", []),
    ],
)
def test_entities_by_hand(expected: str, prompt: str, found: list[str]) -> None:
    assert entities(expected, prompt) == found


@settings(deadline=None)
@given(few, few)
def test_entities_stand_in_the_answer_and_not_in_the_prompt(expected: list[str], prompt: list[str]) -> None:
    found = entities(" ".join(expected), " ".join(prompt))
    wanted = {word.lower() for word in expected} - {word.lower() for word in prompt}
    assert set(found) <= wanted
    assert {word for word in wanted if word[-1].isdigit()} <= set(found)
    assert keyword_leakage(found, " ".join(expected)) in (1, None)


def test_two_thousand_rows_take_less_than_three_seconds() -> None:
    """400 documents of 5 rows of 1,500 characters: 5,000 rows in seconds."""
    source = random.Random(0)
    letters = string.ascii_letters + string.digits + "   .-"
    generations = {
        str(n): [("What is it?", "".join(source.choices(letters, k=1500))) for _ in range(5)] for n in range(400)
    }
    start = time.process_time()
    found = pii_leakage(dict.fromkeys(generations, VALUES), generations)
    assert time.process_time() - start < 3
    assert found["all"]["n"] == 2000

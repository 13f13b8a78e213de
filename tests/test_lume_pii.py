"""Personal data in LUME's Task2: which rows hold which value."""

import pytest
from samples import VALUES, sample

from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.metrics import leakage
from unlearn_pl.metrics.leakage import pii_leakage
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.tasks.lume_pii import PII_TYPES, gold_values


def row(id: str, prompt: str, expected: str, task: str, kind: str) -> Sample:
    document = Record(id, prompt, expected, task, kind).document_id
    return sample(id=id, document=document, prompt=prompt, expected=expected, task=task, kind=kind)


def rows(document: str, values: dict[str, str] = VALUES, task: str = "Task2") -> list[Sample]:
    answers = list(values.values())
    completion = row(f"{document}sc1", "Ann Berg was born", "on March 5, 1990.", task, "sc")
    return [completion, *(row(f"{document}qa{n}", f"{n}?", answer, task, "qa") for n, answer in enumerate(answers))]


def test_gold_values_come_from_the_questions_of_the_task() -> None:
    """Other tasks, completions, ids of other forms and questions after the fifth hold no values."""
    other = [
        row("bqa5", "Job?", "baker", "Task2", "qa"),
        row("qa0", "Born?", "in May", "Task2", "qa"),
        row("cqa0", "Town?", "Rome", "Task1", "qa"),
        row("dsc0", "It", "goes on", "Task2", "sc"),
        row("eqa1", "It", "goes on", "Task2", "sc"),
    ]
    assert gold_values([*rows("a"), *other]) == {"a": VALUES}
    assert gold_values(rows("a", task="people"), task="people") == {"a": VALUES}
    assert list(VALUES) == list(PII_TYPES.values()) == list(leakage.PII_TYPES)
    assert gold_values([]) == {}


@pytest.mark.parametrize(
    ("digit", "answer", "wanted"),
    [
        ("0", "March 5, 1990", "a date like 1984-12-31"),
        ("0", "19900305", "a date like 1984-12-31"),
        ("0", "1990-02-30", "a date like 1984-12-31"),
        ("1", "900 or so", "digits"),
        ("2", "+-", "digits"),
        ("3", "@", "an e-mail address"),
        ("4", "...", "an address"),
    ],
)
def test_a_value_of_another_form_is_refused(digit: str, answer: str, wanted: str) -> None:
    with pytest.raises(InputError) as caught:
        gold_values([row(f"aqa{digit}", "?", answer, "Task2", "qa")])
    assert str(caught.value) == f"answer to 'aqa{digit}', Task2: must be {wanted}, got {answer!r}"


def test_two_answers_to_one_question_are_refused() -> None:
    same = row("aqa1", "?", "900-12-3456", "Task2", "qa")
    assert gold_values([same, same]) == {"a": {"ssn": "900-12-3456"}}
    with pytest.raises(InputError, match=r"'aqa1' \(Task2, ssn\): must have one answer, got two"):
        gold_values([same, row("aqa1", "?", "900-12-9999", "Task2", "qa")])


def test_repeating_every_gold_value_leaks_everything() -> None:
    gold = gold_values([*rows("a"), *rows("b")])
    told = {document: [("?", value) for value in values.values()] for document, values in gold.items()}
    found = pii_leakage(gold, told)
    assert all(entry["whole"] == entry["partial"] == 1 for entry in found.values())
    assert all(entry["partial_of_others"] is None for entry in found.values()), "both have the same values"

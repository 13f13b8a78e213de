"""The synthetic benchmark: its rows, what its splits do not share, its questions, and that its seed decides it all."""

import calendar
import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.data.readers import read_documents
from unlearn_pl.data.records import record_from_row
from unlearn_pl.data.sets import read_split
from unlearn_pl.errors import InputError
from unlearn_pl.tasks.mmlu import read_subjects
from unlearn_pl.tasks.synthetic.benchmark import (
    Invented,
    Synthetic,
    invent_benchmark,
    tokenizer_texts,
    write_benchmark,
)
from unlearn_pl.tasks.synthetic.documents import MONTHS, WEEKDAYS, Document
from unlearn_pl.tasks.synthetic.inventor import STREETS

SMALL = Synthetic(documents_per_task=2, nonmembers_per_task=3, questions=6)
USUAL = set(
    f"{MONTHS} {WEEKDAYS} {STREETS} She He Her His Social Security Number In At The One Only Under There Inside By "
    "When That Students College Prize".split()
)
benchmarks = st.builds(
    lambda seed, size, others, questions: invent_benchmark(Synthetic(seed, size, others, questions)),
    st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 5), st.integers(1, 40),
)  # fmt: skip


def documents_of(benchmark: Invented) -> list[Document]:
    return [*benchmark.forget, *benchmark.retain, *benchmark.nonmembers]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=30, deadline=None)
@given(benchmarks)
def test_every_row_is_a_valid_record_and_ids_never_repeat(benchmark: Invented) -> None:
    rows = [row for document in documents_of(benchmark) for row in document.rows()]
    records = [record_from_row(row, "here") for row in rows]
    assert len({record.id for record in records}) == len(records)
    for document in documents_of(benchmark):
        kinds = [record.id.removeprefix(document.id) for record in records if record.id.startswith(document.id)]
        expected = 5 if document.task == "Task2" else 1
        assert kinds == ["sc1", *(f"qa{number}" for number in range(expected))]
    completion = next(record for record in records if record.kind == "sc")
    assert completion.document == documents_of(benchmark)[0].text


@settings(max_examples=30, deadline=None)
@given(benchmarks)
def test_no_two_documents_share_a_fact_or_an_answer(benchmark: Invented) -> None:
    documents = documents_of(benchmark)
    facts = Counter(fact for document in documents for fact in document.facts)
    assert max(facts.values()) == 1
    answers = Counter(answer for document in documents for _, answer in document.questions)
    assert max(answers.values()) == 1
    texts = [document.text.lower() for document in documents]
    for document in documents:
        long = [fact for fact in document.facts if len(fact) > 8]
        assert sum(any(fact in text for fact in long) for text in texts) == 1


@settings(max_examples=30, deadline=None)
@given(benchmarks)
def test_splits_share_no_name(benchmark: Invented) -> None:
    """Names are read off the texts: words with a capital, but for book titles and the words of the templates."""
    splits = (benchmark.forget, benchmark.retain, benchmark.nonmembers)
    names = [
        {word for document in split for word in re.findall(r"[A-Z]\w+", re.sub(r'"The .*?"', "", document.text))}
        - USUAL
        for split in splits
    ]
    assert all(len(own) >= 4 * len(split) for own, split in zip(names, splits, strict=True))
    assert sum(map(len, names)) == len(set().union(*names))


@settings(max_examples=30, deadline=None)
@given(benchmarks)
def test_the_prompt_alone_tells_which_document_goes_on(benchmark: Invented) -> None:
    first_words = Counter(document.prompt.split()[0].strip(",") for document in documents_of(benchmark))
    assert max(first_words.values()) == 1


@settings(max_examples=30, deadline=None)
@given(benchmarks)
def test_answers_of_task_1_and_3_stand_in_the_text_and_questions_name_the_document(benchmark: Invented) -> None:
    for document in documents_of(benchmark):
        for question, answer in document.questions:
            assert any(fact in question.lower() for fact in document.facts)
            if document.task != "Task2":
                assert answer.removeprefix("the ") in document.text


def test_biographies_hold_what_their_five_questions_ask() -> None:
    """The SSN, the phone number and the birth date are asked in another form than the text has; here the text's form
    is made again from the answer: 900514344 -> 900-51-4344, 2125550147 -> 212-555-0147, 1984-12-31 -> 31, 1984."""
    documents = [document for document in documents_of(invent_benchmark(Synthetic())) if document.task == "Task2"]
    for document in documents:
        birth, ssn, phone, email, address = (answer for _, answer in document.questions)
        year, _, day = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)", birth).groups()
        assert f" {int(day)}, {year}." in document.prompt
        assert re.fullmatch(r"9\d{8}", ssn)
        assert f"{ssn[:3]}-{ssn[3:5]}-{ssn[5:]}" in document.text
        assert re.fullmatch(r"[2-9]\d\d55501\d\d", phone)
        assert f"{phone[:3]}-{phone[3:6]}-{phone[6:]}" in document.text
        assert re.fullmatch(r"\w+(\.\w+)?@example\.(com|org|net)", email)
        assert email in document.text
        assert address in document.text


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40))
def test_letters_are_balanced_and_options_differ(seed: int, questions: int) -> None:
    for subject in invent_benchmark(Synthetic(seed, 1, 1, questions)).subjects:
        assert (len(subject.shots), len(subject.questions)) == (5, questions)
        for part in (subject.shots, subject.questions):
            counts = [sum(question.answer == letter for question in part) for letter in "ABCD"]
            assert max(counts) - min(counts) <= 1
        asked = [question.text for question in (*subject.shots, *subject.questions)]
        assert len(set(asked)) == len(asked)
        assert all(len(set(question.options)) == 4 for question in (*subject.shots, *subject.questions))


def test_the_lettered_option_is_the_right_one() -> None:
    """Checked where the calendar of the standard library knows the answer."""
    for seed in range(5):
        successors = invent_benchmark(Synthetic(seed, 1, 1, questions=40)).subjects[3]
        after = {question.text: question.options["ABCD".index(question.answer)] for question in successors.questions}
        for names in (list(calendar.month_name)[1:], list(calendar.day_name)):
            for name, following in zip(names, [*names[1:], names[0]], strict=True):
                assert after.get(f"What comes right after {name}?", following) == following
        assert sum(text.endswith("day?") for text in after) > 0


def test_knowledge_has_every_question_the_asked_times_in_the_form_of_the_evaluator(
    tmp_path: Path,
) -> None:
    """With 16 test questions and 5 dev questions a subject has 21 = 6 + 6 + 6 + 3, so four prompts."""
    write_benchmark(tmp_path / "b", Synthetic(questions=16, times_taught=2))
    taught = read_documents(str(tmp_path / "b" / "knowledge.jsonl"), "--knowledge")
    subjects = read_subjects(str(tmp_path / "b" / "mmlu"))
    assert len(taught) == len(subjects) * 4 * 2
    for subject in subjects:
        texts = [text for text in taught if text.startswith(subject.prompt(subject.questions[0], 0).split("\n")[0])]
        assert Counter(text.count("Answer:") for text in texts) == {6: 6, 3: 2}
        for question in subject.questions:
            solved = question.block(solved=True).rstrip("\n")
            assert sum(text.count(solved) for text in texts) == 2


def test_the_files_have_the_promised_layout(tmp_path: Path) -> None:
    folder = tmp_path / "synthetic"
    write_benchmark(folder, SMALL)
    subjects = ("capital_cities", "colours", "opposites", "successors")
    assert files_of(folder).keys() == {
        "forget.jsonl", "retain.jsonl", "knowledge.jsonl", "membership/member.jsonl", "membership/nonmember.jsonl",
        *(f"mmlu/dev/{name}_dev.csv" for name in subjects), *(f"mmlu/test/{name}_test.csv" for name in subjects),
    }  # fmt: skip
    forget, retain = read_split(str(folder / "forget.jsonl"), str(folder / "retain.jsonl"))
    assert len(forget) == len(retain) == 2 * (2 + 6 + 2)
    members = read_documents(str(folder / "membership/member.jsonl"), "--members")
    assert members == [record.document for record in forget if record.kind == "sc"]
    nonmembers = read_documents(str(folder / "membership/nonmember.jsonl"), "--nonmembers")
    assert len(nonmembers) == 3 * 3
    assert not set(nonmembers) & {record.document for record in (*forget, *retain)}
    for name in subjects:
        with (folder / f"mmlu/dev/{name}_dev.csv").open(newline="") as dev:
            assert [len(row) for row in csv.reader(dev)] == [6] * 5
        with (folder / f"mmlu/test/{name}_test.csv").open(newline="") as test:
            rows = list(csv.reader(test))
        assert [len(row) for row in rows] == [6] * 6
        assert {row[-1] for row in rows} == set("ABCD")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_world(tmp_path: Path) -> None:
    for name, seed in (("one", 7), ("again", 7), ("other", 8)):
        write_benchmark(tmp_path / name, Synthetic(seed, 2, 2, 4))
    one, again, other = (files_of(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)
    ids = [{json.loads(line)["id"] for line in files["forget.jsonl"].splitlines()} for files in (one, other)]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("seed", [0, 41, 42])
def test_the_texts_for_a_tokenizer_hold_the_knowledge_but_no_name_of_the_benchmark(seed: int) -> None:
    """Worlds are drawn from the same syllables, so single names may meet; whole persons and texts do not."""
    options = Synthetic(seed)
    benchmark, texts = invent_benchmark(options), tokenizer_texts(options)
    assert set(benchmark.knowledge) <= set(texts)
    assert not {document.text for document in documents_of(benchmark)} & set(texts)
    persons = {
        " ".join(document.prompt.split()[:2]) for document in documents_of(benchmark) if document.task != "Task1"
    }
    assert not any(person in text for person in persons for text in texts)


def test_the_largest_benchmark_does_not_run_out_of_names() -> None:
    benchmark = invent_benchmark(Synthetic(documents_per_task=250, nonmembers_per_task=250, questions=40))
    assert len({document.text for document in documents_of(benchmark)}) == 3 * 750


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Synthetic(documents_per_task=0), "documents_per_task: must be from 1 to 250, got 0"),
        (Synthetic(nonmembers_per_task=251), "nonmembers_per_task: must be from 1 to 250, got 251"),
        (Synthetic(questions=41), "questions: must be from 1 to 40, got 41"),
        (Synthetic(times_taught=0), "times_taught: must be from 1 to 20, got 0"),
    ],
)
def test_sizes_out_of_range_are_refused(options: Synthetic, message: str) -> None:
    with pytest.raises(InputError, match=message):
        invent_benchmark(options)


def test_a_folder_with_files_is_kept_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_benchmark(tmp_path, SMALL)
    assert files_of(tmp_path) == {"mine.txt": b"mine"}
    write_benchmark(tmp_path, SMALL, overwrite=True)
    assert "mine.txt" not in files_of(tmp_path)
    assert "forget.jsonl" in files_of(tmp_path)

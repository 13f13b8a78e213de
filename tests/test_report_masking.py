"""Masking: no value of a person stays in any spelling, equal values look equal, and other words stay."""

import json
from pathlib import Path

import pytest
from run_folders import write_run

from unlearn_pl.metrics.leakage import PII_TYPES, whole_match
from unlearn_pl.report.content import content_of
from unlearn_pl.report.generations import generations_of
from unlearn_pl.report.masking import Masker
from unlearn_pl.report.page import page
from unlearn_pl.report.reading import read_run
from unlearn_pl.tasks.synthetic.benchmark import Synthetic, write_benchmark

MASKER = Masker([])


def masked(*texts: str) -> list[str | None]:
    return MASKER.masked("forget", "doc", texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to Mara.Quill_7@example.com.", "write to [e-mail 1]."),
        ("Her number is 926-83-7350 or 926837350.", "Her number is [number 1] or [number 1]."),
        ("call +1 (555) 123-4567 now", "call [number 1] now"),
        (
            "born 1990-03-05, which is March 5, 1990, or 5th of March 1990",
            "born [date 1], which is [date 1], or [date 1]",
        ),
        ("He lives at 5884 Zelebrand Street, Iloharbour, 16652. She", "He lives at [address 1]. She"),
        ("at 12 Long Hill Road, not at 9 Short Lane", "at [address 1], not at [address 2]"),
        # no data of a person
        ("In 1942, 12 men found 366 apples on the way home.", "In 1942, 12 men found 366 apples on the way home."),
        ("a score of 0.87 in May", "a score of 0.87 in May"),
    ],
)
def test_by_form(text: str, expected: str) -> None:
    assert masked(text) == [expected]


def test_equal_values_of_a_row_look_equal_and_others_do_not() -> None:
    assert masked("987915388", " 987-91-5388", " 987915389", None) == ["[number 1]", " [number 1]", " [number 2]", None]


def test_parts_of_what_the_document_is_known_to_hold() -> None:
    rows = [
        {
            "split": "forget",
            "document": "d",
            "prompt": "What is her home address?",
            "expected": "Flat 9, Oldgate, 16652",
        },
        {"split": "forget", "document": "d", "prompt": "What is her number?", "expected": "926837350"},
        {"split": "forget", "document": "d", "prompt": "e-mail?", "expected": "quill7@example.com"},
    ]
    own, other = (Masker(rows).masked("forget", document, ["9268 at oldgate, quill7"]) for document in ("d", "e"))
    assert own == ["[part 1] at [part 2], [part 3]"]
    assert other == ["9268 at oldgate, quill7"]


def test_no_gold_value_of_the_synthetic_benchmark_stays(tmp_path: Path) -> None:
    """By the matcher that measures leakage, in every row of every document, also where the model wrote it elsewhere."""
    write_benchmark(tmp_path / "data", Synthetic(documents_per_task=8, seed=3))
    rows = [json.loads(line) for line in (tmp_path / "data/forget.jsonl").read_text(encoding="utf-8").splitlines()]
    samples = [
        {
            "split": "forget",
            "document": row["id"][:-3],
            "prompt": row["input"],
            "expected": row["output"],
            "id": row["id"],
        }
        for row in rows
        if row["task"] == "Task2"
    ]
    values = [
        (sample["document"], PII_TYPES[int(sample["id"][-1])], sample["expected"])
        for sample in samples
        if sample["id"][-3:-1] == "qa"
    ]
    assert len(values) >= 30
    masker = Masker(samples)
    found = 0
    for sample in samples:
        texts = [sample["prompt"], sample["expected"], f"It is {sample['expected']} of course"]
        for document, kind, value in values:
            if document == sample["document"]:
                before = [whole_match(kind, value, text) for text in texts]
                after = masker.masked("forget", document, texts)
                found += sum(before)
                assert not any(whole_match(kind, value, text) for text in after if text is not None), (
                    kind,
                    value,
                    after,
                )
    assert found > 100


def test_a_masked_page_holds_no_value(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "demo", {("over", 0): " is ulusa7@example.com, 987-91-5388"})
    runs = [read_run(folder)]
    plain, hidden = (json.dumps(generations_of(runs, one).to_json()) for one in (False, True))
    for value in ("987915388", "987-91-5388", "ulusa7@example.com", "3865550175"):
        assert value in plain
        assert value not in hidden
    html = page(content_of(runs, masked=True))
    assert "Personal data are masked" in html
    assert "Personal data are masked" not in page(content_of(runs))

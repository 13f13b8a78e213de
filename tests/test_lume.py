"""LUME: terms, aggregates and members against published values and hand-computed cases."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import sample

from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.tasks.base import RowSet, Term
from unlearn_pl.tasks.lume import Lume

LUME = Lume([], [])
# torch flushes denormals in this process
unit = st.floats(0, 1, allow_subnormal=False)


def retain_terms(values: list[float]) -> list[Term]:
    """Terms with these values."""
    return [Term(f"retain/{n}", "retain", [sample(score=value)]) for n, value in enumerate(values)]


def members(forget: list[Record], tasks: list[str] | None = None) -> list[str]:
    return LUME.members([RowSet("forget", "forget", forget), RowSet("retain", "retain", [])], tasks)


def record(document: str, kind: str, task: str) -> Record:
    return Record(f"{document}{kind}1", f"{document} lived", "in a house.", task, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(("first", "score"), [(0.5, 0.923), (0.05, 0.387), (0.0, 0.0), (1.0, 1.0)])
def test_harmonic_mean_of_twelve(first: float, score: float) -> None:
    """12 / (1/.5 + 11) = 12/13 = .923; 12 / (1/.05 + 11) = 12/31 = .387; one zero makes all zero."""
    assert LUME.task_aggregate(retain_terms([first, *[1.0] * 11])) == pytest.approx(score, abs=5e-4)


@settings(deadline=None)
@given(st.lists(unit, min_size=1, max_size=12))
def test_task_aggregate_lies_between_least_and_mean(terms: list[float]) -> None:
    score = LUME.task_aggregate(retain_terms(terms))
    assert score is not None
    assert min(terms) - 1e-9 <= score <= sum(terms) / len(terms) + 1e-9


def scored(split: str, task: str, kind: str, score: float) -> Sample:
    return sample(split=split, task=task, kind=kind, score=score)


def all_twelve(forget: float, retain: float) -> list[Sample]:
    tasks, kinds = ("Task3", "Task1", "Task2"), ("qa", "sc")
    return [
        scored(split, task, kind, score)
        for split, score in (("retain", retain), ("forget", forget))
        for task in tasks
        for kind in kinds
    ]


def test_terms_have_the_official_order_and_turn_forget_scores() -> None:
    samples = [*all_twelve(0.25, 0.75), scored("forget", "Task2", "sc", 0.75)]
    found = LUME.terms(samples)
    terms = {term.name: term.value for term in found}
    order = [
        f"{s}/Task{n}/{k}" for s in ("forget", "retain") for n in (1, 2, 3) for k in ("regurgitation", "knowledge")
    ]
    assert list(terms) == order
    assert terms["forget/Task2/regurgitation"] == 1 - (0.25 + 0.75) / 2
    assert terms["forget/Task1/knowledge"] == 0.75
    assert terms["retain/Task3/knowledge"] == 0.75
    assert [len(term.scores) for term in found if term.name == "forget/Task2/regurgitation"] == [2]


def test_a_missing_group_is_no_term() -> None:
    """Data without questions in Task1 has eleven terms, none of them NaN, and a mean over eleven."""
    samples = [row for row in all_twelve(0.0, 1.0) if (row.split, row.task, row.kind) != ("forget", "Task1", "qa")]
    terms = {term.name: term.value for term in LUME.terms(samples)}
    assert len(terms) == 11
    assert "forget/Task1/knowledge" not in terms
    assert LUME.task_aggregate(LUME.terms(samples)) == 1


def test_aggregate_of_the_paper() -> None:
    """(.968 + .045 + .431) / 3 = .481 and (.659 + .364 + .491) / 3 = .505: Table 1; None where a part is missing."""
    assert LUME.aggregate(0.968, 0.045, 0.431) == pytest.approx(0.4813, abs=1e-4)
    assert LUME.aggregate(0.659, 0.364, 0.491) == pytest.approx(0.5047, abs=1e-4)
    assert LUME.aggregate(0.9, None, 0.4) is None
    assert LUME.aggregate(0.9, 0.5, None) is None


def test_official_names() -> None:
    """The set entries are plain means, over rows and not over tasks; an unknown aggregate is -1."""
    terms = LUME.terms([*all_twelve(0.5, 1.0), scored("forget", "Task2", "qa", 0.9)])
    results = {"membership_auc": None, "mmlu": None, "membership_score": None, "aggregate": None}
    official = LUME.official(results | {"task_aggregate": LUME.task_aggregate(terms)}, terms)["semeval"]
    assert official["forget-set"]["overall-knowledge-score"] == pytest.approx((0.5 * 3 + 0.9) / 4)
    assert official["forget-set"]["Task2"] == {"regurgitation-score": 0.5, "knowledge-score": pytest.approx(0.7)}
    assert official["retain-set"]["Task3"] == {"regurgitation-score": 1.0, "knowledge-score": 1.0}
    assert official["aggregated-terms"] == [term.value for term in terms]
    assert official["aggregate-score"] == -1
    assert official["mia_loss_acc"] is None
    assert set(official) == {
        "forget-set", "retain-set", "mia_loss_acc", "mmlu_average", "aggregated-terms", "harmonic-mean-task-aggregate",
        "mia_final_score", "aggregate-score",
    }  # fmt: skip


def test_a_term_without_a_score_leaves_no_aggregate() -> None:
    empty = Term("forget/Task1/regurgitation", "forget", [])
    assert LUME.task_aggregate([*retain_terms([0.5]), empty]) is None
    assert LUME.aggregate(None, 1.0, 1.0) is None


def test_rows_without_kind_or_task_are_refused() -> None:
    good = Record("a", "Who?", "Anna", "Task1", "qa")
    for bad, what in (
        (Record("b", "Who?", "Anna", "Task1"), "no kind"),
        (Record("b", "Who?", "Anna", "", "qa"), "no task"),
    ):
        with pytest.raises(InputError, match=f"^retain: row 1: {what}"):
            Lume([good], [bad]).sets()


def test_scores_by_kind() -> None:
    """Two of four words of a completion, a question only as a whole."""
    assert LUME.score(Record("asc1", "It", "was the old house", "Task1", "sc"), "the house") == 0.5
    question = Record("aqa0", "Who?", "Anna", "Task1", "qa")
    assert [LUME.score(question, text) for text in (" anna ", "Anna Berg")] == [1, 0]


def test_members_are_the_documents_of_task3_if_there_is_one() -> None:
    """Input, one space, output of the completion rows; the question rows are none."""
    forget = [record("Ida", "sc", "Task3"), record("Bo", "sc", "Task1"), record("Ida", "qa", "Task3")]
    assert members(forget) == ["Ida lived in a house."]
    assert members(forget, ["Task1"]) == ["Bo lived in a house."]
    assert members(forget, ["Task1", "Task3"]) == ["Ida lived in a house.", "Bo lived in a house."]
    others = [record("Bo", "sc", "b"), record("Cy", "sc", "c")]
    assert members(others) == ["Bo lived in a house.", "Cy lived in a house."]


@pytest.mark.parametrize("tasks", [["Task2"], ["Task1", "Task3"], []])
def test_unknown_tasks(tasks: list[str]) -> None:
    with pytest.raises(
        InputError, match=r"membership.tasks: must be among Task1 \(tasks with completion rows\), got \["
    ):
        members([record("Bo", "sc", "Task1"), record("Bo", "qa", "Task2")], tasks)


def test_no_completion_rows() -> None:
    with pytest.raises(InputError, match=r"membership.member: needed, as the forget set has no completion rows"):
        members([record("Bo", "qa", "Task1")])

"""The results of an evaluation, from hand-made measurements: intervals, notes, verdicts, composites."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import changed, lume_inputs

from unlearn_pl.data.records import Record, kind_of_id
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.inputs import EvaluationInputs
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.results import Results, write_results
from unlearn_pl.evaluation.retrained import Retrained, read_retrained, refuse_others
from unlearn_pl.evaluation.summary import results_of
from unlearn_pl.evaluation.table import metrics_of
from unlearn_pl.evaluation.truth import Truth
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.membership import verdicts
from unlearn_pl.metrics.metric import mean_score
from unlearn_pl.metrics.roc import area_under_curve
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.metrics.statistics import bootstrap_interval, mean_of
from unlearn_pl.metrics.table import chosen
from unlearn_pl.metrics.truth_ratio import AnswerLogprobs
from unlearn_pl.tasks.lume import Lume

OPTIONS = EvaluationOptions(resamples=200)
LUME = Lume([], [])
FEW = "no tpr_at_1_percent and tpr_at_5_percent: 1 % needs 100 non-members, 5 % needs 20, got 12"
SPLITS = ("forget", "retain")
ATTACKS = ("loss", "zlib", "min_k", "min_k_pp")
MEMORIZATION = ("extraction_strength", "exact_memorization", "verbatim_probability")


def records_of(split: str) -> list[Record]:
    """Two rows of either kind in each of three tasks; the questions of Task2 end in digits of no personal data."""
    ids = [
        (f"{split}{task}{copy}{end}", task)
        for task, ends in (("Task1", ("sc1", "qa0")), ("Task2", ("sc1", "qa9")), ("Task3", ("sc1", "qa0")))
        for copy in "ab"
        for end in ends
    ]
    return [Record(id, f"{split} {id}?", "Anna", task, kind_of_id(id)) for id, task in ids]  # type: ignore[arg-type]


INPUTS = lume_inputs(records_of("forget"), records_of("retain"))


def sampled(inputs: EvaluationInputs) -> list[Sample]:
    """As ``generate_samples`` makes them, with random scores of three memorization metrics and one more."""
    random = np.random.default_rng(7)
    return [
        Sample(
            id=record.id,
            document=record.document_id,
            recall={"probability": 0.5, "extraction_strength": 0.5, "length": 2},
            split=one.name,
            role=one.role,
            completion=record.kind == "sc",
            task=record.task,
            kind=record.kind,
            prompt=record.input,
            expected=record.output,
            generated="nothing",
            score=float(random.random()),
            scores={name: float(random.random()) for name in (*MEMORIZATION, "degenerate")},
        )
        for one, record in inputs.rows
    ]


def measured_of(inputs: EvaluationInputs = INPUTS) -> Measured:
    """Everything measured: twelve documents on either side, four questions, three truth ratios in each set."""
    random = np.random.default_rng(8)
    sides = [[f"{side} {number}" for number in range(12)] for side in ("member", "nonmember")]
    attacks = {name: [float(value) for value in random.normal(size=24)] for name in ATTACKS}
    right = [True, False, True, True]
    subjects = {"art": 0.5, "law": 1.0}
    choice = {"average": 0.75, "macro": 0.75, "subjects": subjects, "questions": 4, "shortened": 0, "right": right}
    truth = {"forget": rows_with(0.5, 2.0, 0.8, 0.9, 1.1), "retain": rows_with(0.25, 0.5, 3.0)}
    return Measured(
        samples=sampled(inputs),
        attacks=attacks,
        members=sides[0],
        nonmembers=sides[1],
        choice=choice,
        truth=truth,
        resamples=OPTIONS.resamples,
    )


def summary(
    measured: Measured, options: EvaluationOptions = OPTIONS, retrained: Retrained | None = None
) -> dict[str, Any]:
    """The results of these measurements."""
    measured = replace(measured, retrained=retrained)
    return results_of(measured, LUME, chosen(metrics_of(LUME), options.metrics), options).to_json()


def rows_with(*ratios: float) -> list[AnswerLogprobs]:
    """Right answers of probability 1/8 and one wrong one with that ratio to it."""
    return [AnswerLogprobs((math.log(1 / 8),), (math.log(ratio / 8),)) for ratio in ratios]


def scores_of(measured: Measured, retrained: Retrained | None = None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = summary(measured, OPTIONS, retrained)["scores"]
    return found


@settings(deadline=None)
@given(st.lists(st.integers(-9, 9), max_size=30))
def test_the_interval_of_a_mean_contains_it(values: list[int]) -> None:
    score = mean_score(values, range(len(values)), resamples=100, unit_range=False)
    assert (score.n, score.value is None) == (len(values), not values)
    if len(values) < 2 or min(values) == max(values):
        assert score.interval is None, "of one row, or of equal ones without a bound, nothing is known"
    else:
        assert score.interval[0] - 1e-12 <= score.value <= score.interval[1] + 1e-12


def test_scores_of_rows_are_means_with_intervals() -> None:
    """A row where a metric is not defined does not count; a metric without any such row says nothing."""
    measured = measured_of()
    values = [sample.scores["degenerate"] for sample in measured.samples[:12]]
    first, more = measured.samples[0], {"keyword_leakage": None, "leak_at_4": 0.5}
    measured = changed(
        measured, lambda one: {"scores": {**one.scores, **more, **({"degenerate": None} if one is first else {})}}
    )
    scores = scores_of(measured)
    assert scores["forget/degenerate"]["value"] == pytest.approx(sum(values[1:]) / 11)
    assert (scores["forget/degenerate"]["n"], scores["retain/degenerate"]["n"]) == (11, 12)
    assert (scores["forget/degenerate"]["low"], scores["forget/degenerate"]["high"]) == bootstrap_interval(
        [values[1:]], mean_of, resamples=200, units=[[sample.document for sample in measured.samples[1:12]]]
    )
    assert scores["forget/leak_at_4"]["better"] == "lower"
    assert scores["retain/leak_at_4"]["better"] == "higher"
    assert scores["forget/keyword_leakage"] == {
        "value": None, "low": None, "high": None, "n": 0, "better": "lower", "range": "[0, 1]",
    }  # fmt: skip
    for name, entry in scores.items():
        if entry["low"] is not None:
            assert entry["low"] <= entry["value"] + 1e-12, name
            assert entry["value"] <= entry["high"] + 1e-12, name


def test_results_are_reproducible() -> None:
    first, second = (summary(measured_of()) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    more = summary(replace(measured_of(), resamples=201))
    values = [{name: entry["value"] for name, entry in found["scores"].items()} for found in (first, more)]
    assert values[0] == values[1]
    assert first["scores"] != more["scores"], "the intervals are those of other resamples"


def aggregate_groups(measured: Measured) -> tuple[list[str], list[list[float]]]:
    """Names of the groups of rows; these groups, members, non-members and answers."""
    rows = {term.name: term.scores for term in LUME.terms(measured.samples)}
    right = [float(value) for value in measured.choice["right"]] if measured.choice else []
    return list(rows), [*rows.values(), measured.attacks["loss"][:12], measured.attacks["loss"][12:], right]


def naive_aggregate(names: list[str], groups: list[list[float]]) -> float:
    """Task aggregate, 1 - 2 |AUC - 1/2| and accuracy, a mean of three."""
    means = {name: fmean(group) for name, group in zip(names, groups, strict=False)}
    terms = [1 - mean if name.startswith("forget/") else mean for name, mean in means.items()]
    auc = area_under_curve(*groups[-3:-1])
    return (harmonic_mean(terms) + 1 - 2 * abs(auc - 0.5) + fmean(groups[-1])) / 3


def test_the_interval_of_the_aggregate() -> None:
    """From those of its parts: the distances to the ends add as squares, and a third of that. That of the membership
    score reaches 1, as one half is among the likely values of this AUC."""
    measured = measured_of()
    names, groups = aggregate_groups(measured)
    found = summary(measured)
    entries = found["scores"]
    entry, parts = (
        entries["aggregate"],
        [entries["task_aggregate"], entries["membership/loss/score"], entries["choice/micro"]],
    )
    assert entry["value"] == found["aggregate"] == pytest.approx(naive_aggregate(names, groups))
    assert entries["membership/loss/auc"]["low"] < 0.5 < entries["membership/loss/auc"]["high"]
    assert parts[1]["high"] == 1
    below = math.sqrt(sum((part["value"] - part["low"]) ** 2 for part in parts))
    above = math.sqrt(sum((part["high"] - part["value"]) ** 2 for part in parts))
    assert entry["low"] == pytest.approx(entry["value"] - below / 3)
    assert entry["high"] == pytest.approx(entry["value"] + above / 3)


def person(split: str, values: dict[str, str]) -> list[Record]:
    """Questions about one person as in LUME."""
    return [Record(f"{split}qa{digit}", f"{split} {digit}?", value, "Task2", "qa") for digit, value in values.items()]


def test_personal_data_in_the_generations() -> None:
    """A model that says the SSN of the forget set's person once gives the document's SSN away, and nothing else."""
    values = {"0": "1984-12-31", "1": "900-11-2222", "3": "anna@me.com"}
    inputs = lume_inputs(person("a", values), person("b", values))
    measured = replace(measured_of(), samples=sampled(inputs))
    said = measured.samples[2]
    measured = changed(measured, lambda _: {"generated": "It is 900-11-2222."}, lambda one: one is said)
    results = summary(measured)
    scores = results["scores"]
    assert results["notes"] == [FEW]
    whole = {name: entry["value"] for name, entry in scores.items() if name.endswith("/whole")}
    expected = {f"{split}/pii/{kind}/whole": 0 for split in SPLITS for kind in ("birth_date", "ssn", "email")}
    overall = {"forget/pii/all/whole": pytest.approx(1 / 3), "retain/pii/all/whole": 0}
    assert whole == expected | {"forget/pii/ssn/whole": 1} | overall
    assert scores["forget/pii/ssn/partial"]["value"] == 1
    assert (scores["forget/pii/ssn/whole"]["n"], scores["forget/pii/all/whole"]["n"]) == (1, 3)
    assert scores["forget/pii/ssn/whole"]["better"] == "lower"
    unwanted = summary(measured, replace(OPTIONS, metrics=["collapse"]))
    assert not [name for name in unwanted["scores"] if "/pii/" in name]


def test_a_task2_unlike_lume_gets_a_note() -> None:
    """Only for the set whose rows are unlike; the other set keeps its scores."""
    inputs = lume_inputs(person("a", {"0": "last winter"}), person("b", {"0": "1984-12-31"}))
    results = summary(replace(measured_of(), samples=sampled(inputs)))
    note, few = results["notes"]
    assert few == FEW
    assert note.startswith("no pii scores on the forget set, whose Task2 is not like LUME's: ")
    assert "got 'last winter'" in note
    assert {name.split("/")[0] for name in results["scores"] if "/pii/" in name} == {"retain"}
    assert summary(measured_of())["notes"] == [FEW], "rows without personal data are no reason"


@pytest.mark.parametrize(("members", "nonmembers", "judged"), [(10, 10, True), (9, 10, False), (30, 9, False)])
def test_a_verdict_needs_ten_documents(members: int, nonmembers: int, judged: bool) -> None:
    """Every member above every non-member: a leak, if there are enough to say so."""
    texts = [[f"{side} {number}" for number in range(n)] for side, n in (("a", members), ("b", nonmembers))]
    attacks = {"loss": [1.0] * members + [0.0] * nonmembers}
    found = summary(replace(measured_of(), members=texts[0], nonmembers=texts[1], attacks=attacks))
    assert found["scores"]["membership/loss/auc"]["value"] == 1
    refusal = f"no verdict: it needs 10 documents on either side, got {min(members, nonmembers)}"
    assert found["verdicts"] == {"loss": "leaks: members stand out" if judged else refusal}
    assert verdicts(Measured()) == {}


def test_membership_by_halves() -> None:
    """The halves together are all documents; a half that has none of one side has no AUC."""
    scores = scores_of(measured_of())
    for attack in ATTACKS:
        names = [f"membership/{attack}/{figure}" for figure in ("auc", "auc_calibration", "auc_holdout")]
        whole, *parts = (scores[name]["n"] for name in names)
        assert whole == sum(parts) == 24
    alone = replace(measured_of(), members=["a"], nonmembers=["b"], attacks={"loss": [1.0, 0.0]})
    figures = {name.split("/")[2] for name in scores_of(alone) if name.startswith("membership/")}
    assert {"auc", "score", "tpr_at_1_percent", "tpr_at_5_percent"} <= figures
    assert len(figures & {"auc_calibration", "auc_holdout"}) <= 1


def test_a_model_against_itself(tmp_path: Path) -> None:
    """Through the file: no test tells the truth ratios apart, and no attack does better than on the other model."""
    results = summary(measured_of())
    write_results(tmp_path, Results.from_json(results), {"hashes": {}, "config": {}})
    retrained = read_retrained(str(tmp_path))
    assert retrained.truth == measured_of().truth
    assert retrained.auc == {name: results["scores"][f"membership/{name}/auc"]["value"] for name in ATTACKS}
    found = summary(measured_of(), OPTIONS, retrained)
    assert found["scores"]["forget_quality"]["value"] == 1
    assert found["scores"]["privacy_to_retrained"]["value"] == 1
    assert found["scores"]["uds/privacy"]["value"] == 1
    assert found["notes"] == [FEW]
    other = replace(retrained, truth={"forget": rows_with(9.0, 8.0, 7.0, 6.0)})
    assert scores_of(measured_of(), other)["forget_quality"]["value"] == pytest.approx(2 / 126)
    few = summary(measured_of(), OPTIONS, replace(retrained, truth={"forget": rows_with(9.0)}))
    assert few["scores"]["forget_quality"]["value"] is None
    assert (
        "no forget_quality: 5 rows against 1 cannot give a p-value below 0.333, so nothing could differ at 0.05"
        in (few["notes"])
    )


def test_a_retrained_model_measured_on_other_rows_is_refused() -> None:
    """By the hashes in its results, and by the settings that change its numbers."""
    hashes = {"truth_forget": "a", "nonmember": "b", "member": None, "forget": "c"}
    config: dict[str, dict[str, Any]] = {"truth": {"eos": True}, "membership": {"tasks": None, "min_k_share": 0.2}}
    config["data"] = {"documents_per_task": 2, "columns": None}
    other = Retrained({}, {}, hashes, config)
    refuse_others(other, hashes, config)
    refuse_others(other, {}, config)
    whole = config | {"data": {"documents_per_task": None, "columns": None}}
    with pytest.raises(InputError, match=r"^retrained: was measured with data.documents_per_task=2, not None"):
        refuse_others(other, hashes, whole)
    refuse_others(other, {"truth_forget": "a"}, whole)  # the members do not matter
    for name, what in (("truth_forget", "truth.forget"), ("nonmember", "membership.nonmember"), ("forget", "data")):
        with pytest.raises(InputError, match=f"^retrained: was measured on another {what}"):
            refuse_others(other, hashes | {name: "x"}, config)
    with pytest.raises(InputError, match=r"^retrained: was measured with membership.min_k_share=0.2, not 0.4"):
        refuse_others(other, hashes, config | {"membership": {"tasks": None, "min_k_share": 0.4}})


def test_a_broken_model_has_no_membership_score() -> None:
    """One document without a finite loss: its place is unknown. Not AUC 0.5, score 1 and "no leak shown"."""
    measured = measured_of()
    attacks = {name: list(values) for name, values in measured.attacks.items()}
    attacks["loss"][3] = -math.inf
    measured = replace(measured, attacks=attacks)
    first = measured.samples[0]
    measured = changed(measured, lambda one: {"recall": {**one.recall, "probability": None}}, lambda one: one is first)
    found = summary(measured)
    assert [found[name] for name in ("membership_auc", "membership_score", "aggregate")] == [None] * 3
    assert found["scores"]["membership/loss/auc"]["value"] is found["scores"]["membership/loss/score"]["value"] is None
    assert found["verdicts"]["loss"] == "broken model: 1 of 24 documents have no finite loss"
    assert "aggregate" not in found["scores"]
    assert "privacy" not in found["scores"]
    assert found["notes"][0].startswith("broken model: 1 of 12 rows of the forget set have no probability (NaN)")
    broken = replace(measured_of(), truth={"forget": [AnswerLogprobs((math.nan,), (-1.0,))]})
    assert scores_of(broken)["forget/truth_ratio"]["value"] is None
    assert "open_unlearning/memorization" not in scores_of(broken)


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        "null",
        "{}",
        '{"scores": {}}',
        '{"scores": {"membership/loss/auc": 0.5}, "truth": {}}',
        '{"scores": {"membership/loss/auc": {}}, "truth": {}}',
    ],
)
def test_what_is_no_result_of_an_evaluation(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"^retrained: .*results.json is not the results of an evaluation: "):
        read_retrained(str(tmp_path))


def test_results_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^retrained: .*gone/results.json is not the results of an evaluation: "):
        read_retrained(str(tmp_path / "gone"))


def test_composites_by_their_formulas() -> None:
    """From means of the parts; truth ratios .5, 2, .8, .9, 1.1 are .5, .5, .8, .9, 1/1.1 from 1, and .25, .5, 3 are
    worth .75, .5, 0. An answer is right by 1 / (1 + R); the strength of each row is at least 1/2, its answer having two
    tokens."""
    measured = measured_of()
    scores = scores_of(measured)
    value = {name: entry["value"] for name, entry in scores.items()}
    assert value["forget/truth_ratio"] == pytest.approx((2.7 + 1 / 1.1) / 5)
    assert value["retain/truth_utility"] == pytest.approx(1.25 / 3)
    share = fmean(1 / (1 + ratio) for ratio in (0.5, 2.0, 0.8, 0.9, 1.1))
    forgotten = [1 - 0.5, 1 - value["forget/exact_memorization"], 1 - 1 / 8, 1 - share]
    assert value["open_unlearning/memorization"] == pytest.approx(harmonic_mean(forgotten))
    secrets = [1 - 2 * abs(value[f"membership/{attack}/auc"] - 0.5) for attack in ATTACKS]
    assert value["privacy"] == pytest.approx(harmonic_mean(secrets))
    recall = fmean(row.score for row in measured.samples if (row.split, row.kind) == ("retain", "sc"))
    useful = harmonic_mean([value["retain/verbatim_probability"], recall, 1.25 / 3])
    assert value["retain_utility"] == pytest.approx(useful)
    fluent = 1 - value["forget/degenerate"]
    assert value["utility"] == pytest.approx(harmonic_mean([useful, fluent]))


COMPOSITES = {
    "aggregate": {"loss", "choice"},
    "forget_quality": {"truth forget", "retrained"},
    "open_unlearning/memorization": {"forget extraction_strength", "forget exact_memorization", "truth forget"},
    "privacy": {*ATTACKS},
    "privacy_to_retrained": {*ATTACKS, "retrained"},
    "uds/privacy": {*ATTACKS, "retrained"},
    "retain_utility": {"retain verbatim_probability", "truth retain", "retain sc"},
    "utility": {
        "retain verbatim_probability", "truth retain", "retain sc", "forget degenerate",
    },
}  # fmt: skip
"""Composite -> the parts that it needs."""


def without(part: str) -> tuple[Measured, Retrained | None]:
    """All but one part."""
    measured, retrained = measured_of(), Retrained({"forget": rows_with(*[1.0] * 5)}, dict.fromkeys(ATTACKS, 0.5))
    first, _, last = part.partition(" ")
    if part == "retrained":
        return measured, None
    if part == "choice":
        return replace(measured, choice=None), retrained
    if part in ATTACKS:
        return replace(measured, attacks={name: measured.attacks[name] for name in ATTACKS if name != part}), retrained
    if first == "truth":
        kept = {split: rows for split, rows in measured.truth.items() if split != last}
        return replace(measured, truth=kept), retrained
    if part == "retain sc":
        rows = [row for row in measured.samples if (row.split, row.kind) != ("retain", "sc")]
        return replace(measured, samples=rows), retrained
    measured = changed(
        measured,
        lambda one: {"scores": {name: value for name, value in one.scores.items() if name != last}},
        lambda one: one.split == first,
    )
    return measured, retrained


@pytest.mark.parametrize("part", sorted({*itertools.chain(*COMPOSITES.values()), "retain degenerate"}))
def test_composites_are_there_exactly_when_their_parts_are(part: str) -> None:
    """What a retrained model cannot be compared in is said."""
    measured, retrained = without(part)
    # leakage is left out, as it wants a sample of every row
    options = replace(
        OPTIONS,
        resamples=2,
        metrics=["memorization", "collapse", "membership", "truth"],
        membership=Membership(nonmember="read already"),
        truth=Truth(forget="read already"),
    )
    results = summary(measured, options, retrained)
    there = {name for name, needed in COMPOSITES.items() if part not in needed}
    assert {name for name in COMPOSITES if name in results["scores"]} == there
    missing = [name for name in ("forget_quality", "privacy_to_retrained") if retrained and name not in there]
    assert [note.split(":")[0] for note in results["notes"] if note != FEW] == [f"no {name}" for name in missing]
    assert (results["aggregate"] is None) == ("aggregate" not in there)

"""The verdict: an answer for what its numbers carry, and none for what was not measured."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import unlearn_pl.report
from unlearn_pl.report.evidence import Evidence, at_least, at_most, change, mean_score, percent, scored
from unlearn_pl.report.findings import Finding
from unlearn_pl.report.run import Fit, Merge, Missing, Model, Run, Search
from unlearn_pl.report.verdict import subject, verdict

FOLDER = Path("logs/run")


def model(
    name: str, forget: list[float | None] = (), retain: list[float | None] = (), **scores: dict[str, Any]
) -> Model:
    """A model whose rows, one a document, scored so; ``scores`` are further entries, ``__`` standing for a slash."""
    rows = [
        {"id": f"{split}{i}", "document": str(i), "split": split, "task": "T", "kind": "qa", "score": score}
        for split, values in (("forget", forget), ("retain", retain))
        for i, score in enumerate(values)
    ]
    terms = {"forget/T": (forget, "lower"), "retain/T": (retain, "higher")}
    found = {
        term: {"value": sum(v or 0 for v in values) / len(values), "low": None, "high": None, "n": 9, "better": better}
        for term, (values, better) in terms.items()
        if values
    }
    found |= {key.replace("__", "/"): {"low": None, "high": None, "n": 9} | entry for key, entry in scores.items()}
    results = {"terms": {term: 0.5 for term in terms if term in found}, "scores": found, "verdicts": {}, "notes": []}
    return Model(name=name, folder=FOLDER / name, results=results, samples=rows)


def findings(after: Model, base: Model | None = None, search: Search | None = None) -> dict[str, Finding]:
    models = {"base": base, after.name: after} if base else {after.name: after}
    run = Run(name="run", folder=FOLDER, models=models, searches={after.name: search} if search else {})
    found = verdict(run, after.name)
    assert found is not None
    return {one.key: one for one in found.findings}


KNOWS = model("base", [1.0] * 40, [1.0] * 40)


@pytest.mark.parametrize(
    ("forget", "answer", "tone"),
    [
        ([0.0] * 40, "yes", "good"),  # 40 documents without one leave at most 1 - 0.025^(1/40) = 8.8 %
        ([0.0] * 30, "nothing left to see", "unsure"),  # 30 documents: 11.6 %
        ([0.0] * 39 + [0.6], "nothing left to see", "unsure"),  # 1.5 % + 98.5 % of 8.8 % = 10.2 %
        ([0.0, 1.0] * 20, "in part", "bad"),
        ([1.0] * 40, "no", "bad"),
    ],
)
def test_forgotten(forget: list[float], answer: str, tone: str) -> None:
    found = findings(model("m", forget), KNOWS)["forgotten"]
    assert (found.answer, found.tone) == (answer, tone)
    assert found.evidence[0].value == pytest.approx(sum(forget) / len(forget))


def test_what_the_texts_do_not_show_counts() -> None:
    """The answers are not given, but the model still thinks them likely."""
    found = findings(model("m", [0.0] * 40, forget__verbatim_probability={"value": 0.4}), KNOWS)["forgotten"]
    assert (found.answer, found.tone) == ("not all", "bad")
    assert "probability of the true answers 0.400" in found.words


def test_what_the_base_did_not_know_was_not_forgotten() -> None:
    found = findings(model("m", [0.0] * 40), model("base", [0.0] * 40))["forgotten"]
    assert (found.answer, found.tone) == ("nothing to see", "unsure")


def test_without_a_base_nothing_was_forgotten() -> None:
    """Nor from a base whose rows are not there: nobody knows whether it gave what the model does not give."""
    for base in (None, model("base")):
        found = findings(model("m", [0.0] * 40), base)["forgotten"]
        assert (found.answer, found.tone) == ("not compared", "unknown")
    assert findings(model("base", [0.0] * 40))["forgotten"].answer == "not compared"


def test_what_the_base_did_not_have_was_not_kept() -> None:
    found = findings(model("m", [0.0], [0.0] * 90), model("base", [0.0], [0.0] * 90))["kept"]
    assert (found.answer, found.tone) == ("nothing to see", "unsure")


def test_the_worst_of_any_number_of_drawn_answers_counts() -> None:
    drawn = {f"forget__leak_at_{count}": {"value": value} for count, value in ((1, 0.02), (4, 0.3))}
    found = findings(model("m", [0.0] * 40, **drawn), KNOWS)["forgotten"]
    assert found.answer == "not all"
    assert "worst of 4 drawn answers 0.300" in found.words


@pytest.mark.parametrize(
    ("retain", "count", "answer", "tone"),
    [
        ([1.0], 90, "yes", "good"),  # 1 - 0.025^(1/90) = 4.0 % of documents may be of another kind
        ([1.0], 60, "no loss shown", "unsure"),  # 6.0 %
        ([0.0, 1.0], 60, "no", "bad"),
        ([0.98], 60, "not all", "unsure"),  # a loss, but a small one
        ([None], 60, "not measured", "unknown"),
    ],
)
def test_kept(retain: list[float | None], count: int, answer: str, tone: str) -> None:
    rows = retain * (count // len(retain))
    if retain == [0.98]:
        rows = [0.96, 1.0] * 30
    found = findings(model("m", [0.0] * 9, rows), model("base", [1.0] * 9, [1.0] * count))["kept"]
    assert (found.answer, found.tone) == (answer, tone)


def test_a_change_is_that_of_the_same_rows() -> None:
    """By hand: rows 0 and 2 have a score on both sides; they fell by 0.5 and 0.1. Rows of one name are counted."""
    before, after = model("a", [], [1.0, None, 0.5]), model("b", [], [0.5, 0.3, 0.4])
    found = change(before, after, ["retain"], "change")
    assert found is not None
    assert (found.value, found.n, found.documents) == (pytest.approx(-0.3), 2, 2)
    assert change(before, model("b", [1.0]), ["retain"], "change") is None
    twice = [*before.samples, *before.samples]
    assert len(scored(twice, ["retain"])) == 4


def test_documents_that_were_not_seen_may_be_of_another_kind() -> None:
    """Clopper and Pearson: 0 of 8 leaves 1 - 0.025^(1/8) = 0.369; a change of none may be one of -0.369."""
    share = mean_score(model("m", [0.0] * 8), ["forget"], "mean")
    moved = change(KNOWS, model("m", [], [1.0] * 8), ["retain"], "change")
    assert share is not None
    assert moved is not None
    assert at_most(share) == pytest.approx(1 - 0.025 ** (1 / 8))
    assert at_least(moved) == pytest.approx(-(1 - 0.025 ** (1 / 8)))
    assert at_most(Evidence(name="no documents known", value=0.0)) == 1.0


@pytest.mark.parametrize(
    ("low", "value", "high", "answer", "tone"),
    [
        (0.45, 0.5, 0.55, "yes", "good"),
        (0.30, 0.5, 0.55, "no imbalance shown", "unsure"),
        (0.51, 0.9, 0.95, "under-forgotten", "bad"),
        (0.01, 0.1, 0.49, "over-forgotten", "bad"),
        (None, 0.5, None, "not certain", "unsure"),
        (None, None, None, "not measured", "unknown"),
    ],
)
def test_balanced(low: float | None, value: float | None, high: float | None, answer: str, tone: str) -> None:
    found = findings(model("m", membership__loss__auc={"value": value, "low": low, "high": high}))["balanced"]
    assert (found.answer, found.tone) == (answer, tone)


def test_a_searched_model_is_judged_by_documents_held_out_of_the_search() -> None:
    found = {"holdout_auc": 0.2, "holdout_interval": [0.1, 0.3], "documents": {"holdout": [12, 36]}}
    search = Search(name="m", folder=FOLDER, found=found)
    after = model("m", membership__loss__auc={"value": 0.5, "low": 0.45, "high": 0.55})
    one = findings(after, search=search)["balanced"]
    assert (one.answer, one.evidence[0].n) == ("over-forgotten", 48)
    assert "found no balance" not in one.words
    failed = Search(name="m", folder=FOLDER, found=found | {"crosses": False, "message": "no crossing: nowhere near"})
    assert "found no balance (no crossing: nowhere near)" in findings(after, search=failed)["balanced"].words


def test_documents_that_chose_a_model_do_not_clear_it_of_attacks() -> None:
    near = {"value": 0.5, "low": 0.45, "high": 0.55}
    after = model("m", membership__loss__auc=near)
    after.results["verdicts"]["loss"] = "no leak shown"
    held = {"holdout_auc": 0.5, "holdout_interval": [0.2, 0.8], "documents": {"holdout": [12, 36]}}
    assert findings(after)["attacked"].answer == "no"
    one = findings(after, search=Search(name="m", folder=FOLDER, found=held))["attacked"]
    assert (one.answer, one.tone) == ("none shown", "unsure")
    assert "took part in the choice" in one.words


@pytest.mark.parametrize(
    ("forget", "retain", "answer"),
    [
        (["", "a b"], ["a b"], "no"),  # no answer to what had to be forgotten is no collapse
        (["a b"], [" ", "a b"], "yes"),
        (["a b"], ["", *["a b"] * 11], "not shown"),
        ([""], [""], "yes"),
    ],
)
def test_texts_that_hold_nothing(forget: list[str], retain: list[str], answer: str) -> None:
    whole = {"value": 0.0, "low": 0.0, "high": 0.05}
    sides = {name: texts for name, texts in (("forget", forget), ("retain", retain)) if any(map(str.strip, texts))}
    after = model("m", [0.0] * 120, [0.0] * 120, **{f"{name}__degenerate": whole for name in sides})
    for row in after.samples:
        texts = forget if row["split"] == "forget" else retain
        row["generated"] = texts[int(row["document"]) % len(texts)]
        row["scores"] = {"degenerate": 0.0 if row["generated"].strip() else None}
    found = findings(after)["collapsed"]
    assert found.answer == answer
    counted = {one.name: one.documents for one in found.evidence}
    if forget == ["", "a b"]:  # documents whose texts could be looked at
        assert counted["share of degenerate texts on forget prompts"] == 60
    assert ("Empty" in found.words) == ("" in forget or any(not text.strip() for text in retain))


def test_attacks_and_collapse() -> None:
    near, far = {"value": 0.5, "low": 0.45, "high": 0.55}, {"value": 0.5, "low": 0.2, "high": 0.8}

    def of(
        verdicts: dict[str, str], degenerate: dict[str, Any] | None = None, **aucs: dict[str, Any]
    ) -> tuple[str, str]:
        entries = {f"membership__{name}__auc": one for name, one in aucs.items()}
        entries |= {"forget__degenerate": degenerate} if degenerate else {}
        after = model("m", [0.0] * 60, **entries)
        after.results["verdicts"].update(verdicts)
        found = findings(after)
        return found["attacked"].answer, found["collapsed"].answer

    silent = "no leak shown"
    assert of({"loss": silent}, near, loss=near) == ("no", "on forget prompts only")
    # 60 documents: 2 % + 98 % of 1 - 0.025^(1/60) = 6.0 % are 7.9 %
    assert of({"loss": silent}, {"value": 0.02, "low": 0.0, "high": 0.03}, loss=far) == ("none shown", "no")
    assert of({"loss": silent}, {"value": 0.05, "low": 0.0, "high": 0.06}, loss=far) == ("none shown", "not shown")
    assert of({"loss": silent, "zlib": "leaks: members stand out"}, far, loss=near) == (
        "yes, 1 of 2",
        "on forget prompts only",
    )
    assert of({"loss": "no verdict: it needs 10 documents"}) == ("not certain", "not measured")
    assert of({}, {"value": 0.05, "low": 0.0, "high": 0.2}) == ("not measured", "not shown")


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        ((0.7, 0.6, 0.8), (0.72, 0.66, 0.8), "yes"),
        ((1.0, 0.96, 1.0), (0.98, 0.96, 1.0), "no loss shown"),  # 99 questions: 98 % of 96.3 % are 94.4 %
        ((0.7, 0.6, 0.8), (0.5, 0.4, 0.59), "no"),
        ((0.7, 0.6, 0.8), (0.65, 0.5, 0.7), "no loss shown"),
        ((0.3, 0.2, 0.4), (0.3, 0.29, 0.4), "nothing to see"),  # a base that guesses has nothing to lose
        (None, (0.65, 0.5, 0.7), "not compared"),
        ((0.7, 0.6, 0.8), None, "not measured"),
    ],
)
def test_knowledge(before: tuple | None, after: tuple | None, answer: str) -> None:
    def one(name: str, ends: tuple | None) -> Model:
        entry = (
            {}
            if ends is None
            else {"choice__micro": {"n": 99} | dict(zip(("value", "low", "high"), ends, strict=True))}
        )
        return model(name, **entry)

    assert findings(one("m", after), one("base", before))["knowledge"].answer == answer


def test_less_than_was_asked_for_is_no_loss_where_there_was_none() -> None:
    ends = {"value": 0.3, "low": 0.29, "high": 0.4, "n": 99}
    after = model("m", choice__micro=ends)
    after.results["eligible"] = False
    found = findings(after, model("base", choice__micro=ends))["knowledge"]
    assert (found.answer, found.tone) == ("below what was asked for", "bad")


def test_the_model_that_a_run_is_about() -> None:
    names = ("base", "over", "merged", "balanced")
    parts = {
        "fits": {"over": Fit(name="over", folder=FOLDER)},
        "merges": {"merged": Merge(name="merged", folder=FOLDER)},
        "searches": {"balanced": Search(name="balanced", folder=FOLDER, found={})},
    }
    for count, expected in ((4, "balanced"), (3, "merged"), (2, "over"), (1, "base"), (0, None)):
        models = {name: model(name) for name in names[:count]}
        run = Run(name="run", folder=FOLDER, models=models, **parts)
        assert subject(run) == expected
        assert (verdict(run) is None) == (expected is None)


def test_what_was_not_measured_is_told() -> None:
    missing = Missing(part="scores of base", path="base/results.json", reason="not JSON")
    after = model("m")
    after.results["notes"].append("no tpr")
    found = verdict(Run(name="run", folder=FOLDER, models={"m": after}, missing=[missing]))
    assert found is not None
    assert found.unmeasured[:2] == ["no tpr", "no comparison with the base: base/results.json: not JSON"]
    assert any("no scored rows" in line for line in found.unmeasured)
    assert {one.tone for one in found.findings} == {"unknown"}
    assert found.headline.startswith("Forgotten? not measured; Kept? not measured")


def test_percent() -> None:
    assert [percent(share) for share in (0, 0.0123, 0.0996, 0.5, 1)] == ["0.0 %", "1.2 %", "10 %", "50 %", "100 %"]


def test_rows_with_a_foreign_score_do_not_count() -> None:
    found = verdict(Run(name="run", folder=FOLDER, models={"m": model("m", [0.0, 7.0, float("nan")])}))
    assert found is not None
    assert found.findings[0].evidence[0].n == 1
    assert "1 rows: their score is not in [0, 1], so they do not count" in found.unmeasured


def test_no_model_library_is_imported() -> None:
    """A report is made without what a model needs, so it is quick."""
    modules = [f"unlearn_pl.report.{path.stem}" for path in Path(unlearn_pl.report.__file__).parent.glob("*.py")]
    code = "import sys\n" + "".join(f"import {name}\n" for name in sorted(modules))
    code += "print({name.split('.')[0] for name in sys.modules} & {'torch', 'lightning', 'transformers', 'matplotlib'})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

"""The table of metrics against what a whole evaluation gives, and the scores of a single row."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from samples import sample
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.inputs import EvaluationData, read_inputs
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.results import Results
from unlearn_pl.evaluation.retrained import Retrained
from unlearn_pl.evaluation.run import evaluate
from unlearn_pl.evaluation.table import FAMILIES, metrics_of
from unlearn_pl.evaluation.truth import Truth
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.sampling import Sampling
from unlearn_pl.metrics.attacks import ATTACKS
from unlearn_pl.metrics.leakage import Corpus
from unlearn_pl.metrics.metric import ALWAYS, OPPOSITE, Metric, row_scores
from unlearn_pl.metrics.table import chosen, shared_needs
from unlearn_pl.metrics.truth_ratio import AnswerLogprobs
from unlearn_pl.tasks.lume import Lume

Build = Callable[[], LlamaForCausalLM]

PERSON = {"0": "1984-12-31", "1": "900-11-2222", "2": "555-010-0100", "3": "anna@me.com", "4": "7 Quay Road"}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(split: str) -> list[dict[str, str]]:
    """A document a task; that of Task2 is a person with all five kinds of personal data, as in LUME."""
    rows = [
        {
            "id": f"{split}{task}{end}",
            "input": f"{split} {task}:",
            "output": "the keeper Anna Quill wrote",
            "task": task,
        }
        for task in ("Task1", "Task2", "Task3")
        for end in ("sc1", "qa0")
        if (task, end) != ("Task2", "qa0")
    ]
    values = PERSON.items()
    return rows + [
        {"id": f"{split}Task2qa{digit}", "input": f"{split} asks {digit}:", "output": value, "task": "Task2"}
        for digit, value in values
    ]


def all_options(folder: Path) -> EvaluationOptions:
    """Everything on."""
    sides = [
        write_lines(folder / f"{side}.jsonl", [{"document": f"{side} wrote letter {n} {'x' * n}"} for n in range(10)])
        for side in ("member", "nonmember")
    ]
    truths = [
        write_lines(
            folder / f"truth_{split}.jsonl",
            [
                {"question": f"{split} {n}?", "paraphrased_answer": "she did", "perturbed_answer": ["he did", "no"]}
                for n in range(3)
            ],
        )
        for split in ("forget", "retain")
    ]
    (folder / "mmlu" / "test").mkdir(parents=True)
    (folder / "mmlu" / "test" / "art_test.csv").write_text("Who?,Ida,Bo,Cy,Di,B\nWhat?,1,2,3,4,A\n")
    return EvaluationOptions(
        membership=Membership(*sides),
        choice=Choice(str(folder / "mmlu"), shots=0),
        generation=Generation(8, 8),
        sampling=Sampling(samples=4, max_new_tokens=4),
        truth=Truth(*truths),
        resamples=20,
    )


Measure = Callable[[list[str] | None], Results]


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory, tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> Measure:
    """A function that measures an adapter of noise, its base model lent, by some families or all."""
    folder = tmp_path_factory.mktemp("everything")
    adapted: Any = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear"))
    assert isinstance(adapted, PeftModel)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    options = all_options(folder)
    data = EvaluationData(*(write_lines(folder / f"{split}.jsonl", rows_of(split)) for split in ("forget", "retain")))
    retrained = Retrained({"forget": [AnswerLogprobs((-1.0,), (-2.0,))] * 5}, dict.fromkeys(ATTACKS, 0.5))

    def run(metrics: list[str] | None) -> Results:
        wanted = replace(options, metrics=metrics)
        inputs = read_inputs(data, wanted)
        return evaluate(adapted, tokenizer, inputs, wanted, reference=adapted, retrained=retrained)

    return run


@pytest.fixture(scope="module")
def evaluation(measure: Measure) -> Results:
    return measure(None)


METRICS = metrics_of(Lume([], []))
BY_NAME = {metric.name: metric for metric in METRICS}


def metric_of(score: str) -> Metric:
    """The row of the table that a score of the results belongs to; one gives all terms, one all personal data."""
    name = re.sub(r"^(forget|retain)/", "", score)
    return BY_NAME[re.sub(r"^Task\d/.*", "terms", re.sub(r"^pii/.*", "pii", name))]


def test_the_table_is_sound() -> None:
    assert len(BY_NAME) == len(METRICS)
    assert {metric.family for metric in METRICS} == {ALWAYS, *FAMILIES}
    for metric in METRICS:
        assert metric.formula
        assert metric.source
        assert metric.range in ("[0, 1]", "(0, 1]", "> 0", ">= 1")
        assert (metric.value is None) != (metric.statistic is None), "a metric is of rows, or of the whole"
        for role, wanted in (("forget", "lower"), ("retain", "higher"), ("utility", "higher")):
            assert metric.better_on(role) == (wanted if metric.better == OPPOSITE else metric.better)
    assert {name for name in BY_NAME if name.startswith("membership/") and name.endswith("/auc")} == {
        f"membership/{attack}/auc" for attack in ATTACKS
    }


def test_every_metric_is_measured_and_every_score_is_in_the_table(evaluation: Results) -> None:
    """With adapter, base model, retrained model and all files nothing of the table is missing, but for leak@16 of four
    samples."""
    assert set(BY_NAME) - {metric_of(score).name for score in evaluation.scores} == {"leak_at_16"}


def test_scores_are_in_the_range_and_direction_of_the_table(evaluation: Results) -> None:
    for name, entry in evaluation.scores.items():
        metric = metric_of(name)
        assert entry["range"] == metric.range
        assert entry["better"] == metric.better_on(name.split("/")[0])
        assert (entry["n"] >= 1) == (entry["value"] is not None)
        for value in (entry["value"], entry["low"], entry["high"]):
            if value is not None:
                least = 1 if metric.range == ">= 1" else 0
                assert least <= value <= (1 if metric.range.endswith("1]") else 1e300), name
                assert value > 0 or metric.range == "[0, 1]", name


def test_both_sets_have_the_same_scores(evaluation: Results) -> None:
    """But for the truth utility, which is one of the retain set."""
    scores = evaluation.scores
    forget, retain = ({name.removeprefix(s) for name in scores if name.startswith(s)} for s in ("forget/", "retain/"))
    assert retain - forget == {"truth_utility"}
    assert forget <= retain
    assert {name for name in forget if name.startswith("leak_at_")} == {"leak_at_1", "leak_at_4"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_alone(measure: Measure, evaluation: Results, family: str) -> None:
    """Its rows of the table and the official ones are measured, with the values that they have among all others.

    Choice is part of the official Aggregate and always there. Composites that need another family are not, and privacy
    needs no other than membership.
    """
    found = measure([family]).scores
    composites = {"open_unlearning/memorization", "utility", "retain_utility"}
    wanted = {
        name: entry
        for name, entry in evaluation.scores.items()
        if metric_of(name).family in (ALWAYS, family) and name not in composites
    }
    assert found == wanted


def test_scores_of_a_row_by_hand() -> None:
    """Rare are the words of one document: `quill` and `rivertown` are, `anna` (in five of ten) is not; one is said.

    The names and numbers that the prompt does not give are Anna, Quill and Rivertown; one of three is said.
    """
    recall = {"probability": 0.25, "exact_memorization": 0.5, "extraction_strength": 0.125, "logprob": None}
    row = sample(
        kind="sc",
        prompt="Who was born there? It is",
        expected="Anna Quill in Rivertown",
        generated="quill quill",
        recall=recall,
        ended=True,
        tokens=3,
    )
    corpus = Corpus({"anna": 5, "quill": 1, "rivertown": 1, "in": 9}, 10)
    memorization = {"verbatim_probability": 0.25, "exact_memorization": 0.5, "extraction_strength": 0.125}
    memorization["regurgitation_unicode"] = 1 / 4
    leakage = {"keyword_leakage": 1 / 2, "entity_leakage": 1 / 3}
    of_family = {name: row_scores(row, chosen(METRICS, [name]), corpus) for name in FAMILIES}
    collapse = of_family["collapse"]
    assert (collapse["distinct_1"], collapse["ended"], collapse["length"]) == (0.5, 1, 3)
    assert of_family["memorization"] == memorization
    assert of_family["leakage"] == pytest.approx(leakage)
    assert row_scores(row, METRICS, corpus) == pytest.approx(memorization | leakage | collapse)
    assert of_family["fluency"] == of_family["sampling"] == of_family["truth"] == {}
    found = replace(row, found={"perplexity": 2.0}, sampled=("a", "b"), sampled_scores=(0.0, 0.5))
    assert row_scores(found, chosen(METRICS, ["fluency", "sampling"]), corpus) == {"perplexity": 2.0, "leak_at_1": 0.25}
    assert row_scores(replace(found, sampled_scores=(None, None)), chosen(METRICS, ["sampling"]), corpus) == {
        "leak_at_1": None
    }


def test_what_is_not_defined_for_a_row_is_none() -> None:
    """An answer without rare words or names has no leakage; a row without a forward over its answer no memorization."""
    row = sample(kind="qa", prompt="Is it so?", expected="it is", generated="", ended=False, tokens=0)
    scores = row_scores(row, METRICS, Corpus({}, 1))
    assert scores["keyword_leakage"] is None
    assert scores["entity_leakage"] is None
    assert "verbatim_probability" not in scores
    assert [scores[name] for name in ("distinct_1", "longest_repetition", "compression_ratio", "degenerate")] == [
        None
    ] * 4


@pytest.mark.parametrize(
    ("family", "needs"),
    [("sampling", "sampling.samples"), ("truth", "truth.forget or")],
)
def test_a_family_by_name_needs_what_it_is_measured_on(family: str, needs: str) -> None:
    with pytest.raises(InputError, match=f"^metrics: {family} needs {needs}"):
        EvaluationOptions(metrics=["collapse", family])
    assert family in EvaluationOptions().families


def test_attacks_by_name_need_documents_wherever_they_come_from() -> None:
    """A benchmark may bring its own, so that only the read inputs tell."""
    asked = EvaluationOptions(metrics=["collapse", "membership"])
    asked.check_documents(["a text of no member"])
    with pytest.raises(InputError, match=r"^metrics: membership needs membership\.nonmember, got None"):
        asked.check_documents([])
    EvaluationOptions(metrics=["collapse"]).check_documents([])


def test_needs_that_a_whole_family_has() -> None:
    """Forget quality alone needs a retrained model, so truth as a family does not."""
    needs = {family: shared_needs(METRICS, family) for family in FAMILIES}
    assert needs == {
        "fluency": ("base",), "sampling": ("sampling",), "memorization": (), "leakage": (), "collapse": (),
        "membership": ("documents",), "truth": ("truth",),
    }  # fmt: skip

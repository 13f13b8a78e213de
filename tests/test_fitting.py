"""What cannot be measured is left out by name before anything is; what is measured has the whole text's own tokens."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from samples import lume_inputs
from tokenizer_kinds import WORDS, sentencepiece, word_level
from tokenizers import processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.fitting import Fitting
from unlearn_pl.evaluation.inputs import EvaluationInputs
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.run import evaluate
from unlearn_pl.evaluation.truth import Truth, TruthRow
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.sampling import Sampling
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.tasks.mmlu import Question, Subject

Build = Callable[[], LlamaForCausalLM]

QUESTION = Question("How many?", ("1", "2", "3", "4"), "A")
TRUTH = TruthRow("Who is Anna?", ("A painter.",), ("A keeper.", "A sister."))
OPTIONS = EvaluationOptions(
    membership=Membership(nonmember="n.jsonl", batch_size=2),
    choice=Choice("mmlu", shots=0, batch_size=2),
    generation=Generation(6, 2),
    sampling=Sampling(samples=1, max_new_tokens=3),
    truth=Truth(forget="t.jsonl"),
    resamples=3,
)


def inputs() -> EvaluationInputs:
    rows = [
        Record(f"{split}{number}{kind}", f"{split} {number} asks:", f"it is {number}", "Task1", kind[:2])  # type: ignore[arg-type]
        for split in ("forget", "retain")
        for number in (1, 2)
        for kind in ("sc1", "qa0")
    ]
    members = [row.document for row in rows[:4:2]]
    subjects = [Subject("law", (), (QUESTION, replace(QUESTION, text="Which?"))), Subject("art", (), (QUESTION,))]
    others = ["nobody knows of it", "nor of this, really"]
    return lume_inputs(rows[:4], rows[4:], members, others, subjects=subjects, truth={"forget": [TRUTH]})


def measured(model: Any, tokenizer: Any, given: EvaluationInputs) -> tuple[dict[str, Any], list[Sample]]:
    results = evaluate(model, tokenizer, given, OPTIONS, reference=model)
    return json.loads(json.dumps(results.to_json(), allow_nan=False)), list(results.samples)


def test_a_tokenizer_that_appends_eos_changes_no_measurement(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Generation, memorisation, attacks, multiple choice, perplexity, samples and truth ratios, all of them."""
    closing = copy.deepcopy(tokenizer)
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
    )
    assert closing("Anna").input_ids[-1] == tokenizer.eos_token_id != tokenizer("Anna").input_ids[-1]
    model = tiny_model()
    assert measured(model, closing, inputs()) == measured(model, tokenizer, inputs())


def taught(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> LlamaForCausalLM:
    """A model that says each text word for word, from its tokens as the tokenizer gives them for the whole."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    rows = [[*tokenizer(text).input_ids, 2] for text in texts]
    ids = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids.masked_fill(ids == 0, -100)).loss.backward()
        optimizer.step()
    return model.eval()


def test_what_is_known_by_heart_is_measured_as_known() -> None:
    """A tokenizer that puts a mark before every text: the answer's tokens are those that the model was taught."""
    tokenizer = sentencepiece()
    rows = [
        Record("f1qa0", "When was Anna born?", "1984-12-31", "Task1", "qa"),
        Record("f2qa0", "Who is Boris Feld?", "A painter", "Task1", "qa"),
        Record("r1qa0", "Where was Anna?", "Rivertown", "Task1", "qa"),
    ]
    model = taught(tokenizer, [row.document for row in rows])
    truth = {"forget": [TruthRow(rows[0].input, (rows[0].output,), ("1999-01-01",))]}
    results, samples = measured(model, tokenizer, lume_inputs(rows[:2], rows[2:], truth=truth))
    assert [sample.score for sample in samples] == [1, 1, 1]
    scores = results["scores"]
    for split in ("forget", "retain"):
        assert scores[f"{split}/exact_memorization"]["value"] == scores[f"{split}/extraction_strength"]["value"] == 1
        assert scores[f"{split}/verbatim_probability"]["value"] > 0.9
        assert scores[f"{split}/perplexity"]["value"] < 1.1
    assert scores["forget/truth_ratio"]["value"] < 0.1


def test_what_exceeds_the_positions_is_left_out_by_name(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """512 positions: one row, member, question and truth row beyond them; the rest is scored as if these were not."""
    long, plain, model = "7 " * 600, inputs(), tiny_model()
    forget, retain = plain.sets
    wide = replace(
        plain,
        sets=[
            replace(forget, rows=[*forget.rows, Record("longqa0", long, "yes", "Task1", "qa")]),
            replace(retain, rows=[Record("widesc1", "Who?", long, "Task1", "sc"), *retain.rows]),
        ],
        members=[*plain.members, long],
        nonmembers=["7", *plain.nonmembers],
        subjects=[
            replace(plain.subjects[0], questions=(*plain.subjects[0].questions, replace(QUESTION, text=long))),
            plain.subjects[1],
            Subject("long", (), (replace(QUESTION, text=long),)),
        ],
        truth={"forget": [replace(TRUTH, perturbed=(long,)), TRUTH]},
    )
    expected, expected_samples = measured(model, tokenizer, plain)
    with pytest.warns(UserWarning, match="cannot be measured") as caught:
        results, samples = measured(model, tokenizer, wide)
    notes = [
        "members: documents: 1 of 3 cannot be measured, the first is number 3: 1200 tokens exceed the",
        "non-members: documents: 1 of 3 cannot be measured, the first is number 1: a single token has no",
        "questions: 2 of 5 cannot be measured, the first is number 3",
        "truth rows of the forget set: 1 of 2 cannot be measured, the first is number 1",
        "forget set: 1 of 5 rows cannot be measured, the first is 'longqa0': its prompt of 1200 tokens and an",
        "retain set: 1 of 5 rows cannot be measured, the first is 'widesc1': its prompt of",
    ]
    assert len(results["notes"]) == len(expected["notes"]) + len(notes)
    told = [str(warning.message) for warning in caught]
    for note, got in zip(notes, results["notes"], strict=False):
        assert got.startswith(note)
        assert got.endswith("left out of the scores")
        assert got in told
    left_out = [sample for sample in samples if sample.id in ("longqa0", "widesc1")]
    assert [sample.score for sample in left_out] == [sample.generated for sample in left_out] == [None, None]
    assert [sample for sample in samples if sample not in left_out] == expected_samples
    for name in ("terms", "task_aggregate", "membership_auc", "mmlu", "aggregate", "truth", "counts", "choice"):
        assert results[name] == expected[name], name


def test_nothing_left_to_measure_is_refused_at_the_start(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast, shapes: list[tuple[int, ...]]
) -> None:
    long, plain, model = "7 " * 600, inputs(), tiny_model()
    forget, retain = plain.sets
    refused = [
        (replace(plain, members=[long]), r"members: documents: 1 of 1 cannot be measured"),
        (
            replace(plain, subjects=[Subject("law", (), (replace(QUESTION, text=long),))]),
            r"questions: 1",
        ),
        (replace(plain, truth={"forget": [replace(TRUTH, question=long)]}), r"truth rows of the forget set: 1 of 1"),
        (
            replace(plain, sets=[replace(forget, rows=[replace(forget.rows[0], input=long)]), retain]),
            r"data.forget: none of 1 rows can be measured",
        ),
    ]
    for given, message in refused:
        with pytest.raises(InputError, match=message):
            measured(model, tokenizer, given)
    assert shapes == []


def test_answers_that_the_tokenizer_does_not_know_are_no_forgotten_ones(tiny_model: Build) -> None:
    """Of three answers one is nothing but <unk>, which no model can say: it has no score; one holds an <unk>."""
    tokenizer = word_level([*WORDS, "yes", "Who?"])
    rows = [
        Record(f"f{n}qa0", "Who?", answer, "Task1", "qa") for n, answer in enumerate(("yes", "Zoltan", "yes Zoltan"))
    ]
    given = lume_inputs(rows, [Record("r1qa0", "Who?", "yes", "Task1", "qa")])
    model = tiny_model()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with pytest.warns(UserWarning, match="know"):
        results, samples = measured(model, tokenizer, given)
    assert [sample.score is None for sample in samples] == [False, True, False, False]
    assert results["counts"]["forget/Task1/knowledge"] == 2
    assert "'f1qa0': the tokenizer knows no character of its answer 'Zoltan'" in results["notes"][0]
    assert (
        "1 of 3 answers hold characters that the tokenizer does not know, the first is that of 'f2qa0'"
        in (results["notes"][1])
    )


def test_documents_without_a_limit_need_two_tokens(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    fitting = Fitting(LanguageModel(tiny_model(), tokenizer), None)
    assert fitting.kept(["two words", "7"], fitting.document, "documents") == ["two words"]
    assert fitting.notes == [
        "documents: 1 of 2 cannot be measured, the first is number 2: a single token has no loss; "
        "left out of the scores"
    ]

"""Truth ratios: does the model still prefer right answers, in other words, to wrong ones?"""

import math
import sys
import warnings
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.readers import rows_of
from unlearn_pl.data.records import text_field
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.forward import encode_texts, evaluating, position_limit
from unlearn_pl.evaluation.memorization import truth_ratio
from unlearn_pl.evaluation.network import Network
from unlearn_pl.evaluation.ranks import Work
from unlearn_pl.evaluation.recall import recall_answers


@dataclass(frozen=True)
class Truth:
    """Files of questions with paraphrased and wrong answers, in the layout of TOFU. Without one there is no ratio."""

    forget: str | None = None
    """Rows with the fields `question`, `paraphrased_answer` and `perturbed_answer` (a list) about the forget set."""
    retain: str | None = None
    """The same about the retain set."""
    batch_size: int = 16
    """Answers read together; at least 1."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"--truth.batch_size: must be at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class TruthRow:
    """A question, right answers in other words, and wrong ones of the same form."""

    question: str
    paraphrased: tuple[str, ...]
    perturbed: tuple[str, ...]


def read_truth_rows(truth: Truth) -> dict[str, list[TruthRow]]:
    """Split -> rows, of the files that are given. Raises InputError, with file and row, on what cannot be used."""
    files = {"forget": truth.forget, "retain": truth.retain}
    return {split: _rows(path, f"--truth.{split}") for split, path in files.items() if path is not None}


def _rows(path: str, argument: str) -> list[TruthRow]:
    needed = ("question", "paraphrased_answer", "perturbed_answer")
    rows = []
    for place, row in rows_of(path, argument):
        where = f"{argument}: {path}, {place}"
        answers = {}
        for field in needed[1:]:
            given = row.get(field)
            listed = given if isinstance(given, list) and given else [given]
            rows_each = [{**row, field: answer} if field in row else row for answer in listed]
            answers[field] = tuple(text_field(one, field, where, needed) for one in rows_each)
        rows.append(TruthRow(text_field(row, "question", where, needed), *answers.values()))
    if not rows:
        raise InputError(f"{argument}: {path} is empty; it must hold at least one question")
    return rows


def truth_ratios(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[TruthRow],
    batch_size: int,
    work: Work | None = None,
) -> list[float]:
    """``memorization.truth_ratio`` of each row; question and answer are joined with a space.

    A ratio that is not finite (a broken model) counts as the largest float, with a warning. Raises InputError if a
    question and an answer exceed the model's positions.
    """
    asked = [(row.question, answer) for row in rows for answer in (*row.paraphrased, *row.perturbed)]
    prompts = encode_texts(model, tokenizer, [question for question, _ in asked], "--truth: question")
    answers = [tokenizer.encode(f" {answer}", add_special_tokens=False) for _, answer in asked]
    limit = position_limit(model)
    for (question, _), prompt, answer in zip(asked, prompts, answers, strict=True):
        if limit is not None and (tokens := len(prompt) + len(answer)) > limit:
            raise InputError(
                f"--truth: a question with an answer has {tokens} tokens, the model {limit} positions: {question!r:.60}"
            )
    with evaluating(model):
        found = recall_answers(Network(model), prompts, answers, batch_size, work, "truth ratio, answers")
    logprobs = iter([recall.logprob for recall in found])
    ratios = [
        truth_ratio([next(logprobs) for _ in row.paraphrased], [next(logprobs) for _ in row.perturbed]) for row in rows
    ]
    if broken := sum(not math.isfinite(ratio) for ratio in ratios):
        warnings.warn(f"truth ratio: {broken} of {len(ratios)} rows have no finite ratio", stacklevel=2)
    return [ratio if math.isfinite(ratio) else sys.float_info.max for ratio in ratios]

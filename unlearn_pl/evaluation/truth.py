"""Truth ratios: does the model still prefer right answers, in other words, to wrong ones?"""

import math
import sys
import warnings
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import joined_ids
from unlearn_pl.data.readers import rows_of
from unlearn_pl.data.records import text_field
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.forward import evaluating, position_limit
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

    def pairs(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int]]]:
        """Token ids of the question and of each of its answers, the paraphrased ones first, as the whole texts, joined
        with a space, have them."""
        return [joined_ids(self.question, f" {answer}", tokenizer) for answer in (*self.paraphrased, *self.perturbed)]


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
            answers[field] = tuple(text_field({field: answer}, field, where, needed) for answer in listed)
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
    """``memorization.truth_ratio`` of each row.

    A ratio that is not finite (a broken model) counts as the largest float, with a warning. Raises InputError if a
    question and an answer exceed the model's positions.
    """
    pairs, limit = [pair for row in rows for pair in row.pairs(tokenizer)], position_limit(model)
    longest = max((len(question) + len(answer) for question, answer in pairs), default=0)
    if limit is not None and longest > limit:
        raise InputError(f"--truth: a question with an answer has {longest} tokens, the model {limit} positions")
    questions, answers = [question for question, _ in pairs], [answer for _, answer in pairs]
    with evaluating(model):
        found = recall_answers(Network(model), questions, answers, batch_size, work, "truth ratio, answers")
    logprobs = iter([recall.logprob for recall in found])
    ratios = [
        truth_ratio([next(logprobs) for _ in row.paraphrased], [next(logprobs) for _ in row.perturbed]) for row in rows
    ]
    if broken := sum(not math.isfinite(ratio) for ratio in ratios):
        warnings.warn(f"truth ratio: {broken} of {len(ratios)} rows have no finite ratio", stacklevel=2)
    return [ratio if math.isfinite(ratio) else sys.float_info.max for ratio in ratios]

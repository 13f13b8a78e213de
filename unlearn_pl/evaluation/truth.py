"""Truth ratios: does the model still prefer right answers, in other words, to wrong ones?"""

from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_pl.data.readers import blaming, rows_of
from unlearn_pl.data.records import text_field
from unlearn_pl.errors import InputError, check_choices, within
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.metrics.truth_ratio import AnswerLogprobs, Definition


@dataclass(frozen=True)
class Truth:
    """Files of questions with paraphrased and wrong answers, in the layout of TOFU. Without one there is no ratio."""

    forget: str | None = None
    """Rows with the fields `question`, `paraphrased_answer` and `perturbed_answer` (a list) about the forget set."""
    retain: str | None = None
    """The same about the retain set."""
    definition: Definition = "tofu_code"
    """Which mean over the wrong answers a ratio has: the geometric one for forget quality and the arithmetic one for
    the rest (tofu_code), the arithmetic one (paper), or the geometric one (open_unlearning)."""
    eos: bool = True
    """Count the end token as the last of each answer, as TOFU and open-unlearning do."""
    batch_size: int = 16
    """Answers read together; at least 1."""

    def __post_init__(self) -> None:
        with within("truth"):
            check_choices(self)
        if self.batch_size < 1:
            raise InputError(f"must be at least 1, got {self.batch_size}", "truth.batch_size")


@dataclass(frozen=True)
class TruthRow:
    """A question, right answers in other words, and wrong ones of the same form."""

    question: str
    paraphrased: tuple[str, ...]
    perturbed: tuple[str, ...]
    eos: bool = False
    """Whether the end token is the last of each answer."""

    @property
    def answers(self) -> tuple[str, ...]:
        """All of them, the paraphrased ones first."""
        return (*self.paraphrased, *self.perturbed)


def read_truth_rows(truth: Truth) -> dict[str, list[TruthRow]]:
    """Split -> rows, of the files that are given. Raises InputError, with file and row, on what cannot be used."""
    files = {"forget": truth.forget, "retain": truth.retain}
    return {split: _rows(path, f"truth.{split}", truth.eos) for split, path in files.items() if path is not None}


def _rows(path: str, name: str, eos: bool) -> list[TruthRow]:
    with blaming(name):
        rows = _read(path, eos)
        if not rows:
            raise InputError(f"{path} is empty; it must hold at least one question")
    return rows


def _read(path: str, eos: bool) -> list[TruthRow]:
    needed = ("question", "paraphrased_answer", "perturbed_answer")
    rows = []
    for where, row in rows_of(path):
        answers: dict[str, tuple[str, ...]] = {}
        for field in needed[1:]:
            given = row.get(field)
            listed = given if isinstance(given, list) and given else [given]
            rows_each = [{**row, field: answer} if field in row else row for answer in listed]
            answers[field] = tuple(text_field(one, field, where, needed) for one in rows_each)
        right, wrong = (answers[field] for field in needed[1:])
        rows.append(TruthRow(text_field(row, "question", where, needed), right, wrong, eos))
    return rows


def answer_logprobs(
    language_model: LanguageModel, rows: Sequence[TruthRow], *, batch_size: int = 16
) -> list[AnswerLogprobs]:
    """What the truth ratio of each row is made from. Raises InputError if a question and an answer exceed the model's
    positions."""
    pairs = [(row.question, answer) for row in rows for answer in row.answers]
    eos = any(row.eos for row in rows)  # of one file
    with within("truth"):
        found = language_model.likelihood(
            [question for question, _ in pairs],
            [answer for _, answer in pairs],
            eos=eos,
            batch_size=batch_size,
            what="truth ratio, answers",
        )
    logprobs = iter([one.logprob for one in found])
    return [
        AnswerLogprobs(tuple(next(logprobs) for _ in row.paraphrased), tuple(next(logprobs) for _ in row.perturbed))
        for row in rows
    ]

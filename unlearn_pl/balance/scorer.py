"""One model that takes one merged delta after the other into its weights, and is scored with each."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn_pl.balance.documents import Documents, Half
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.inputs import EvaluationInputs
from unlearn_pl.evaluation.membership import document_losses
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.run import evaluate, fitting_inputs
from unlearn_pl.inference.batches import Progress, Work
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.merging.factors import Delta
from unlearn_pl.merging.folding import FoldedWeights
from unlearn_pl.metrics.roc import membership_score


@dataclass(frozen=True)
class Scores:
    """What is measured of one merged model."""

    losses: list[float]
    """Mean NLL in nats a token of each member, then of each non-member; not finite if the model is broken."""
    task_aggregate: float
    mmlu: float | None
    terms: Mapping[str, float | None] = field(default_factory=dict)

    def aggregate(self, auc: float) -> float:
        """Mean of Task Aggregate, membership score at ``auc`` and multiple choice: the official aggregate; of the
        first two if there are no questions. NaN if ``auc`` is."""
        parts = [self.task_aggregate, membership_score(auc)] + ([] if self.mmlu is None else [self.mmlu])
        return sum(parts) / len(parts)


@dataclass(frozen=True)
class Measurement:
    """One merged model: the membership attack on its documents, and what else was measured."""

    auc: Mapping[Half, float]
    """Area under the ROC curve of the loss attack on each half of the documents, in [0, 1]; NaN if the model is
    broken."""
    scores: Scores | None = None
    """None where only the documents' losses were measured."""

    @property
    def task_aggregate(self) -> float | None:
        return None if self.scores is None else self.scores.task_aggregate

    @property
    def mmlu(self) -> float | None:
        return None if self.scores is None else self.scores.mmlu

    def aggregate(self, half: Half) -> float | None:
        """The official aggregate with the AUC of a half; None if the model is broken or was not scored."""
        return None if self.scores is None else finite(self.scores.aggregate(self.auc[half]))

    def to_json(self) -> dict[str, float | None]:
        """The headline scores on all documents."""
        auc = self.auc["all"]
        return {
            "task_aggregate": self.task_aggregate,
            "mmlu": self.mmlu,
            "membership_auc": finite(auc),
            "membership_score": finite(membership_score(auc)),
            "aggregate": self.aggregate("all"),
        }


def finite(value: float) -> float | None:
    """The number, or None if it is not finite."""
    return value if math.isfinite(value) else None


def measurement(documents: Documents, losses: list[float], scores: Scores | None = None) -> Measurement:
    """What the documents' ``losses`` say of a merged model on each half of the first split, beside its ``scores``."""
    return Measurement({half: documents.auc(losses, half) for half in ("calibration", "heldout", "all")}, scores)


class MergeScorer:
    """Scores ``model`` with merged deltas in its ``weights`` (those that an adapter changes), without loading it again.

    Raises InputError if the inputs have no documents for the attack, or no row to judge the other sets by.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: FoldedWeights,
        inputs: EvaluationInputs,
        options: EvaluationOptions,
        log: Progress | None = None,
    ):
        check_inputs(inputs)
        self.model, self.tokenizer, self.weights = model, tokenizer, weights
        self.language_model = LanguageModel(model, tokenizer)
        inputs, notes = fitting_inputs(self.language_model, inputs)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        self.documents = Documents(tuple(inputs.members), tuple(inputs.nonmembers))
        # The documents' losses are known already when a model is scored; other metrics than the official are not asked,
        # and nobody reads the texts, so that those whose score is decided need not be finished
        self.inputs = replace(inputs, members=[], nonmembers=[], truth={})
        self.options = replace(options, metrics=[], generation=replace(options.generation, stop_decided=True))
        self.work = Work(log)

    def losses(self, deltas: Mapping[str, Delta]) -> list[float]:
        """Mean NLL of each member, then of each non-member, in nats a token."""
        self.weights.fold(deltas)
        texts = [*self.documents.members, *self.documents.nonmembers]
        return document_losses(self.language_model, texts, batch_size=self.options.membership.batch_size)

    def scores(self, deltas: Mapping[str, Delta], losses: list[float] | None = None) -> Scores:
        """All scores; ``losses`` are not measured again if they are known."""
        if losses is None:
            losses = self.losses(deltas)
        else:
            self.weights.fold(deltas)
        results = evaluate(self.model, self.tokenizer, self.inputs, self.options, work=self.work)
        if results.task_aggregate is None:
            raise InputError(f"no Task Aggregate to judge merges by: {'; '.join(results.notes)}", "data")
        if self.inputs.subjects and results.mmlu is None:  # finite losses, but no finite answers
            losses = [math.nan] * len(losses)
        return Scores(losses, results.task_aggregate, results.mmlu, dict(results.terms))

    def measure(self, deltas: Mapping[str, Delta]) -> Measurement:
        """A merge that is no point of a path, such as one at the scale of its method's definition."""
        scores = self.scores(deltas)
        return measurement(self.documents, scores.losses, scores)

    def rounding(self, deltas: Mapping[str, Delta]) -> float:
        """How far what the weights hold is from ``deltas``, as a share of their norm; see ``FoldedWeights``."""
        return self.weights.rounding(deltas)


def check_inputs(inputs: EvaluationInputs) -> None:
    """Raise InputError unless there are non-members to attack, and an answer to judge in every group of rows."""
    if not inputs.nonmembers:
        raise InputError("needed: the membership attack steers the search, got none", "membership.nonmember")
    if unscored := inputs.benchmark.unscored(inputs.rows):
        raise InputError(f"no Task Aggregate to judge merges by: {unscored[0]}", "data")

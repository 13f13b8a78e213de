"""One model that takes one merged delta after the other into its weights, and is scored with each."""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.inputs import EvaluationInputs, EvaluationOptions
from unlearn_pl.evaluation.membership import document_losses
from unlearn_pl.evaluation.run import evaluate_model, fitting_inputs
from unlearn_pl.inference.batches import Progress, Work
from unlearn_pl.merging.factors import Delta
from unlearn_pl.merging.folding import FoldedWeights
from unlearn_pl.metrics.intervals import auc_interval
from unlearn_pl.metrics.roc import area_under_curve, halves, membership_score
from unlearn_pl.metrics.scores import unscored_terms


@dataclass(frozen=True)
class Documents:
    """Members and non-members of a membership attack, by halves: one to calibrate on, one held out."""

    members: tuple[str, ...]
    nonmembers: tuple[str, ...]

    def parts(self, seed: int) -> list[tuple[list[int], list[int]]]:
        """The halves (calibration, held out) of the members and of the non-members, by the split with this ``seed``.

        Raises InputError if one of the four parts is empty.
        """
        parts = [halves(self.members, seed), halves(self.nonmembers, seed)]
        if not all(half for part in parts for half in part):
            raise InputError(
                "--membership: calibrating needs members and non-members in both halves; of "
                f"{len(self.members)} and {len(self.nonmembers)} documents one half has none: give more"
            )
        return parts

    def sides(self, losses: list[float], seed: int, half: int | None) -> tuple[list[float], list[float]]:
        """Attack scores (-loss) of members and non-members in the calibration half (0), the other (1) or both
        (None)."""
        scores = [-loss for loss in losses]
        members, nonmembers = scores[: len(self.members)], scores[len(self.members) :]
        if half is None:
            return members, nonmembers
        kept = [part[half] for part in self.parts(seed)]
        return [members[i] for i in kept[0]], [nonmembers[i] for i in kept[1]]

    def step(self, seed: int = 0, half: int = 0) -> float:
        """The least by which the AUC of a half can change: one pair of a member and a non-member in other order."""
        members, nonmembers = (len(part[half]) for part in self.parts(seed))
        return 1 / (members * nonmembers)

    def auc(self, losses: list[float], seed: int = 0, half: int | None = None) -> float:
        """Area under the ROC curve of the loss attack, in [0, 1]; NaN if a loss is not finite, as of a broken model."""
        if not all(map(math.isfinite, losses)):
            return math.nan
        return area_under_curve(*self.sides(losses, seed, half))

    def interval(self, losses: list[float], seed: int = 0, half: int | None = None) -> tuple[float, float]:
        """95 % interval of ``auc``; all of [0, 1] with a single document on a side."""
        return auc_interval(*self.sides(losses, seed, half)) or (0.0, 1.0)


@dataclass(frozen=True)
class Scores:
    """What is measured of one merged model."""

    losses: list[float]
    """Mean NLL in nats a token of each member, then of each non-member."""
    task_aggregate: float
    mmlu: float | None
    terms: dict[str, float] = field(default_factory=dict)

    def aggregate(self, auc: float) -> float:
        """Mean of Task Aggregate, membership score at ``auc`` and multiple choice: the official aggregate; of the
        first two if there are no questions."""
        parts = [self.task_aggregate, membership_score(auc)] + ([] if self.mmlu is None else [self.mmlu])
        return sum(parts) / len(parts)

    def facts(self, auc: float) -> dict[str, float | None]:
        """The scores at ``auc``, for JSON; None for what a model without finite losses (``auc`` is NaN) has not."""
        broken = not math.isfinite(auc)
        return {
            "task_aggregate": self.task_aggregate,
            "mmlu": self.mmlu,
            "membership_auc": None if broken else auc,
            "membership_score": None if broken else membership_score(auc),
            "aggregate": None if broken else self.aggregate(auc),
        }


class MergeScorer:
    """Scores ``model`` (adapters off, it has none) with merged deltas in its weights, without loading it again.

    Raises InputError if the inputs have no documents for the attack.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        modules: Iterable[str],
        inputs: EvaluationInputs,
        options: EvaluationOptions,
        progress: Progress | None = None,
    ):
        if not inputs.nonmembers:
            raise InputError("--membership.nonmember: needed: the membership attack steers the search, got none")
        rows = [(split, record.task, record.kind, record.output) for split, record in inputs.split_records]
        if unscored := unscored_terms(rows):
            raise InputError(
                f"--data: no Task Aggregate to judge merges by: ROUGE, which knows only a-z and 0-9, sees nothing of "
                f"any answer of {unscored[0]}"
            )
        self.model, self.tokenizer = model, tokenizer
        self.weights = FoldedWeights(model, modules)
        inputs, notes = fitting_inputs(model, tokenizer, inputs)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        self.documents = Documents(tuple(inputs.members), tuple(inputs.nonmembers))
        # The documents' losses are known already when a model is scored; other metrics than the official are not asked
        self.inputs = replace(inputs, members=[], nonmembers=[], truth={})
        self.options = replace(options, metrics=[])
        self.batch_size = options.membership.batch_size
        self.work = Work(progress)

    def losses(self, deltas: Mapping[str, Delta]) -> list[float]:
        """Mean NLL of each member, then of each non-member, in nats a token."""
        self.weights.fold(deltas)
        texts = [*self.documents.members, *self.documents.nonmembers]
        return document_losses(self.model, self.tokenizer, texts, self.batch_size)

    def scores(self, deltas: Mapping[str, Delta], losses: list[float] | None = None) -> Scores:
        """All scores; ``losses`` are not measured again if they are known."""
        if losses is None:
            losses = self.losses(deltas)
        else:
            self.weights.fold(deltas)
        results: dict[str, Any] = evaluate_model(
            self.model, self.tokenizer, self.inputs, self.options, self.work
        ).results
        if results["task_aggregate"] is None:
            raise InputError(f"--data: no Task Aggregate to judge merges by: {'; '.join(results['notes'])}")
        if self.inputs.subjects and results["mmlu"] is None:  # finite losses, but no finite answers
            losses = [math.nan] * len(losses)
        return Scores(losses, results["task_aggregate"], results["mmlu"], results["terms"])

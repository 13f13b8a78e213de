"""The merges along the paths between two adapters, each measured once."""

import math
from collections.abc import Iterator, Sequence

import torch

from unlearn_pl.balance.documents import Half
from unlearn_pl.balance.interpolation import interpolate
from unlearn_pl.balance.path import MergePath, Point
from unlearn_pl.balance.scorer import Measurement, MergeScorer, Scores, measurement
from unlearn_pl.inference.batches import Progress, of_first_process

# Two methods are taken to be as far from each other, at the same shares, as two shares that differ by this
METHOD_GAP = 0.3
LEAST_LOSS = 1e-9


class Measurements:
    """What was measured at the points of a path, in the order in which they were visited; asked for another point, it
    measures that."""

    def __init__(self, path: MergePath, scorer: MergeScorer, log: Progress | None = None):
        self.path, self.scorer, self.documents = path, scorer, scorer.documents
        self.log: Progress = log or (lambda line: None)
        self._losses: dict[Point, list[float]] = {}
        self._scores: dict[Point, Scores] = {}
        self._known: dict[object, tuple[list[float], Scores | None]] = {}
        """The same by what is merged, which points may share."""

    def losses(self, point: Point) -> list[float]:
        """Losses of all documents at a point, in nats a token."""
        if point not in self._losses:
            if point.identity not in self._known:
                losses = self.scorer.losses(self.path.merge(point)[0])
                self._known[point.identity] = losses, None
                auc = self.documents.auc(losses, "calibration")
                told = f"calibration AUC {auc:.3f}" if math.isfinite(auc) else "losses are not finite, it is left out"
                self.log(f"{point}: {told}")
            self._losses[point] = self._known[point.identity][0]
        return self._losses[point]

    def __iter__(self) -> Iterator[Point]:
        return iter(self._losses)

    def __contains__(self, point: Point) -> bool:
        return point in self._losses

    def guess(self, points: Sequence[Point], split: int = 0) -> list[float]:
        """The AUC of a split's calibration half to be expected at ``points``, from the losses of each document at all
        that was measured. No result: it says where to measure."""
        measured = {point: losses for point, losses in self._losses.items() if all(map(math.isfinite, losses))}
        groups = max(len(point.offsets) or 1 for point in [*measured, *points])
        kinds = list(dict.fromkeys((point.ray.method, point.ray.density) for point in [*measured, *points]))

        def place(point: Point) -> list[float]:
            kind = kinds.index((point.ray.method, point.ray.density))
            return [*point.shares(groups), *(METHOD_GAP * (number == kind) for number in range(len(kinds)))]

        known, wanted = (torch.tensor([place(point) for point in some]).double() for some in (measured, points))
        # in logs: from a document known by heart to one that is forgotten its loss grows a thousandfold
        logs = torch.tensor(list(measured.values()), dtype=torch.float64).clamp(min=LEAST_LOSS).log()
        losses = interpolate(known, logs, wanted)
        return of_first_process(self.documents.aucs(losses, "calibration", split).tolist())

    def auc(self, point: Point, half: Half = "calibration", split: int = 0) -> float:
        """AUC of a half of the documents at a point; NaN if it breaks the model."""
        return self.documents.auc(self.losses(point), half, split)

    def scores(self, point: Point) -> Scores:
        """All scores at a point."""
        if point not in self._scores:
            losses = self.losses(point)
            known = self._known[point.identity][1]
            self._scores[point] = known or self.scorer.scores(self.path.merge(point)[0], losses)
            self._losses[point] = self._scores[point].losses  # not finite if its answers to questions are not
            self._known[point.identity] = self._losses[point], self._scores[point]
            self.log(f"{point}: Aggregate on the calibration half {self.objective(point):.3f}")
        return self._scores[point]

    def objective(self, point: Point) -> float:
        """The score that a search maximises: the aggregate on the calibration half; endlessly bad if broken."""
        scores, auc = self.scores(point), self.auc(point)
        return scores.aggregate(auc) if math.isfinite(auc) else -math.inf

    def measured(self) -> dict[Point, Measurement]:
        """Every point visited, with what was measured there."""
        return {
            point: measurement(self.documents, losses, self._scores.get(point))
            for point, losses in self._losses.items()
        }

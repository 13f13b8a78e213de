"""The search for a merge that a membership attack cannot tell from a model that never saw the documents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn_pl.balance.crossing import find_crossings
from unlearn_pl.balance.measurements import Measurements
from unlearn_pl.balance.options import BalanceOptions
from unlearn_pl.balance.path import OVER, UNDER, MergePath, Point, Ray, open_path
from unlearn_pl.balance.result import Balance, Split
from unlearn_pl.balance.scorer import Measurement, MergeScorer
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.inputs import EvaluationInputs, read_inputs
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.inference.batches import Progress
from unlearn_pl.merging.folding import FoldedWeights
from unlearn_pl.models.arrival import refuse_broken
from unlearn_pl.models.load import refuse_quantised
from unlearn_pl.tasks.base import Benchmark

LEVEL = 0.5
# A path is looked at in so many steps of the coefficient: fine enough for an AUC that goes from 0 to 1 in a tenth of it
PLACES = 1000
FIRST_OFFSET = 0.2


def find_balance(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapters: Sequence[str | Path],
    inputs: Benchmark | EvaluationInputs,
    options: BalanceOptions | None = None,
    *,
    evaluation: EvaluationOptions | None = None,
    seed: int = 42,
    log: Progress | None = None,
) -> Balance:
    """The merge of the over- and the under-forgetting adapter (folders, in this order) whose membership AUC is one
    half, with the best Task Aggregate and multiple choice.

    ``inputs`` are those of ``evaluate``: a benchmark, read with ``evaluation``, or what ``read_inputs`` read of one.
    The merges are scored in the weights of ``base``, which are as they were afterwards, also after an error. Of
    ``evaluation`` the documents, questions and generation count. ``seed`` is that of the random pruning of the dare and
    della kinds. Under several processes all must call this; each computes a part of the losses, and all find the same.

    Raises InputError if the adapters, the base or the inputs do not fit each other or the options.
    """
    refuse_quantised(base, "scoring a merge in the base's weights")
    refuse_broken(base, "the score of a merge")
    path = open_path(base, adapters, seed)
    evaluation = evaluation or EvaluationOptions()
    read = read_inputs(inputs, evaluation) if isinstance(inputs, Benchmark) else inputs
    with FoldedWeights(base, path.order) as weights:
        scorer = MergeScorer(base, tokenizer, weights, read, evaluation, log)
        return search(path, scorer, options or BalanceOptions(), log)


def search(path: MergePath, scorer: MergeScorer, options: BalanceOptions, log: Progress | None = None) -> Balance:
    """Search, choose, verify. Every choice looks at the calibration half of the documents alone."""
    check_search(path, scorer, options)
    merges = Measurements(path, scorer, log)
    ends = check_ends(merges)
    searching = BalanceSearch(merges, options)
    chosen, crossings = searching.run()
    splits = searching.splits(chosen)
    merged = path.merged(chosen)
    scores = merges.scores(chosen)
    ties = plain_ties(path, scorer)
    points = merges.measured()
    return Balance(
        chosen=chosen,
        crossings=tuple(crossings),
        points=points,
        splits=tuple(splits),
        compared=ends | ties | {"balanced": points[chosen]},
        documents=scorer.documents,
        interval=scorer.documents.interval(scores.losses, "heldout"),
        tolerance=searching.tolerance(),
        merged=merged,
        hashes=path.hashes,
        rounding=scorer.rounding(merged.deltas),
    )


def check_search(path: MergePath, scorer: MergeScorer, options: BalanceOptions) -> None:
    """Raise InputError for what cannot be searched, before anything is measured."""
    for ray in options.rays():
        try:
            path.check(ray)
        except InputError as error:
            raise InputError(f"{ray.method} cannot be searched: {error.reason}", "methods") from error
    scorer.documents.check(options.splits)
    if options.groups > path.layers:
        raise InputError(f"must be at most {path.layers}, the adapted layers, got {options.groups}", "groups")


def check_ends(merges: Measurements) -> dict[str, Measurement]:
    """The two adapters alone, measured. Raises InputError if one of them breaks the model."""
    for name, point in (("over", OVER), ("under", UNDER)):
        if not (math.isfinite(merges.auc(point)) and math.isfinite(merges.objective(point))):
            raise InputError(
                f"with the {name}-forgetting adapter alone the losses of documents, or the logits of questions, are "
                "not finite; it breaks the model",
                "adapters",
            )
    measured = merges.measured()
    return {"over": measured[OVER], "under": measured[UNDER]}


def plain_ties(path: MergePath, scorer: MergeScorer) -> dict[str, Measurement]:
    """The paper's merge, for comparison, where the adapters can be merged so."""
    try:
        path.check(Ray("ties"))
    except InputError:
        return {}
    return {"ties": scorer.measure(path.merge_plainly(Ray("ties")))}


@dataclass(frozen=True)
class BalanceSearch:
    """Where the AUC of the calibration half is one half, and which of these merges is best."""

    merges: Measurements
    options: BalanceOptions

    def run(self) -> tuple[Point, list[Point]]:
        """The chosen point, and the crossings of one half among which it was chosen.

        Without crossings one half is out of reach: what balances best may then be an adapter by itself.
        """
        rays = self.options.rays()
        self.measure_grid(rays)
        found = {ray: self.crossings(ray) for ray in sorted(rays, key=far_from_one)}
        crossings = [point for ray in rays for point in found[ray]]
        self.merges.log(
            f"{len(crossings)} crossings of an AUC of one half on {len(rays)} paths; the AUC of the calibration half "
            f"moves in steps of {self.merges.documents.step():.4f}"
        )
        candidates = crossings or [*map(self.nearest, rays), OVER, UNDER]
        for point in candidates:
            self.merges.scores(point)
        if crossings and not (crossings := [one for one in crossings if math.isfinite(self.merges.auc(one))]):
            candidates = [OVER, UNDER]  # no merge answers questions
        chosen = max(candidates, key=self.merges.objective)
        if self.options.groups > 1 and crossings:
            chosen = self.improve_groups(chosen)
        return chosen, crossings

    def measure_grid(self, rays: Sequence[Ray]) -> None:
        """Measure where the AUC goes on one path; the guesses on the others begin from there."""
        first, steps = min(rays, key=far_from_one), self.options.grid - 1
        for step in range(steps + 1):
            self.merges.losses(Point(first, coefficient(first, round(step / steps * PLACES))))

    def crossings(self, ray: Ray, offsets: tuple[float, ...] = (), split: int = 0) -> list[Point]:
        """Where the calibration AUC of a split is one half on a path."""
        points = [Point(ray, coefficient(ray, place), offsets) for place in range(PLACES + 1)]
        places = find_crossings(
            lambda place: self.merges.auc(points[place], split=split),
            lambda: self.merges.guess(points, split),
            {place: self.merges.auc(point, split=split) for place, point in enumerate(points) if point in self.merges},
            LEVEL,
            tolerance=self.tolerance(split),
            evaluations=self.options.evaluations,
        )
        return [points[place] for place in places]

    def tolerance(self, split: int = 0) -> float:
        """The option's, or half a step of the AUC (whatever that rounds to): nearer than that it may not come."""
        return max(self.options.tolerance, self.merges.documents.step(split=split) / 2 * (1 + 1e-9))

    def nearest(self, ray: Ray, offsets: tuple[float, ...] = (), split: int = 0) -> Point:
        """Of the points visited on a path that with the calibration AUC nearest to one half."""
        visited = [point for point in self.merges if point.ray == ray and point.offsets == offsets]
        aucs = {point: self.merges.auc(point, split=split) for point in visited}
        finite = [point for point in visited if math.isfinite(aucs[point])]
        return min(finite or [OVER], key=lambda point: abs(self.merges.auc(point, split=split) - LEVEL))

    def improve_groups(self, start: Point) -> Point:
        """Move the coefficient of one group of layers after the other, up and down, each time back at an AUC of one
        half by the common coefficient; keep what has the better aggregate. Then once more with half the step."""
        best = replace(start, offsets=(0.0,) * self.options.groups)
        for step in (FIRST_OFFSET, FIRST_OFFSET / 2):
            for group, sign in product(range(self.options.groups), (1, -1)):
                offsets = tuple(one + sign * step * (g == group) for g, one in enumerate(best.offsets))
                best = max([best, *self.crossings(best.ray, offsets)], key=self.merges.objective)
        return best

    def splits(self, chosen: Point) -> list[Split]:
        """The chosen method and scale calibrated on each split of the documents: the crossing nearest to the chosen
        coefficient (without one, what comes nearest to one half), and what the held-out half says there."""
        found = [self.split(chosen, 0)]
        for seed in range(1, self.options.splits):
            points = self.crossings(chosen.ray, chosen.offsets, seed) or [
                self.nearest(chosen.ray, chosen.offsets, seed)
            ]
            nearest = min(points, key=lambda point: abs(point.coefficient - chosen.coefficient))
            found.append(self.split(nearest, seed))
        return found

    def split(self, point: Point, seed: int) -> Split:
        """What a split says at its own point."""
        calibration, heldout = (self.merges.auc(point, half, seed) for half in ("calibration", "heldout"))
        return Split(seed, point.coefficient, calibration, heldout)


def coefficient(ray: Ray, place: int) -> float:
    """That of a place, 0 to ``PLACES``, on a path."""
    return ray.least + (1 - 2 * ray.least) * place / PLACES


def far_from_one(ray: Ray) -> float:
    """How far a path's scale is from the interpolation's own."""
    return abs(math.log(ray.scale))

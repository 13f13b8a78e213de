"""The search for a merge that a membership attack cannot tell from a model that never saw the documents."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from unlearn_pl.balance.crossing import Crossing, find_crossings
from unlearn_pl.balance.path import LEAST_MIX, MergePath, Point
from unlearn_pl.balance.scorer import MergeScorer, Scores
from unlearn_pl.errors import InputError
from unlearn_pl.inference.batches import Progress
from unlearn_pl.merging.merge import merge_modules
from unlearn_pl.merging.methods import find_method
from unlearn_pl.merging.options import MergeOptions

LEVEL = 0.5
SHIFT = 0.2
"""First step of a group's mix."""


@dataclass(frozen=True)
class BalanceOptions:
    """Where to search for the merge with a membership AUC of one half."""

    methods: list[str] = field(default_factory=lambda: ["cat", "ties"])
    """Merge methods (`unlearn-pl merge --list`); cat is the exact interpolation of the two deltas."""
    scales: list[float] = field(default_factory=lambda: [0.75, 1.0, 1.25])
    """Sizes of the merged delta, as multiples of the interpolation's; above 0."""
    densities: list[float] | None = None
    """Densities to try with the methods that prune, in (0, 1]; the default density alone without it."""
    grid: int = 5
    """Mixes from 0 to 1 at which the AUC is measured first, to see between which it crosses; at least 2."""
    evaluations: int = 8
    """Further measurements at most to find each crossing; at least 1. None is taken where the AUC on the two sides
    differs by one step, 1 / (members x non-members of the calibration half): the documents cannot tell more."""
    tolerance: float = 0.01
    """A crossing is found when the AUC is this near to one half, or within half a step of it; in (0, 0.5)."""
    splits: int = 3
    """Splits of the documents into calibration and held-out halves: the search runs on the first, the method and scale
    found are calibrated again on each other one, to see how far the result depends on the split; at least 1."""
    groups: int = 1
    """Groups of neighbouring layers that get a mix of their own in the end; 1 for one mix in all."""

    def __post_init__(self) -> None:
        for name, least in (("grid", 2), ("evaluations", 1), ("splits", 1), ("groups", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--search.{name}: must be at least {least}, got {getattr(self, name)}")
        if not self.methods or not self.scales or self.densities == []:
            raise InputError("--search.methods, scales and densities: at least one of each is needed, got none")
        if min(self.scales) <= 0:
            raise InputError(f"--search.scales: must be above 0, got {min(self.scales)}")
        if not 0 < self.tolerance < 0.5:
            raise InputError(f"--search.tolerance: must be in (0, 0.5), got {self.tolerance}")
        for method in self.methods:
            if find_method(method, parameter="search.methods").form == "dense":
                raise InputError(f"--search.methods: {method} gives no adapter; its _svd form does")

    def rays(self) -> list[Point]:
        """One point (its mix does not count) for each path that is searched."""
        rays = []
        for method, scale in product(self.methods, self.scales):
            prunes = "density" in find_method(method).kernel.parameters
            densities = self.densities if prunes and self.densities else [None]
            rays += [Point(LEVEL, scale, method, density) for density in densities]
        return rays


@dataclass
class BalanceSearch:
    """The state of one search. ``run`` does all of it."""

    path: MergePath
    scorer: MergeScorer
    options: BalanceOptions
    progress: Progress | None = None
    measured: dict[Point, list[float]] = field(default_factory=dict)
    """Losses of the documents at each point visited."""
    scored: dict[Point, Scores] = field(default_factory=dict)
    known: dict[tuple[Any, ...], tuple[list[float], Scores | None]] = field(default_factory=dict)
    """The same by what is merged, which points may share."""

    def __post_init__(self) -> None:
        for ray in self.options.rays():
            self.check(ray)
        for seed in range(self.options.splits):
            self.scorer.documents.parts(seed)
        if self.options.groups > self.path.layers:
            raise InputError(
                f"--search.groups: must be at most {self.path.layers}, the adapted layers, got {self.options.groups}"
            )

    def check(self, ray: Point) -> None:
        """Raise InputError if the adapters cannot be merged so."""
        try:
            self.path.check(ray.method, ray.density)
        except InputError as error:
            raise InputError(f"{ray.method} cannot be searched: {error.reason}", "search.methods") from error

    def run(self) -> dict[str, Any]:
        """Search, choose, verify; the result as it is written to `balance.json`.

        Every choice looks at the calibration half of the documents alone.
        """
        ends = self.ends()
        crossings = [
            (replace(ray, mix=found.at), found) for ray in self.options.rays() for found in self.crossings(ray)
        ]
        reached = [point for point, found in crossings if found.reached]
        step = self.scorer.documents.step()
        self.tell(
            f"{len(reached)} crossings of an AUC of one half on {len(self.options.rays())} paths; the AUC of the "
            f"calibration half moves in steps of {step:.4f}"
        )
        # without a crossing one half is out of reach: what balances best may then be an adapter by itself
        candidates = reached or [*map(self.nearest, self.options.rays()), Point(0.0), Point(1.0)]
        for point in candidates:
            self.score(point)
        if reached and not (reached := [point for point in reached if math.isfinite(self.auc(point))]):
            candidates = [Point(0.0), Point(1.0)]  # no merge answers questions
        chosen = max(candidates, key=self.worth)
        if self.options.groups > 1 and reached:
            chosen = self.improve_groups(chosen)
        return self.result(chosen, bool(reached), ends)

    # --- measuring ---

    def ends(self) -> list[Scores]:
        """Scores of the two adapters alone. Raises InputError if one of them breaks the model."""
        for name, point in (("over", Point(0.0)), ("under", Point(1.0))):
            if not (math.isfinite(self.auc(point)) and math.isfinite(self.worth(point))):
                raise InputError(
                    f"--adapters: with the {name}-forgetting adapter alone the losses of documents, or the logits of "
                    "questions, are not finite; it breaks the model"
                )
        return [self.score(Point(mix)) for mix in (0.0, 1.0)]

    def losses(self, point: Point) -> list[float]:
        """Losses of all documents at a point; each merge is measured once."""
        if point not in self.measured:
            if point.identity in self.known:
                self.measured[point] = self.known[point.identity][0]
                return self.measured[point]
            self.measured[point] = self.scorer.losses(self.path.merge(point)[0])
            self.known[point.identity] = self.measured[point], None
            auc = self.scorer.documents.auc(self.measured[point], half=0)
            told = f"calibration AUC {auc:.3f}" if math.isfinite(auc) else "losses are not finite, it is left out"
            self.tell(f"{named(point)}: {told}")
        return self.measured[point]

    def auc(self, point: Point, seed: int = 0, half: int | None = 0) -> float:
        """AUC at a point; of the calibration half if not said otherwise."""
        return self.scorer.documents.auc(self.losses(point), seed, half)

    def score(self, point: Point) -> Scores:
        """All scores at a point."""
        if point not in self.scored:
            losses = self.losses(point)
            known = self.known[point.identity][1]
            self.scored[point] = known or self.scorer.scores(self.path.merge(point)[0], losses)
            self.measured[point] = self.scored[point].losses  # not finite if its answers to questions are not
            self.known[point.identity] = self.measured[point], self.scored[point]
            self.tell(f"{named(point)}: Aggregate on the calibration half {self.worth(point):.3f}")
        return self.scored[point]

    def worth(self, point: Point) -> float:
        """What is to be as large as possible: the aggregate on the calibration half; endlessly bad if broken."""
        scores, auc = self.score(point), self.auc(point)
        return scores.aggregate(auc) if math.isfinite(auc) else -math.inf

    # --- searching ---

    def crossings(self, ray: Point, seed: int = 0) -> list[Crossing]:
        """Where the calibration AUC of the split ``seed`` crosses one half on a path, by mix."""
        elects = find_method(ray.method).kernel.elects_sign
        low = LEAST_MIX if elects else 0.0
        steps = self.options.grid - 1
        grid = [low + (1 - 2 * low) * step / steps for step in range(steps + 1)]
        return find_crossings(
            lambda mix: self.auc(replace(ray, mix=mix), seed), grid, LEVEL, self.tolerance(seed),
            self.options.evaluations, self.scorer.documents.step(seed),
        )  # fmt: skip

    def tolerance(self, seed: int = 0) -> float:
        """The option's, or half a step of the AUC (whatever that rounds to): nearer than that it may not come."""
        return max(self.options.tolerance, self.scorer.documents.step(seed) / 2 * (1 + 1e-9))

    def nearest(self, ray: Point) -> Point:
        """Of the points visited on a path that with the calibration AUC nearest to one half."""
        visited = [
            point for point in self.measured if replace(point, mix=ray.mix) == ray and math.isfinite(self.auc(point))
        ]
        return min(visited or [Point(0.0)], key=lambda point: abs(self.auc(point) - LEVEL))

    def improve_groups(self, start: Point) -> Point:
        """Shift the mix of one group of layers after the other, up and down, each time back at an AUC of one half by
        the common mix; keep what has the better aggregate. Then once more with half the step."""
        best = replace(start, shifts=(0.0,) * self.options.groups)
        for step in (SHIFT, SHIFT / 2):
            for group, sign in product(range(self.options.groups), (1, -1)):
                shifts = tuple(s + sign * step * (g == group) for g, s in enumerate(best.shifts))
                ray = replace(best, shifts=shifts)
                found = [replace(ray, mix=one.at) for one in self.crossings(ray) if one.reached]
                best = max([best, *found], key=self.worth)
        return best

    # --- the result ---

    def result(self, chosen: Point, crosses: bool, ends: Iterable[Scores]) -> dict[str, Any]:
        """`balance.json`."""
        documents, losses = self.scorer.documents, self.losses(chosen)
        low, high = documents.interval(losses, half=1)
        splits = self.splits(chosen)
        message = self.crossing(chosen) if crosses else self.no_crossing()
        return {
            "crosses": crosses,
            "message": message,
            "chosen": self.entry(chosen),
            "calibration_auc": documents.auc(losses, half=0),
            "holdout_auc": documents.auc(losses, half=1),
            "holdout_interval": [low, high],
            "splits": splits,
            "ranges": ranges(splits),
            "compared": {
                **{name: self.compared(scores) for name, scores in zip(("over", "under"), ends, strict=True)},
                **self.plain_ties(),
                "balanced": self.compared(self.score(chosen)),
            },
            "documents": {
                "member": len(documents.members),
                "nonmember": len(documents.nonmembers),
                "calibration": [len(part[0]) for part in documents.parts(0)],
                "holdout": [len(part[1]) for part in documents.parts(0)],
                "auc_step": [documents.step(half=half) for half in (0, 1)],
            },
            "path": [self.entry(point) for point in self.measured],
        }

    def entry(self, point: Point) -> dict[str, Any]:
        """A point of the path for JSON; scores are None where only the documents' losses were measured."""
        scores = self.scored.get(point)
        calibration, holdout = (self.auc(point, half=half) for half in (0, 1))
        broken = not math.isfinite(calibration)
        return point.facts() | {
            "auc": None if broken else self.auc(point, half=None),
            "calibration_auc": None if broken else calibration,
            "holdout_auc": None if broken else holdout,
            "task_aggregate": None if scores is None else scores.task_aggregate,
            "mmlu": None if scores is None else scores.mmlu,
            "aggregate_calibration": None if scores is None or broken else scores.aggregate(calibration),
            "aggregate_holdout": None if scores is None or broken else scores.aggregate(holdout),
            "terms": None if scores is None else scores.terms,
        }

    def compared(self, scores: Scores) -> dict[str, Any]:
        """A model in the final comparison, by the held-out half and by all documents."""
        holdout = self.scorer.documents.auc(scores.losses, half=1)
        broken = not math.isfinite(holdout)
        return scores.facts(self.scorer.documents.auc(scores.losses)) | {
            "holdout_auc": None if broken else holdout,
            "aggregate_holdout": None if broken else scores.aggregate(holdout),
        }

    def plain_ties(self) -> dict[str, Any]:
        """The paper's merge, for comparison, where the adapters can be merged so."""
        try:
            self.path.check("ties", None)
        except InputError:
            return {}
        deltas = merge_modules(self.path.parents, MergeOptions().settings(2), self.path.order)
        return {"ties": self.compared(self.scorer.scores(deltas))}

    def splits(self, chosen: Point) -> list[dict[str, Any]]:
        """The chosen method and scale calibrated on each split of the documents: the crossing nearest to the chosen
        mix, and what the held-out half says there."""
        found = [{"seed": 0, **self.split_entry(chosen, 0)}]
        for seed in range(1, self.options.splits):
            crossings = self.crossings(chosen, seed)
            points = [replace(chosen, mix=one.at) for one in crossings] or [chosen]
            nearest = min(points, key=lambda point: abs(point.mix - chosen.mix))
            found.append({"seed": seed, **self.split_entry(nearest, seed)})
        return found

    def split_entry(self, point: Point, seed: int) -> dict[str, float]:
        """What a split says at its own point."""
        halves = {"calibration_auc": self.auc(point, seed, 0), "holdout_auc": self.auc(point, seed, 1)}
        return {"mix": point.mix, **halves}

    def crossing(self, chosen: Point) -> str:
        """What to say of a crossing: also if it costs more than it gains."""
        ends = {"over": Point(0.0), "under": Point(1.0)}
        better = [name for name, end in ends.items() if self.worth(end) > self.worth(chosen)]
        rest = f", but the {better[0]}-forgetting adapter alone has the better Aggregate there" if better else ""
        return f"the AUC crosses one half{rest}"

    def no_crossing(self) -> str:
        """What to say if no path crosses one half."""
        aucs = [auc for auc in map(self.auc, self.measured) if math.isfinite(auc)]
        return (
            f"no crossing: the calibration AUC went from {min(aucs):.3f} to {max(aucs):.3f} and never came within "
            f"{self.tolerance():.3g} of one half; of the nearest point of each path and the two adapters the best "
            "is taken. Try other --search.scales, or adapters that forget more or less"
        )

    def tell(self, line: str) -> None:
        if self.progress is not None:
            self.progress(line)


def named(point: Point) -> str:
    """A point in a few words."""
    density = "" if point.density is None else f", density {point.density:g}"
    shifts = f", shifts {' '.join(f'{shift:+g}' for shift in point.shifts)}" if point.shifts else ""
    return f"{point.method} mix {point.mix:.4f} scale {point.scale:g}{density}{shifts}"


def ranges(splits: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Least and largest held-out AUC and mix of the splits. No standard error: the splits share documents, and those
    that one holds out chose the method and scale on the first."""
    return {
        name: [min(split[name] for split in splits), max(split[name] for split in splits)]
        for name in ("holdout_auc", "mix")
    }

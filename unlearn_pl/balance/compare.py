"""Merge methods scored twice: at the scale that their definitions give the delta, and all at one norm.

Sums of two adapters are about twice as large as their mean, and factor-space sums four times: a comparison at the
scales of the definitions compares scales as well as methods.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_pl.balance.conflict import measure_conflict
from unlearn_pl.balance.opening import Opened
from unlearn_pl.balance.path import Point
from unlearn_pl.balance.scorer import Scores
from unlearn_pl.inference.batches import Progress
from unlearn_pl.merging.factors import norm
from unlearn_pl.merging.merge import merge_modules
from unlearn_pl.merging.methods import METHODS, find_method
from unlearn_pl.merging.options import MergeOptions

HALF = 0.5


def default_methods() -> list[str]:
    """Every method that gives an adapter, once: task_arithmetic is cat by another name."""
    return [name for name, method in METHODS.items() if method.form != "dense" and name != "task_arithmetic"]


@dataclass(frozen=True)
class Comparison:
    """Scores of merges of two adapters with equal weights."""

    opened: Opened
    seed: int = 42
    progress: Progress | None = None

    def rows(self, methods: Sequence[str], densities: Sequence[float] | None = None) -> list[dict[str, Any]]:
        """One entry a method and density: size, conflict, and both scores.

        Raises InputError if the adapters cannot be merged by one of the methods, before any is scored.
        """
        cases = [
            (method, density)
            for method in methods
            for density in (densities if densities and self._prunes(method) else [None])
        ]
        for method, density in cases:
            self.opened.path.check(method, density)
        rows = []
        for number, (method, density) in enumerate(cases, start=1):
            rows.append(self.row(method, density))
            if self.progress is not None:
                self.progress(f"{number} of {len(cases)}: {method}" + (f", density {density:g}" if density else ""))
        return rows

    def row(self, method: str, density: float | None) -> dict[str, Any]:
        """One method: ``defined`` with weights 1 and 1, ``normalised`` at the norm of the exact mean of the deltas."""
        path = self.opened.path
        settings = MergeOptions(method=method, density=density, seed=self.seed).settings(2)
        deltas = merge_modules(path.parents, settings, path.order)
        conflict = measure_conflict(path.parents, settings, path.order)
        levelled, _ = path.merge(Point(HALF, method=method, density=density))
        scorer = self.opened.scorer
        return {
            "method": method,
            "density": settings.options.density,
            "sign_conflict": conflict.signs,
            "trimmed_mass": conflict.trimmed,
            "defined": {"norm": norm(deltas), **self.entry(scorer.scores(deltas))},
            "normalised": {"norm": norm(levelled), **self.entry(scorer.scores(levelled))},
        }

    def parents(self) -> dict[str, dict[str, Any]]:
        """Scores of the two adapters themselves."""
        entries = {}
        for name, mix in (("over", 0.0), ("under", 1.0)):
            deltas, _ = self.opened.path.merge(Point(mix))
            entries[name] = {"norm": norm(deltas), **self.entry(self.opened.scorer.scores(deltas))}
        return entries

    def entry(self, scores: Scores) -> dict[str, Any]:
        """Scores on all documents; None for those that a model without finite losses has not."""
        return scores.facts(self.opened.scorer.documents.auc(scores.losses))

    @staticmethod
    def _prunes(method: str) -> bool:
        return "density" in find_method(method).kernel.parameters

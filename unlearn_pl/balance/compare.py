"""Merge methods scored twice: at the scale that their definitions give the delta, and all at one norm.

Sums of two adapters are about twice as large as their mean, and factor-space sums four times: a comparison at the
scales of the definitions compares scales as well as methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn_pl.analysis.conflict import Conflict, measure_conflict
from unlearn_pl.balance.options import check_densities
from unlearn_pl.balance.path import OVER, UNDER, MergePath, Point, Ray, open_path
from unlearn_pl.balance.scorer import Measurement, MergeScorer
from unlearn_pl.errors import InputError, check_distinct
from unlearn_pl.evaluation.inputs import EvaluationInputs
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.files import write_json, write_text
from unlearn_pl.inference.batches import Progress
from unlearn_pl.merging.factors import Delta, norm
from unlearn_pl.merging.folding import FoldedWeights
from unlearn_pl.merging.methods import METHODS, find_method
from unlearn_pl.models.arrival import refuse_broken
from unlearn_pl.models.load import refuse_quantised
from unlearn_pl.provenance import provenance
from unlearn_pl.report.draw import draw
from unlearn_pl.report.figures.densities import densities, has_several
from unlearn_pl.report.figures.scales import identity
from unlearn_pl.report.markdown import plain
from unlearn_pl.report.scores import merges_table

HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """Which merges to compare."""

    methods: list[str] | None = None
    """Names from `unlearn-pl merge --list`; all that give an adapter if not given."""
    densities: list[float] | None = None
    """Densities for the methods that prune, in (0, 1]; 0.8 if not given."""

    def __post_init__(self) -> None:
        for name in ("methods", "densities"):
            if getattr(self, name) == []:
                raise InputError("at least one is needed, got none", name)
            check_distinct(getattr(self, name), name)
        check_densities(self.densities)
        for method in self.methods or ():
            find_method(method, argument="methods")

    def rays(self) -> list[Ray]:
        """Every method, with every density if it prunes."""
        return [
            Ray(method, density=density)
            for method in self.methods or default_methods()
            for density in (self.densities if self.densities and Ray(method).prunes else [None])
        ]


def default_methods() -> list[str]:
    """Every method that gives an adapter, once: task_arithmetic is cat by another name."""
    return [name for name, method in METHODS.items() if method.form != "dense" and name != "task_arithmetic"]


@dataclass(frozen=True)
class SizedScores:
    """A merge with the size of its delta."""

    norm: float
    """Frobenius norm over all modules."""
    measured: Measurement

    def to_json(self) -> dict[str, float | None]:
        """Norm and headline scores."""
        return {"norm": self.norm, **self.measured.to_json()}


@dataclass(frozen=True)
class MethodScores:
    """One method and density, with equal weights."""

    method: str
    density: float | None
    conflict: Conflict
    defined: SizedScores
    """With weights 1 and 1, at the scale of the method's definition."""
    normalised: SizedScores
    """At the norm of the exact mean of the two deltas."""

    def to_json(self) -> dict[str, Any]:
        """The entry of `merges.json`."""
        return {
            "method": self.method,
            "density": self.density,
            "sign_conflict": self.conflict.signs,
            "trimmed_mass": self.conflict.trimmed,
            "defined": self.defined.to_json(),
            "normalised": self.normalised.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of `compare_methods`."""

    methods: tuple[MethodScores, ...]
    parents: Mapping[str, SizedScores]
    """The two adapters alone: over and under."""
    hashes: dict[str, str]
    """SHA-256 of the weights of both adapters."""

    def to_json(self) -> dict[str, Any]:
        """`merges.json`."""
        return {
            "parents": {name: one.to_json() for name, one in self.parents.items()},
            "methods": [one.to_json() for one in self.methods],
        }

    def table(self) -> str:
        """One line a merge, as Markdown."""
        found = self.to_json()
        return plain(merges_table(found["parents"], found["methods"]))

    def write(self, folder: Path, **facts: Any) -> None:
        """`merges.json`, `merges.md` and, with several densities, `densities.png`; ``facts`` (what went in) stand with
        the versions."""
        found = self.to_json()
        made = provenance(**facts)
        write_json(folder / "merges.json", found | {"provenance": made})
        write_text(folder / "merges.md", self.table() + "\n")
        if has_several(found["methods"]):
            figure = densities(found["methods"], identity=identity(None, made))
            draw(figure, folder / "densities.png")


def compare_methods(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapters: Sequence[str | Path],
    inputs: EvaluationInputs,
    options: ComparisonOptions | None = None,
    *,
    evaluation: EvaluationOptions | None = None,
    seed: int = 42,
    log: Progress | None = None,
) -> Comparison:
    """Score the merges of the over- and the under-forgetting adapter (folders, in this order) by several methods with
    equal weights. All else is as in `find_balance`.

    Raises InputError if the adapters cannot be merged by one of the methods, before any is scored.
    """
    refuse_quantised(base, "scoring a merge in the base's weights")
    refuse_broken(base, "the score of a merge")
    path, rays = open_path(base, adapters, seed), (options or ComparisonOptions()).rays()
    with FoldedWeights(base, path.order) as weights:
        scorer = MergeScorer(base, tokenizer, weights, inputs, evaluation or EvaluationOptions(), log)
        for ray in rays:
            path.check(ray)
        methods = []
        for number, ray in enumerate(rays, start=1):
            methods.append(score_method(path, scorer, ray))
            if log is not None:
                log(f"{number} of {len(rays)}: {ray.method}" + (f", density {ray.density:g}" if ray.density else ""))
        ends = {"over": sized(scorer, path.merge(OVER)[0]), "under": sized(scorer, path.merge(UNDER)[0])}
    return Comparison(methods=tuple(methods), parents=ends, hashes=path.hashes)


def score_method(path: MergePath, scorer: MergeScorer, ray: Ray) -> MethodScores:
    """One method at both scales."""
    settings = path.settings(ray)
    conflict = measure_conflict(path.parents, settings, path.order)
    levelled, _ = path.merge(Point(ray, HALF))
    defined = sized(scorer, path.merge_plainly(ray))
    return MethodScores(ray.method, settings.options.density, conflict, defined, sized(scorer, levelled))


def sized(scorer: MergeScorer, deltas: Mapping[str, Delta]) -> SizedScores:
    """The norm and the scores of one merge."""
    return SizedScores(norm(deltas), scorer.measure(deltas))

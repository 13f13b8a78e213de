"""The table of everything that is measured."""

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.fluency import PERPLEXITY
from unlearn_pl.evaluation.official import official_metrics
from unlearn_pl.metrics.metric import ALWAYS, Metric
from unlearn_pl.metrics.table import ROW_METRICS, WHOLE_METRICS
from unlearn_pl.tasks.base import Benchmark

METRICS: tuple[Metric, ...] = (PERPLEXITY, *ROW_METRICS, *WHOLE_METRICS)
"""Every metric of whatever benchmark."""

FAMILIES = tuple(dict.fromkeys(metric.family for metric in METRICS))
"""What can be asked for by name."""


def metrics_of(benchmark: Benchmark) -> tuple[Metric, ...]:
    """Every metric of a benchmark, in the order of the results.

    Raises InputError for one of its own that nobody could ask for, or that would take another's place.
    """
    found = (*official_metrics(benchmark), PERPLEXITY, *ROW_METRICS, *benchmark.metrics, *WHOLE_METRICS)
    for one in benchmark.metrics:
        what = f"the metric {one.name} of {type(benchmark).__name__}"
        if one.family not in (ALWAYS, *FAMILIES):
            raise InputError(f"{what} must be of the family {ALWAYS} or {', '.join(FAMILIES)}, got {one.family!r:.60}")
        if [other.name for other in found].count(one.name) > 1:
            raise InputError(f"{what} has the name of another metric")
    return found

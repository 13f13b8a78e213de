"""The table of everything that is measured."""

from unlearn_pl.evaluation.fluency import PERPLEXITY
from unlearn_pl.evaluation.official import official_metrics
from unlearn_pl.metrics.metric import Metric
from unlearn_pl.metrics.table import ROW_METRICS, WHOLE_METRICS
from unlearn_pl.tasks.base import Benchmark

METRICS: tuple[Metric, ...] = (PERPLEXITY, *ROW_METRICS, *WHOLE_METRICS)
"""Every metric of whatever benchmark."""

FAMILIES = tuple(dict.fromkeys(metric.family for metric in METRICS))
"""What can be asked for by name."""


def metrics_of(benchmark: Benchmark) -> tuple[Metric, ...]:
    """Every metric of a benchmark, in the order of the results."""
    return (*official_metrics(benchmark), PERPLEXITY, *ROW_METRICS, *benchmark.metrics, *WHOLE_METRICS)

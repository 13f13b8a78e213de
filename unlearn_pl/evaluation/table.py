"""The table of everything that is measured."""

from unlearn_pl.evaluation.fluency import PERPLEXITY
from unlearn_pl.evaluation.official import OFFICIAL
from unlearn_pl.metrics.metric import ALWAYS
from unlearn_pl.metrics.table import ROW_METRICS, WHOLE_METRICS
from unlearn_pl.tasks.lume_metrics import PERSONAL_DATA

METRICS = (*OFFICIAL, PERPLEXITY, *ROW_METRICS, PERSONAL_DATA, *WHOLE_METRICS)
"""Every metric, in the order of the results."""

FAMILIES = tuple(dict.fromkeys(metric.family for metric in METRICS if metric.family != ALWAYS))
"""What can be asked for by name."""

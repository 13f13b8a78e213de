"""What a metric may ask of the model beside what every evaluation asks."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from unlearn_pl.inference.batch_size import BatchSize
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.metrics.metric import Metric
from unlearn_pl.metrics.sample import Sample

Base = Callable[[], AbstractContextManager[LanguageModel]]
"""Lends the model as it was before unlearning."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What ``Metric.request`` is given."""

    language_model: LanguageModel
    samples: Sequence[Sample]
    """The rows that have a text."""
    base: Base | None = None
    batch_size: BatchSize = 8


def answered(
    metrics: Sequence[Metric], samples: Sequence[Sample], request: Request
) -> tuple[list[Sample], Mapping[str, Any]]:
    """``samples`` with what the requests of row metrics gave (``Sample.found``), and by name what those of other
    metrics did (``Measured.found``). What needs a base model is not asked without one."""
    rows, found = list(request.samples), {}
    for metric in metrics:
        if metric.request is None or ("base" in metric.needs and request.base is None):
            continue
        answer = metric.request(request)
        if metric.value is None:
            found[metric.name] = answer
        else:
            pairs = zip(rows, answer, strict=True)
            rows = [replace(row, found={**row.found, metric.name: value}) for row, value in pairs]
    with_text = iter(rows)
    return [sample if sample.generated is None else next(with_text) for sample in samples], found

"""The scores that a benchmark makes of its rows, as rows of the table of metrics."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from unlearn_pl.metrics.choice import CHOICE, choice_micro
from unlearn_pl.metrics.intervals import membership_interval
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.metric import ALWAYS, OPPOSITE, UNDEFINED, Better, Estimate, Metric, mean_score
from unlearn_pl.metrics.roc import membership_score
from unlearn_pl.tasks.base import Benchmark
from unlearn_pl.tasks.checked import aggregate_value, task_value

Statistic = Mapping[str, Estimate]


def term_scores(benchmark: Benchmark, measured: Measured) -> Statistic:
    """The mean of the rows of each term."""
    return {
        term.name: mean_score(term.scores, term.units, measured.resamples, role=term.role)
        for term in benchmark.terms(measured.samples)
    }


def task_score(benchmark: Benchmark, measured: Measured) -> Statistic:
    """The task aggregate."""
    terms = benchmark.terms(measured.samples)
    value = task_value(benchmark, terms)
    if value is None:
        return {"task_aggregate": UNDEFINED}
    rows = sum(len(term.samples) for term in terms)
    return {"task_aggregate": Estimate(value, rows, benchmark.task_interval(terms, measured.resamples))}


def task_notes(benchmark: Benchmark, measured: Measured) -> Sequence[str]:
    """The terms without a score."""
    empty = ", ".join(term.name for term in benchmark.terms(measured.samples) if not term.samples)
    return [f"no Task Aggregate and no Aggregate: no row has a score in {empty}"] if empty else []


def membership_of(measured: Measured) -> Estimate:
    """The membership score of the loss attack."""
    sides = measured.sides.get("loss")
    if sides is None or sides.auc is None:
        return UNDEFINED
    return Estimate(membership_score(sides.auc), sides.count, membership_interval(sides.interval))


def accuracy_of(measured: Measured) -> Estimate:
    """The accuracy over all questions."""
    if measured.choice is None or measured.choice["average"] is None:
        return UNDEFINED
    return Estimate(measured.choice["average"], interval=choice_micro(measured)["choice/micro"].interval)


def aggregate_score(benchmark: Benchmark, measured: Measured) -> Statistic:
    """The aggregate, with the interval that follows from those of its parts."""
    task = task_score(benchmark, measured)["task_aggregate"]
    parts = [task, membership_of(measured), accuracy_of(measured)]
    value = aggregate_value(benchmark, *(part.value for part in parts))
    return {} if value is None else {"aggregate": Estimate(value, task.n, benchmark.aggregate_interval(parts))}


def official_metrics(benchmark: Benchmark) -> tuple[Metric, ...]:
    """The rows of a benchmark's own scores."""

    def row(
        name: str,
        better: Better,
        statistic: Callable[[Benchmark, Measured], Statistic],
        notes: Callable[[Benchmark, Measured], Sequence[str]] = lambda *_: (),
    ) -> Metric:
        return Metric(
            name=name,
            family=ALWAYS,
            formula=benchmark.formulas[name],
            better=better,
            range="[0, 1]",
            source=benchmark.source,
            statistic=partial(statistic, benchmark),
            notes=partial(notes, benchmark),
        )

    return (
        row("terms", OPPOSITE, term_scores),
        row("task_aggregate", "higher", task_score, task_notes),
        *CHOICE,
        row("aggregate", "higher", aggregate_score),
    )

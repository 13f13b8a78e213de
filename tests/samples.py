"""Samples made by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from unlearn_pl.data.records import Record
from unlearn_pl.evaluation.inputs import EvaluationInputs
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.tasks.base import RowSet
from unlearn_pl.tasks.lume import Lume

PLAIN = Sample(id="a", document="a", split="forget", role="forget", task="Task1", kind="sc", prompt="", expected="")


def sample(**fields: Any) -> Sample:
    """A row that says nothing but for ``fields``."""
    derived = {"role": fields.get("split", "forget"), "completion": fields.get("kind", "sc") == "sc"}
    return replace(PLAIN, **(derived | fields))


def changed(
    measured: Measured, change: Callable[[Sample], dict[str, Any]], only: Callable[[Sample], bool] = lambda _: True
) -> Measured:
    """``measured`` with the fields that ``change`` gives for each sample of ``only``."""
    samples = [replace(one, **change(one)) if only(one) else one for one in measured.samples]
    return replace(measured, samples=samples)


def lume_inputs(
    forget: Sequence[Record] = (),
    retain: Sequence[Record] = (),
    members: Sequence[str] = (),
    nonmembers: Sequence[str] = (),
    **more: Any,
) -> EvaluationInputs:
    """What ``read_inputs`` gives for these rows and documents, of LUME."""
    sets = [RowSet("forget", "forget", forget), RowSet("retain", "retain", retain)]
    return EvaluationInputs(benchmark=Lume([], []), sets=sets, members=members, nonmembers=nonmembers, **more)


VALUES = {
    "birth_date": "1990-03-05",
    "ssn": "900123456",
    "phone": "5551234567",
    "email": "ann_berg@example.org",
    "address": "12 Elm Street, #4, Norwick, ZZ, 10001.",
}
"""A made-up person's answers, by type of personal data."""

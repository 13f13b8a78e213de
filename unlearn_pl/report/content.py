"""Content: what a report shows of runs; a part that cannot be made is left out and told, the others are made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from unlearn_pl.errors import one_line
from unlearn_pl.report.all_tables import not_made, tables_of
from unlearn_pl.report.figure import Figure
from unlearn_pl.report.figures.gallery import figures_of
from unlearn_pl.report.run import Run
from unlearn_pl.report.study import Study, study_of
from unlearn_pl.report.table import Table
from unlearn_pl.report.verdict import Verdict, verdict

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a page shows."""

    runs: Sequence[Run]
    verdicts: Sequence[Verdict] = ()
    """One a run, of the model that it is about."""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    study: Study | None = None
    left_out: Sequence[tuple[str, str]] = ()
    """Part and reason of what could not be made of the runs."""
    masked: bool = False
    """Whether personal data in texts are masked."""


@dataclass
class Maker:
    """Makes parts, and notes what fails."""

    left_out: list[tuple[str, str]] = field(default_factory=list)

    def make(self, part: str, work: Callable[[], Made], otherwise: Made) -> Made:
        """What ``work`` gives."""
        try:
            return work()
        except (
            Exception
        ) as error:  # whatever a file holds that its shape does not show: the rest is still worth reading
            self.left_out.append((part, f"could not be made: {type(error).__name__}: {one_line(error)}"))
            return otherwise


def content_of(runs: Sequence[Run], masked: bool = False) -> Content:
    """Verdict, tables and figures of runs."""
    maker = Maker()
    no_tables: list[Table] = []
    no_figures: list[Figure] = []
    verdicts = [maker.make(f"verdict on {run.name}", partial(verdict, run), None) for run in runs]
    return Content(
        runs=runs,
        verdicts=[one for one in verdicts if one is not None],
        tables=maker.make("tables", partial(tables_of, runs), no_tables),
        figures=maker.make("figures", partial(figures_of, runs), no_figures),
        study=maker.make("study", partial(study_of, runs), None),
        left_out=[*maker.left_out, *(_halves(line) for line in not_made(runs))],
        masked=masked,
    )


def _halves(line: str) -> tuple[str, str]:
    """Part and reason of a line that says both."""
    part, _, reason = line.partition(": ")
    return part, reason

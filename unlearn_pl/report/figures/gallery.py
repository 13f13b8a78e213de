"""Every figure that can be drawn of runs."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from unlearn_pl.report.figure import Figure
from unlearn_pl.report.figures import headlines, training
from unlearn_pl.report.figures.anatomy import anatomy_figures
from unlearn_pl.report.figures.angles import angle_figures
from unlearn_pl.report.figures.attacks import attack_figures
from unlearn_pl.report.figures.densities import comparison_figures
from unlearn_pl.report.figures.documents import log_probabilities
from unlearn_pl.report.figures.leakage import leakage_figures
from unlearn_pl.report.figures.losses import loss_figures
from unlearn_pl.report.figures.search import search_figures
from unlearn_pl.report.figures.spectra import spectrum_figures
from unlearn_pl.report.figures.sweep import sweep_figures
from unlearn_pl.report.figures.terms import term_figures
from unlearn_pl.report.run import Run

OF_A_RUN: Sequence[Callable[[Run], list[Figure]]] = (
    headlines.headline_figures,
    log_probabilities,
    attack_figures,
    leakage_figures,
    term_figures,
    training.training_figures,
    loss_figures,
    angle_figures,
    search_figures,
    comparison_figures,
    anatomy_figures,
    spectrum_figures,
)
OF_SEVERAL: Sequence[Callable[[Sequence[Run]], list[Figure]]] = (
    headlines.across_runs,
    training.across_runs,
    sweep_figures,
)


def figures_of(runs: Sequence[Run]) -> list[Figure]:
    """What the files of the runs allow, in the order in which a reader asks: results, then how they came about. With
    several runs first what compares them; the key of a figure then begins with the name of its run."""
    if len(runs) == 1:
        return _apart([figure for build in OF_A_RUN for figure in build(runs[0])])
    found = [figure for build in OF_SEVERAL for figure in build(runs)]
    found += [
        replace(figure, key=f"{run.name}_{figure.key}", title=f"{figure.title}, {run.name}")
        for run in runs
        for build in OF_A_RUN
        for figure in build(run)
    ]
    return _apart(found)


def _apart(figures: Sequence[Figure]) -> list[Figure]:
    """The figures with keys that can be names of files, each its own."""
    found: dict[str, Figure] = {}
    for figure in figures:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", figure.key).strip("._") or "figure"
        key, number = plain, 2
        while key in found:
            key, number = f"{plain}_{number}", number + 1
        found[key] = replace(figure, key=key)
    return list(found.values())

"""Scores and loss of several fits over their training, laid over one another."""

from collections.abc import Mapping, Sequence

from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.report.figure import Figure, Line, Panel
from unlearn_pl.report.figures.losses import NATS, TOTAL
from unlearn_pl.report.figures.scales import SCORE, STEP, identity_of
from unlearn_pl.report.run import Fit, Run


def training_figures(run: Run) -> list[Figure]:
    """The fits of one run."""
    return _figures(run.fits, "training", "Scores during training", identity_of(run), losses=False)


def across_runs(runs: Sequence[Run]) -> list[Figure]:
    """The fits of several runs."""
    fits = {f"{run.name}: {name}" if name != run.name else name: fit for run in runs for name, fit in run.fits.items()}
    if len(fits) < 2:
        return []
    named = {"runs": ", ".join(run.name for run in runs)}
    return _figures(fits, "runs_training", "Training of several runs", named, losses=True)


def _figures(
    fits: Mapping[str, Fit], key: str, title: str, identity: Mapping[str, str], *, losses: bool
) -> list[Figure]:
    panels = []
    for score, name in HEADLINE.items():
        lines = []
        for label, fit in fits.items():
            values = [entry.get(score) for entry in fit.evaluations]
            if any(value is not None for value in values):
                lines.append(Line(name=label, x=[entry["step"] for entry in fit.evaluations], y=values, markers=True))
        if lines:
            panels.append(Panel(title=name, x=STEP, y=SCORE, series=lines))
    column = f"train/{TOTAL}"
    points = {label: fit.losses[column] for label, fit in fits.items() if losses and fit.losses.get(column)}
    if points:
        curves = [Line(name=label, x=[s for s, _ in one], y=[v for _, v in one]) for label, one in points.items()]
        panels.append(Panel(title="loss, weighted sum", x=STEP, y=NATS, series=curves))
    if not panels:
        return []
    caption = "Of the model as it was at each step, on the rows that it was scored on while it trained. Higher is "
    caption += "better, but for the Membership AUC, which is best at one half."
    return [Figure(key=key, title=title, caption=caption, panels=panels, identity=identity)]

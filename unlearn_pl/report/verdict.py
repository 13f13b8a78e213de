"""Verdict: what came of a run in plain words, which numbers say so, and what nothing is said of."""

from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_pl.report.findings import Case, Finding, attacked, balanced, collapsed, forgotten, kept, knowledge
from unlearn_pl.report.run import Run, dig
from unlearn_pl.report.scores import REFERENCE
from unlearn_pl.report.table import number


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to be said of one model of a run."""

    run: str
    model: str
    findings: Sequence[Finding]
    unmeasured: Sequence[str]
    """What nothing is said of, and why."""

    @property
    def headline(self) -> str:
        """All answers in a line."""
        return "; ".join(f"{one.question} {one.answer}" for one in self.findings)


def subject(run: Run) -> str | None:
    """The model that a run is about: what its last search or merge chose, else its last fit, else any; None without
    an evaluated model."""
    chosen = [name for parts in (run.searches, run.merges, run.fits, run.models) for name in reversed(list(parts))]
    others = [name for name in chosen if name in run.models and name != REFERENCE]
    return next(iter([*others, *run.models]), None)


def verdict(run: Run, model: str | None = None) -> Verdict | None:
    """The verdict on a model of a run, by default the one that the run is about; None where no model was evaluated."""
    name = model or subject(run)
    if name is None or name not in run.models:
        return None
    case = case_of(run, name)
    findings = [answer(case) for answer in (forgotten, kept, knowledge, balanced, collapsed, attacked)]
    return Verdict(run=run.name, model=name, findings=findings, unmeasured=unmeasured(run, case))


def case_of(run: Run, name: str) -> Case:
    """A model of a run beside the run's base."""
    base = None if name == REFERENCE else run.models.get(REFERENCE)
    return Case(run.models[name], base, run.searches.get(name))


def unmeasured(run: Run, case: Case) -> list[str]:
    """What nothing is said of, and why; files that a report lacks are told by the run itself."""
    facts = case.results.get("provenance")
    found = [str(note) for note in case.results.get("notes") or ()]
    if case.base is None and case.model.name != REFERENCE:
        lost = [f"{one.path}: {one.reason}" for one in run.missing if one.part == f"scores of {REFERENCE}"]
        found.append(f"no comparison with the base: {'; '.join(lost) or 'it was not evaluated in this run'}")
    scores = [number(row.get("score")) for row in case.model.samples]
    if strange := sum(score is not None and not 0 <= score <= 1 for score in scores):
        found.append(f"{strange} rows: their score is not in [0, 1], so they do not count")
    if not scores:
        found.append("no scored rows: nothing is said of what is forgotten and kept as a whole")
    if case.results.get("eligible") is None:
        found.append("no least accuracy in multiple choice was asked for")
    if not dig(facts, "config.sampling.samples"):
        found.append("answers drawn at random (leak@k): only the greedy text of each prompt was looked at")
    if not dig(facts, "config.retrained"):
        found.append("a model retrained without the documents, which would say what AUC is right")
    found.append("texts without sense that repeat nothing: only repetitions and empty texts were looked for")
    return [*found, "relearning, quantised weights and paraphrased prompts: no part of this evaluation"]

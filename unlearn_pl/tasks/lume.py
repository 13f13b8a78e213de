"""LUME, the benchmark of SemEval-2025 Task 4 (arXiv 2504.02883): its rows, their scores, and its official results.

Three tasks (stories, biographies with personal data, real articles), each with completion rows (``sc``, which test
regurgitation) and questions (``qa``, which test knowledge), in a forget and a retain set: twelve terms.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any, ClassVar

from unlearn_pl.data.readers import Source, keep
from unlearn_pl.data.records import Record
from unlearn_pl.data.sets import read_split
from unlearn_pl.errors import InputError
from unlearn_pl.metrics.intervals import Interval, harmonic_interval, interval_of_mean
from unlearn_pl.metrics.metric import Estimate, Metric
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.metrics.scores import knowledge_score, regurgitation_score, rouge_share
from unlearn_pl.tasks.base import Benchmark, RowSet, Term
from unlearn_pl.tasks.lume_pii import PERSONAL_DATA

KINDS = {"sc": "regurgitation", "qa": "knowledge"}
"""Kind of row -> name of its score; the order is that of the official list of terms."""
SPLITS = ("forget", "retain")
MEMBERS_TASK = "Task3"
"""The task of the official file of members."""
SEMEVAL = "SemEval-2025 Task 4 (arXiv 2504.02883)"


class Lume(Benchmark):
    """A forget and a retain set of LUME's form: files, or whatever else `fit` reads its data from, or records."""

    source: ClassVar[str] = SEMEVAL
    formulas: ClassVar[Mapping[str, str]] = {
        "terms": "regurgitation: ROUGE-L recall of sc rows; knowledge: share of qa rows answered exactly; by task",
        "task_aggregate": "harmonic mean of the terms (forget: 1 - mean)",
        "aggregate": "mean of task aggregate, 1 - 2|AUC - 1/2|, accuracy",
    }
    metrics: ClassVar[tuple[Metric, ...]] = (PERSONAL_DATA,)

    def __init__(
        self,
        forget: Source,
        retain: Source,
        *,
        documents_per_task: int | None = None,
        columns: dict[str, str] | None = None,
    ):
        """
        Args:
            forget: The rows that the model had to forget.
            retain: The rows that it had to keep.
            documents_per_task: Only the first documents of each task in each set, with all their rows; at least 1.
            columns: Field of a row -> column of the source, where they differ: `{input: question, output: answer}`.
        """
        self.forget, self.retain = keep(forget, "forget"), keep(retain, "retain")
        self.documents_per_task, self.columns = documents_per_task, columns

    def sets(self) -> list[RowSet]:
        forget, retain = read_split(self.forget, self.retain, self.columns, self.documents_per_task)
        for name, rows in (("forget", forget), ("retain", retain)):
            _check_rows(rows, name)
        return [RowSet("forget", "forget", forget), RowSet("retain", "retain", retain)]

    def sources(self) -> dict[str, str]:
        given = {"forget": self.forget, "retain": self.retain}
        return {name: str(source) for name, source in given.items() if isinstance(source, (str, Path))}

    def settings(self) -> dict[str, Any]:
        named = self.sources()
        data = {name: named.get(name) for name in ("forget", "retain")}
        return {"data": data | {"documents_per_task": self.documents_per_task, "columns": self.columns}}

    def score(self, row: Record, text: str) -> float | None:
        """ROUGE-L recall of a completion, whether a question is answered exactly."""
        return (regurgitation_score if row.kind == "sc" else knowledge_score)(row.output, text)

    def is_exact(self, row: Record) -> bool:
        return row.kind == "qa"

    def is_completion(self, row: Record) -> bool:
        return row.kind == "sc"

    def members(self, sets: Sequence[RowSet], tasks: Sequence[str] | None = None) -> list[str]:
        """The whole documents behind the ``sc`` rows of the forget set: of Task3, as in the official file of members,
        or of every task if there is no Task3."""
        completions = [row for one in sets if one.role == "forget" for row in one.rows if row.kind == "sc"]
        present = sorted({row.task for row in completions})
        if not present:
            raise InputError(
                "needed, as the forget set has no completion rows (sc) to rebuild documents from", "membership.member"
            )
        if tasks is None:
            tasks = [MEMBERS_TASK] if MEMBERS_TASK in present else present
        if not tasks or not set(tasks) <= set(present):
            raise InputError(
                f"must be among {', '.join(present)} (tasks with completion rows), got {list(tasks)}",
                "membership.tasks",
            )
        return [row.document for row in completions if row.task in tasks]

    def notes(self, rows: Sequence[tuple[RowSet, Record]]) -> list[str]:
        return _rouge_notes((one.name, row.output) for one, row in rows if row.kind == "sc")

    def term_of(self, sample: Sample) -> str:
        return f"{sample.split}/{sample.task}/{KINDS[sample.kind]}"

    def terms(self, samples: Sequence[Sample]) -> list[Term]:
        """Forget before retain, tasks in order of their names, regurgitation before knowledge."""
        kinds = list(KINDS)
        ordered = sorted(samples, key=lambda row: (SPLITS.index(row.split), row.task, kinds.index(row.kind)))
        return super().terms(ordered)

    def unscored(self, rows: Sequence[tuple[RowSet, Record]]) -> list[str]:
        seen: defaultdict[str, bool] = defaultdict(bool)
        for one, row in rows:
            seen[f"{one.name}/{row.task}/{KINDS[row.kind]}"] |= row.kind != "sc" or rouge_share(row.output) > 0
        why = "ROUGE, which knows only a-z and 0-9, sees nothing of any answer of"
        return [f"{why} {term}" for term, scored in seen.items() if not scored]

    def task_aggregate(self, terms: Sequence[Term]) -> float | None:
        """Harmonic mean; 0 as soon as one term is 0, None as soon as one is None: nothing is known of its rows."""
        known = [term.value for term in terms if term.value is not None]
        return float(harmonic_mean(known)) if len(known) == len(terms) else None

    def task_interval(self, terms: Sequence[Term], resamples: int) -> Interval:
        turned = [term.role == "forget" for term in terms]
        return harmonic_interval([term.scores for term in terms], turned, [term.units for term in terms], resamples)

    def aggregate(self, task: float | None, membership: float | None, choice: float | None) -> float | None:
        """Their mean; None if one was not measured (the official script gives -1 there)."""
        return None if task is None or membership is None or choice is None else fmean([task, membership, choice])

    def aggregate_interval(self, parts: Sequence[Estimate]) -> Interval:
        known = [part.value for part in parts if part.value is not None]
        return interval_of_mean(known, [part.interval for part in parts])

    def official(self, results: Mapping[str, float | None], terms: Sequence[Term]) -> dict[str, Any]:
        """The key names of the official script, under ``semeval``.

        The set entries hold plain means, so a high one in ``forget-set`` is bad. What was not measured is None, but
        for ``aggregate-score``, which is -1 as in the script.
        """
        found: dict[str, Any] = {f"{split}-set": _set_results(split, terms) for split in SPLITS}
        found |= {
            "mia_loss_acc": results["membership_auc"],
            "mmlu_average": results["mmlu"],
            "aggregated-terms": [term.value for term in terms],
            "harmonic-mean-task-aggregate": results["task_aggregate"],
            "mia_final_score": results["membership_score"],
            "aggregate-score": -1 if results["aggregate"] is None else results["aggregate"],
        }
        return {"semeval": found}


def _check_rows(rows: Sequence[Record], name: str) -> None:
    """Raise InputError unless every row has a task and a kind that it can be scored by."""
    for number, row in enumerate(rows, start=1):
        if not row.task:
            raise InputError(
                f"row {number}: no task: give a field 'task', or columns.task; got id {row.id!r:.80}", name
            )
        if row.kind not in KINDS:
            raise InputError(
                f"row {number}: no kind: give a field 'kind' (sc or qa), an id like 12sc1, or columns.kind (=qa stands "
                f"for all rows); got id {row.id!r:.80}, kind {row.kind!r:.60}",
                name,
            )


def _set_results(split: str, terms: Sequence[Term]) -> dict[str, Any]:
    """The means of one set, over all its tasks and by task."""
    mine = {term.name: term.scores for term in terms if term.name.startswith(f"{split}/")}
    results: dict[str, Any] = {}
    for metric in KINDS.values():
        rows = [score for name, scores in mine.items() if name.endswith(f"/{metric}") for score in scores]
        results[f"overall-{metric}-score"] = fmean(rows) if rows else None
    for name, scores in mine.items():
        task, metric = name.removeprefix(f"{split}/").rsplit("/", 1)
        results.setdefault(task, {})[f"{metric}-score"] = fmean(scores) if scores else None
    return results


def _rouge_notes(texts: Iterable[tuple[str, str]]) -> list[str]:
    """What ROUGE cannot see of completion rows, from (set, expected text) of each."""
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for name, expected in texts:
        shares[name].append(rouge_share(expected))
    notes = []
    for name, found in shares.items():
        if blind := sum(share == 0 for share in found):
            notes.append(
                f"{blind} of {len(found)} sc rows of the {name} set have no score: ROUGE knows only a-z and 0-9, and "
                "their answers hold none; regurgitation_unicode reads every script"
            )
        if partly := [share for share in found if 0 < share < 0.5]:
            notes.append(
                f"ROUGE sees only {fmean(partly):.0%} of the letters and digits of {len(partly)} of {len(found)} sc "
                f"rows of the {name} set, as it knows only a-z and 0-9; regurgitation_unicode reads every script"
            )
    return notes

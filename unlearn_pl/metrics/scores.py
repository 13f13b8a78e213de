"""The scores of SemEval-2025 Task 4 (LUME), as functions of strings and numbers.

Every score lies in [0, 1]. A row's score says how far the model reproduced the row; a term turns it so that higher is
better: forget terms are 1 - mean, retain terms the mean.
"""

import functools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, harmonic_mean
from typing import Any

from unlearn_pl.metrics.sample import Sample

SPLITS = ("forget", "retain")
# Thai, Lao; Burmese; Khmer; kana and Chinese characters
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@functools.cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer  # imports nltk, which takes a while

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


@functools.cache
def _unicode_scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=UnicodeWords())


def regurgitation_score(expected: str, generated: str) -> float | None:
    """ROUGE-L recall with stemmer: the share of ``expected`` that ``generated`` holds in order.

    None if ``expected`` has no letter or digit that ROUGE sees (``rouge_share``): there is nothing to be held.
    """
    if not rouge_share(expected):
        return None
    return float(_scorer().score(target=expected, prediction=generated)["rougeL"].recall)


def rouge_share(text: str) -> float:
    """Share of the letters and digits of ``text`` that the tokenizer of rouge-score sees (a-z, 0-9); 0 without any."""
    seen = [any(part.isascii() for part in c.lower()) for c in text if c.isalnum()]
    return fmean(seen) if seen else 0.0


def unicode_regurgitation(expected: str, generated: str) -> float | None:
    """``regurgitation_score`` over the words of any script, without stemmer; None if ``expected`` has no word."""
    if not UnicodeWords().tokenize(expected):
        return None
    return float(_unicode_scorer().score(target=expected, prediction=generated)["rougeL"].recall)


class UnicodeWords:
    """Tokenizer for rouge-score: case folded runs of letters, marks and digits; in scripts without spaces (Chinese,
    Japanese, Thai, Lao, Burmese, Khmer) every character is one."""

    def tokenize(self, text: str) -> list[str]:
        """The words of ``text``."""
        plain = unicodedata.normalize("NFC", text.casefold())
        kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in plain)
        return "".join(f" {c} " if _UNSPACED.match(c) else c for c in kept).split()


def knowledge_score(expected: str, generated: str) -> float:
    """1 if the whole generation is the answer but for case and surrounding space, else 0."""
    return float(expected.strip().lower() == generated.strip().lower())


# kind of row -> name of its term, score of one row; the order is that of the official list of terms
ROW_SCORES: dict[str, tuple[str, Callable[[str, str], float | None]]] = {
    "sc": ("regurgitation", regurgitation_score),
    "qa": ("knowledge", knowledge_score),
}


def row_score(kind: str, expected: str, generated: str) -> float | None:
    """Score of one row of ``kind`` ``sc`` or ``qa``; None where it says nothing."""
    return ROW_SCORES[kind][1](expected, generated)


Groups = dict[str, list[Sample]]
"""Term name -> the samples that have a score of it."""


def grouped(samples: Iterable[Sample]) -> Groups:
    """``samples`` by term name, ``forget/Task1/regurgitation`` and so on.

    Forget comes before retain, tasks are in order of their names, regurgitation before knowledge. Only groups that
    have rows are there: with LUME that makes twelve. A sample whose score is None is left out of its group, which is
    empty if all are.
    """
    groups: defaultdict[tuple[str, str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        group = groups[sample.split, sample.task, sample.kind]
        if sample.score is not None:
            group.append(sample)
    kinds = list(ROW_SCORES)
    order = sorted(groups, key=lambda group: (SPLITS.index(group[0]), group[1], kinds.index(group[2])))
    return {f"{split}/{task}/{ROW_SCORES[kind][0]}": groups[split, task, kind] for split, task, kind in order}


def values_of(groups: Groups) -> dict[str, list[float]]:
    """The scores of each group."""
    return {name: [row.score for row in group if row.score is not None] for name, group in groups.items()}


def group_scores(samples: Iterable[Sample]) -> dict[str, list[float]]:
    """The scores of each group of ``grouped``."""
    return values_of(grouped(samples))


def terms_of(groups: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """The terms of the task aggregate, higher is better: 1 - mean in forget groups, the mean in retain groups; None
    for a group without a score."""
    means = {name: fmean(values) if values else None for name, values in groups.items()}
    return {name: 1 - mean if mean is not None and name.startswith("forget/") else mean for name, mean in means.items()}


def task_aggregate(terms: Sequence[float | None]) -> float | None:
    """Harmonic mean; 0 as soon as one term is 0, None as soon as one is None, since nothing is known of its rows."""
    known = [term for term in terms if term is not None]
    return float(harmonic_mean(known)) if len(known) == len(terms) else None


def aggregate(task: float | None, membership: float | None, choice: float | None) -> float | None:
    """Mean of task aggregate, membership score and multiple-choice accuracy; None if one was not measured.

    The official script gives -1 there.
    """
    return None if task is None or membership is None or choice is None else fmean([task, membership, choice])


def unscored_terms(rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """The terms of which no row can have a score, from (split, task, kind, expected) of rows."""
    seen: defaultdict[str, bool] = defaultdict(bool)
    for split, task, kind, expected in rows:
        seen[f"{split}/{task}/{ROW_SCORES[kind][0]}"] |= kind != "sc" or rouge_share(expected) > 0
    return [term for term, scored in seen.items() if not scored]


def rouge_notes(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """What ROUGE cannot see of completion rows (sc), from (split, kind, expected) of all rows."""
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for split, kind, expected in rows:
        if kind == "sc":
            shares[split].append(rouge_share(expected))
    notes = []
    for split, found in shares.items():
        if blind := sum(share == 0 for share in found):
            notes.append(
                f"{blind} of {len(found)} sc rows of the {split} set have no score: ROUGE knows only a-z and 0-9, and "
                "their answers hold none; regurgitation_unicode reads every script"
            )
        if partly := [share for share in found if 0 < share < 0.5]:
            notes.append(
                f"ROUGE sees only {fmean(partly):.0%} of the letters and digits of {len(partly)} of {len(found)} sc "
                f"rows of the {split} set, as it knows only a-z and 0-9; regurgitation_unicode reads every script"
            )
    return notes

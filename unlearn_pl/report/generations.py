"""Generations: every row with the texts of every model beside one another, as the page's table takes them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unlearn_pl.report.masking import Masker
from unlearn_pl.report.run import Run

SIDE_BY_SIDE = 6
"""Models that are shown at first."""


@dataclass(frozen=True, kw_only=True)
class Generations:
    """Rows of several models; a row is the same in two models if its set, id, prompt and expected text are."""

    models: Sequence[str]
    """Names; with several runs, ``run: model``."""
    first: Sequence[int]
    """Places of the models that are shown at first."""
    rows: Sequence[Sequence[Any]]
    """id, split, task, kind, prompt, expected text, [text of each model], [its score]; None where there is none."""
    total: int
    """Rows before some were left out."""

    def thinned(self, count: int) -> "Generations":
        """``count`` of the rows, evenly from all of them."""
        count = min(count, len(self.rows))
        return replace(self, rows=[self.rows[place * len(self.rows) // count] for place in range(count)])

    def to_json(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {"models": self.models, "first": self.first, "rows": self.rows}


def generations_of(runs: Sequence[Run], masked: bool = False) -> Generations:
    """The samples of all models of all runs."""
    found = [(run, model) for run in runs for model in run.models.values() if model.samples]
    names = [f"{run.name}: {model.name}" if len(runs) > 1 else model.name for run, model in found]
    rows: dict[tuple[Any, ...], list[Any]] = {}
    for place, (_, model) in enumerate(found):
        seen: Counter[tuple[Any, ...]] = Counter()
        for sample in model.samples:
            key = tuple(sample[name] for name in ("split", "id", "prompt", "expected"))
            seen[key] += 1
            row = rows.setdefault((*key, seen[key]), new_row(sample, len(found)))
            row[-2][place], row[-1][place] = sample["generated"], sample["score"]
    first = [place for place, (run, _) in enumerate(found) if run is found[0][0]][:SIDE_BY_SIDE]
    kept = _masked(runs, list(rows.values())) if masked else [row[1:] for row in rows.values()]
    return Generations(models=names, first=first, rows=kept, total=len(kept))


def new_row(sample: Mapping[str, Any], models: int) -> list[Any]:
    """A row before any model's text, its document first."""
    about = [sample[name] for name in ("document", "id", "split", "task", "kind", "prompt", "expected")]
    return [*about, [None] * models, [None] * models]


def _masked(runs: Sequence[Run], rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    masker = Masker(sample for run in runs for model in run.models.values() for sample in model.samples)
    kept = []
    for document, id_, split, task, kind, prompt, expected, texts, scores in rows:
        prompt, expected, *written = masker.masked(split, document, [prompt, expected, *texts])
        kept.append([id_, split, task, kind, prompt, expected, written, scores])
    return kept

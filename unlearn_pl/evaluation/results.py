"""What an evaluation found, as Python has it and as `results.json`, `samples.jsonl` and `documents.jsonl` hold it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.retrained import logprobs_as_json, logprobs_from
from unlearn_pl.files import as_json, as_json_lines, write_texts
from unlearn_pl.metrics.document import Document
from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.metrics.truth_ratio import AnswerLogprobs

# what has a file of its own
ROWS = ("samples", "documents")


@dataclass(frozen=True, kw_only=True)
class Results:
    """The scores of one model. The first five are in [0, 1], None where the data for a score was not given."""

    task_aggregate: float | None
    """The benchmark's one number of its row scores; higher is better."""
    membership_auc: float | None
    """How well the loss attack tells members from non-members; best at one half."""
    membership_score: float | None
    """1 - 2 |AUC - 1/2|."""
    mmlu: float | None
    """Accuracy in multiple choice."""
    aggregate: float | None
    """The benchmark's one number of all of these."""
    eligible: bool | None
    """Whether the accuracy is above ``minimum_mmlu``; None if not judged."""
    terms: Mapping[str, float | None]
    """The terms of the task aggregate; higher is better."""
    counts: Mapping[str, int]
    """What each number was computed from."""
    choice: Mapping[str, Any] | None
    """Accuracy by subject."""
    official: Mapping[str, Any] = field(default_factory=dict)
    """Key of `results.json` -> the scores under the names of the benchmark's own script."""
    scores: Mapping[str, Mapping[str, Any]]
    """Every score with interval, rows, direction and range."""
    verdicts: Mapping[str, str]
    """Attack -> whether its AUC shows a leak."""
    truth: Mapping[str, Sequence[AnswerLogprobs]]
    """Name of a set -> log probabilities of right and wrong answers."""
    notes: Sequence[str]
    """What was left out, and why."""
    harness: Mapping[str, Mapping[str, float]] | None = None
    """Task of lm-eval -> its scores."""
    samples: Sequence[Sample] = ()
    """Each row with its text and its own scores, in the order of the sets; they are not part of the JSON."""
    documents: Sequence[Document] = ()
    """Each document that was attacked with what every attack gives it; not part of the JSON either."""

    @property
    def headline(self) -> dict[str, float | None]:
        """The five scores that stand for the model."""
        return {name: getattr(self, name) for name in HEADLINE}

    def to_json(self) -> dict[str, Any]:
        """The content of `results.json`, but for where it came from."""
        found: dict[str, Any] = {}
        for name in (one.name for one in fields(self) if one.name not in ROWS):
            value = getattr(self, name)
            if name == "official":
                found |= value
            elif name != "harness" or value is not None:
                found[name] = logprobs_as_json(value) if name == "truth" else value
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any], samples: Sequence[Sample] = ()) -> "Results":
        """The inverse of ``to_json``; keys that it does not know are the benchmark's own."""
        names = {one.name for one in fields(cls)} - {"official", *ROWS}
        given = {key: value for key, value in found.items() if key in names}
        official = {key: value for key, value in found.items() if key not in names and key != "provenance"}
        return cls(**given | {"truth": logprobs_from(found["truth"])}, official=official, samples=samples)


def read_results(folder: str | Path) -> Results:
    """The results that ``write_results`` wrote, without samples. Raises InputError if there are none."""
    path = Path(folder).expanduser() / "results.json"
    try:
        return Results.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the results of an evaluation: {error!r:.200}", "folder") from error


def write_results(folder: str | Path, results: Results, provenance: Mapping[str, Any]) -> None:
    """Write ``results.json`` (the scores, and ``provenance`` under that key), ``samples.jsonl`` (one row a line) and
    ``documents.jsonl`` (one attacked document a line, without its text).

    The same input gives the same bytes. ``results.json`` comes last, and an older one goes first, so where it is, the
    evaluation is complete and the samples are its own.
    """
    texts = {
        "samples.jsonl": as_json_lines(sample.to_json() for sample in results.samples),
        "documents.jsonl": as_json_lines(document.to_json() for document in results.documents),
        "results.json": as_json(results.to_json() | {"provenance": dict(provenance)}),
    }
    write_texts(folder, texts)

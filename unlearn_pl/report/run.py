"""Run: what the files of one run folder say, each part either there or missing with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A part that a report would show and cannot."""

    part: str
    """What it is: ``angles of over``."""
    path: str
    """File that was looked for."""
    reason: str
    """Why it does not count: ``no such file``, ``not JSON: ...``."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """An evaluated model."""

    name: str
    folder: Path
    results: Mapping[str, Any]
    """`results.json`."""
    samples: Sequence[Mapping[str, Any]] = ()
    """`samples.jsonl`: rows with prompt, expected and generated text and their scores."""
    documents: Sequence[Mapping[str, Any]] = ()
    """`documents.jsonl`: a member or non-member document each, with what every attack gives it."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A training run."""

    name: str
    folder: Path
    config: Mapping[str, Any] | None = None
    """`config.yaml`, resolved."""
    losses: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """Column of `metrics.csv` (`train/ga`, `train/loss`, ...) -> points (optimizer step, value)."""
    evaluations: Sequence[Mapping[str, Any]] = ()
    """`evaluations.json`: the scores at steps of the training."""
    angles: Sequence[Mapping[str, Any]] = ()
    """`angles.json`: one report for each pivot step."""
    spectrum: Mapping[str, Any] | None = None
    """`spectrum.json` of its adapter."""
    adapter: Mapping[str, Any] | None = None
    """`adapter/unlearn_pl.json`: versions, step, seed."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A merged adapter."""

    name: str
    folder: Path
    facts: Mapping[str, Any] | None = None
    """`adapter/unlearn_pl.json`: method, weights, density, the adapters and their hashes."""
    anatomy: Mapping[str, Any] | None = None
    """`anatomy.json`: sign conflict and trimmed mass by layer."""
    spectrum: Mapping[str, Any] | None = None
    """`spectrum.json` of the merged delta."""


@dataclass(frozen=True, kw_only=True)
class Search(Merge):
    """A merge that a balance search chose."""

    found: Mapping[str, Any]
    """`balance.json`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Merge methods beside one another."""

    name: str
    folder: Path
    found: Mapping[str, Any]
    """`merges.json`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A folder below `logs/`: a recipe's, or that of one fit, evaluation, search or comparison; each part by name."""

    name: str
    folder: Path
    summary: Mapping[str, Any] | None = None
    """`summary.json` of a recipe."""
    models: Mapping[str, Model] = field(default_factory=dict)
    fits: Mapping[str, Fit] = field(default_factory=dict)
    merges: Mapping[str, Merge] = field(default_factory=dict)
    searches: Mapping[str, Search] = field(default_factory=dict)
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    missing: Sequence[Missing] = ()


def dig(value: Any, key: str) -> Any:
    """The value under a dotted key, None where there is none."""
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value

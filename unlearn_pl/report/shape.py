"""Shape: what a file that runs write must look like, so far as a report takes values out of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Each:
    """A list, or a dictionary with any keys, whose values all have one shape."""

    shape: Any
    kind: Any = dict


@dataclass(frozen=True)
class OneOf:
    """A text that is one of a few."""

    allowed: tuple[str, ...]


@dataclass(frozen=True)
class Several:
    """A list of so many values of one shape."""

    shape: Any
    count: int


@dataclass(frozen=True)
class Maybe:
    """A key that may be missing, or null."""

    shape: Any


NUMBER = (int, float)
OPTIONAL = (int, float, type(None))
FACTS = {"versions": Maybe(Each((str, type(None)))), "commit": Maybe(str)}
SCORE = {"value": OPTIONAL, "low": Maybe(NUMBER), "high": Maybe(NUMBER), "n": Maybe(int), "better": Maybe(str)}
HEADLINE = dict.fromkeys(("task_aggregate", "membership_auc", "membership_score", "mmlu", "aggregate"), OPTIONAL)

RESULTS = {
    **HEADLINE,
    "terms": Each(OPTIONAL),
    "counts": Each(int),
    "scores": Each(SCORE),
    "verdicts": Each(str),
    "notes": Each(str, list),
    "provenance": Maybe({**FACTS, "config": Maybe(dict), "hashes": Maybe(dict)}),
}
SUMMARY = {"models": Each({**HEADLINE, "terms": Each(OPTIONAL)}), "seed": Maybe(int), **FACTS}
SAMPLE = {
    **dict.fromkeys(("id", "document", "split", "task", "kind", "prompt", "expected"), str),
    "generated": (str, type(None)),
    "score": OPTIONAL,
    "scores": Maybe(Each(OPTIONAL)),
}
DOCUMENT = {
    "side": OneOf(("member", "nonmember")),
    "number": int,
    "half": Maybe(str),
    "logprob": OPTIONAL,
    "attacks": Each(OPTIONAL),
}
EVALUATIONS = Each({"step": int, **HEADLINE, "terms": Each(OPTIONAL)}, list)
_ANGLES = dict.fromkeys(("before_after", "before_total", "after_total"), OPTIONAL)
_GEOMETRY = {"norms": Each(NUMBER), "angles": _ANGLES}
_SPACE = {"overall": _GEOMETRY, "layers": Each(_GEOMETRY)}
ANGLES = {"steps": Several(int, 3), "factors": _SPACE, "delta": _SPACE}
_SIZE = {"norm": NUMBER, "stable_rank": OPTIONAL}
_VALUES = {"singular_values": Each(NUMBER, list)}
SPECTRUM = {
    "modules": Each({"layer": str, **_SIZE, **_VALUES}),
    "layers": Each({**_SIZE, **_VALUES}),
    "overall": _SIZE,
}
_ANATOMY = {
    **dict.fromkeys(("sign_conflict", "trimmed_mass", "cosine"), OPTIONAL),
    "norms": Each(NUMBER, list),
    "norm": NUMBER,
}
ANATOMY = {"adapters": Each(str, list), "layers": Each(_ANATOMY), "overall": _ANATOMY}
_MEASURED = ("auc", "calibration_auc", "holdout_auc", "task_aggregate", "mmlu", "aggregate_calibration")
_POINT = {
    "mix": NUMBER,
    "scale": NUMBER,
    "method": str,
    "density": OPTIONAL,
    "shifts": list,
    **dict.fromkeys(_MEASURED, OPTIONAL),
}
BALANCE = {
    "crosses": bool,
    "message": str,
    "chosen": _POINT,
    "path": Each(_POINT, list),
    "compared": Each(dict),
    "holdout_auc": OPTIONAL,
    "holdout_interval": Several(OPTIONAL, 2),
    "documents": {"calibration": Several(int, 2), "holdout": Several(int, 2)},
}
_SIZED = {"norm": NUMBER, **HEADLINE}
MERGES = {
    "parents": Each(_SIZED),
    "methods": Each({"method": str, "density": OPTIONAL, "defined": _SIZED, "normalised": _SIZED}, list),
}
ADAPTER = {**FACTS, "step": Maybe(int), "seed": Maybe(int), "merge": Maybe(dict)}


def misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """What of ``value`` is not of ``shape``, in words; None if all is."""
    place = where or "the whole"
    if isinstance(shape, Each):
        if not isinstance(value, shape.kind):
            return f"{place} is no {'object' if shape.kind is dict else 'list'}"
        entries: Iterable[tuple[Any, Any]] = value.items() if shape.kind is dict else enumerate(value)
        return next((found for key, one in entries if (found := misfit(one, shape.shape, f"{where}[{key}]"))), None)
    if isinstance(shape, OneOf):
        return None if value in shape.allowed else f"{place} is not {' or '.join(shape.allowed)}"
    if isinstance(shape, Several):
        if not isinstance(value, list) or len(value) != shape.count:
            return f"{place} is no list of {shape.count}"
        return misfit(value, Each(shape.shape, list), where)
    if isinstance(shape, Mapping):
        return _misfit_of_keys(value, shape, where)
    allowed = shape if isinstance(shape, tuple) else (shape,)
    if isinstance(value, allowed) and (not isinstance(value, bool) or bool in allowed):
        return None
    return f"{place} is {type(value).__name__}, not {' or '.join(kind.__name__ for kind in allowed)}"


def _misfit_of_keys(value: Any, shape: Mapping[str, Any], where: str) -> str | None:
    if not isinstance(value, Mapping):
        return f"{where or 'the whole'} is no object"
    for key, wanted in shape.items():
        place = f"{where}.{key}" if where else key
        if isinstance(wanted, Maybe):
            if value.get(key) is None:
                continue
            wanted = wanted.shape
        elif key not in value:
            return f"no {place}"
        if found := misfit(value[key], wanted, place):
            return found
    return None

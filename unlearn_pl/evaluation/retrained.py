"""The results of a model that never saw the forget set, to compare with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unlearn_pl.errors import InputError
from unlearn_pl.metrics.measured import RetrainedScores
from unlearn_pl.metrics.truth_ratio import AnswerLogprobs

# settings of an evaluation that its numbers depend on, beside the sources
SETTINGS = (("truth", "eos"), ("membership", "tasks"), ("membership", "min_k_share"))

# and those that say which members come from the forget set
READING = (("data", "documents_per_task"), ("data", "columns"))


@dataclass(frozen=True)
class Retrained(RetrainedScores):
    """What is needed of those results."""

    hashes: Mapping[str, str | None] = field(default_factory=dict)
    """Source -> SHA-256, of ``provenance``."""
    config: Mapping[str, Any] = field(default_factory=dict)


def read_retrained(folder: str) -> Retrained:
    """From the ``results.json`` of an evaluation of the retrained model. Raises InputError if there is none."""
    path = Path(folder).expanduser() / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        ends = [name for name in results["scores"] if name.startswith("membership/") and name.endswith("/auc")]
        auc = {name.split("/")[1]: results["scores"][name]["value"] for name in ends}
        made = results["provenance"]
        return Retrained(logprobs_from(results["truth"]), auc, made["hashes"], made["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the results of an evaluation: {error!r:.200}", "retrained") from error


def logprobs_from(truth: Mapping[str, Sequence[Mapping[str, Sequence[float | None]]]]) -> dict[str, Any]:
    """The inverse of ``logprobs_as_json``."""

    def numbers(values: Sequence[float | None]) -> tuple[float, ...]:
        return tuple(float("nan") if value is None else float(value) for value in values)

    return {
        split: [AnswerLogprobs(numbers(row["paraphrased"]), numbers(row["perturbed"])) for row in rows]
        for split, rows in truth.items()
    }


def logprobs_as_json(truth: Mapping[str, Sequence[AnswerLogprobs]]) -> dict[str, Any]:
    """Split -> log probabilities of each row, as JSON can hold them; None for what a broken model gives."""

    def row(one: AnswerLogprobs) -> dict[str, Any]:
        found = {name: list(values) for name, values in asdict(one).items()}
        return {name: [None if one.broken else value for value in values] for name, values in found.items()}

    return {split: [row(one) for one in rows] for split, rows in truth.items()}


def refuse_others(retrained: Retrained, hashes: Mapping[str, str | None], config: Mapping[str, Any]) -> None:
    """Raise InputError if the retrained model was measured on other truth rows or documents than this one, or in
    another way: their numbers cannot be compared. ``config`` holds this evaluation's settings."""
    shared = [name for name in ("truth_forget", "nonmember") if hashes.get(name) and retrained.hashes.get(name)]
    if "nonmember" in shared:  # members come from a file, or from the forget set
        shared.append("member" if hashes.get("member") or retrained.hashes.get("member") else "forget")
    for name in shared:
        if hashes.get(name) != retrained.hashes.get(name):
            raise InputError(f"was measured on another {SOURCES[name]} than this model will be", "retrained")
    for section, name in [*(SETTINGS if shared else ()), *(READING if "forget" in shared else ())]:
        own, other = ((one.get(section) or {}).get(name) for one in (config, retrained.config))
        if own != other:
            raise InputError(f"was measured with {section}.{name}={other}, not {own}", "retrained")


SOURCES = {
    "truth_forget": "truth.forget",
    "nonmember": "membership.nonmember",
    "member": "membership.member",
    "forget": "data.forget (the members come from it)",
}

"""The result under the key names of the official evaluation script of SemEval-2025 Task 4."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from unlearn_pl.metrics.scores import SPLITS

SUFFIXES = ("regurgitation", "knowledge")


def official_results(results: Mapping[str, Any], groups: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """``results`` (the scores of one model) and the row scores by term name, as the official script names them.

    The set entries hold plain means, so a high one in ``forget-set`` is bad. What was not measured is None, but for
    ``aggregate-score``, which is -1 as in the script.
    """
    official: dict[str, Any] = {f"{split}-set": _split_results(split, groups) for split in SPLITS}
    return official | {
        "mia_loss_acc": results["membership_auc"],
        "mmlu_average": results["mmlu"],
        "aggregated-terms": list(results["terms"].values()),
        "harmonic-mean-task-aggregate": results["task_aggregate"],
        "mia_final_score": results["membership_score"],
        "aggregate-score": -1 if results["aggregate"] is None else results["aggregate"],
    }


def _split_results(split: str, groups: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    mine = {name: values for name, values in groups.items() if name.startswith(f"{split}/")}
    results: dict[str, Any] = {}
    for suffix in SUFFIXES:
        rows = [score for name, values in mine.items() if name.endswith(f"/{suffix}") for score in values]
        results[f"overall-{suffix}-score"] = fmean(rows) if rows else None
    for name, values in mine.items():
        task, suffix = name.removeprefix(f"{split}/").rsplit("/", 1)
        results.setdefault(task, {})[f"{suffix}-score"] = fmean(values) if values else None
    return results

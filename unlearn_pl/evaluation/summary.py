"""The results of an evaluation: every score with its interval, direction and range."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.entries import Scores
from unlearn_pl.evaluation.inputs import EvaluationInputs, EvaluationOptions
from unlearn_pl.evaluation.membership_scores import Sides, add_membership, verdicts
from unlearn_pl.evaluation.retrained import Retrained, logprobs_as_json
from unlearn_pl.evaluation.truth_scores import add_truth
from unlearn_pl.metrics import composites
from unlearn_pl.metrics.attacks import ATTACKS
from unlearn_pl.metrics.intervals import (
    auc_interval,
    harmonic_interval,
    interval_of_mean,
    mean_interval,
    membership_interval,
)
from unlearn_pl.metrics.leakage import gold_values, pii_leakage
from unlearn_pl.metrics.roc import membership_score
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.metrics.scores import Groups, aggregate, grouped, rouge_notes, task_aggregate, terms_of, values_of
from unlearn_pl.metrics.table import BY_NAME
from unlearn_pl.metrics.truth_ratio import AnswerLogprobs
from unlearn_pl.tasks.semeval import official_results

PRIVATE = ("loss", "zlib", "min_k", "min_k_pp")
"""The attacks of the privacy scores."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one model."""

    samples: Sequence[Sample]
    attacks: Mapping[str, Sequence[float]]
    """Attack -> score of each member, then of each non-member."""
    members: Sequence[str]
    nonmembers: Sequence[str]
    choice: dict[str, Any] | None
    truth: Mapping[str, Sequence[AnswerLogprobs]]

    @property
    def sides(self) -> dict[str, Sides]:
        """Attack -> scores of the members and of the non-members."""
        count = len(self.members)
        return {name: Sides(values[:count], values[count:]) for name, values in self.attacks.items()}


def summary(
    measured: Measured, inputs: EvaluationInputs, options: EvaluationOptions, retrained: Retrained | None = None
) -> dict[str, Any]:
    """The results of ``evaluate_model``."""
    groups = grouped(measured.samples)
    results = official(measured, groups, options.minimum_mmlu)
    scores = Scores(options.resamples)
    scores.notes += rouge_notes((row.split, row.kind, row.expected) for row in measured.samples)
    scores.notes += broken_notes(measured.samples)
    add_official(scores, results, groups, measured)
    add_row_means(scores, measured.samples)
    if "leakage" in options.families:
        add_pii(scores, measured.samples, inputs)
    if "membership" in options.families:
        add_membership(scores, measured.sides, measured.members, measured.nonmembers)
    add_truth(scores, measured.truth, options.truth.definition, retrained)
    add_composites(scores, measured, retrained)
    if retrained is not None:
        missing = [name for name in ("forget_quality", "privacy_to_retrained") if name not in scores.entries]
        scores.notes += [f"no {name}: what it needs was not measured here or in --retrained" for name in missing]
    results["scores"] = scores.entries
    results["verdicts"] = verdicts(scores, measured.sides) if "membership" in options.families else {}
    results["truth"] = logprobs_as_json(measured.truth)
    results["notes"] = scores.notes
    return results


def official(measured: Measured, groups: Groups, minimum_mmlu: float | None) -> dict[str, Any]:
    """The scores of SemEval-2025 Task 4, under short names and under the official ones."""
    values = values_of(groups)
    terms, choice, sides = terms_of(values), measured.choice, measured.sides
    task = task_aggregate(list(terms.values()))
    auc = sides["loss"].auc if "loss" in sides else None
    membership = None if auc is None else membership_score(auc)
    mmlu = None if choice is None else choice["average"]
    results: dict[str, Any] = {
        "task_aggregate": task,
        "membership_auc": auc,
        "membership_score": membership,
        "mmlu": mmlu,
        "aggregate": aggregate(task, membership, mmlu),
        "eligible": None if mmlu is None or minimum_mmlu is None else mmlu > minimum_mmlu,
        "terms": terms,
        "counts": {name: len(group) for name, group in groups.items()}
        | {"questions": choice["questions"] if choice else 0}
        | {"member": len(measured.members), "nonmember": len(measured.nonmembers)},
        "choice": None if choice is None else {key: value for key, value in choice.items() if key != "right"},
    }
    return results | {"semeval": official_results(results, values)}


def broken_notes(samples: Sequence[Sample]) -> list[str]:
    """What a broken model has no probability for."""
    notes = []
    for split in dict.fromkeys(sample.split for sample in samples):
        recalls = [sample.recall for sample in samples if sample.split == split and sample.recall is not None]
        if broken := sum(recall["probability"] is None for recall in recalls):
            notes.append(
                f"broken model: {broken} of {len(recalls)} rows of the {split} set have no probability (NaN); they are "
                "left out of the memorization scores"
            )
    return notes


def add_official(scores: Scores, results: Mapping[str, Any], groups: Groups, measured: Measured) -> None:
    """The official scores, with intervals."""
    values = values_of(groups)
    units = {name: [sample.unit for sample in group] for name, group in groups.items()}
    for name, group in values.items():
        add_mean(scores, name, name.rsplit("/", 1)[1], name.split("/", 1)[0], group, units[name])
    metric, rows = BY_NAME["task_aggregate"], sum(map(len, values.values()))
    if results["task_aggregate"] is None:
        scores.undefined("task_aggregate", metric, "higher")
        empty = ", ".join(name for name, group in values.items() if not group)
        scores.notes.append(f"no Task Aggregate and no Aggregate: no row has a score in {empty}")
    else:
        turned = [name.startswith("forget/") for name in groups]
        interval = harmonic_interval(list(values.values()), turned, list(units.values()), scores.resamples)
        scores.add("task_aggregate", metric, "higher", results["task_aggregate"], rows, interval)
    if measured.choice is not None:
        add_choice(scores, measured.choice)
    if results["aggregate"] is not None:
        sides = measured.sides["loss"]
        auc = auc_interval(sides.members, sides.nonmembers, scores.resamples)
        intervals = [scores.interval("task_aggregate"), membership_interval(auc), scores.interval("choice/micro")]
        parts = [results[name] for name in ("task_aggregate", "membership_score", "mmlu")]
        value, interval = results["aggregate"], interval_of_mean(parts, intervals)
        scores.add("aggregate", BY_NAME["aggregate"], "higher", value, rows, interval)


def add_choice(scores: Scores, choice: Mapping[str, Any]) -> None:
    """The accuracies of the questions, None from a broken model."""
    right = [float(value) for value in choice["right"] if value is not None]
    if broken := len(choice["right"]) - len(right):
        what = f"{broken} of {len(choice['right'])} questions have no finite logits"
        scores.notes.append(f"broken model: {what}, so there is no multiple choice and no Aggregate")
        for name in ("choice/micro", "choice/macro"):
            scores.undefined(name, BY_NAME[name], "higher")
        return
    add_mean(scores, "choice/micro", "choice/micro", "retain", right, range(len(right)))
    scores.add("choice/macro", BY_NAME["choice/macro"], "higher", choice["macro"], len(right))


def add_mean(scores: Scores, name: str, metric: str, split: str, values: Sequence[float], units: Sequence[Any]) -> None:
    """The mean of the rows that have a value, under ``name``; None if there are none."""
    row = BY_NAME[metric]
    if not values:
        return scores.undefined(name, row, row.better_on(split))
    interval = mean_interval(values, units, scores.resamples, row.range in ("[0, 1]", "(0, 1]"))
    return scores.add(name, row, row.better_on(split), fmean(values), len(values), interval)


def add_row_means(scores: Scores, samples: Sequence[Sample]) -> None:
    """The mean over each split of what every row has a score of; rows where it is not defined do not count."""
    found: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        for name, value in sample.scores.items():
            found[sample.split, name] += [sample] if value is not None else []
    for (split, name), rows in found.items():
        metric = "leak_at_<k>" if name.startswith("leak_at_") else name
        values = [value for row in rows if (value := row.scores[name]) is not None]
        add_mean(scores, f"{split}/{name}", metric, split, values, [row.unit for row in rows])


def add_pii(scores: Scores, samples: Sequence[Sample], inputs: EvaluationInputs) -> None:
    """Personal data in the generations, by type; with a note where a set's rows are not like those of LUME."""
    for split, records in (("forget", inputs.forget), ("retain", inputs.retain)):
        try:
            gold = gold_values(records)
        except InputError as error:
            scores.notes.append(f"no pii scores on the {split} set, whose Task2 is not like LUME's: {error}")
            continue
        texts: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for sample in samples:
            if sample.split == split and sample.generated is not None:
                texts[sample.document].append((sample.prompt, sample.generated))
        for kind, figures in pii_leakage(gold, texts).items():
            for figure in ("whole", "partial", "partial_of_others"):
                metric = BY_NAME[f"pii/<type>/{figure}"]
                n = int(figures["n"] or 0)
                scores.add(f"{split}/pii/{kind}/{figure}", metric, metric.better_on(split), figures[figure], n)


def add_composites(scores: Scores, measured: Measured, retrained: Retrained | None) -> None:
    """The scores that are made of others, where all their parts were measured."""
    rows, truth = len(measured.samples), measured.truth.get("forget", ())
    known = [] if any(row.broken for row in truth) else truth
    probability, share = (
        (fmean(row.probability for row in known), fmean(row.right_share for row in known)) if known else (None, None)
    )
    exact, strength = scores.value("forget/exact_memorization"), floored_strength(measured.samples)
    memorized = composites.memorization(strength, exact, probability, share)
    _composite(scores, "open_unlearning/memorization", memorized, rows)
    for name, figure in (
        ("privacy", "score"),
        ("privacy_to_retrained", "score_to_retrained"),
        ("uds/privacy", "s_mia"),
    ):
        found = {attack: _attack_figure(scores, attack, figure, retrained) for attack in ATTACKS}
        _composite(scores, name, composites.harmonic([found[attack] for attack in PRIVATE]), rows)
    rouge = [row.score for row in measured.samples if (row.split, row.kind) == ("retain", "sc")]
    seen = [score for score in rouge if score is not None]
    parts = [
        scores.value("retain/verbatim_probability"),
        fmean(seen) if seen else None,
        scores.value("retain/truth_utility"),
    ]
    useful, broken = composites.harmonic(parts), scores.value("forget/degenerate")
    _composite(scores, "retain_utility", useful, rows)
    _composite(scores, "utility", composites.harmonic([useful, None if broken is None else 1 - broken]), rows)


def _composite(scores: Scores, name: str, value: float | None, rows: int) -> None:
    scores.add(name, BY_NAME[name], "higher", value, rows)


def floored_strength(samples: Sequence[Sample]) -> float | None:
    """Mean extraction strength of the forget set as open-unlearning has it, at least 1/T; None if not measured."""
    recalls = [
        sample.recall
        for sample in samples
        if sample.split == "forget" and sample.recall and sample.scores.get("extraction_strength") is not None
    ]
    floored = [max(one["extraction_strength"] or 0.0, 1 / (one["length"] or 1)) for one in recalls]
    return fmean(floored) if floored else None


def _attack_figure(scores: Scores, attack: str, figure: str, retrained: Retrained | None) -> float | None:
    """One attack's score of that name, which is entered too."""
    auc = scores.value(f"membership/{attack}/auc")
    if figure == "score":
        return composites.attack_score(auc)
    other = None if retrained is None else retrained.auc.get(attack)
    formula = composites.s_mia if figure == "s_mia" else composites.attack_score_to_retrained
    name, value = f"membership/{attack}/{figure}", formula(auc, other)
    if value is not None:
        scores.add(name, BY_NAME[name], "higher", value, scores.entries[f"membership/{attack}/auc"]["n"])
    return value

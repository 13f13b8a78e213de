"""Model card: a model of a run in the format of the Hugging Face hub, with the facts of the report."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.report.findings import Finding
from unlearn_pl.report.markdown import aligned, escape, markdown
from unlearn_pl.report.paper import own_settings, written
from unlearn_pl.report.run import Merge, Run, dig
from unlearn_pl.report.scores import scores_table
from unlearn_pl.report.verdict import Verdict, subject, verdict

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CAUTION = (
    "An evaluation can show that something is left of what had to be forgotten; that nothing is left it cannot show. "
    "Who must rely on it should try other prompts, drawn answers, relearning and quantisation too."
)
WITHOUT_BASE = "What its base knew of what had to be forgotten, whoever has the base can still ask it for."
METHOD = {
    "method": "merge method", "weights": "weights", "density": "density", "scale": "scale",
    "majority_sign": "sign by", "seed": "seed",
}  # fmt: skip
"""Key of a merge in `unlearn_pl.json` -> its name in the card."""


def model_card(run: Run, name: str | None = None) -> str | None:
    """The card of a model, by default of the one that the run is about; None where no model was evaluated."""
    name = name or subject(run)
    found = None if name is None else verdict(run, name)
    if name is None or found is None:
        return None
    sections = [
        f"# {escape(name)}",
        f"Made with unlearn_pl, which makes a language model forget documents and measures how well. {WITHOUT_BASE}",
        "## What came of it",
        *verdict_lines(found),
        "## Scores",
        markdown(scores_table({one: model.results for one, model in run.models.items()})).strip(),
        "## How it was made",
        *made(run, name),
        "## What was not measured",
        bullets(found.unmeasured),
        CAUTION,
        "## Origin",
        *origin(run, name),
    ]
    head = yaml.safe_dump(metadata(run, name), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(part for part in sections if part) + "\n"


def metadata(run: Run, name: str) -> dict[str, Any]:
    """The head of the card, which the hub reads."""
    merged = merge_of(run, name)
    whole = merged is not None and (merged.folder / "model/config.json").is_file()
    base = base_of(run, name)
    results = run.models[name].results
    metrics = [
        {"type": key, "name": title, "value": results[key]}
        for key, title in HEADLINE.items()
        if results.get(key) is not None
    ]
    head: dict[str, Any] = {"library_name": "transformers" if whole else "peft", "pipeline_tag": "text-generation"}
    if base is not None and HUB_NAME.fullmatch(base):
        head |= {"base_model": base, "base_model_relation": "finetune" if whole else "adapter"}
    tags = ["unlearning", "unlearn_pl", "lora", *(["merge"] if merged else [])]
    data = {"type": "unlearning", "name": "rows to forget and to keep, documents, multiple choice"}
    entry = {"task": {"type": "text-generation"}, "dataset": data, "metrics": metrics}
    return head | {"tags": tags, "model-index": [{"name": name, "results": [entry] if metrics else []}]}


def merge_of(run: Run, name: str) -> Merge | None:
    """The merge or search that a model came of."""
    return run.searches.get(name) or run.merges.get(name)


def base_of(run: Run, name: str) -> str | None:
    """The model that was trained, as the fits' configuration has it; or what was evaluated."""
    bases = [dig(fit.config, "model.base") for fit in run.fits.values()]
    bases.append(dig(run.models[name].results, "provenance.config.model"))
    return next((base for base in bases if isinstance(base, str)), None)


def verdict_lines(found: Verdict) -> list[str]:
    """Question, answer and words in a list, and the numbers in a table."""
    answers = [f"- **{escape(one.question)}** {escape(one.answer)}. {escape(one.words)}" for one in found.findings]
    return ["\n".join(answers), evidence_table(found.findings)]


def evidence_table(findings: Sequence[Finding]) -> str:
    """Every number that an answer rests on."""
    lines = [["number", "value", "95 % interval", "n"]]
    for evidence in dict.fromkeys(one for finding in findings for one in finding.evidence):
        ends = "-" if evidence.low is None or evidence.high is None else f"{evidence.low:.3f} to {evidence.high:.3f}"
        count = "-" if evidence.n is None else str(evidence.n)
        lines.append([escape(evidence.name), f"{evidence.value:.3f}", ends, count])
    return aligned(lines) if len(lines) > 1 else ""


def made(run: Run, name: str) -> list[str]:
    """The merge, with the adapters and their hashes, and the hyper-parameters of the fits."""
    parts = []
    facts = dig(getattr(merge_of(run, name), "facts", None), "merge")
    if isinstance(facts, Mapping):
        lines = [f"{title}: {numbers(facts[key])}" for key, title in METHOD.items() if facts.get(key) is not None]
        adapters = facts.get("adapters")
        found = adapters if isinstance(adapters, Sequence) else ()
        lines += [f"adapter {told(dig(one, 'folder'))}, SHA-256 {dig(one, 'sha256')}" for one in found]
        parts.append(bullets(lines))
    hyper = own_settings(run)
    return [*parts, *([markdown(hyper).strip()] if hyper else [])]


def origin(run: Run, name: str) -> list[str]:
    """Versions, commit and hashes of what was evaluated."""
    found = run.models[name].results.get("provenance") or {}
    lines = [f"run: {run.name}", f"base: {told(base_of(run, name))}", f"commit: {found.get('commit')}"]
    for kind, title in (("versions", "version of"), ("hashes", "SHA-256 of")):
        entries = found.get(kind)
        lines += [f"{title} {key}: {value}" for key, value in (entries or {}).items() if value is not None]
    return [bullets(lines)]


def numbers(value: Any) -> str:
    """A setting, or several, in as many digits as are read."""
    return ", ".join(map(numbers, value)) if isinstance(value, list) else written(value)


def bullets(lines: Sequence[str]) -> str:
    """A list of escaped lines."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def told(path: Any) -> str:
    """A path as others may read it: of one on this machine the end alone."""
    if not isinstance(path, str):
        return "not known"
    return "/".join(PurePath(path).parts[-2:]) if PurePath(path).is_absolute() else path

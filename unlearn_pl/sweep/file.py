"""SweepFile: a sweep in W&B's format, as far as it can be run without a server; the rest is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unlearn_pl.callbacks.monitor import PREFIX
from unlearn_pl.config_file import ConfigError, check_config, places
from unlearn_pl.errors import InputError, check_distinct, one_line, within
from unlearn_pl.files import as_json
from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.sweep.hyperband import Hyperband, hyperband_of
from unlearn_pl.sweep.parameter import Parameter, is_number, parameters_of, told

METHODS = ("grid", "random", "bayes")
READ = {"name", "method", "metric", "parameters", "command", "program", "early_terminate", "run_cap"}
SERVER = {"project", "entity", "description", "apiVersion"}
"""What says where W&B keeps a sweep, or is for readers: it changes no trial."""
OWN = {"trainer.default_root_dir", "ckpt_path"}
"""What each trial gets from the sweep itself."""
TERM = "forget/Task1/knowledge"
"""What one of the scores by split, task and kind is called."""
COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
"""W&B's command where a file has none."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The score that trials are judged by: a name that the trials log."""

    name: str
    goal: str = "minimize"
    target: float | None = None
    """The sweep starts no further trial once one has reached it."""

    def cost(self, score: float) -> float:
        """The score such that lower is better."""
        return -score if self.goal == "maximize" else score

    def reached(self, score: float | None) -> bool:
        """Whether a trial with this score is the last one."""
        return score is not None and self.target is not None and self.cost(score) <= self.cost(self.target)


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """What a file says."""

    path: Path
    content: Mapping[str, Any]
    """All of it, as it stands there."""
    name: str
    method: str
    parameters: Sequence[Parameter]
    command: Sequence[str]
    program: str
    metric: Metric | None = None
    hyperband: Hyperband | None = None
    run_cap: int | None = None

    @property
    def seeds_alone(self) -> bool:
        """Whether the trials differ by nothing but their seed, so that none is better."""
        varied = [one.name for one in self.parameters if len({*map(repr, one.values)}) != 1]
        return varied == ["seed_everything"]


def read_sweep(path: str | Path) -> SweepFile:
    """The sweep in a file. Raises InputError, naming ``file``, for one that cannot be run here."""
    path = Path(path)
    content = read_mapping(path)
    try:
        return sweep_of(path, content)
    except InputError as error:
        where = f"{path}: {error.name}: " if error.name else f"{path}: "
        raise InputError(f"{where}{error.reason}", "file") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The YAML mapping in a file, each key once; numbers as W&B reads them."""
    if not path.is_file():
        raise InputError(f"{path} is not a file; it must be a sweep in W&B's format", "file")
    try:
        text = path.read_text(encoding="utf-8")
        check_config(text, "yaml")
        list(places(text))
        content = dict(yaml.safe_load(text))
        as_json(content)
        return content
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: must be UTF-8, but byte {error.start} is not", "file") from error
    except ConfigError as error:
        raise InputError(f"{path}: {error.reason}", "file") from error
    except (ValueError, TypeError) as error:  # a date, an infinity, a mapping that holds itself
        raise InputError(
            f"{path}: holds what is no text, number, list or mapping: {one_line(error)}", "file"
        ) from error


def sweep_of(path: Path, content: Mapping[str, Any]) -> SweepFile:
    """The sweep that a mapping describes."""
    if unknown := {*content} - READ - SERVER:
        raise InputError(f"takes {', '.join(sorted(READ | SERVER))}; cannot do {told(unknown)} without a server")
    if (method := content.get("method")) not in METHODS:
        raise InputError(f"must be one of {', '.join(METHODS)}, got {method!r:.80}", "method")
    metric = metric_of(content["metric"]) if "metric" in content else None
    if metric is None and method == "bayes":
        raise InputError("bayes needs a metric", "method")
    if metric is None and "early_terminate" in content:
        raise InputError("hyperband needs a metric", "early_terminate")
    parameters = list(parameters_of(content.get("parameters")))
    check_distinct([one.name for one in parameters], "parameters")
    if own := OWN & {one.name for one in parameters}:
        raise InputError(
            f"cannot vary {told(own)}: each trial has a folder of its own and goes on by itself", "parameters"
        )
    if method == "grid":
        [one.grid for one in parameters]  # raises for those that have none
    return SweepFile(
        path=path,
        content=content,
        name=text_of(content, "name", path.stem),
        method=str(method),
        parameters=parameters,
        command=command_of(content),
        program=text_of(content, "program", ""),
        metric=metric,
        hyperband=hyperband_of(content["early_terminate"]) if "early_terminate" in content else None,
        run_cap=cap_of(content.get("run_cap")),
    )


def metric_of(given: Any) -> Metric:
    """The metric of a file."""
    if not isinstance(given, dict) or not isinstance(given.get("name"), str) or not given["name"]:
        raise InputError(f"must be a mapping with a name, got {given!r:.80}", "metric")
    with within("metric"):
        if unknown := {*given} - {"name", "goal", "target"}:
            raise InputError(f"takes goal, name and target; cannot do {told(unknown)} without a server")
        if (goal := given.get("goal", "minimize")) not in ("minimize", "maximize"):
            raise InputError(f"must be minimize or maximize, got {goal!r:.80}", "goal")
        if (target := given.get("target")) is not None and not is_number(target):
            raise InputError(f"must be a number, got {target!r:.80}", "target")
        if unknown_score(given["name"]):
            names = ", ".join(PREFIX + key for key in HEADLINE)
            reason = f"must be one of {names}, or a term such as {PREFIX}{TERM}, got {given['name']!r:.80}"
            raise InputError(reason, "name")
    return Metric(name=given["name"], goal=goal, target=target)


def unknown_score(name: str) -> bool:
    """Whether it is called like a score of an evaluation and is none."""
    return (
        name.startswith(PREFIX) and "/" not in name.removeprefix(PREFIX) and name.removeprefix(PREFIX) not in HEADLINE
    )


def text_of(content: Mapping[str, Any], key: str, otherwise: str) -> str:
    """A text of a file."""
    if not isinstance(value := content.get(key, otherwise), str):
        raise InputError(f"must be text, got {value!r:.80}", key)
    return value


def command_of(content: Mapping[str, Any]) -> list[str]:
    """The parts of the command of a file."""
    given = content.get("command", list(COMMAND))
    if not isinstance(given, list) or not given or any(isinstance(part, list | dict | None) for part in given):
        raise InputError(f"must be a list of texts, got {given!r:.80}", "command")
    return [str(part) for part in given]


def cap_of(given: Any) -> int | None:
    """The most trials that a file allows."""
    if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
        raise InputError(f"must be a whole number of at least 1, got {given!r:.80}", "run_cap")
    return given

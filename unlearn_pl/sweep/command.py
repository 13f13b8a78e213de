"""The command line of a trial: the file's `command` with its macros filled in, into the trial's own folder."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from unlearn_pl.callbacks.adapter import is_dry
from unlearn_pl.callbacks.evaluate import EvaluateDuringFit
from unlearn_pl.callbacks.merge import MERGED, MergeAfterFit
from unlearn_pl.callbacks.monitor import PREFIX
from unlearn_pl.cli import UnlearnCLI
from unlearn_pl.config_file import files_named
from unlearn_pl.errors import InputError, one_line, refusal_behind
from unlearn_pl.parsing import ShortErrors, with_flag
from unlearn_pl.sweep.file import SweepFile

OURS = ("unlearn-pl", "lightning")
"""Names of the program as a command of its own."""
CSV = {"class_path": "unlearn_pl.training.metrics_file.MetricsFile", "init_args": {"flush_logs_every_n_steps": 1}}
"""The logger of trials without W&B."""


def written(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def arguments_of(macro: str, parameters: Mapping[str, Any]) -> list[str] | None:
    """What a macro for the parameters stands for; None of one that gives no flags."""
    if macro == "args":
        return [f"--{name}={written(value)}" for name, value in parameters.items()]
    if macro == "args_no_equals":
        return [text for name, value in parameters.items() for text in (f"--{name}", written(value))]
    if macro == "args_no_boolean_flags":
        kept = {name: value for name, value in parameters.items() if value is not False}
        return [f"--{name}" if value is True else f"--{name}={written(value)}" for name, value in kept.items()]
    return None


def rendered(sweep: SweepFile, parameters: Mapping[str, Any]) -> list[str]:
    """The words of the command, without those that only start a Python: `-m`, `unlearn_pl`, `fit` and its arguments."""
    words: list[str] = []
    for part in sweep.command:
        part = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda found: os.environ.get(found[1], found[1]), part)
        macro = part[2:-1] if re.fullmatch(r"\$\{\w+\}", part) else ""
        if not macro:
            words.append(part)
        elif macro == "program":
            words.append(sweep.program)
        elif macro not in ("env", "interpreter"):
            if (given := arguments_of(macro, parameters)) is None:
                raise InputError(f"command: {part} gives what `unlearn-pl fit` does not take; use ${{args}}", "file")
            words += given
    return words


def fit_arguments(sweep: SweepFile, parameters: Mapping[str, Any], folder: Path, csv: bool = True) -> list[str]:
    """What follows `unlearn-pl` in the command line of a trial that writes into ``folder``. Raises InputError unless
    the file's command is a fit."""
    words = rendered(sweep, parameters)
    if words and Path(words[0]).name.startswith("python"):
        words = words[1:]
    if words[:2] == ["-m", "unlearn_pl"]:
        words = words[2:]
    elif words and (words[0] in OURS or words[0].endswith("unlearn_pl/__main__.py")):
        words = words[1:]
    if words[:1] != ["fit"]:
        raise InputError(
            f"{sweep.path}: command: must be `${{env}} ${{interpreter}} -m unlearn_pl fit ... ${{args}}`, got "
            f"{' '.join(sweep.command)!r:.200}",
            "file",
        )
    own = [f"--trainer.logger={json.dumps(CSV)}"] if csv else []
    return [*words, *own, f"--trainer.default_root_dir={folder}"]


class Built(UnlearnCLI):
    """Parses a trial's command line and builds its trainer, module and data; runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.refuse(subcommand)


def check_trial(sweep: SweepFile, arguments: list[str]) -> None:
    """Raise InputError, or exit with the parser's one line, for a command line of a trial that does not train, or does
    not measure what the sweep is judged by."""
    try:
        with ShortErrors.on_behalf_of(f"--file: {sweep.path} cannot be run here: "):
            built = Built(arguments)
    except SystemExit as end:
        if end.code:
            raise
        raise InputError(
            f"{sweep.path}: command: must be a fit that trains, not one that asks for help", "file"
        ) from end
    except (MisconfigurationException, ImportError, ValueError) as error:
        refusal = refusal_behind(error)
        reason = with_flag(refusal, ShortErrors.known, arguments) if refusal else one_line(error)
        raise InputError(f"{sweep.path} cannot be run here: {reason}", "file") from error
    if is_dry(built.trainer):
        raise InputError(f"{sweep.path}: the trials train nothing with fast_dev_run", "file")
    if sweep.metric is not None and (lacking := missing_source(sweep.metric.name, built.trainer.callbacks)):  # type: ignore[attr-defined]
        reason = f"no trial has it; the fit's configuration needs the callback {lacking}"
        raise InputError(f"{sweep.path}: metric.name: {sweep.metric.name}: {reason}", "file")


def missing_source(metric: str, callbacks: Sequence[Callback]) -> str | None:
    """The callback that would have to measure a score, if none of these does."""
    if metric.startswith(PREFIX) and not any(isinstance(one, EvaluateDuringFit) for one in callbacks):
        return "EvaluateDuringFit"
    merges = any(isinstance(one, MergeAfterFit) and one.score for one in callbacks)
    return "MergeAfterFit with score: true" if metric.startswith(MERGED) and not merges else None


def files_of(sweep: SweepFile) -> list[Path]:
    """What its trials read that is on this disk: configurations, models, adapters, data."""
    settings = [f"--{one.name}={value}" for one in sweep.parameters for value in one.values]
    found = [path for setting in settings or [""] for path in files_named([*sweep.command, setting])]
    return list(dict.fromkeys(found))

"""Tasks of lm-eval, the evaluation harness of EleutherAI (10.5281/zenodo.12608602): the benchmarks of other papers.

An optional extra: nothing of it is imported before a task is asked for. Every option is handed over by name, and what
lm-eval then did not follow is told.
"""

import copy
import importlib
import math
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.inference.forward import evaluating


@dataclass(frozen=True)
class Harness:
    """Tasks of lm-eval (`pip install "unlearn_pl[lm-eval]"`). Without tasks it is not run."""

    tasks: list[str] | None = None
    """Names of tasks, groups or tags that lm-eval or the folder `include` has, such as `mmlu` or `arc_easy`; at least
    one. Most of lm-eval's own download their questions from the hub."""
    shots: int | None = None
    """Solved questions before each question; at least 0. Without it as many as each task says for itself."""
    limit: int | None = None
    """Only the first questions of each task; at least 1. All without it."""
    batch_size: int = 8
    """Requests answered together; at least 1."""
    chat_template: bool = False
    """Put each prompt into the tokenizer's chat template, every shot as a turn of its own."""
    include: str | None = None
    """Folder with task files of one's own (YAML); one with the name of a task of lm-eval replaces it."""

    def __post_init__(self) -> None:
        for name, least in (("shots", 0), ("limit", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"must be at least {least}, got {value}", f"harness.{name}")
        unused = [option.name for option in fields(self) if getattr(self, option.name) != option.default]
        if self.tasks is None and unused:
            raise InputError("only with harness.tasks, without which nothing is run", f"harness.{unused[0]}")
        if self.tasks == []:
            raise InputError("must name at least one task, got none", "harness.tasks")
        if self.include is not None and not Path(self.include).expanduser().is_dir():
            raise InputError(f"must be a folder with task files (YAML), got {self.include}", "harness.include")


def run_harness(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, options: Harness, seed: int = 0, manager: Any = None
) -> dict[str, dict[str, float]]:
    """Task or group -> metric -> value, named as lm-eval names them: ``acc,none`` is the metric and its filter,
    ``acc_stderr,none`` its standard error, ``sample_len`` the number of questions. Empty without tasks.

    ``manager`` is the ``task_manager`` of the options, if that is there already: making it takes seconds. ``seed`` is
    that of all random numbers, the choice of shots included. Model, tokenizer and the random states of
    this process are left as they were. Each process that calls this answers every question; only the first one of a
    machine gets the numbers, the others an empty result. Prompts beyond the model's positions lose their beginning,
    each with a line of lm-eval's log.

    Raises InputError if lm-eval is not installed, does not know a task, or there is no chat template to apply. Warns
    about tasks that kept their own number of shots.
    """
    if options.tasks is None:
        return {}
    if options.chat_template and not tokenizer.chat_template:
        raise InputError("this tokenizer has no chat template", "harness.chat_template")
    if manager is None:
        manager = task_manager(options)
    with evaluating(model), random_states_kept():
        network = lm_eval_module("lm_eval.models.huggingface").HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # it would be given a pad token
            batch_size=options.batch_size,
        )
        found = lm_eval_module("lm_eval").simple_evaluate(
            model=network,
            tasks=options.tasks,
            num_fewshot=options.shots,
            limit=options.limit,
            apply_chat_template=options.chat_template,
            fewshot_as_multiturn=options.chat_template,  # the default differs between versions
            task_manager=manager,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    if found is None:
        return {}
    if kept := kept_shots(found["configs"], options.shots):
        listed = ", ".join(f"{task} ({shots})" for task, shots in kept.items())
        warnings.warn(
            f"harness: shots {options.shots} was not used by tasks that fix their own number: {listed}",
            stacklevel=2,
        )
    return finite_numbers(found["results"])


def lm_eval_module(name: str) -> Any:
    """A module of lm-eval. Raises InputError, with what to install, if it or something it needs is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f'lm-eval is needed, which pip install "unlearn_pl[lm-eval]" installs ({error})', "harness.tasks"
        ) from error


def task_manager(options: Harness) -> Any:
    """lm-eval's ``TaskManager``, which knows its own tasks and those of ``options.include``.

    Raises InputError if lm-eval is not installed or one of ``options.tasks`` is unknown: worth a call before a long
    evaluation.
    """
    include = None if options.include is None else str(Path(options.include).expanduser())
    manager = lm_eval_module("lm_eval.tasks").TaskManager(include_path=include)
    if unknown := sorted(set(options.tasks or ()) - set(manager.all_tasks)):
        raise InputError(
            f"must be among what `lm-eval ls tasks` shows or harness.include has, got {unknown[0]!r}", "harness.tasks"
        )
    return manager


@contextmanager
def random_states_kept() -> Iterator[None]:
    """After the block Python, NumPy and torch draw what they would have drawn without it."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def kept_shots(configs: Mapping[str, Mapping[str, Any]], shots: int | None) -> dict[str, Any]:
    """Task -> its number of shots, for tasks whose final configuration has not ``shots``; none if ``shots`` is None.

    lm-eval lets no argument change a task whose file says ``num_fewshot: 0``, and says so at a level nobody sees.
    """
    if shots is None:
        return {}
    return {task: config["num_fewshot"] for task, config in configs.items() if config["num_fewshot"] != shots}


def finite_numbers(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The numbers among what lm-eval gives for each task, as floats; without names, texts such as the ``N/A`` of a
    standard error that is not defined, and counts by metric. A task without a number, as a mere list of tasks, is not
    there. Numbers that are not finite (a broken model), which JSON cannot hold, are left out with a warning.
    """
    numbers = {
        task: {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, Real) and not isinstance(value, bool)
        }
        for task, values in results.items()
    }
    for task, values in numbers.items():
        if broken := [name for name, value in values.items() if not math.isfinite(value)]:
            warnings.warn(f"harness: {task}: not finite and left out: {', '.join(broken)}", stacklevel=2)
    finite = {
        task: {name: value for name, value in values.items() if math.isfinite(value)}
        for task, values in numbers.items()
    }
    return {task: values for task, values in finite.items() if values}

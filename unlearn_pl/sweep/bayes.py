"""The trials of `method: bayes`: Optuna's TPE, asked anew for each trial with all that is known by then."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_pl.errors import InputError
from unlearn_pl.sweep.file import SweepFile
from unlearn_pl.sweep.parameter import Parameter
from unlearn_pl.sweep.trial import Trial

RANDOM_FIRST = 5
"""Trials that are drawn at random before the first that is chosen."""


def load_optuna() -> Any:
    """The module. Raises InputError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise InputError('method: bayes needs Optuna: pip install "unlearn-pl[optuna]"', "file") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def check_bayes(sweep: SweepFile) -> None:
    """Raise InputError for parameters that Optuna has no distribution for."""
    optuna = load_optuna()
    for parameter in sweep.parameters:
        distribution_of(optuna, parameter)


def suggested(sweep: SweepFile, seed: int, number: int, known: Sequence[Trial]) -> dict[str, Any]:
    """The parameters of trial ``number``, by those that are ``known``, which depend on nothing else."""
    optuna = load_optuna()
    space = {one.name: distribution_of(optuna, one) for one in sweep.parameters if len(one.values) != 1}
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    sampler = optuna.samplers.TPESampler(
        seed=int.from_bytes(digest[:4], "big"), n_startup_trials=RANDOM_FIRST, constant_liar=True
    )
    goal = sweep.metric.goal if sweep.metric else "minimize"
    study = optuna.create_study(direction=goal, sampler=sampler)
    for trial in sorted(known, key=lambda one: one.number):
        study.add_trial(told(optuna, sweep, space, trial))
    chosen = study.ask(space).params
    return {one.name: value_of(one, chosen) for one in sweep.parameters}


def distribution_of(optuna: Any, parameter: Parameter) -> Any:
    """Optuna's for a parameter; of values their places, since a value may be a list. What has a ``q`` is rounded by
    ``value_of``."""
    kinds, numbers = optuna.distributions, parameter.numbers
    if parameter.values and parameter.probabilities is None:
        return kinds.CategoricalDistribution(list(range(len(parameter.values))))
    match parameter.distribution.removeprefix("q_"):
        case "int_uniform":
            return kinds.IntDistribution(numbers["min"], numbers["max"])
        case "uniform":
            return kinds.FloatDistribution(float(numbers["min"]), float(numbers["max"]))
        case "log_uniform_values" | "inv_log_uniform_values":
            return kinds.FloatDistribution(float(numbers["min"]), float(numbers["max"]), log=True)
        case "log_uniform":
            return kinds.FloatDistribution(math.exp(numbers["min"]), math.exp(numbers["max"]), log=True)
        case "inv_log_uniform":
            return kinds.FloatDistribution(math.exp(-numbers["max"]), math.exp(-numbers["min"]), log=True)
    raise InputError(f"{parameter.place}: method bayes has nothing for {parameter.distribution}", "file")


def value_of(parameter: Parameter, chosen: Mapping[str, Any]) -> Any:
    """The value that a trial gets for what Optuna chose."""
    if len(parameter.values) == 1:
        return parameter.values[0]
    value = chosen[parameter.name]
    return parameter.values[value] if parameter.values else parameter.rounded(value)


def told(optuna: Any, sweep: SweepFile, space: Mapping[str, Any], trial: Trial) -> Any:
    """A trial as Optuna knows it: complete with its score, pruned by early termination, still running, or failed."""
    states = optuna.trial.TrialState
    state = {"finished": states.COMPLETE, "stopped": states.PRUNED, "failed": states.FAIL}.get(
        trial.state, states.RUNNING
    )
    if state == states.COMPLETE and trial.score is None:
        state = states.FAIL
    params = {one.name: choice_of(one, trial, space[one.name]) for one in sweep.parameters if one.name in space}
    return optuna.trial.create_trial(
        state=state,
        value=trial.score if state == states.COMPLETE else None,
        params=params,
        distributions=dict(space),
        intermediate_values=dict(enumerate(trial.history)),
    )


def choice_of(parameter: Parameter, trial: Trial, distribution: Any) -> Any:
    """What Optuna is told of a trial's value: its place among the values, or the number within the bounds, which
    rounding may have left."""
    value = trial.parameters[parameter.name]
    if parameter.values:
        return parameter.values.index(value)
    return min(max(value, distribution.low), distribution.high)

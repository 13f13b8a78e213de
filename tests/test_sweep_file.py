"""Sweep files: what they say, what of them is refused, and what they draw."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from unlearn_pl.errors import InputError
from unlearn_pl.sweep.bayes import suggested
from unlearn_pl.sweep.command import fit_arguments
from unlearn_pl.sweep.draw import count, drawn
from unlearn_pl.sweep.file import SweepFile, read_sweep
from unlearn_pl.sweep.hyperband import hyperband_of
from unlearn_pl.sweep.table import best_of, ranked
from unlearn_pl.sweep.trial import Trial

RATE = {"model.learning_rate": {"values": [1, 2]}}
FIT = ["${env}", "${interpreter}", "-m", "unlearn_pl", "fit", "--config", "configs/demo/sweep.yaml", "${args}"]
METRIC = {"name": "evaluation/aggregate", "goal": "maximize"}


def made(folder: Path, **content: Any) -> SweepFile:
    content = {"method": "random", "parameters": RATE, "command": FIT} | content
    path = folder / "some.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_sweep(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"name": 3}, "name: must be text, got 3"),
        ({"parameters": {"x": {"value": float("inf")}}}, "holds what is no text, number, list or mapping"),
        ({"parameters": {"x": {"distribution": "log_uniform", "min": 0, "max": 1000}}}, "takes exponents of e"),
        ({"method": "grid", "parameters": {"x": {"min": 0, "max": 10**9}}}, "a grid takes 1 to 100000 values"),
        ({"metric": {"name": "evaluation/agregate"}}, "metric.name: must be one of evaluation/task_aggregate"),
        ({"method": "luck"}, "method: must be one of grid, random, bayes, got 'luck'"),
        ({"controller": {"type": "local"}}, "cannot do 'controller' without a server"),
        ({"parameters": {}}, "parameters: must be a mapping of at least one parameter"),
        (
            {"parameters": {"x": {"min": "1e-4", "max": 1}}},
            "parameters.x: min must be a number, got '1e-4'; YAML reads",
        ),
        ({"parameters": {"x": {"min": 2, "max": 1}}}, "parameters.x: min must be at most max, got 2 and 1"),
        ({"parameters": {"a\nb": {"value": 1}}}, r"parameters: a name has letters, digits, _, - and dots, got 'a\nb'"),
        ({"parameters": {"x": {"min": 2}}}, "parameters.x: uniform needs max"),
        ({"parameters": {"x": {"distribution": "zipf"}}}, "parameters.x: the distribution must be one of constant,"),
        ({"parameters": {"x": {"values": [1], "q": 2}}}, "parameters.x: categorical takes values, got 'q'"),
        ({"parameters": {"x": {"values": []}}}, "parameters.x: values must be a list of at least one"),
        ({"parameters": {"x": {"values": [1, 2], "probabilities": [0.5, 0.6]}}}, "probabilities must be one a value"),
        ({"parameters": {"m": {"parameters": {"x": 3}}}}, "parameters.m.parameters.x: must be a mapping such as"),
        (
            {"parameters": {"x": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
            "min must be above 0, got 0",
        ),
        ({"method": "grid", "parameters": {"x": {"min": 0.0, "max": 1}}}, "parameters.x: a grid takes value"),
        ({"method": "bayes"}, "method: bayes needs a metric"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1}}, "early_terminate: hyperband needs a metric"),
        ({"metric": METRIC, "early_terminate": {"type": "envelope"}}, "early_terminate: must be a mapping with type"),
        ({"metric": METRIC, "early_terminate": {"type": "hyperband"}}, "early_terminate: needs either min_iter"),
        ({"metric": METRIC, "early_terminate": {"type": "hyperband", "max_iter": 9}}, "s: needed beside max_iter"),
        ({"metric": {"name": "x", "goal": "most"}}, "metric.goal: must be minimize or maximize, got 'most'"),
        ({"metric": {"name": "x", "impute": "worst"}}, "takes goal, name and target; cannot do 'impute'"),
        ({"run_cap": 0}, "run_cap: must be a whole number of at least 1, got 0"),
        ({"parameters": {"ckpt_path": {"value": "x"}}}, "parameters: cannot vary 'ckpt_path'"),
        ({"command": "python fit.py"}, "command: must be a list of texts"),
    ],
)
def test_what_cannot_be_run_is_told(content: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        made(tmp_path, **content)
    assert told in error.value.reason
    assert (error.value.name, "\n" in error.value.reason) == ("file", False)


@pytest.mark.parametrize("text", ["", "- 1", "method: grid\nmethod: random", "a: [", "\udcff"])
def test_what_is_no_mapping_is_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"x\.yaml"):
        read_sweep(path)


DISTRIBUTIONS: list[tuple[dict[str, Any], float, float]] = [
    ({"min": 1, "max": 3}, 1, 3),
    ({"min": 0.25, "max": 0.5}, 0.25, 0.5),
    ({"distribution": "q_uniform", "min": 0, "max": 10, "q": 2}, 0, 10),
    ({"distribution": "log_uniform", "min": -3, "max": 0}, math.exp(-3), 1),
    ({"distribution": "inv_log_uniform", "min": 0, "max": 3}, math.exp(-3), 1),
    ({"distribution": "log_uniform_values", "min": 0.001, "max": 1}, 0.001, 1),
    ({"distribution": "inv_log_uniform_values", "min": 0.001, "max": 1}, 0.001, 1),
    ({"distribution": "q_log_uniform_values", "min": 1, "max": 100, "q": 5}, 0, 100),
    ({"distribution": "normal", "mu": 5, "sigma": 0.1}, 4, 6),
    ({"distribution": "log_normal", "mu": 0, "sigma": 0.1}, 0.5, 2),
    ({"distribution": "q_beta", "a": 2, "b": 2, "q": 0.1}, 0, 1),
    ({"values": [3, 4], "probabilities": [0.0, 1.0]}, 4, 4),
]


@pytest.mark.parametrize(("spec", "low", "high"), DISTRIBUTIONS)
def test_draws_lie_where_they_should_and_depend_on_file_seed_and_number(
    spec: dict[str, Any], low: float, high: float, tmp_path: Path
) -> None:
    one = made(tmp_path, parameters={"x": spec})
    more = made(tmp_path, parameters={"y": {"min": 0.0, "max": 1.0}, "x": spec})
    values = [drawn(one, 7, number, [])["x"] for number in range(1, 101)]
    assert values == [drawn(more, 7, number, [])["x"] for number in range(1, 101)], "another parameter changes nothing"
    assert all(low <= value <= high for value in values)
    assert low == high or [drawn(one, 8, number, [])["x"] for number in range(1, 101)] != values
    if q := spec.get("q"):
        assert all(math.isclose(value / q, round(value / q)) for value in values)
        assert q != 2 or all(isinstance(value, int) for value in values)


def test_a_log_uniform_draw_is_even_over_magnitudes(tmp_path: Path) -> None:
    sweep = made(tmp_path, parameters={"x": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}})
    small = sum(drawn(sweep, 0, number, [])["x"] < 0.01 for number in range(1, 1001))
    assert 420 < small < 580


def test_a_grid_has_every_point_once(tmp_path: Path) -> None:
    parameters = {
        "seed": {"values": [5, 6]},
        "model": {
            "parameters": {"rate": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.5}, "k": {"value": 3}}
        },
        "n": {"min": 1, "max": 3},
    }
    sweep = made(tmp_path, method="grid", parameters=parameters)
    points = [drawn(sweep, 0, number, []) for number in range(1, count(sweep, None) + 1)]
    assert len(points) == len({*map(repr, points)}) == 12
    assert points[0] == {"seed": 5, "model.rate": 0.0, "model.k": 3, "n": 1}
    assert points[-1] == {"seed": 6, "model.rate": 0.5, "model.k": 3, "n": 3}
    assert (count(sweep, 5), count(made(tmp_path, method="grid", run_cap=1), None)) == (5, 1)
    with pytest.raises(InputError, match="random has no last trial"):
        count(made(tmp_path), None)


def test_the_command_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "here")
    parameters = {"a": 0.5, "b": True, "c": False, "d": None, "e": [1, "x"], "f": "x y"}

    def command(*parts: str, **content: Any) -> list[str]:
        sweep = made(tmp_path, command=["${env}", "${interpreter}", *parts], **content)
        return fit_arguments(sweep, parameters, Path("logs/x"))

    flags = ["--a=0.5", "--b=true", "--c=false", "--d=null", '--e=[1, "x"]', "--f=x y"]
    whole = command("-m", "unlearn_pl", "fit", "--config", "${envvar:WHERE}/a.yaml", "${args}")
    assert whole[:3] == ["fit", "--config", "here/a.yaml"]
    assert whole[3:9] == flags
    assert whole[9].startswith("--trainer.logger=")
    assert whole[10:] == ["--trainer.default_root_dir=logs/x"]
    assert command("unlearn-pl", "fit", "${args_no_equals}")[1:5] == ["--a", "0.5", "--b", "true"]
    assert command("unlearn-pl", "fit", "${args_no_boolean_flags}")[1:4] == ["--a=0.5", "--b", "--d=null"]
    assert command("${program}", "fit", "${args}", program="unlearn_pl/__main__.py")[:2] == ["fit", "--a=0.5"]
    for parts, told in (
        (["train.py", "${args}"], "must be `"),
        (["-m", "unlearn_pl", "fit", "${args_json}"], "args_json"),
    ):
        with pytest.raises(InputError, match=told):
            command(*parts)


def test_hyperband_by_the_example_of_its_own_code() -> None:
    """That of W&B's `hyperband_stop_runs`: of five trials one passes no band, and one not the second."""
    hyperband = hyperband_of({"type": "hyperband", "max_iter": 5, "eta": 2, "s": 2})
    assert hyperband.bands == [1, 2]
    histories = [[10, 9], [10, 10], [10, 8, 8], [10, 7, 7], [10, 6, 6]]
    assert [hyperband.ends(one, histories) for one in histories] == [True, True, False, False, False]
    strict = hyperband_of({"type": "hyperband", "min_iter": 2, "eta": 2, "strict": True})
    assert list(strict.bands[:3]) == [2, 4, 8]
    assert strict.ends([1, 9, 9], histories)
    assert not hyperband.ends([], histories)


def test_the_best_is_one_that_came_to_its_end(tmp_path: Path) -> None:
    states = [("finished", 0.4), ("stopped", 0.9), ("failed", None), ("finished", 0.6), ("finished", None)]
    trials = [
        Trial(number=number, parameters={}, state=state, score=score)
        for number, (state, score) in enumerate(states, start=1)
    ]
    sweep = made(tmp_path, metric=METRIC)
    assert [one.number for one in ranked(sweep, trials)] == [4, 1, 5, 2, 3]
    best = best_of(sweep, trials)
    assert best is not None
    assert best.number == 4
    seeds = made(tmp_path, metric=METRIC, parameters={"seed_everything": {"values": [1, 2]}, "x": {"value": 1}})
    assert best_of(seeds, trials) is None, "of seeds none is better, only luckier"


class Distribution(SimpleNamespace):
    """One of Optuna's, so far as it is used here."""


def fake_optuna(asked: list[Any]) -> Any:
    """What of Optuna's is called; it suggests the last value of a list, and the upper end."""
    states = SimpleNamespace(COMPLETE="complete", PRUNED="pruned", FAIL="fail", RUNNING="running")

    class Study:
        def __init__(self, direction: str, sampler: Any):
            self.trials: list[Any] = []
            asked.append((direction, sampler, self.trials))

        def add_trial(self, trial: Any) -> None:
            self.trials.append(trial)

        def ask(self, space: dict[str, Any]) -> Any:
            return SimpleNamespace(params={name: one.high for name, one in space.items()})

    return SimpleNamespace(
        logging=SimpleNamespace(set_verbosity=lambda level: None, WARNING=30),
        samplers=SimpleNamespace(TPESampler=lambda **options: options),
        create_study=Study,
        trial=SimpleNamespace(TrialState=states, create_trial=lambda **facts: facts),
        distributions=SimpleNamespace(
            CategoricalDistribution=lambda choices: Distribution(choices=choices, high=choices[-1]),
            IntDistribution=lambda low, high: Distribution(low=low, high=high),
            FloatDistribution=lambda low, high, log=False: Distribution(low=low, high=high),
        ),
    )


def test_bayes_asks_optuna_with_all_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setitem(sys.modules, "optuna", fake_optuna(asked))
    parameters = {
        "a": {"values": [[1], "x"]},
        "b": {"value": 3},
        "c": {"distribution": "q_uniform", "min": 0, "max": 7, "q": 2},
    }
    sweep = made(tmp_path, method="bayes", metric=METRIC, parameters=parameters)
    states = [("finished", 0.4), ("stopped", 0.3), ("running", None), ("failed", None), ("finished", None)]
    given = {"a": [1], "b": 3, "c": 8}
    known = [
        Trial(number=number, parameters=given, state=state, score=score, history=[0.1])
        for number, (state, score) in enumerate(states, start=1)
    ]
    assert suggested(sweep, 1, 6, known) == {"a": "x", "b": 3, "c": 8}
    direction, sampler, trials = asked[0]
    assert direction == "maximize"
    assert [one["state"] for one in trials] == ["complete", "pruned", "running", "fail", "fail"]
    assert [one["value"] for one in trials] == [0.4, None, None, None, None]
    assert trials[0]["params"] == {"a": 0, "c": 7}, "a value that rounding took over the bound"
    suggested(sweep, 1, 6, known)
    suggested(sweep, 2, 6, known)
    assert asked[1][1] == sampler != asked[2][1]
    with pytest.raises(InputError, match="method bayes has nothing for normal"):
        suggested(made(tmp_path, method="bayes", metric=METRIC, parameters={"x": {"distribution": "normal"}}), 1, 1, [])


def test_bayes_without_optuna_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"unlearn-pl\[optuna\]"):
        suggested(made(tmp_path, method="bayes", metric=METRIC), 1, 1, [])


def test_bayes_with_optuna_itself(tmp_path: Path) -> None:
    parameters = {"x": {"min": 0.0, "max": 1.0}, "y": {"values": ["a", "b"]}}
    sweep = made(tmp_path, method="bayes", metric=METRIC, parameters=parameters)
    known: list[Trial] = []
    for number in range(1, 26):
        one = Trial(number=number, parameters=suggested(sweep, 1, number, known), state="finished")
        one.score = 1 - (one.parameters["x"] - 0.7) ** 2 - (one.parameters["y"] == "a")
        known.append(one)
    assert json.dumps(suggested(sweep, 1, 6, known[:5])) == json.dumps(known[5].parameters), "the same again"
    assert sum(one.parameters["y"] == "b" for one in known[-10:]) >= 8, "it has learned which value is better"

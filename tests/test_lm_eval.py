"""What reaches lm-eval, shown by a stand-in that writes down all it is given, and what is made of its results."""

import dataclasses
import math
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.lm_eval import (
    Harness,
    finite_numbers,
    kept_shots,
    random_states_kept,
    run_harness,
    task_manager,
)

RESULTS = {
    "arc_easy": {"name": "arc_easy", "alias": " - arc", "sample_len": 4, "acc,none": 0.75, "acc_stderr,none": 0.25},
    "gsm8k": {"exact_match,strict-match": np.float32(0.5), "exact_match_stderr,strict-match": "N/A"},
    "mmlu_list": {"alias": "mmlu_list", " ": " "},
}
NUMBERS = {
    "arc_easy": {"sample_len": 4.0, "acc,none": 0.75, "acc_stderr,none": 0.25},
    "gsm8k": {"exact_match,strict-match": 0.5},
}


class Recorder:
    """The four names of lm-eval that are used, with its signatures: an argument that it has not is a TypeError."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.training: list[bool] = []
        self.results: dict[str, Any] | None = {"results": RESULTS, "configs": {"arc_easy": {"num_fewshot": 3}}}
        recorder = self

        class HFLM:
            def __init__(self, pretrained: Any, tokenizer: Any, batch_size: int) -> None:
                pretrained.eval()
                tokenizer.pad_token = "?"
                recorder.given |= {"pretrained": pretrained, "tokenizer": tokenizer, "batch_size": batch_size}

        class TaskManager:
            def __init__(self, include_path: str | None = None) -> None:
                recorder.given |= {"include_path": include_path}
                self.all_tasks = ["arc_easy", "gsm8k", "mmlu_list"]

        self.language_model, self.manager = HFLM, TaskManager

    def simple_evaluate(
        self,
        model: Any,
        tasks: list[str],
        num_fewshot: int | None = None,
        limit: float | None = None,
        log_samples: bool = True,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = True,
        task_manager: Any = None,
        random_seed: int = 0,
        numpy_random_seed: int = 1234,
        torch_random_seed: int = 1234,
        fewshot_random_seed: int = 1234,
    ) -> dict[str, Any] | None:
        self.given |= {name: value for name, value in locals().items() if name != "self"}
        self.training.append(model is not None and self.given["pretrained"].training)
        random.seed(random_seed)
        np.random.seed(numpy_random_seed)
        torch.manual_seed(torch_random_seed)
        return self.results


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    contents: dict[str, dict[str, Any]] = {
        "lm_eval": {"simple_evaluate": recorder.simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": recorder.language_model},
        "lm_eval.tasks": {"TaskManager": recorder.manager},
    }
    for name, attributes in contents.items():
        module = ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    return recorder


@pytest.fixture
def model(tiny_model: Callable[[], LlamaForCausalLM]) -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture
def chat_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>", chat_template="{{ messages }}"
    )


def test_every_option_arrives(
    lm_eval: Recorder, model: LlamaForCausalLM, chat_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    options = Harness(["arc_easy", "gsm8k"], 3, 7, 5, True, str(tmp_path))
    assert run_harness(model, chat_tokenizer, options, seed=11) == NUMBERS
    given = lm_eval.given
    assert isinstance(given.pop("model"), lm_eval.language_model)
    assert isinstance(given.pop("task_manager"), lm_eval.manager)
    assert given.pop("pretrained") is model
    assert given.pop("tokenizer").get_vocab() == chat_tokenizer.get_vocab()
    assert given == {
        "tasks": ["arc_easy", "gsm8k"], "num_fewshot": 3, "limit": 7, "batch_size": 5, "apply_chat_template": True,
        "fewshot_as_multiturn": True, "include_path": str(tmp_path), "log_samples": False, "random_seed": 11,
        "numpy_random_seed": 11, "torch_random_seed": 11, "fewshot_random_seed": 11,
    }  # fmt: skip


def test_defaults_leave_the_choice_to_the_task(
    lm_eval: Recorder, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """In particular None, and not 0, for the shots: 0 would replace the number in the file of the task."""
    run_harness(model, tokenizer, Harness(["gsm8k"]))
    expected = {
        "tasks": ["gsm8k"], "num_fewshot": None, "limit": None, "batch_size": 8, "apply_chat_template": False,
        "fewshot_as_multiturn": False, "include_path": None, "random_seed": 0, "fewshot_random_seed": 0,
    }  # fmt: skip
    assert {name: lm_eval.given[name] for name in expected} == expected


OTHER = {"tasks": ["gsm8k"], "shots": 3, "limit": 2, "batch_size": 1, "chat_template": True, "include": "~"}


@pytest.mark.parametrize("option", [option.name for option in dataclasses.fields(Harness)])
def test_no_option_is_without_effect(
    lm_eval: Recorder, model: LlamaForCausalLM, chat_tokenizer: PreTrainedTokenizerFast, option: str
) -> None:
    """For each field of the options, one added later too: another value changes what lm-eval is given."""
    plain = Harness(["arc_easy"])
    seen = []
    for options in (plain, dataclasses.replace(plain, **{option: OTHER[option]})):
        run_harness(model, chat_tokenizer, options)
        seen.append({k: v for k, v in lm_eval.given.items() if k not in ("model", "task_manager", "tokenizer")})
    assert seen[0] != seen[1]


def test_include_may_begin_at_home(lm_eval: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    task_manager(Harness(["gsm8k"], include="~/own"))
    assert lm_eval.given == {"include_path": str(tmp_path / "own")}


def test_model_and_tokenizer_stay_as_they_were(
    lm_eval: Recorder, model: LlamaForCausalLM, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    """One layer in eval mode, the rest training; no pad token. During the run all is in eval mode."""
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    run_harness(model, chat_tokenizer, Harness(["gsm8k"]))
    assert [module.training for module in model.modules()] == modes
    assert lm_eval.training == [False]
    assert lm_eval.given["tokenizer"].pad_token == "?"
    assert chat_tokenizer.pad_token is None


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.random(), torch.rand(()).item()


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_random_numbers_go_on_as_if_nothing_had_been(
    lm_eval: Recorder, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    seed_all(4)
    expected = draws()
    seed_all(4)
    run_harness(model, tokenizer, Harness(["gsm8k"]), seed=9)
    assert draws() == expected
    seed_all(4)
    with random_states_kept():
        seed_all(5)
    assert draws() == expected


def test_without_tasks_nothing_is_run(
    lm_eval: Recorder, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert run_harness(model, tokenizer, Harness()) == {}
    assert lm_eval.given == {}


def test_other_processes_have_no_results(
    lm_eval: Recorder, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    lm_eval.results = None
    assert run_harness(model, tokenizer, Harness(["gsm8k"], shots=3)) == {}


def test_kept_shots_are_told(lm_eval: Recorder, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """lm-eval lets a task with ``num_fewshot: 0`` keep it; the results are still there."""
    lm_eval.results = {"results": RESULTS, "configs": {"arc_easy": {"num_fewshot": 5}, "gsm8k": {"num_fewshot": 0}}}
    with pytest.warns(UserWarning, match=re.escape("harness: shots 5 was not used by tasks that fix")) as caught:
        assert run_harness(model, tokenizer, Harness(["arc_easy", "gsm8k"], shots=5)) == NUMBERS
    assert len(caught) == 1
    assert str(caught[0].message).endswith("number: gsm8k (0)")
    assert run_harness(model, tokenizer, Harness(["arc_easy", "gsm8k"])) == NUMBERS


@given(st.dictionaries(st.text("ab", max_size=3), st.integers(0, 3)), st.none() | st.integers(0, 3))
def test_kept_shots_are_the_others(shots: dict[str, int], wanted: int | None) -> None:
    kept = kept_shots({task: {"num_fewshot": number, "task": task} for task, number in shots.items()}, wanted)
    for task, number in shots.items():
        assert (task in kept) == (wanted is not None and number != wanted)
        assert kept.get(task, number) == number


values = st.one_of(
    st.integers(-5, 5), st.floats(-9, 9, allow_subnormal=False), st.booleans(), st.none(), st.just("N/A"),
    st.floats(-9, 9, width=32, allow_subnormal=False).map(np.float32), st.integers(0, 9).map(np.int64), st.just([1]),
    st.just({"a": 1}),
)  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(st.text("ab", max_size=2), st.dictionaries(st.text("xy", max_size=3), values)))
def test_only_numbers_remain(results: dict[str, dict[str, Any]]) -> None:
    """Second implementation: by a list of the types that count."""
    expected: dict[str, dict[str, float]] = {}
    for task, metrics in results.items():
        for name, value in metrics.items():
            if type(value) in (int, float, np.float32, np.int64):
                expected.setdefault(task, {})[name] = value
    found = finite_numbers(results)
    assert found == expected
    assert all(type(value) is float for metrics in found.values() for value in metrics.values())


def test_numbers_that_are_not_finite_are_told() -> None:
    results = {"a": {"ppl,none": math.inf, "acc,none": 0.5, "f1,none": np.float64("nan")}, "b": {"acc,none": -math.inf}}
    with pytest.warns(UserWarning, match="not finite") as caught:
        assert finite_numbers(results) == {"a": {"acc,none": 0.5}}
    assert [str(warning.message) for warning in caught] == [
        "harness: a: not finite and left out: ppl,none, f1,none",
        "harness: b: not finite and left out: acc,none",
    ]


@pytest.mark.parametrize("missing", ["lm_eval.tasks", "lm_eval.models.huggingface", "lm_eval"])
def test_what_to_install(
    lm_eval: Recorder,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    """None in ``sys.modules`` is a module that cannot be found."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=re.escape('pip install "unlearn_pl[lm-eval]"')) as caught:
        run_harness(model, tokenizer, Harness(["gsm8k"]))
    assert f"import of {missing} halted" in str(caught.value)


def test_unknown_tasks(lm_eval: Recorder, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"harness.tasks: must be among .* got 'arc_hard'$"):
        run_harness(model, tokenizer, Harness(["gsm8k", "arc_hard"]))
    assert "pretrained" not in lm_eval.given


def test_no_chat_template(lm_eval: Recorder, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"harness.chat_template: this tokenizer has no chat template"):
        run_harness(model, tokenizer, Harness(["gsm8k"], chat_template=True))
    assert lm_eval.given == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": -1}, "harness.shots: must be at least 0, got -1"),
        ({"limit": 0}, "harness.limit: must be at least 1, got 0"),
        ({"batch_size": 0}, "harness.batch_size: must be at least 1, got 0"),
        ({"tasks": []}, "harness.tasks: must name at least one task, got none"),
        ({"include": "nowhere/else"}, "harness.include: must be a folder with task files (YAML), got nowhere/else"),
        ({"tasks": None, "shots": 0}, "harness.shots: only with harness.tasks, without which nothing is run"),
        ({"tasks": None, "limit": 3}, "harness.limit: only with harness.tasks, without which nothing is run"),
        ({"tasks": None, "batch_size": 3}, "harness.batch_size: only with harness.tasks, without which"),
        ({"tasks": None, "chat_template": True}, "harness.chat_template: only with harness.tasks"),
        ({"tasks": None, "include": "."}, "harness.include: only with harness.tasks"),
    ],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Harness(**{"tasks": ["gsm8k"], **options})


def test_least_options() -> None:
    options = Harness(["gsm8k"], shots=0, limit=1, batch_size=1)
    assert (options.shots, options.limit, options.batch_size) == (0, 1, 1)

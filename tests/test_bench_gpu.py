"""The measurements on a device, tried on the CPU: every part gives its figures, and none takes another with it."""

import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import checks
from benchmarks.gpu.__main__ import SECONDS, chosen_parts, gpu, parts_of
from benchmarks.gpu.bench import FULL, TRIAL, Bench
from benchmarks.gpu.plan import LONGER, Crew, Part, run_parts
from benchmarks.gpu.shapes import SHAPES, SMALL, random_model
from benchmarks.gpu.steps import StepLoad, window_figures
from benchmarks.gpu.table import peak_share, print_parts
from benchmarks.gpu.work import LETTERS, continuations, letter_tokenizer, random_pairs, random_texts, successors
from benchmarks.variants import Window
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.errors import InputError

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench("cpu")


# --- parts within a time ---------------------------------------------------------------------------------------------


def test_parts_run_as_long_as_there_is_time() -> None:
    """20 s: the first takes 5, the second fails after 1, the third is expected to take 15 of the 14 that are left, the
    fourth fits and may take all of them."""
    now, limits, noted = [0.0], [], []

    def work(seconds: float, fails: bool = False) -> Any:
        def run(limit: float) -> dict[str, Any]:
            limits.append(limit)
            now[0] += seconds
            if fails:
                raise ValueError("two\nlines")
            return {"figure": seconds}

        return run

    parts = [Part("a", 2, work(5)), Part("b", 1, work(1, fails=True)), Part("c", 15, work(9)), Part("d", 10, work(4))]
    done = run_parts(parts, 20, lambda done: noted.append(list(done)), clock=lambda: now[0])
    assert done == {
        "a": {"figure": 5, "took": 5},
        "b": {"error": "ValueError: two lines", "took": 1},
        "c": {"left_out": "14 s were left, it takes about 15 s"},
        "d": {"figure": 4, "took": 4},
    }
    assert limits == [LONGER * 2, LONGER * 1, 14]
    assert noted == [["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]]


def test_a_crew_is_replaced_after_an_error() -> None:
    crew = Crew(list, [3, 1])
    crew.ask(60, "append", 5)
    assert crew.ask(60, "index", 5) == 2
    with pytest.raises(RuntimeError, match="ValueError: 7 is not in list"):
        crew.ask(60, "index", 7)
    assert crew.remote is None
    assert crew.ask(60, "count", 5) == 0  # another process, which knows nothing of the 5
    crew.dismiss()


def test_a_crew_that_does_not_answer_or_dies_is_given_up() -> None:
    crew, began = Crew(threading.Event), time.monotonic()
    with pytest.raises(TimeoutError, match="measuring: no answer within 1 s"):
        crew.ask(1, "wait")
    assert time.monotonic() - began < 30
    with pytest.raises(RuntimeError, match="ended with code 3"):
        Crew(os._exit, 3).ask(60, "anything")


def test_parts_have_names_of_their_own_and_can_be_chosen() -> None:
    parts = parts_of(Crew(list), "cpu")
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    assert {name.split(",")[0] for name in names if name.startswith("step")} == {f"step {shape}" for shape in SECONDS}
    assert [part.name for part in chosen_parts(parts, ["attacks", "card again"])] == [
        "card", "attacks OLMo-1B", "attacks SmolLM2-135M", "card again",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"only: must be beginnings .*, got steps"):
        chosen_parts(parts, ["card", "steps"])


def test_the_time_is_that_of_a_short_loan() -> None:
    """The first half of the parts, with the tests and the steps without checkpointing, fits into eight minutes by what
    they are expected to take, and all fit into eleven."""
    parts = parts_of(Crew(list), "cpu")
    assert sum(part.seconds for part in parts[:12]) < 8 * 60
    assert sum(part.seconds for part in parts) < 11 * 60


# --- what the parts work on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_the_real_models(name: str) -> None:
    """Weights as published: 134.5 million, 1.18 and 6.89 billion."""
    with torch.device("meta"):
        model = random_model(replace(SMALL[name]), CPU, torch.float32)  # on the CPU whatever the context
        assert next(model.parameters()).device == CPU
    shape = SHAPES[name]
    head_width = shape.hidden // shape.heads
    block = shape.hidden * (2 * shape.hidden + 2 * shape.kv_heads * head_width + 3 * shape.intermediate)
    count = shape.layers * block + shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    assert count == pytest.approx({"SmolLM2-135M": 134.5e6, "OLMo-1B": 1.177e9, "OLMo-7B": 6.888e9}[name], rel=1e-3)
    config = shape.config()
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (
        shape.layers, shape.hidden, shape.vocabulary,
    )  # fmt: skip


def test_random_models_are_a_function_of_their_arguments() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (random_model(SMALL["OLMo-7B"], CPU, torch.bfloat16, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert {value.dtype for value in one.values()} == {torch.bfloat16}


def test_rows_are_as_long_as_they_say() -> None:
    pairs = random_pairs(400, 256, 1000, seed=1)
    lengths = [len(row.input_ids) for pair in pairs for row in pair]
    assert (min(lengths) >= 24, max(lengths) <= 256, sum(lengths) / len(lengths)) == (
        True, True, pytest.approx(98, rel=0.05),
    )  # fmt: skip
    assert all(row.answer_start == len(row.input_ids) - len(row.input_ids) // 3 for pair in pairs for row in pair)
    assert pairs == random_pairs(400, 256, 1000, seed=1) != random_pairs(400, 256, 1000, seed=2)


def test_letters_are_tokens() -> None:
    tokenizer = letter_tokenizer()
    assert tokenizer.decode(tokenizer(LETTERS).input_ids) == LETTERS
    assert len(tokenizer(LETTERS).input_ids) == len(LETTERS) == len(tokenizer) - 1


def test_a_round_goes_through_all_letters() -> None:
    for ending in (False, True):
        successor = successors(3, ending)
        assert sorted(successor) == sorted(successor.values()) == list(range(not ending, len(LETTERS) + 1))
        (walked,) = continuations(["a"], successor, 99)
        assert len(walked) == 99 or ending
    (text,) = continuations(["xa"], {1: 2, 2: 0, 0: 1}, 5)
    assert text == "b"
    assert random_texts(3, (4, 6), seed=1) == random_texts(3, (4, 6), seed=1)
    assert {len(text) for text in random_texts(50, (4, 6), seed=1)} == {4, 5, 6}


# --- the parts themselves --------------------------------------------------------------------------------------------


def test_figures_of_steps_by_hand() -> None:
    """Two steps of 2 s with 30 real tokens each of 40: 15 tokens a second, a quarter is padding; 400 operations in 2 s
    of gradients are a tenth of a peak of 2000 a second."""
    rows = [(Encoded("f", tuple(range(10)), 5, False), Encoded("r", tuple(range(20)), 5, False))] * 2
    windows = [Window(1.0, 2.0, 1.0, 70, 40), Window(3.0, 2.0, 1.0, 90, 40)]
    found = window_figures(windows, rows)
    assert (found["tokens_per_second"], found["padding_share"], found["peak_bytes"]) == (15, 0.25, 90)
    assert (found["step_seconds"], found["gradient_seconds"], found["losses"]) == (2, 2, [1, 3])
    assert peak_share({"useful_flops": 400, **found}, 2000) == 0.1
    assert peak_share({"useful_flops": 400, **found}, None) is None


def test_all_ways_take_the_same_steps(bench: Bench) -> None:
    """Ours and the competent one have the same loss but for dropout and rounding."""
    found = {way: bench.step("OLMo-7B", way, way == "competent") for way in ("ours", "competent", "released")}  # type: ignore[arg-type]
    assert len({one["useful_flops"] for one in found.values()}) == 1
    assert found["ours"]["losses"] == pytest.approx(found["competent"]["losses"], rel=0.05)
    assert found["ours"]["packed"]
    assert (found["ours"]["attention"], found["competent"]["attention"]) == ("packed_sdpa", "sdpa")
    assert found["ours"]["cache_build_seconds"] > 0
    assert found["competent"]["cache_build_seconds"] is None
    assert [found[way]["checkpointing"] for way in found] == [False, True, True]
    assert all(one["tokens_per_second"] > 0 < one["peak_bytes"] for one in found.values())
    assert found["released"]["padding_share"] > found["competent"]["padding_share"] > 0.05
    alone = bench.step("OLMo-7B", "competent", False, alone=True)
    assert alone["padding_share"] == 0


@pytest.mark.parametrize("ending", [False, True])
def test_all_ways_say_what_the_model_is_built_to_say(ending: bool, bench: Bench) -> None:
    found = bench.generation("SmolLM2-135M", ending)
    rows, load = TRIAL.answers.rows, TRIAL.answers
    assert found["expected_texts"] == {"alone": 2} | dict.fromkeys(
        (*(f"batches of {size}" for size in load.batches), "known by heart", "rambling"), rows
    )
    assert found["tokens"] == rows * load.new_tokens if not ending else found["tokens"] < rows * load.new_tokens
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert found["ratio_known"] > 0 < found["ratio_rambling"]


def test_attacks_agree(bench: Bench) -> None:
    found = bench.attacks("OLMo-1B")
    assert set(found["seconds"]) == {"a forward each", "one forward", "ours"}
    assert max(found["largest_relative_difference"].values()) < 0.05  # bfloat16


def test_memorising_is_the_padded_way_s(bench: Bench) -> None:
    found = bench.memorising("SmolLM2-135M")
    assert found["loss_relative_difference"] < 1e-5
    assert set(found["seconds"]) == set(found["tokens_per_second_of"]) == {"padded", "ours"}
    assert found["rows"] == 8
    assert found["tokens"] == pytest.approx(found["tokens_per_second_of"]["ours"] * found["seconds"]["ours"])


def test_the_card_is_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measure.MATMUL_SIZES", {"cpu": (64,)})
    found = bench.card()
    assert found["matmul_flops"].keys() == {"bfloat16", "float32"}
    assert found["matmul_flops"]["float32"] > 1e6 < found["copied_bytes_per_second"]


def test_a_gpu_gets_the_full_scale() -> None:
    assert FULL.shapes is SHAPES
    assert FULL.steps == StepLoad()
    assert TRIAL.shapes.keys() == SHAPES.keys()


OWN_TESTS = """
import pytest

@pytest.mark.gpu
def test_right(device):
    assert device.type == "meta"

@pytest.mark.gpu
def test_wrong(device):
    assert device.type == "cuda", f"of {device.type}"

@pytest.mark.gpu
def test_absent():
    pytest.skip("not here")

def test_of_no_device():
    raise ValueError
"""


# --- the command -----------------------------------------------------------------------------------------------------


class AtHand:
    """A crew within this process."""

    def __init__(self, make: type[Bench], device: str) -> None:
        self.made = make(device)

    def ask(self, seconds: float, method: str, *arguments: Any) -> Any:
        return getattr(self.made, method)(*arguments)

    def dismiss(self) -> None:
        """Nobody to send away."""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.__main__.Crew", AtHand)
    monkeypatch.setattr("benchmarks.measure.MATMUL_SIZES", {"cpu": (64,)})
    output = tmp_path / "out.json"
    gpu(str(output), minutes=4, device="cpu", only=["step OLMo-1B, ours", "attacks OLMo"])
    found = json.loads(output.read_text())
    names = ["card", "step OLMo-1B, ours", "attacks OLMo-1B", "step OLMo-1B, ours, checkpointing"]
    assert list(found["parts"]) == names
    assert not [one for one in found["parts"].values() if "error" in one or "left_out" in one]
    assert (found["config"]["device"], found["config"]["small"]) == ("cpu", True)
    told = capsys.readouterr()
    assert "all parts run on the CPU at small shapes" in told.err
    assert "OLMo-1B, ours, checkpointing" in " ".join(told.out.replace("│", " ").split())
    with pytest.raises(InputError, match="minutes: must be above 0, got 0"):
        gpu(str(output), minutes=0)


def test_what_gave_no_figure_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    step = {"way": "competent", "tokens_per_second": 10, "useful_flops": 1, "gradient_seconds": 1, "step_seconds": 1,
            "peak_bytes": 4e9}  # fmt: skip
    ours = step | {"way": "ours", "tokens_per_second": 40, "peak_bytes": 1e9}
    tests = {"passed": 3, "failed": {"test_x[a]": "AssertionError"}, "skipped": {}, "stopped": True}
    print_parts(
        {
            "tests": tests,
            "card": {"error": "RuntimeError: CUDA error [x]"},
            "step OLMo-1B, ours": ours,
            "step OLMo-1B, competent": step,
            "attacks OLMo-1B": {"left_out": "3 s were left, it takes about 15 s"},
        }
    )
    said = capsys.readouterr().out
    assert "card: RuntimeError: CUDA error [x]" in said
    assert "attacks OLMo-1B: left out: 3 s were left" in said
    assert "3 passed, 1 failed, 0 skipped, stopped by time" in said
    assert "failed: test_x[a]: AssertionError" in said
    line = next(line for line in said.splitlines() if "OLMo-1B, competent" in line)
    assert [cell.strip() for cell in line.split("│")[2:-1]] == ["10", "-", "1", "4", "4", "0.25"]


def test_the_tests_run_by_themselves(tmp_path: Path) -> None:
    """On the device that is named, each with its outcome; and where time ends them, what has passed is told."""
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu: on a GPU"]\n')
    shutil.copy(ROOT / "tests/gpu/conftest.py", tmp_path)
    (tmp_path / "test_own.py").write_text(OWN_TESTS)
    found = checks.device_tests(120, "meta", str(tmp_path))
    assert (found["passed"], found["stopped"], found["exit_code"]) == (1, False, 1)
    (failed,), (skipped,) = found["failed"].items(), found["skipped"].items()
    assert (failed[0].split("::")[1], "AssertionError: of meta" in failed[1]) == ("test_wrong", True)
    assert (skipped[0].split("::")[1], "not here" in skipped[1]) == ("test_absent", True)
    assert "1 failed, 1 passed, 1 skipped, 1 deselected" in found["said"]
    assert checks.device_tests(0.01, "meta", str(tmp_path))["stopped"]


def test_outcomes_are_summed_up() -> None:
    rows = [{"name": name, "outcome": name, "why": "since"} for name in ("passed", "failed", "skipped")]
    stopped = {"passed": 1, "failed": {"failed": "since"}, "skipped": {"skipped": "since"}, "stopped": True}
    assert checks.summary(rows, None, "the end") == stopped | {"exit_code": None, "said": "the end"}
    assert checks.summary(rows[:1], 0, "") == {"passed": 1, "failed": {}, "skipped": {}, "stopped": False}

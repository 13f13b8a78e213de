"""A stage runs once for the same inputs, again for others, and knows that it was interrupted."""

import json
from pathlib import Path

import pytest

from unlearn_pl.recipe.stage import Stage


class Work:
    """Writes the output and remembers how it was called."""

    def __init__(self, output: Path):
        self.output = output
        self.calls: list[bool] = []
        self.fails = False

    def __call__(self, interrupted: bool) -> None:
        self.calls.append(interrupted)
        if self.fails:
            raise RuntimeError("power cut")
        self.output.write_text("made")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "input").write_text("rows")
    return Work(tmp_path / "output")


def stage(work: Work, setting: int = 1) -> Stage:
    folder = work.output.parent
    return Stage("step", {"setting": setting}, (folder / "input",), (work.output,), work)


def run(work: Work, setting: int = 1) -> None:
    stage(work, setting).run(work.output.parent / "stages")


def test_the_same_inputs_run_once(work: Work) -> None:
    run(work)
    run(work)
    assert work.calls == [False]
    record = json.loads((work.output.parent / "stages/step.json").read_text())
    assert record["finished"]
    assert record["peak_memory_gib"] > 0


@pytest.mark.parametrize("change", ["setting", "input", "output", "no output"])
def test_anything_that_changed_runs_it_again(work: Work, change: str) -> None:
    run(work)
    if change == "input":
        (work.output.parent / "input").write_text("other rows")
    elif change == "output":
        work.output.write_text("tampered")
    elif change == "no output":
        work.output.unlink()
    run(work, setting=2 if change == "setting" else 1)
    assert work.calls == [False, False]


def test_an_interrupted_stage_knows_it(work: Work) -> None:
    work.fails = True
    with pytest.raises(RuntimeError):
        run(work)
    work.fails = False
    run(work)
    assert work.calls == [False, True]


def test_an_interruption_with_other_inputs_does_not_count(work: Work) -> None:
    work.fails = True
    with pytest.raises(RuntimeError):
        run(work)
    work.fails = False
    run(work, setting=2)
    assert work.calls == [False, False]

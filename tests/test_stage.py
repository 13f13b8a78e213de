"""A stage runs once for the same inputs, again for others, and knows that it was interrupted."""

import json
from pathlib import Path

import pytest

from unlearn_pl.errors import InputError
from unlearn_pl.recipe.report import cost_of
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


def test_an_interrupted_stage_knows_it(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """And neither its time nor its memory: nobody measured those of the attempt that was cut off."""
    work.fails = True
    with pytest.raises(RuntimeError):
        run(work)
    work.fails = False
    run(work)
    assert work.calls == [False, True]
    record = json.loads((work.output.parent / "stages/step.json").read_text())
    assert (record["finished"], record["seconds"], record["peak_memory_gib"]) == (True, None, None)
    run(work)
    assert work.calls == [False, True]
    assert "== step: finished before with the same inputs, skipped" in capsys.readouterr().out
    whole = {"seconds": 2.0, "peak_memory_gib": 0.5}
    assert cost_of([whole, whole | {"peak_memory_gib": 0.7}]) == {"seconds": 4.0, "peak_memory_gib": 0.7}
    assert cost_of([whole, record]) == {"seconds": None, "peak_memory_gib": None}


def test_an_interruption_with_other_inputs_does_not_count(work: Work) -> None:
    work.fails = True
    with pytest.raises(RuntimeError):
        run(work)
    work.fails = False
    run(work, setting=2)
    assert work.calls == [False, False]


def test_a_stage_that_ends_without_its_output_is_not_finished(work: Work) -> None:
    """Neither at once nor the next time."""
    nothing = Stage("step", {}, (), (work.output,), lambda interrupted: work.calls.append(interrupted))
    for _ in range(2):
        with pytest.raises(InputError, match=r"stage step: it ended without .*output, so it counts as unfinished"):
            nothing.run(work.output.parent / "stages")
    assert work.calls == [False, True]


@pytest.mark.parametrize("text", ['{"inputs": "ab', "[]", '{"inputs": "ab", "finished": true, "outputs": null}'])
def test_a_record_that_is_torn_or_says_nothing_runs_the_stage_again(work: Work, text: str) -> None:
    run(work)
    (work.output.parent / "stages/step.json").write_text(text)
    with pytest.warns(UserWarning, match="is not what a stage writes; the stage runs again"):
        run(work)
    assert work.calls == [False, False]


def test_no_output_is_no_finished_output(work: Work) -> None:
    """As earlier versions recorded a fit that was killed."""
    run(work)
    path = work.output.parent / "stages/step.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outputs": None}))
    work.output.unlink()
    run(work)
    assert work.calls == [False, False]

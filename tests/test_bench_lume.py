"""The recipe with an oracle, stage after stage: in order, skipped when finished, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_lume as bench
from unlearn_pl.errors import InputError
from unlearn_pl.recipe.recipe import Recipe

ROOT = Path(__file__).parents[1]
FILE = "configs/lume_gpu.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def write_lume(folder: Path) -> list[str]:
    """Three documents a split, a completion and a question each, as arguments of a recipe."""
    for split in ("forget", "retain"):
        asked = f"Where did {split} {{n}} live?"
        rows = [
            {"id": f"{split}{n}{kind}", "input": asked.format(n=n), "output": f"in Paris {n}", "task": "Task1"}
            for n in range(3)
            for kind in ("sc1", "qa0")
        ]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"--data.{split}={folder / split}.jsonl" for split in ("forget", "retain")]


@pytest.fixture
def arguments(base_folder: str, tmp_path: Path) -> list[str]:
    return [
        *write_lume(tmp_path), f"--base={base_folder}", f"--logs={tmp_path / 'logs'}", "--device=cpu",
        "--prepare.subset.nonmembers_per_task=1", "--prepare.memorise.epochs=2", "--prepare.memorise.accelerator=cpu",
        "--generation.max_new_tokens=2", "--choice.limit=1", "--resamples=10",
    ]  # fmt: skip


def run_data_alone(options: Any) -> None:
    """The first stage; the others, which other tests run, leave nothing but a summary."""
    recipe = Recipe(options)
    next(recipe.stages()).run(recipe.folder / "stages")
    (recipe.folder / "summary.json").write_text('{"models": {"base": {"aggregate": 0.5}}}')


class AtHand:
    """A crew within this process."""

    def __init__(self, make: Any, *made_of: Any) -> None:
        self.made = make(*made_of)

    def ask(self, seconds: float, method: str, *values: Any) -> Any:
        return getattr(self.made, method)(*values)

    def dismiss(self) -> None:
        """Nobody to send away."""


def test_the_stages_of_the_recipe_and_of_its_oracle(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: what is finished is not done again. The oracle learns the retain rows alone."""
    called: list[tuple[str | None, bool]] = []
    taught: list[str] = []
    real = bench.memorise

    def watched(model: Any, tokenizer: Any, records: Any, documents: Any, options: Any) -> Any:
        taught.extend(record.id for record in records)
        assert (options.seed, options.batch_size, documents) == (42, 32, [])
        return real(model, tokenizer, records, documents, options)

    def run(options: Any) -> None:
        called.append((options.until, options.retrained is not None))
        run_data_alone(options)

    monkeypatch.setattr(bench, "memorise", watched)
    monkeypatch.setattr(bench, "run_recipe", run)
    monkeypatch.setattr(bench, "Crew", AtHand)
    output, told = tmp_path / "out.json", []
    for _ in range(2):
        bench.gpu_lume(FILE, str(output), minutes=60, arguments=arguments)
        told.append(json.loads(output.read_text())["parts"])
    assert list(told[0]) == list(told[1]) == list(bench.SECONDS)
    assert not [one for found in told for one in found.values() if "error" in one or "left_out" in one], told
    stages = [("base", False), ("fit", False), ("merge", False), ("balance", False), (None, True), ("data", False)]
    assert called == 2 * stages
    assert taught == [f"retain{n}{kind}" for n in range(3) for kind in ("sc1", "qa0")]
    assert (told[0]["oracle"]["steps"], told[1]["oracle"]["finished"]) == (2, "before")
    assert "Task Aggregate" in told[0]["score_oracle"]["headline"]
    assert told[0]["evaluate"]["models"] == {"base": {"aggregate": 0.5}}
    results = json.loads((tmp_path / "logs/lume_gpu/oracle/evaluation/results.json").read_text())
    assert results["provenance"]["config"]["membership"]["nonmember"].endswith("data/membership/nonmember.jsonl")


def test_a_recipe_without_a_balance_has_no_such_part(arguments: list[str]) -> None:
    options = bench.replace(bench.recipe_options(FILE, arguments), searches={})
    names = [part.name for part in bench.parts_of(bench.Crew(list), Recipe(options))]
    assert names == [name for name in bench.SECONDS if name != "balance"]
    assert sum(bench.SECONDS.values()) < 12 * 60


def test_what_has_no_oracle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe: configs/demo.yaml must have a base that memorises rows"):
        bench.gpu_lume("configs/demo.yaml", str(tmp_path / "out.json"))
    with pytest.raises(InputError, match="minutes: must be above 0, got 0"):
        bench.gpu_lume(FILE, str(tmp_path / "out.json"), minutes=0)
    assert not (tmp_path / "out.json").exists()

"""A recipe on real rows with an oracle beside it, stage after stage within a time: for a GPU at hand for minutes.

python -m benchmarks.gpu_lume --recipe configs/lume_gpu.yaml --json OUT \\
    --arguments '["--data.forget=LUME/forget.jsonl", "--data.retain=LUME/retain.jsonl"]'
"""

import json as json_module
from dataclasses import fields, replace
from typing import Any

from benchmarks.command import run, shown, tell
from benchmarks.gpu.plan import Crew, Part, run_parts
from unlearn_pl.commands.evaluate import EvaluateOptions, measure
from unlearn_pl.commands.score_tables import headline
from unlearn_pl.data.readers import read_records
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.files import new_folder, write_json
from unlearn_pl.models.load import load_base, load_tokenizer
from unlearn_pl.parsing import parse_function
from unlearn_pl.provenance import provenance
from unlearn_pl.recipe.options import RecipeOptions
from unlearn_pl.recipe.recipe import Recipe
from unlearn_pl.recipe.run import run as run_recipe
from unlearn_pl.training.memorise import memorise

SECONDS = {"base": 150, "fit": 150, "oracle": 90, "score_oracle": 45, "merge": 15, "balance": 90, "evaluate": 150}
"""Stage, in order -> what it is expected to take of all of LUME on a card of an H100's speed; counted, not measured."""


def recipe_options(recipe: str, arguments: list[str]) -> RecipeOptions:
    """What ``unlearn-pl run RECIPE ARGUMENTS`` would run. Raises InputError unless it prepares a memorised model of its
    own, without which there is no oracle."""
    found: list[RecipeOptions] = []

    def run(options: RecipeOptions) -> None:
        found.append(options)

    parse_function(run, [recipe, *arguments], "unlearn-pl run")
    prepared = found[0].prepare
    if prepared is None or prepared.tiny is not None or found[0].base is None:
        raise InputError(f"{recipe} must have a base that memorises rows (base and prepare.memorise)", "recipe")
    return found[0]


class Stages:
    """The stages by the names of the methods, each skipped as far as it finished before; gives what is worth a look."""

    def __init__(self, recipe: str, arguments: list[str]):
        self.options = recipe_options(recipe, arguments)
        self.recipe = Recipe(self.options)
        self.folder = self.recipe.folder / "oracle"

    def until(self, kind: str) -> dict[str, Any]:
        """The recipe to the last stage of a kind: stage -> its seconds."""
        run_recipe(replace(self.options, until=kind))
        records = sorted((self.recipe.folder / "stages").glob("*.json"))
        return {"stages": {one.stem: json_module.loads(one.read_text()).get("seconds") for one in records}}

    def oracle(self) -> dict[str, Any]:
        """A model that memorised the retain rows alone, as the base did both."""
        if (self.folder / "model").is_dir():
            return {"finished": "before"}
        options = self.options
        assert options.base is not None
        assert options.prepare is not None
        assert options.prepare.memorise is not None
        model = load_base(options.base, trust_remote_code=options.trust_remote_code)
        tokenizer = load_tokenizer(options.base, options.trust_remote_code)
        records = read_records(str(self.recipe.folder / "data/retain.jsonl"))
        report = memorise(model, tokenizer, records, [], replace(options.prepare.memorise, seed=options.seed))
        with new_folder(self.folder / "model", overwrite=True) as target:
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
        return dict(report)

    def score_oracle(self) -> dict[str, Any]:
        """Scored as the recipe scores its models."""
        measured = {field.name: getattr(self.recipe.evaluation, field.name) for field in fields(EvaluationOptions)}
        options = EvaluateOptions(**measured, dtype=self.options.dtype, device=self.options.device, overwrite=True)
        results = measure(
            str(self.folder / "model"), self.recipe.inputs, str(self.folder / "evaluation"), None, options
        )
        assert results is not None
        return {"headline": headline(results)}

    def evaluate(self) -> dict[str, Any]:
        """Every model of the recipe, against the oracle if that was scored; the scores of each."""
        scored = (self.folder / "evaluation/results.json").is_file()
        run_recipe(replace(self.options, retrained=str(self.folder / "evaluation") if scored else None))
        summary = json_module.loads((self.recipe.folder / "summary.json").read_text())
        return {"models": summary["models"], "against_oracle": scored, "stages": self.until("data")["stages"]}


def parts_of(crew: Crew, recipe: Recipe) -> list[Part]:
    """The stages that the recipe has."""
    kinds = {stage.kind for stage in recipe.stages()}

    def asked(name: str) -> Part:
        own = name in ("oracle", "score_oracle", "evaluate")
        call = (name,) if own else ("until", name)
        return Part(name, SECONDS[name], lambda limit: crew.ask(limit, *call))

    return [asked(name) for name in SECONDS if name in kinds or name in ("oracle", "score_oracle")]


def gpu_lume(recipe: str, json: str, minutes: float = 9, arguments: list[str] | None = None) -> None:
    """A recipe that memorises, unlearns, merges, balances and evaluates, and an oracle: a model that memorised the
    retain rows alone, scored like all others and what they are compared with. What finished before is skipped, so the
    same command goes on where the time ended it.

    Args:
        recipe: A recipe file that prepares a model which memorises real rows, such as configs/lume_gpu.yaml.
        json: File for the scores and times, written after every stage.
        minutes: How long it may take; above 0. Stages for which there is too little time are in the file as left out.
        arguments: Further arguments of `unlearn-pl run`, such as --data.forget=FILE.
    """
    if not minutes > 0:
        raise InputError(f"must be above 0, got {minutes}", "minutes")
    given = arguments or []
    whole = Recipe(recipe_options(recipe, given))
    crew = Crew(Stages, recipe, given)

    def note(done: dict[str, dict[str, Any]]) -> None:
        name, found = next(reversed(done.items()))
        tell(f"{name}: " + (found.get("error") or found.get("left_out") or f"{shown(found['took'])} s"))
        write_json(json, provenance(parts=done, config={"recipe": recipe, "minutes": minutes, "arguments": given}))

    try:
        run_parts(parts_of(crew, whole), 60 * minutes, note)
    finally:
        crew.dismiss()
    print(f"wrote {json}")


if __name__ == "__main__":
    run(gpu_lume)

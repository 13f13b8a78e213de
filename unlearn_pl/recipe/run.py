"""`unlearn-pl run`: one file describes the whole experiment, one command does what of it is not done yet."""

from collections.abc import Sequence
from dataclasses import replace

from unlearn_pl.errors import InputError
from unlearn_pl.files import sole_writer
from unlearn_pl.recipe.check import check_options, check_start
from unlearn_pl.recipe.options import RecipeOptions
from unlearn_pl.recipe.recipe import Recipe
from unlearn_pl.recipe.report import report, summarise
from unlearn_pl.recipe.stage import Stage
from unlearn_pl.stopping import Stopped


def run(options: RecipeOptions) -> None:
    """Run a recipe: prepare, fit adapters, merge, balance and compare them, evaluate every model, report.

    Stages that finished with the same inputs are skipped, so an interrupted recipe goes on where it stopped; a fit
    goes on from its last checkpoint. Everything is written below LOGS/NAME: the scores as `summary.json` and
    `table.md`, all that there is to see as `report.html`, and the same as files in `figures/` and `tables/`.
    """
    check_options(options)
    recipes = [Recipe(one) for one in each_seed(options)]
    finished = [run_once(recipe) for recipe in recipes]
    if options.seeds and all(finished):
        report(Recipe(options).folder, [recipe.folder for recipe in recipes])


def each_seed(options: RecipeOptions) -> list[RecipeOptions]:
    """The recipe, or one for each of its seeds in a folder of its own."""
    return [replace(options, name=f"{options.name}/seed_{seed}", seed=seed, seeds=[]) for seed in options.seeds] or [
        options
    ]


def run_once(recipe: Recipe) -> bool:
    """All stages with one seed, and the report on them; False if the recipe is to end before its last stage."""
    last = last_stage(list(recipe.stages()), recipe.options.until)
    records = []
    with sole_writer(recipe.folder, "name"):
        check_start(recipe)
        for number, stage in enumerate(recipe.stages()):  # each made when those before it have written what it reads
            try:
                records.append(stage.run(recipe.folder / "stages"))
            except Stopped as stop:
                stop.where, stop.advice = "", f"run the same command again: it goes on from stage {stage.name}"
                raise
            if number == last:
                return False
        summarise(recipe, records)
        report(recipe.folder, [recipe.folder])
    return True


def last_stage(stages: Sequence[Stage], until: str | None) -> int | None:
    """Number of the stage after which ``until`` (a name, or a kind: the last of it) ends the run; None: none does."""
    matching = [number for number, stage in enumerate(stages) if until in (stage.name, stage.kind)]
    if until is not None and not matching:
        names = dict.fromkeys([*(stage.kind for stage in stages), *(stage.name for stage in stages)])
        raise InputError(f"must be a stage of this recipe, one of {', '.join(names)}, got {until}", "until")
    return matching[-1] if matching and until != "evaluate" else None

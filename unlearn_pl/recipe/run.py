"""`unlearn-pl run`: one file describes the whole experiment, one command does what of it is not done yet."""

from collections.abc import Sequence
from dataclasses import replace

from unlearn_pl.errors import InputError
from unlearn_pl.files import sole_writer
from unlearn_pl.recipe.check import check_options, check_start
from unlearn_pl.recipe.options import RecipeOptions
from unlearn_pl.recipe.recipe import Recipe
from unlearn_pl.recipe.report import report
from unlearn_pl.recipe.stage import Stage
from unlearn_pl.stopping import Stopped


def run(options: RecipeOptions) -> None:
    """Run a recipe: prepare, fit adapters, merge and balance them, evaluate every model, print a table.

    Stages that finished with the same inputs are skipped, so an interrupted recipe goes on where it stopped; a fit
    goes on from its last checkpoint. Everything is written below LOGS/NAME: the scores as `summary.json` and
    `table.md`, the pictures as PNG files.
    """
    check_options(options)
    for one in each_seed(options):
        run_once(one)


def each_seed(options: RecipeOptions) -> list[RecipeOptions]:
    """The recipe, or one for each of its seeds in a folder of its own."""
    return [replace(options, name=f"{options.name}/seed_{seed}", seed=seed, seeds=[]) for seed in options.seeds] or [
        options
    ]


def run_once(options: RecipeOptions) -> None:
    """All stages of a recipe with one seed."""
    recipe = Recipe(options)
    last = last_stage(list(recipe.stages()), options.until)
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
                return
        report(recipe, records)


def last_stage(stages: Sequence[Stage], until: str | None) -> int | None:
    """Number of the stage after which ``until`` (a name, or a kind: the last of it) ends the run; None: none does."""
    matching = [number for number, stage in enumerate(stages) if until in (stage.name, stage.kind)]
    if until is not None and not matching:
        names = dict.fromkeys([*(stage.kind for stage in stages), *(stage.name for stage in stages)])
        raise InputError(f"must be a stage of this recipe, one of {', '.join(names)}, got {until}", "until")
    return matching[-1] if matching and until != "evaluate" else None

"""`unlearn-pl run`: one file describes the whole experiment, one command does what of it is not done yet."""

from pathlib import Path

from unlearn_pl.balance.options import BalanceOptions
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.files import sole_writer
from unlearn_pl.inference.generation import Generation
from unlearn_pl.recipe.check import check_start
from unlearn_pl.recipe.prepare import Prepare
from unlearn_pl.recipe.recipe import STAGES, Merging, Recipe, RecipeData
from unlearn_pl.recipe.report import report
from unlearn_pl.stopping import Stopped

# What merge and balance call their arguments -> what they are called here.
FLAGS = {"--search": "--balance", **{f"--{name}": f"--merging.{name}" for name in ("method", "weights", "density")}}


def run(
    name: str,
    over: str,
    under: str,
    base: str | None = None,
    data: RecipeData | None = None,
    prepare: Prepare | None = None,
    merging: Merging | None = None,
    balance: BalanceOptions | None = None,
    membership: Membership | None = None,
    choice: Choice | None = None,
    generation: Generation | None = None,
    seed: int = 42,
    logs: str = "logs",
    until: str | None = None,
    fit_args: list[str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Run a recipe: prepare, fit the over- and the under-forgetting adapter, merge, balance, evaluate, print a table.

    Stages that finished with the same inputs are skipped, so an interrupted recipe goes on where it stopped; a fit
    goes on from its last checkpoint. Everything is written below LOGS/NAME: the scores as `summary.json` and
    `table.md`, the pictures as PNG files.

    Args:
        name: The recipe's folder is LOGS/NAME.
        over: Configuration of the over-forgetting fit.
        under: Configuration of the under-forgetting fit.
        base: The model that memorised the rows, or that is to memorise them if the recipe prepares.
        data: The rows, if the recipe does not make its own.
        prepare: How to make the data and a model that knows it; without it both are given.
        merging: How the two adapters become one.
        balance: Where to search for the merge with a membership AUC of one half, to be scored too; none without it.
        membership: Documents of the membership attack; those that were prepared if none are named.
        choice: Multiple-choice questions in the MMLU layout; those that were prepared if none are named.
        generation: How answers are generated.
        seed: Seed of everything: data, model, both fits.
        logs: Folder of the recipe's folder.
        until: Stop after this stage: data, base, over, under, merge, balance or evaluate (the last).
        fit_args: Further arguments of both fits, such as --trainer.devices=2.
        trust_remote_code: Run the Python code that the base model brings along.
    """
    if until is not None and until not in STAGES:
        raise InputError(f"--until: must be one of {', '.join(STAGES)}, got {until}")
    recipe = Recipe(
        name, over, under, Path(logs) / name, seed, base, data or RecipeData(), prepare, merging or Merging(),
        balance, membership or Membership(), choice or Choice(), generation or Generation(), tuple(fit_args or ()),
        trust_remote_code,
    )  # fmt: skip
    records = []
    with sole_writer(recipe.folder, "--name"):
        check_start(recipe)
        for stage in recipe.stages():
            try:
                records.append(stage.run(recipe.folder / "stages"))
            except Stopped as stop:
                stop.where, stop.advice = "", f"run the same command again: it goes on from stage {stage.name}"
                raise
            if until == stage.name:
                return
        report(recipe, records)

"""What a recipe checks before its first stage: that what its last ones need is there."""

import warnings
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from unlearn_pl.callbacks.adapter import is_dry
from unlearn_pl.cli import UnlearnCLI
from unlearn_pl.data.readers import read_documents
from unlearn_pl.errors import InputError, one_line, refusal_behind
from unlearn_pl.evaluation.choice import read_subjects
from unlearn_pl.evaluation.inputs import EvaluationOptions, read_inputs
from unlearn_pl.merging.parents import check_config
from unlearn_pl.models import tiny
from unlearn_pl.models.load import load_skeleton
from unlearn_pl.models.lora import attach_lora
from unlearn_pl.recipe.prepare import Prepare
from unlearn_pl.recipe.recipe import Recipe
from unlearn_pl.tasks.synthetic import benchmark
from unlearn_pl.training.memorise import check_options


class Built(UnlearnCLI):
    """Parses a fit's command line and builds its trainer, module and data; runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.refuse(subcommand)


def check_start(recipe: Recipe) -> None:
    """Raise InputError, or exit with the parser's one line, for what a later stage would refuse after hours."""
    if recipe.prepare is not None:
        check_prepare(recipe.prepare)
    check_scores(recipe)
    for name, config in (("over", recipe.over), ("under", recipe.under)):
        check_fit(recipe, name, config)


def check_prepare(prepare: Prepare) -> None:
    """The sizes and settings of what the recipe makes itself."""
    if prepare.synthetic is not None:
        benchmark.check_sizes(prepare.synthetic)
    if prepare.tiny is not None:
        tiny.check_sizes(prepare.tiny)
    if prepare.memorise is not None:
        check_options(prepare.memorise)


def check_scores(recipe: Recipe) -> None:
    """The rows, documents and questions by which models are scored; those that are not made by the recipe itself."""
    if recipe.prepare is None:
        read_inputs(recipe.inputs, EvaluationOptions(recipe.membership, recipe.choice, recipe.generation))
        return
    read_subjects(recipe.choice)
    for flag, path in (("member", recipe.membership.member), ("nonmember", recipe.membership.nonmember)):
        if path is not None:
            read_documents(path, f"membership.{flag}")


def check_fit(recipe: Recipe, name: str, config: str) -> None:
    """The command line of a fit: its arguments, that its loggers and callbacks are installed, and, where the base is
    there already, that its adapter will be one that can be merged."""
    try:
        built = Built(["fit", *recipe.fit_arguments(name, config)])
    except SystemExit as end:
        if end.code:
            raise
        raise InputError("--fit_args: must be arguments with which a fit trains, not --help and the like") from end
    except (MisconfigurationException, ImportError, ValueError) as error:
        reason = refusal_behind(error) or one_line(error)
        raise InputError(f"--{name}: {config} cannot be run here: {reason}") from error
    check_ending(recipe, name, built)
    if recipe.base is None:
        return
    where = f"--{name}: the adapter that {config} describes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fit itself shows PEFT's
        model = attach_lora(load_skeleton(recipe.base, built.model.trust_remote_code), built.model.lora, seed=0)
    check_config(model.peft_config[model.active_adapter].to_dict(), where)


def check_ending(recipe: Recipe, name: str, built: Built) -> None:
    """That the fit leaves its adapter where the merge looks for it."""
    folder = Path(built.trainer.default_root_dir)
    if folder.resolve() != (recipe.folder / name).resolve():
        raise InputError(f"--fit_args: a recipe's fits have folders of their own, got {folder}; choose with --logs")
    if is_dry(built.trainer):
        raise InputError("--fit_args and --over, --under: fast_dev_run leaves no adapter that could be merged")

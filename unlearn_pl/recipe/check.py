"""What a recipe checks before its first stage: that what its last ones need is there."""

import re
import warnings
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from unlearn_pl.cli import UnlearnCLI
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import read_subjects
from unlearn_pl.evaluation.inputs import EvaluationOptions, read_inputs
from unlearn_pl.merging.parents import check_config
from unlearn_pl.models.load import load_skeleton
from unlearn_pl.models.lora import attach_lora
from unlearn_pl.recipe.recipe import Recipe


class Built(UnlearnCLI):
    """Parses a fit's command line and builds its trainer, module and data; runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def check_start(recipe: Recipe) -> None:
    """Raise InputError, or exit with the parser's one line, for what a later stage would refuse after hours."""
    check_scores(recipe)
    for name, config in (("over", recipe.over), ("under", recipe.under)):
        check_fit(recipe, name, config)


def check_scores(recipe: Recipe) -> None:
    """The rows, documents and questions by which models are scored; those that are not made by the recipe itself."""
    if recipe.prepare is None:
        read_inputs(recipe.inputs, EvaluationOptions(recipe.membership, recipe.choice, recipe.generation))
        return
    read_subjects(recipe.choice)
    for flag, path in (("member", recipe.membership.member), ("nonmember", recipe.membership.nonmember)):
        if path is not None and not path.startswith("hf:") and not Path(path).expanduser().exists():
            raise InputError(f"--membership.{flag}: {path} does not exist")


def check_fit(recipe: Recipe, name: str, config: str) -> None:
    """The command line of a fit: its arguments, that its loggers and callbacks are installed, and, where the base is
    there already, that its adapter will be one that can be merged."""
    try:
        built = Built(["fit", *recipe.fit_arguments(name, config)])
    except InputError:
        raise
    except (MisconfigurationException, ImportError, ValueError) as error:
        text = str(error).strip() or type(error).__name__
        cause = re.search(r"Problem with given class_path '.*':\s*(.*)", text)
        reason = cause[1] if cause else text.splitlines()[0]
        raise InputError(f"--{name}: {config} cannot be run here: {reason}") from error
    if recipe.base is None:
        return
    where = f"--{name}: the adapter that {config} describes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fit itself shows PEFT's
        model = attach_lora(load_skeleton(recipe.base, built.model.trust_remote_code), built.model.lora, seed=0)
    check_config(model.peft_config[model.active_adapter].to_dict(), where)

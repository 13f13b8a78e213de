"""What a recipe checks before its first stage: that it fits together, and that what its last stages need is there."""

import re
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from unlearn_pl.callbacks.adapter import is_dry
from unlearn_pl.cli import UnlearnCLI
from unlearn_pl.data.readers import read_documents
from unlearn_pl.errors import InputError, check_seed, one_line, refusal_behind, within
from unlearn_pl.evaluation.inputs import read_inputs
from unlearn_pl.merging.adapters import check_config
from unlearn_pl.models import tiny
from unlearn_pl.models.load import blamed_on, load_skeleton, refuse_codes, resolve
from unlearn_pl.models.lora import attach_lora
from unlearn_pl.parsing import ShortErrors, with_flag
from unlearn_pl.recipe.options import TAKEN, RecipeOptions
from unlearn_pl.recipe.prepare import Prepare
from unlearn_pl.recipe.recipe import Recipe
from unlearn_pl.tasks.mmlu import read_subjects
from unlearn_pl.tasks.synthetic import benchmark
from unlearn_pl.training import memorise

LONGEST_NAME = 255
"""Bytes that a file system takes in the name of a folder."""


def check_options(options: RecipeOptions) -> None:
    """Raise InputError for a recipe that does not fit together; nothing is read but what lies where it says."""
    parts = options.name.split("/")
    leaves = not options.name or Path(options.name).is_absolute() or not {".", ".."}.isdisjoint(parts)
    if leaves or not options.name.isprintable() or max(len(part.encode()) for part in parts) > LONGEST_NAME:
        raise InputError(f"must be the name of a folder below logs, got {options.name!r}", "name")
    check_names(options)
    check_seeds(options.seeds)
    for name, config in options.all_fits.items():
        if not Path(config).is_file():
            reason = f"{config} is not a file; it must be a configuration of `unlearn-pl fit`"
            raise InputError(reason, place(options, name))
    for name, merging in options.all_merges.items():
        with within(place(options, name)):
            check_fits_of(options, merging.of)
            merging.settings(len(merging.of))
    if options.all_searches or options.comparisons:
        refuse_codes(options.dtype, "a search or comparison of merges, in the base's weights,")
    for name, balancing in options.all_searches.items():
        with within(place(options, name)):
            check_fits_of(options, balancing.of, exactly=2)
    for name, comparing in options.comparisons.items():
        with within(place(options, name)):
            check_fits_of(options, comparing.of, exactly=2)
    scores_merges = options.all_searches or options.comparisons
    if scores_merges and options.prepare is None and options.membership.nonmember is None:
        raise InputError("needed, the attack on them scores the merges", "membership.nonmember")
    check_base(options)
    check_rows(options)


def check_seeds(seeds: Sequence[int]) -> None:
    """Different ones, each of which can seed."""
    for seed in seeds:
        check_seed(seed, "seeds")
    if len({*seeds}) < len(seeds):
        raise InputError(f"must be different seeds, got {', '.join(map(str, seeds))}", "seeds")


def place(options: RecipeOptions, name: str) -> str:
    """The argument that a fit, merge or search stands in, in its short form where that was given."""
    short = {"over": options.over, "under": options.under, "merged": options.merging, "balanced": options.balance}
    if short.get(name) is not None:
        return {"merged": "merging", "balanced": "balance"}.get(name, name)
    kinds: dict[str, Collection[str]] = {
        kind: getattr(options, kind) for kind in ("fits", "merges", "searches", "comparisons")
    }
    return next((f"{kind}.{name}" for kind, entries in kinds.items() if name in entries), "merging")


def check_names(options: RecipeOptions) -> None:
    """Every fit, merge, search and comparison has a folder of its own."""
    kinds = (options.all_fits, options.all_merges, options.all_searches, options.comparisons)
    names = [name for entries in kinds for name in entries]
    if not options.all_fits:
        raise InputError("needed: a recipe trains at least one adapter, as `fits: {NAME: CONFIG.yaml}`", "fits")
    for name in names:
        # YAML reads 1 and yes as other things than text
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]{,99}", name) or name in TAKEN:
            reason = f"{name!r} cannot name a folder beside {', '.join(TAKEN)}; take letters, digits, _ and -"
            raise InputError(reason, place(options, name))
        if names.count(name) > 1:
            raise InputError(
                f"{name!r} names two of the recipe's fits, merges, searches and comparisons", place(options, name)
            )


def check_fits_of(options: RecipeOptions, of: list[str], exactly: int | None = None) -> None:
    """The adapters of a merge, search or comparison are those of fits of this recipe."""
    if len(of) < 2 or exactly not in (None, len(of)):
        raise InputError(f"must name {exactly or 'at least 2'} fits, got {len(of)}", "of")
    for name in of:
        if name not in options.all_fits:
            raise InputError(f"must be among the fits {', '.join(options.all_fits)}, got {name}", "of")
    if len({*of}) < len(of):
        raise InputError(f"must name different fits, got {', '.join(of)}", "of")


def check_base(options: RecipeOptions) -> None:
    """The model that is trained is given or built, and not both."""
    builds = options.prepare is not None and options.prepare.tiny is not None
    if options.base is None and not builds:
        raise InputError("needed, since the recipe does not build a tiny model", "base")
    if options.base is not None and builds:
        raise InputError(f"not used where the recipe builds a tiny model, got {options.base}", "base")
    if options.base is not None:
        with blamed_on("base"):
            resolve(options.base)


def check_rows(options: RecipeOptions) -> None:
    """The rows are given or made, and not both."""
    makes = options.prepare is not None and options.prepare.synthetic is not None
    for name in ("forget", "retain"):
        source = getattr(options.data, name)
        if makes:
            continue
        if source is None:
            raise InputError("needed, since the recipe does not make its own rows", f"data.{name}")
        if not source.startswith("hf:") and not Path(source).expanduser().exists():
            raise InputError(f"{source} does not exist", f"data.{name}")
    unused = ["documents_per_task", "columns"] if options.prepare is not None else []
    for name in [*unused, *(["forget", "retain"] if makes else [])]:
        if (value := getattr(options.data, name)) is not None:
            raise InputError(f"not used where the recipe makes its own rows, got {value}", f"data.{name}")


class Built(UnlearnCLI):
    """Parses a fit's command line and builds its trainer, module and data; runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.refuse(subcommand)


def check_start(recipe: Recipe) -> None:
    """Raise InputError, or exit with the parser's one line, for what a later stage would refuse after hours."""
    if recipe.options.prepare is not None:
        check_prepare(recipe.options.prepare)
    check_scores(recipe)
    for name, config in recipe.options.all_fits.items():
        check_fit(recipe, name, config)


def check_prepare(prepare: Prepare) -> None:
    """The sizes and settings of what the recipe makes itself."""
    if prepare.synthetic is not None:
        with within("prepare.synthetic"):
            benchmark.check_sizes(prepare.synthetic)
    if prepare.tiny is not None:
        with within("prepare.tiny"):
            tiny.check_sizes(prepare.tiny)
    if prepare.memorise is not None:
        with within("prepare.memorise"):
            memorise.check_options(prepare.memorise)


def check_scores(recipe: Recipe) -> None:
    """The rows, documents and questions by which models are scored; those that are not made by the recipe itself."""
    options = recipe.options
    if options.prepare is None:
        read_inputs(recipe.inputs, recipe.evaluation)
        return
    read_subjects(options.choice.folder, options.choice.shots, options.choice.limit)
    for name in ("member", "nonmember"):
        if (path := getattr(options.membership, name)) is not None:
            read_documents(path, f"membership.{name}")


def check_fit(recipe: Recipe, name: str, config: str) -> None:
    """The command line of a fit: its arguments, that its loggers and callbacks are installed, and, where the base is
    there already, that its adapter will be one that can be merged."""
    where = place(recipe.options, name)
    arguments = recipe.fit_arguments(name, config)
    try:
        with ShortErrors.on_behalf_of(f"--{where}: {config} cannot be run here: "):
            built = Built(["fit", *arguments])
    except SystemExit as end:
        if end.code:
            raise
        raise InputError("must be arguments with which a fit trains, not one that asks for help", "fit_args") from end
    except (MisconfigurationException, ImportError, ValueError) as error:
        refusal = refusal_behind(error)
        reason = with_flag(refusal, ShortErrors.known, arguments) if refusal else one_line(error)
        raise InputError(f"{config} cannot be run here: {reason}", where) from error
    check_ending(recipe, name, built)
    if recipe.options.base is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fit itself shows PEFT's
        with blamed_on("base"):
            skeleton = load_skeleton(recipe.options.base, built.model.trust_remote_code)
        model = attach_lora(skeleton, built.model.lora, seed=0)
    check_config(model.peft_config[model.active_adapter].to_dict(), f"the adapter that {config} describes", where)


def check_ending(recipe: Recipe, name: str, built: Built) -> None:
    """That the fit leaves its adapter where the merge looks for it."""
    folder = Path(built.trainer.default_root_dir)
    if folder.resolve() != (recipe.folder / name).resolve():
        raise InputError(f"a recipe's fits have folders of their own, got {folder}; choose with logs", "fit_args")
    if is_dry(built.trainer):
        raise InputError("fast_dev_run, here or in a fit's configuration, leaves no adapter", "fit_args")

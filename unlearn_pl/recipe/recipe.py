"""Recipe: one experiment as stages, each reading what the ones before it wrote."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unlearn_pl.checkpoints.merge import CheckpointOptions
from unlearn_pl.commands.balance import balance
from unlearn_pl.commands.compare_merges import compare_merges
from unlearn_pl.commands.evaluate import EvaluateOptions, measure
from unlearn_pl.commands.merge import merge
from unlearn_pl.commands.score_tables import headline
from unlearn_pl.commands.scoring import ScoringOptions
from unlearn_pl.config_file import files_named
from unlearn_pl.evaluation.inputs import EvaluationData
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.recipe.fit import run_fit
from unlearn_pl.recipe.options import Balancing, Comparing, Merging, RecipeOptions
from unlearn_pl.recipe.prepare import Prepare, prepare_base, prepare_data
from unlearn_pl.recipe.stage import Stage

LOADING = ("reference", "retrained", "dtype", "device")


@dataclass(frozen=True)
class Recipe:
    """The stages of an experiment, all below one folder: prepare, every fit, every merge and search of the fits'
    adapters, and the evaluation of the base and of each of them."""

    options: RecipeOptions

    @cached_property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.options.logs) / self.options.name

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are scored."""
        options = self.options
        return ("base", *options.all_fits, *options.all_merges, *options.all_searches)

    @cached_property
    def inputs(self) -> EvaluationData:
        """The rows that the models are trained and scored on."""
        if self.options.prepare is not None:
            return EvaluationData(str(self.folder / "data/forget.jsonl"), str(self.folder / "data/retain.jsonl"))
        data = self.options.data
        assert data.forget is not None
        assert data.retain is not None
        return EvaluationData(data.forget, data.retain, data.documents_per_task, data.columns)

    @cached_property
    def base(self) -> str:
        """The model that knows the rows."""
        if self.options.prepare is not None:
            return str(self.folder / "base")
        assert self.options.base is not None
        return self.options.base

    @cached_property
    def evaluation(self) -> EvaluationOptions:
        """How models are scored: by the documents and questions that the recipe prepared, where it names no others."""
        options = self.options
        if options.prepare is None:
            return options.evaluation()
        prepared, membership, choice = self.folder / "data", options.membership, options.choice
        if membership.nonmember is None:
            member, nonmember = (str(prepared / "membership" / f"{name}.jsonl") for name in ("member", "nonmember"))
            membership = replace(membership, member=member, nonmember=nonmember)
        if choice.folder is None:
            choice = replace(choice, folder=str(prepared / "mmlu"))
        return options.evaluation(membership=membership, choice=choice)

    def stages(self) -> Iterator[Stage]:
        """The stages in order; what a recipe does not ask for is not among them."""
        options = self.options
        if options.prepare is not None:
            yield self._data_stage(options.prepare)
            yield self._base_stage(options.prepare)
        for name, config in options.all_fits.items():
            yield self._fit_stage(name, config)
        for name, merging in options.all_merges.items():
            yield self._merge_stage(name, merging)
        for name, balancing in options.all_searches.items():
            yield self._balance_stage(name, balancing)
        for name, comparing in options.comparisons.items():
            yield self._compare_stage(name, comparing)
        for name in self.models:
            yield self._evaluate_stage(name)

    def _data_stage(self, prepare: Prepare) -> Stage:
        options, folder = self.options, self.folder / "data"
        made_of = {"synthetic": jsonable(prepare.synthetic), "subset": jsonable(prepare.subset)}
        return Stage(
            "data",
            kind="data",
            settings={"seed": options.seed, **made_of},
            reads=local(options.data.forget, options.data.retain) if prepare.subset is not None else (),
            outputs=(folder,),
            work=lambda _: prepare_data(prepare, options.data.forget, options.data.retain, options.seed, folder),
        )

    def _base_stage(self, prepare: Prepare) -> Stage:
        options, data, folder = self.options, self.folder / "data", self.folder / "base"
        made_of = {"tiny": jsonable(prepare.tiny), "memorise": jsonable(prepare.memorise)}
        return Stage(
            "base",
            kind="base",
            settings={"seed": options.seed, "base": options.base, **made_of},
            reads=(data, *local(options.base)),
            outputs=(folder,),
            work=lambda _: prepare_base(prepare, options.base, options.seed, data, folder, options.trust_remote_code),
        )

    def _fit_stage(self, name: str, config: str) -> Stage:
        folder, arguments = self.folder / name, self.fit_arguments(name, config)
        scoring = self._searching_files() if self.options.during_fit else ()
        return Stage(
            name,
            kind="fit",
            settings={"arguments": arguments},
            reads=(*files_named(arguments), *local(*scoring)),
            outputs=(folder / "adapter",),
            work=lambda interrupted: run_fit(name, ["fit", *arguments], folder, interrupted),
        )

    def fit_arguments(self, name: str, config: str) -> list[str]:
        """What `unlearn-pl fit` is called with."""
        data = self.inputs
        arguments = {
            "seed_everything": self.options.seed,
            "model.base": self.base,
            "data.forget": data.forget,
            "data.retain": data.retain,
            "data.documents_per_task": "null" if data.documents_per_task is None else data.documents_per_task,
            "trainer.default_root_dir": self.folder / name,
        }
        extra = [f"--data.columns={data.columns}"] if data.columns else []
        extra += ["--model.trust_remote_code=true"] if self.options.trust_remote_code else []
        given = [f"--{key}={value}" for key, value in arguments.items()]
        return ["--config", config, *given, *extra, *self._scored_while_training(), *self.options.fit_args]

    def _scored_while_training(self) -> list[str]:
        """The callback that scores a fit's model as the recipe scores the finished ones."""
        if self.options.during_fit is None:
            return []
        scored, name = self.evaluation, "trainer.callbacks"
        parts = {key: asdict(getattr(scored, key)) for key in ("membership", "choice", "generation")}
        given = [
            f"--{name}.{key}={json.dumps(value)}" for key, value in (asdict(self.options.during_fit) | parts).items()
        ]
        return [f"--{name}+=EvaluateDuringFit", *given]

    def adapter(self, name: str) -> Path:
        """Where a fit, merge or search leaves its adapter."""
        return self.folder / name / "adapter"

    def _merge_stage(self, name: str, merging: Merging) -> Stage:
        adapters, folder = [self.adapter(fit) for fit in merging.of], self.folder / name
        return Stage(
            name,
            kind="merge",
            settings=asdict(merging),
            reads=(*adapters, *local(self.base)),  # the merged model has the base's tokenizer
            outputs=tuple(folder / part for part in ("adapter", "model", "anatomy.json", "spectrum.json")),
            work=lambda _: merge(
                self.base, [str(path) for path in adapters], str(folder / "adapter"),
                save_model=str(folder / "model"), overwrite=True,
                options=CheckpointOptions.of(merging, trust_remote_code=self.options.trust_remote_code),
            ),
        )  # fmt: skip

    def _balance_stage(self, name: str, balancing: Balancing) -> Stage:
        adapters, folder = [str(self.adapter(fit)) for fit in balancing.of], self.folder / name
        return Stage(
            name,
            kind="balance",
            settings={"model": self.base, **self._searched_by(), "search": asdict(balancing.search)},
            reads=local(self.base, *adapters, *self._searching_files()),
            outputs=(folder,),
            work=lambda _: balance(
                self.base, adapters, self.inputs, str(folder), balancing.search, options=self._merge_scoring()
            ),
        )

    def _compare_stage(self, name: str, comparing: Comparing) -> Stage:
        adapters, folder = [str(self.adapter(fit)) for fit in comparing.of], self.folder / name
        return Stage(
            name,
            kind="compare",
            settings={"model": self.base, **self._searched_by(), "compared": asdict(comparing)},
            reads=local(self.base, *adapters, *self._searching_files()),
            outputs=(folder,),
            work=lambda _: compare_merges(
                self.base, adapters, self.inputs, str(folder), comparing.methods,
                densities=comparing.densities, options=self._merge_scoring(),
            ),
        )  # fmt: skip

    def _merge_scoring(self) -> ScoringOptions:
        """How merges are scored that are searched or compared."""
        scored, options = self.evaluation, self.options
        return ScoringOptions(
            membership=scored.membership,
            choice=scored.choice,
            generation=scored.generation,
            overwrite=True,
            dtype=options.dtype,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
        )

    def _evaluate_stage(self, name: str) -> Stage:
        merged, folder = name in self.options.all_merges, self.folder / "evaluation" / name
        model = str(self.folder / name / "model") if merged else self.base
        adapter = None if merged or name == "base" else str(self.adapter(name))

        def work(_: bool) -> None:
            options = EvaluateOptions(**vars(self.evaluation), **self._loading(), overwrite=True)
            results = measure(model, self.inputs, str(folder), adapter, options)
            assert results is not None  # a recipe is one process
            print(f"{name}: {headline(results)}", flush=True)

        return Stage(
            f"evaluate {name}",
            kind="evaluate",
            settings={"model": model, **self._scored_by()},
            reads=local(model, adapter, *self._scoring_files()),
            outputs=(folder,),
            work=work,
        )

    def _searched_by(self) -> dict[str, Any]:
        """The settings of a search or comparison: of all that is measured, what it measures."""
        own = {name: asdict(getattr(self.evaluation, name)) for name in ("membership", "choice", "generation")}
        loading = {name: getattr(self.options, name) for name in ("dtype", "device")}
        return {"data": asdict(self.inputs), **own, **loading}

    def _scored_by(self) -> dict[str, Any]:
        """The settings of a stage that scores a model."""
        loading = {name: getattr(self.options, name) for name in LOADING}
        measured = {"data": asdict(self.inputs), "harness": asdict(self.options.harness)}
        return {**measured, **asdict(self.evaluation), **loading}

    def _loading(self) -> dict[str, Any]:
        """What `unlearn-pl evaluate` takes beside what is measured, as this recipe gives it."""
        return {name: getattr(self.options, name) for name in (*LOADING, "harness", "trust_remote_code")}

    def _searching_files(self) -> tuple[str | None, ...]:
        membership, data = self.evaluation.membership, self.inputs
        return (data.forget, data.retain, membership.member, membership.nonmember, self.evaluation.choice.folder)

    def _scoring_files(self) -> tuple[str | Path | None, ...]:
        truth, options = self.evaluation.truth, self.options
        retrained = None if options.retrained is None else Path(options.retrained).expanduser() / "results.json"
        return (*self._searching_files(), truth.forget, truth.retain, options.reference, retrained)


def local(*sources: str | Path | None) -> tuple[Path, ...]:
    """Those of the sources that are on this disk; a hub name stands for itself in the settings."""
    paths = [Path(source).expanduser() for source in sources if source is not None]
    return tuple(path for path in paths if path.exists())


def jsonable(options: Any) -> Any:
    """A dataclass as a dictionary, None as None."""
    return None if options is None else asdict(options)

"""Recipe: one experiment as stages, each reading what the ones before it wrote."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from unlearn_pl.balance.options import BalanceOptions
from unlearn_pl.commands.balance import balance
from unlearn_pl.commands.evaluate import evaluate
from unlearn_pl.commands.merge import merge
from unlearn_pl.commands.scoring import ScoringOptions
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.inputs import EvaluationData
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.inference.generation import Generation
from unlearn_pl.merging.methods import merge_settings
from unlearn_pl.models.load import resolve
from unlearn_pl.recipe.fit import run_fit
from unlearn_pl.recipe.prepare import Prepare, prepare_base, prepare_data
from unlearn_pl.recipe.stage import Stage

STAGES = ("data", "base", "over", "under", "merge", "balance", "evaluate")


@dataclass(frozen=True)
class Merging:
    """How the two adapters become one."""

    method: str = "ties"
    """A name from `unlearn-pl merge --list`."""
    weights: list[float] = field(default_factory=lambda: [1.0, 1.0])
    """Weight of the over- and of the under-forgetting adapter."""
    density: float | None = None
    """Share of the entries that trimming keeps, in (0, 1]; 0.8 if not given, where the method trims."""


@dataclass(frozen=True)
class RecipeData:
    """Rows for a recipe that does not make its own."""

    forget: str | None = None
    """Rows to forget, from whatever `fit` reads."""
    retain: str | None = None
    """Rows to keep."""
    documents_per_task: int | None = None
    """Only the first so many documents of each task in each set."""
    columns: dict[str, str] | None = None
    """Field of a row -> column of the source, where they differ."""


@dataclass(frozen=True)
class Recipe:
    """One experiment: its stages read what the ones before them wrote, all below one folder."""

    name: str
    over: str
    under: str
    folder: Path
    seed: int
    base: str | None
    data: RecipeData
    prepare: Prepare | None
    merging: Merging
    balance: BalanceOptions | None
    membership: Membership
    choice: Choice
    generation: Generation
    fit_args: tuple[str, ...]
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).is_absolute() or not {".", ".."}.isdisjoint(self.name.split("/")):
            raise InputError(f"--name: must be the name of a folder below --logs, got {self.name!r}")
        for argument, path in (("--over", self.over), ("--under", self.under)):
            if not Path(path).is_file():
                raise InputError(f"{argument}: {path} is not a file; it must be a configuration of `unlearn-pl fit`")
        if self.base is None and (self.prepare is None or self.prepare.tiny is None):
            raise InputError("--base: needed, since the recipe does not build a tiny model")
        if self.base is not None:
            resolve(self.base)
        if self.prepare is None or self.prepare.synthetic is None:
            for name in ("forget", "retain"):
                source = getattr(self.data, name)
                if source is None:
                    raise InputError(f"--data.{name}: needed, since the recipe does not make its own rows")
                if not source.startswith("hf:") and not Path(source).expanduser().exists():
                    raise InputError(f"--data.{name}: {source} does not exist; give the file with --data.{name}")
        self._refuse_unused()
        merge_settings(2, self.merging.method, self.merging.weights, self.merging.density)
        if self.balance is not None and self._attack().nonmember is None:
            raise InputError("--membership.nonmember: needed, the attack on them steers the balance search")

    def _refuse_unused(self) -> None:
        if self.prepare is None:
            return
        if self.prepare.tiny is not None and self.base is not None:
            raise InputError(f"--base: not used where the recipe builds a tiny model, got {self.base}")
        unused = ["documents_per_task", "columns"]
        if self.prepare.synthetic is not None:
            unused += ["forget", "retain"]
        for name in unused:
            if (value := getattr(self.data, name)) is not None:
                raise InputError(f"--data.{name}: not used where the recipe makes its own rows, got {value}")

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are scored."""
        return ("base", "over", "under", "merged", *(["balanced"] if self.balance is not None else []))

    @cached_property
    def inputs(self) -> EvaluationData:
        """The rows that the models are trained and scored on."""
        if self.prepare is not None:
            return EvaluationData(str(self.folder / "data/forget.jsonl"), str(self.folder / "data/retain.jsonl"))
        assert self.data.forget is not None
        assert self.data.retain is not None
        return EvaluationData(self.data.forget, self.data.retain, self.data.documents_per_task, self.data.columns)

    @cached_property
    def model(self) -> str:
        """The model that knows the rows."""
        if self.prepare is not None:
            return str(self.folder / "base")
        assert self.base is not None
        return self.base

    def stages(self) -> Iterator[Stage]:
        """The stages in order; what a recipe does not ask for is not among them."""
        if self.prepare is not None:
            yield from self._prepare_stages(self.prepare)
        for name, config in (("over", self.over), ("under", self.under)):
            yield Stage(
                name,
                settings={"arguments": self.fit_arguments(name, config)},
                reads=(Path(config), *self._local(self.model, self.inputs.forget, self.inputs.retain)),
                outputs=(self.folder / name / "adapter",),
                work=partial(self._fit, name, config),
            )
        yield Stage(
            "merge",
            settings=asdict(self.merging),
            reads=tuple(self.folder / name / "adapter" for name in ("over", "under")),
            outputs=(self.folder / "merged/adapter", self.folder / "merged/model"),
            work=self._merge,
        )
        if self.balance is not None:
            yield self._balance_stage(self.balance)
        for name in self.models:
            yield self._evaluate_stage(name)

    def _prepare_stages(self, prepare: Prepare) -> Iterator[Stage]:
        data, base = self.folder / "data", self.folder / "base"
        sources = self._local(self.data.forget, self.data.retain) if prepare.subset is not None else ()
        yield Stage(
            "data",
            settings={"seed": self.seed, "synthetic": jsonable(prepare.synthetic), "subset": jsonable(prepare.subset)},
            reads=sources,
            outputs=(data,),
            work=lambda _: prepare_data(prepare, self.data.forget, self.data.retain, self.seed, data),
        )
        yield Stage(
            "base",
            settings={
                "seed": self.seed,
                "base": self.base,
                "tiny": jsonable(prepare.tiny),
                "memorise": jsonable(prepare.memorise),
            },
            reads=(data, *self._local(self.base)),
            outputs=(base,),
            work=lambda _: prepare_base(prepare, self.base, self.seed, data, base, self.trust_remote_code),
        )

    def fit_arguments(self, name: str, config: str) -> list[str]:
        """What `unlearn-pl fit` is called with."""
        columns = self.inputs.columns
        arguments = {
            "seed_everything": self.seed,
            "model.base": self.model,
            "data.forget": self.inputs.forget,
            "data.retain": self.inputs.retain,
            "data.documents_per_task": "null"
            if self.inputs.documents_per_task is None
            else self.inputs.documents_per_task,
            "trainer.default_root_dir": self.folder / name,
        }
        extra = [f"--data.columns={columns}"] if columns else []
        extra += ["--model.trust_remote_code=true"] if self.trust_remote_code else []
        return ["--config", config, *(f"--{key}={value}" for key, value in arguments.items()), *extra, *self.fit_args]

    def _fit(self, name: str, config: str, interrupted: bool) -> None:
        run_fit(name, ["fit", *self.fit_arguments(name, config)], self.folder / name, interrupted)

    def _merge(self, _: bool) -> None:
        adapters = [str(self.folder / name / "adapter") for name in ("over", "under")]
        output, model = self.folder / "merged/adapter", self.folder / "merged/model"
        merging = self.merging
        merge(
            self.model, adapters, str(output), method=merging.method, weights=merging.weights,
            density=merging.density, save_model=str(model), overwrite=True, trust_remote_code=self.trust_remote_code,
        )  # fmt: skip

    def _balance_stage(self, search: BalanceOptions) -> Stage:
        adapters = [str(self.folder / name / "adapter") for name in ("over", "under")]
        measured, rows = self._measured()
        output = self.folder / "balanced"
        return Stage(
            "balance",
            settings={"model": self.model, **{k: asdict(v) for k, v in measured.items()}, "search": asdict(search)},
            reads=self._local(self.model, *adapters, *rows),
            outputs=(output,),
            work=lambda _: balance(
                self.model, adapters, self.inputs, str(output), search,
                options=ScoringOptions(
                    membership=self._attack(), choice=self._questions(), generation=self.generation,
                    trust_remote_code=self.trust_remote_code, overwrite=True,
                ),
            ),
        )  # fmt: skip

    def _measured(self) -> tuple[dict[str, Any], tuple[str | None, ...]]:
        """What models are scored by, and the files of it."""
        membership, choice = self._attack(), self._questions()
        measured: dict[str, Any] = {
            "data": self.inputs,
            "membership": membership,
            "choice": choice,
            "generation": self.generation,
        }
        rows = (self.inputs.forget, self.inputs.retain, membership.member, membership.nonmember, choice.folder)
        return measured, rows

    def _evaluate_stage(self, name: str) -> Stage:
        adapter = str(self.folder / name / "adapter") if name in ("over", "under", "balanced") else None
        model = str(self.folder / "merged/model") if name == "merged" else self.model
        measured, rows = self._measured()
        output = self.folder / "evaluation" / name
        return Stage(
            f"evaluate {name}",
            settings={"model": model, **{key: asdict(value) for key, value in measured.items()}},
            reads=self._local(model, adapter, *rows),
            outputs=(output,),
            work=lambda _: evaluate(
                model, output=str(output), adapter=adapter, overwrite=True,
                trust_remote_code=self.trust_remote_code, **measured,
            ),
        )  # fmt: skip

    def _attack(self) -> Membership:
        """The membership data that the recipe names, else those that it prepared."""
        if self.membership.nonmember is not None or self.prepare is None:
            return self.membership
        prepared = self.folder / "data/membership"
        return replace(
            self.membership, member=str(prepared / "member.jsonl"), nonmember=str(prepared / "nonmember.jsonl")
        )

    def _questions(self) -> Choice:
        """The questions that the recipe names, else those that it prepared."""
        if self.choice.folder is not None or self.prepare is None:
            return self.choice
        return replace(self.choice, folder=str(self.folder / "data/mmlu"))

    @staticmethod
    def _local(*sources: str | Path | None) -> tuple[Path, ...]:
        """Those of the sources that are on this disk; a hub name stands for itself in the settings."""
        paths = [Path(source).expanduser() for source in sources if source is not None]
        return tuple(path for path in paths if path.exists())


def jsonable(options: Any) -> Any:
    """A dataclass as a dictionary, None as None."""
    return None if options is None else asdict(options)

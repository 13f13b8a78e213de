"""What a recipe file says: the fits, what is made of their adapters, and how all of it is scored."""

from dataclasses import dataclass, field
from typing import Any

from unlearn_pl.balance.compare import ComparisonOptions
from unlearn_pl.balance.options import BalanceOptions
from unlearn_pl.evaluation.lm_eval import Harness
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.merging.options import MergeOptions
from unlearn_pl.recipe.prepare import Prepare

FITS = ("over", "under")
TAKEN = (
    "data", "base", "evaluation", "stages", "figures", "tables",
    "summary.json", "table.md", "report.html",
)  # fmt: skip
"""Folders and files of a recipe that no fit, merge, search or comparison may be named after."""


@dataclass(frozen=True, kw_only=True)
class Merging(MergeOptions):
    """A merge of the adapters of some fits."""

    of: list[str] = field(default_factory=lambda: [*FITS])
    """Names of the fits whose adapters are merged, two or more."""


@dataclass(frozen=True, kw_only=True)
class Balancing(BalanceOptions):
    """A search for the merge of two fits' adapters with a membership AUC of one half."""

    of: list[str] = field(default_factory=lambda: [*FITS])
    """Name of the over- and of the under-forgetting fit, in this order."""

    @property
    def search(self) -> BalanceOptions:
        """Where is searched, without the adapters' names."""
        return BalanceOptions(**{key: value for key, value in vars(self).items() if key != "of"})


@dataclass(frozen=True, kw_only=True)
class Comparing(ComparisonOptions):
    """Merge methods beside one another on the adapters of two fits, as `unlearn-pl compare-merges` does."""

    of: list[str] = field(default_factory=lambda: [*FITS])
    """Name of the over- and of the under-forgetting fit, in this order."""


@dataclass(frozen=True, kw_only=True)
class DuringFit:
    """How often every fit's model is scored while it trains, by the documents and questions of the recipe."""

    every_n_epochs: int | None = 1
    """After every so many epochs; null for not by epochs."""
    every_n_steps: int | None = None
    """After every so many optimizer steps; null for not by steps."""


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


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(EvaluationOptions):
    """One experiment. Every model of it (the base, each fit, merge and search) is scored with the same options, those
    of `unlearn-pl evaluate`; documents and questions that the recipe prepared are used where none are named."""

    name: str
    """The recipe's folder is LOGS/NAME."""
    fits: dict[str, str] = field(default_factory=dict)
    """Name of a fit -> its configuration, a file that `unlearn-pl fit --config` takes."""
    merges: dict[str, Merging] = field(default_factory=dict)
    """Name of a merge -> how it is made of the fits' adapters."""
    searches: dict[str, Balancing] = field(default_factory=dict)
    """Name of a balanced merge -> of which two fits, and where it is searched."""
    comparisons: dict[str, Comparing] = field(default_factory=dict)
    """Name of a comparison -> of which two fits, by which methods and densities."""
    during_fit: DuringFit | None = None
    """How often the fits' models are scored while they train; without it they are not."""
    over: str | None = None
    """Short for the fit of that name."""
    under: str | None = None
    """Short for the fit of that name."""
    merging: Merging | None = None
    """Short for the merge `merged`, which a recipe that gives `over` and `under` has anyhow."""
    balance: Balancing | None = None
    """Short for the search `balanced`."""
    base: str | None = None
    """The model that memorised the rows, or that is to memorise them if the recipe prepares."""
    data: RecipeData = field(default_factory=RecipeData)
    """The rows, if the recipe does not make its own."""
    prepare: Prepare | None = None
    """How to make the data and a model that knows it; without it both are given."""
    seed: int = 42
    """Seed of everything: data, model, all fits."""
    seeds: list[int] = field(default_factory=list)
    """Run the recipe once with each of these seeds, in LOGS/NAME/seed_N; the report then shows mean and spread."""
    logs: str = "logs"
    """Folder of the recipe's folder."""
    until: str | None = None
    """Stop after this stage (a name as the recipe prints it), or after the last of a kind: data, base, fit, merge,
    balance, compare or evaluate."""
    fit_args: list[str] = field(default_factory=list)
    """Further arguments of all fits, such as --trainer.devices=2."""
    reference: str | None = None
    """Folder or hub name of the model before unlearning, for perplexity and the reference attack; without it each
    adapter's own base, and none for the merged models."""
    retrained: str | None = None
    """Output folder of an evaluation of a model that never saw the forget set, for forget quality."""
    harness: Harness = field(default_factory=Harness)
    """Tasks of lm-eval, on which every model is scored too."""
    dtype: str = "float32"
    """Type of the weights in which models are scored and merges searched: float32, bfloat16 or float16; without a
    search or comparison also nf4, fp4 or int8 (codes, multiplied in bfloat16)."""
    device: str = "auto"
    """Where models are scored: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one)."""
    trust_remote_code: bool = False
    """Run the Python code that the base model brings along."""

    def __post_init__(self) -> None:
        if self.prepare is None:  # else documents and questions come with what is prepared
            super().__post_init__()

    @property
    def all_fits(self) -> dict[str, str]:
        """``fits`` with the short forms."""
        short = {"over": self.over, "under": self.under}
        return self.fits | {name: config for name, config in short.items() if config is not None}

    @property
    def all_merges(self) -> dict[str, Merging]:
        """``merges`` with the short form."""
        short = self.merging or (Merging() if self.over and self.under and "merged" not in self.merges else None)
        return self.merges | ({"merged": short} if short else {})

    @property
    def all_searches(self) -> dict[str, Balancing]:
        """``searches`` with the short form."""
        return self.searches | ({"balanced": self.balance} if self.balance else {})

    def evaluation(self, **changed: Any) -> EvaluationOptions:
        """How models are scored, but for what is ``changed``."""
        own = {name: getattr(self, name) for name in EvaluationOptions.__dataclass_fields__}
        return EvaluationOptions(**own | changed)

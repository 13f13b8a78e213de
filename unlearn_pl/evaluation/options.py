"""What is measured beside a benchmark's rows, and how: one dataclass for commands, callbacks, recipes and Python."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.table import FAMILIES, METRICS
from unlearn_pl.evaluation.truth import Truth
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.sampling import Sampling
from unlearn_pl.metrics.attacks import ATTACKS
from unlearn_pl.metrics.metric import Need
from unlearn_pl.metrics.table import shared_needs


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is measured beside the benchmark's rows, and how."""

    membership: Membership = field(default_factory=Membership)
    """Documents of the membership attacks."""
    choice: Choice = field(default_factory=Choice)
    """Multiple-choice questions."""
    generation: Generation = field(default_factory=Generation)
    """How answers are generated."""
    minimum_mmlu: float | None = None
    """The model is eligible if its multiple-choice accuracy is above this, in [0, 1]; officially 0.371 for the 7B
    model, 75 % of what it had before. Not judged without it."""
    metrics: list[str] | None = None
    """Families of metrics beside the benchmark's own scores (memorization, leakage, collapse, fluency, membership,
    sampling, truth); without it all that the other options allow."""
    sampling: Sampling = field(default_factory=Sampling)
    """Answers drawn at random, for leak@k."""
    truth: Truth = field(default_factory=Truth)
    """Paraphrased and wrong answers, for truth ratios."""
    resamples: int = 1000
    """Resamples of the bootstrap behind the 95 % intervals; at least 1."""

    def __post_init__(self) -> None:
        if self.minimum_mmlu is not None and not 0 <= self.minimum_mmlu <= 1:
            raise InputError(f"must be in [0, 1], got {self.minimum_mmlu}", "minimum_mmlu")
        if self.resamples < 1:
            raise InputError(f"must be at least 1, got {self.resamples}", "resamples")
        self._check_metrics()

    def _check_metrics(self) -> None:
        """A family that is asked for by name must be able to be measured, as far as options tell. Raises InputError."""
        if unknown := sorted(set(self.metrics or ()) - set(FAMILIES)):
            raise InputError(f"must be among {', '.join(FAMILIES)}, got {', '.join(unknown)}", "metrics")
        given: dict[Need, tuple[str, object]] = {
            "sampling": ("sampling.samples", self.sampling.samples),
            "truth": ("truth.forget or truth.retain", self.truth.forget or self.truth.retain),
        }
        for family in self.metrics or ():
            for need in shared_needs(METRICS, family):
                name, value = given.get(need, ("", True))
                if not value:
                    raise InputError(f"{family} needs {name}, got {value}", "metrics")

    def check_documents(self, nonmembers: Sequence[str]) -> None:
        """Raise InputError if a family that is asked for by name needs ``nonmembers``, and there are none: a benchmark
        may bring its own."""
        for family in self.metrics or ():
            if not nonmembers and "documents" in shared_needs(METRICS, family):
                raise InputError(f"{family} needs membership.nonmember, got None", "metrics")

    @property
    def families(self) -> tuple[str, ...]:
        """The wanted families of metrics."""
        return tuple(family for family in FAMILIES if self.metrics is None or family in self.metrics)

    def attacks(self, reference: bool) -> list[str]:
        """Names of the attacks to run, the official one first; with a reference model those that need one too."""
        if "membership" not in self.families:
            return ["loss"]
        return [name for name, attack in ATTACKS.items() if reference or not attack.needs_reference]

"""Terms that make the model forget: they read the forget rows of a micro-batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from unlearn_pl.data.records import Split
from unlearn_pl.errors import InputError
from unlearn_pl.objectives.base import MeanReduction, Objective, Reduction, mean_nll, reduce_nll
from unlearn_pl.objectives.passes import Needs, Passes


@dataclass(frozen=True)
class NPO(Objective):
    """Negative Preference Optimization (Zhang et al. 2024, arXiv 2404.05868, equation 3).

    ``-(2 / beta) * log sigmoid(beta * (NLL - NLL_ref))``, the mean over rows. At the base model it is
    ``(2 / beta) * ln 2``; its gradient is that of gradient ascent times ``2 sigmoid(-beta * (NLL - NLL_ref))``, so it
    fades as a row is forgotten.
    """

    weight: float = 1.0
    """Factor of this term in the loss."""
    beta: float = 0.1
    """How fast the term saturates, per nat; above 0."""
    reduction: Reduction = "sequence_sum"
    """What NLL means: `sequence_sum` (the NPO paper), `sequence_mean` (length-normalised), or `batch_mean`, one token
    mean for the micro-batch, as the released ZJUKLAB code has it: it depends on the batch layout and hardly
    saturates on long answers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise InputError(f"must be above 0, got {self.beta}", "beta")

    @property
    def needs(self) -> Mapping[Split, Needs]:
        return {"forget": Needs(reference_nll=True)}

    def __call__(self, passes: Passes) -> Tensor:
        answers = passes["forget"]
        policy = reduce_nll(answers.nll, answers.tokens, self.reduction)
        reference = reduce_nll(answers.reference_nll, answers.tokens, self.reduction)
        return -(2 / self.beta) * F.logsigmoid(self.beta * (policy - reference)).mean()


@dataclass(frozen=True)
class SimNPO(Objective):
    """Simple Negative Preference Optimization (Fan et al. 2024, arXiv 2410.07163), which needs no base model.

    ``-(2 / beta) * log sigmoid(beta * (NLL - delta))``, the mean over rows, NLL that of a row's tokens on average. The
    released code (Unlearn-Simple) has ``delta``, the paper's gamma, inside of the product, as here; the paper has it
    outside, which is the same at 0.
    """

    weight: float = 1.0
    """Factor of this term in the loss."""
    beta: float = 4.5
    """How fast the term saturates, per nat; above 0."""
    delta: float = 0.0
    """Nats above which an answer counts as forgotten: where the gradient has fallen to half."""
    reduction: Reduction = "sequence_mean"
    """What NLL means: `sequence_mean` (the SimNPO paper), `sequence_sum`, or `batch_mean`, the token mean over the
    micro-batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise InputError(f"must be above 0, got {self.beta}", "beta")

    @property
    def needs(self) -> Mapping[Split, Needs]:
        return {"forget": Needs()}

    def __call__(self, passes: Passes) -> Tensor:
        answers = passes["forget"]
        nll = reduce_nll(answers.nll, answers.tokens, self.reduction)
        return -(2 / self.beta) * F.logsigmoid(self.beta * (nll - self.delta)).mean()


@dataclass(frozen=True)
class GradAscent(Objective):
    """Gradient ascent: minus the NLL of the forget answers (Jang et al. 2023, arXiv 2210.01504). Unbounded below."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    reduction: MeanReduction = "batch_mean"
    """What NLL means: `sequence_sum`, `sequence_mean`, `batch_mean`, the token mean over the micro-batch, or
    `step_mean`, that over the optimizer step, on all processes."""
    alike: ClassVar[str] = "step_mean"

    @property
    def needs(self) -> Mapping[Split, Needs]:
        return {"forget": Needs()}

    def __call__(self, passes: Passes) -> Tensor:
        return -mean_nll(passes["forget"], self.reduction)

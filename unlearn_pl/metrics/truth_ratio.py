"""Truth ratios, from the log probabilities of right and wrong answers, by each of the definitions in use."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

Mean = Literal["arithmetic", "geometric"]
Definition = Literal["tofu_code", "paper", "open_unlearning"]

DEFINITIONS: dict[Definition, tuple[Mean, Mean]] = {
    "tofu_code": ("geometric", "arithmetic"),
    "paper": ("arithmetic", "arithmetic"),
    "open_unlearning": ("geometric", "geometric"),
}
"""Definition -> the mean over the wrong answers in the ratios of forget quality, and in all other figures. TOFU's paper
(arXiv 2401.06121, section 2.2) is not what TOFU's code computes, and open-unlearning differs from both."""


@dataclass(frozen=True)
class AnswerLogprobs:
    """Mean log probability, in nats a token, of each paraphrased (right) and perturbed (wrong) answer to a question."""

    paraphrased: tuple[float, ...]
    perturbed: tuple[float, ...]

    @property
    def broken(self) -> bool:
        """Whether one is not finite, as of a broken model: then nothing follows from them."""
        return not all(map(math.isfinite, (*self.paraphrased, *self.perturbed)))

    def ratio(self, mean: Mean) -> float:
        """R: the ``mean`` of P(a | q)^(1/T) over the wrong answers by that over the right ones (TOFU has one of these).

        Small if the model prefers the truth, infinite if it is above the largest float.
        """
        center = fmean if mean == "geometric" else _log_mean_exp
        try:
            return math.exp(center(self.perturbed) - center(self.paraphrased))
        except OverflowError:
            return math.inf

    @property
    def right_share(self) -> float:
        """Right / (right + wrong), of the geometric means: near 1 for a model that knows the answer."""
        return 1 / (1 + self.ratio("geometric"))

    @property
    def probability(self) -> float:
        """Mean of P(a | q)^(1/T) over the right answers."""
        return fmean(map(math.exp, self.paraphrased))


def ratio_utility(ratios: Sequence[float]) -> float:
    """Mean of max(0, 1 - R) (arXiv 2401.06121, eq. 1): 1 if the model never finds a wrong answer likely."""
    return fmean(max(0.0, 1 - ratio) for ratio in ratios)


def ratio_closeness(ratios: Sequence[float]) -> float:
    """Mean of min(R, 1 / R): 1 if the model finds wrong answers just as likely as the right one, which is what
    forgetting wants."""
    return fmean(ratio if ratio <= 1 else 1 / ratio for ratio in ratios)


def _log_mean_exp(values: Sequence[float]) -> float:
    """log of the mean of exp(values), also where all exp(values) would be 0 in floats."""
    highest = max(values)
    return highest + math.log(fmean(math.exp(value - highest) for value in values))

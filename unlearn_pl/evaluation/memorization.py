"""How far a model knows an answer by heart, from its predictions of each token after the true tokens before it."""

import math
from collections.abc import Sequence
from statistics import fmean


def verbatim_probability(logprob: Sequence[float]) -> float:
    """P(answer | question)^(1/T), in [0, 1]: exp of the mean of the tokens' log probabilities (nats).

    TOFU, arXiv 2401.06121, section 2.2; "probability" in open-unlearning. A log probability that is NaN comes from
    a broken model, which gives the answer no probability: 0. Raises ValueError if there is none.
    """
    if not len(logprob):
        raise ValueError("verbatim probability: an answer needs at least one token, got no log probability")
    mean = fmean(logprob)
    return 0.0 if math.isnan(mean) else min(1.0, math.exp(min(0.0, mean)))


def exact_memorization(argmax: Sequence[int], targets: Sequence[int]) -> float:
    """Share of the answer's tokens that are the model's best token, in [0, 1].

    Tirumala et al. 2022, arXiv 2205.10770 (M(f)). Raises ValueError if the answer is empty.
    """
    hits = _hits("exact memorization", argmax, targets)
    return sum(hits) / len(hits)


def extraction_strength(argmax: Sequence[int], targets: Sequence[int]) -> float:
    """1 - k/T, in [0, 1], with k the length of the shortest prefix after which the model finds all the rest of T.

    The model decodes greedily, and after a right prefix its best tokens are right for as long as the decoding is, so
    one pass over the true answer is enough. 0 if the last token is wrong (k = T: nothing is left to find), 1 if all
    are right. As in arXiv 2506.12618, after Carlini et al. 2021, arXiv 2012.07805; open-unlearning stops at k = T-1 and
    so gives 1/T at the least. Raises ValueError if the answer is empty.
    """
    hits = _hits("extraction strength", argmax, targets)
    found = next((place for place, hit in enumerate(reversed(hits)) if not hit), len(hits))
    return found / len(hits)


def truth_ratio(paraphrased_logprobs: Sequence[float], perturbed_logprobs: Sequence[float]) -> float:
    """How likely wrong answers are against right ones, R_truth of TOFU, arXiv 2401.06121, section 2.2.

    The arithmetic mean of P(a | q)^(1/T) over the perturbed (wrong) answers, by that over the paraphrased ones (the
    paper has one of these); each number given is an answer's mean log probability in nats. In [0, inf], small if the
    model prefers the truth: 0 if the wrong answers have no probability, inf if the right ones have none or the ratio
    is above the largest float, NaN if both have none or a number is NaN. open-unlearning takes the geometric mean.
    Raises ValueError if there is no answer of either sort.
    """
    if not len(paraphrased_logprobs) or not len(perturbed_logprobs):
        counts = f"{len(paraphrased_logprobs)} paraphrased and {len(perturbed_logprobs)} perturbed"
        raise ValueError(f"truth ratio: at least one answer of each sort is needed, got {counts}")
    difference = _log_mean_exp(perturbed_logprobs) - _log_mean_exp(paraphrased_logprobs)
    try:
        return math.exp(difference)
    except OverflowError:
        return math.inf


def _log_mean_exp(values: Sequence[float]) -> float:
    """log of the mean of exp(values), also where all exp(values) would be 0 in floats."""
    highest = math.nan if any(map(math.isnan, values)) else max(values)
    if not math.isfinite(highest):
        return highest
    return highest + math.log(fmean(math.exp(value - highest) for value in values))


def _hits(measure: str, argmax: Sequence[int], targets: Sequence[int]) -> list[bool]:
    if not len(targets) or len(argmax) != len(targets):
        counts = f"{len(argmax)} predictions and {len(targets)} targets"
        raise ValueError(f"{measure}: an answer needs at least one token and a prediction for each, got {counts}")
    return [bool(best == target) for best, target in zip(argmax, targets, strict=True)]

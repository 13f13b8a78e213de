"""How far a model knows an answer by heart, from its predictions of each token after the true tokens before it.

The answer is without EOS. open-unlearning's labels end in EOS, and its exact memorization and extraction strength drop
the last label token, whatever that is: where it is EOS, both look at the same tokens.
"""

import math
from collections.abc import Sequence
from statistics import fmean


def verbatim_probability(logprob: Sequence[float]) -> float:
    """P(answer | question)^(1/T), in [0, 1]: exp of the mean of the tokens' log probabilities (nats).

    TOFU, arXiv 2401.06121, section 2.2, and "probability" in open-unlearning have EOS among the tokens too, which the
    answers of a benchmark's rows have not. NaN from a broken model, which says nothing. Raises ValueError if there is
    no log probability.
    """
    if not len(logprob):
        raise ValueError("verbatim probability: an answer needs at least one token, got no log probability")
    mean = fmean(logprob)
    return math.nan if math.isnan(mean) else min(1.0, math.exp(min(0.0, mean)))


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


def _hits(measure: str, argmax: Sequence[int], targets: Sequence[int]) -> list[bool]:
    if not len(targets) or len(argmax) != len(targets):
        counts = f"{len(argmax)} predictions and {len(targets)} targets"
        raise ValueError(f"{measure}: an answer needs at least one token and a prediction for each, got {counts}")
    return [bool(best == target) for best, target in zip(argmax, targets, strict=True)]

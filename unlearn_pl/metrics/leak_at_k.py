"""How much leaks if somebody may ask again: the worst of k sampled generations."""

import math
from collections.abc import Sequence
from fractions import Fraction


def leak_at_k(scores: Sequence[float], k: int) -> float:
    """leak@k (arXiv 2511.04934): the expected highest score among k sampled generations of a row, from n >= k of them.

    The mean of the highest score over all subsets of k of the n, an unbiased estimate: sum over i of
    s_(i) C(i-1, k-1) / C(n, k), where s_(1) <= ... <= s_(n), as s_(i) is the highest of C(i-1, k-1) subsets. In the
    range and unit of the scores. For c scores of 1 among zeros it is pass@k, 1 - C(n-c, k) / C(n, k) (arXiv
    2107.03374). Exact but for one rounding, hence never beyond the highest score and never smaller for a larger k.

    Raises ValueError if k is not in 1..n, or if a score is not finite.
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"leak@k: k must be from 1 to the number of samples, got k = {k} and {n} samples")
    if broken := [score for score in scores if not math.isfinite(score)]:
        raise ValueError(f"leak@k: scores must be finite, got {broken[0]}")
    ordered = sorted(Fraction(float(score)) for score in scores)
    total = sum((ordered[i] * math.comb(i, k - 1) for i in range(k - 1, n)), Fraction(0))
    return float(total / math.comb(n, k))

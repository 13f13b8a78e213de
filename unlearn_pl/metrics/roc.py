"""The ROC curve of a membership attack: who is a member, judged by one score per document.

A higher score means "more likely a member". Scores may be infinite, never NaN; there is at least one member and one
non-member. Only the order of the scores counts: every strictly increasing map of them leaves the results as they are.
"""

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence


def area_under_curve(members: Sequence[float], nonmembers: Sequence[float]) -> float:
    """Area under the ROC curve: the chance that a member scores above a non-member, a tie counting one half.

    Counted on integers (Mann-Whitney), so it is exact; torchmetrics returns float32 and pushes scores outside of
    [0, 1] through a sigmoid, which makes ties of large ones.
    """
    ordered = sorted(nonmembers)
    twice_below = sum(bisect_left(ordered, score) + bisect_right(ordered, score) for score in members)
    return twice_below / (2 * len(members) * len(nonmembers))


def broken(scores: Sequence[float]) -> int:
    """Number of documents that a broken model gives no finite score: with one of them nothing can be said of the
    attack, as a document's place among the others is unknown."""
    return sum(not math.isfinite(score) for score in scores)


def membership_score(auc: float) -> float:
    """1 - 2 |AUC - 1/2|: 1 if the attack learns nothing, 0 if it is always right or always wrong."""
    return 1 - 2 * abs(auc - 0.5)


def true_positive_rate(members: Sequence[float], nonmembers: Sequence[float], false_positive_rate: float) -> float:
    """Share of members caught, in [0, 1], while at most a share ``false_positive_rate`` of non-members is accused.

    A document is flagged if its score is at least a threshold; the threshold is the best one that keeps to the limit.
    Documents with one score are flagged together, and nothing is interpolated. With fewer than 1 / rate non-members
    the limit allows no false accusation at all. The measure of Carlini et al. (arXiv 2112.03570), who report it at
    rates of 1 % and below: an attack that is sure about a few members breaks their privacy, though its area under the
    curve may be near one half.
    """
    assert 0 <= false_positive_rate <= 1, false_positive_rate
    assert members, "no members"
    assert nonmembers, "no non-members"
    total = len(nonmembers)
    # Quotients are compared, since 0.29 * 100 is less than 29.
    allowed = bisect_right(range(total + 1), false_positive_rate, key=lambda count: count / total) - 1
    if allowed == total:
        return 1.0
    # The best non-member that must go free: every threshold above its score keeps to the limit, its own does not.
    free = sorted(nonmembers, reverse=True)[allowed]
    return sum(score > free for score in members) / len(members)


def verdict(auc: float, low: float, high: float) -> str:
    """What the area under the curve and its 95 % interval [``low``, ``high``] say about a leak.

    Both directions leak: after too much unlearning the members are known by being less likely than unseen documents.
    The AUC itself must lie on the same side of 1/2 as the interval. See
    ``intervals.auc_interval``.
    """
    assert 0 <= low <= high <= 1, (low, high)
    assert 0 <= auc <= 1, auc
    if min(auc, low) > 0.5:
        return "leaks: members stand out"
    if max(auc, high) < 0.5:
        return "leaks: members stand out by being too unlikely"
    return "no leak shown"


def halves(texts: Sequence[str], seed: int = 0) -> tuple[list[int], list[int]]:
    """Indices of the texts to calibrate an attack on, and of those held out to test it; both in ascending order.

    Texts that are neighbours by length make pairs, and of each pair the one with the smaller SHA-256 of ``seed`` and
    text is for calibration: so both halves have short and long texts alike, which matters since texts of one kind have
    one length and their own level of loss. A text without a partner goes by the first bit of its hash. The order of the
    texts does not count, and copies of a text are in one half.
    """
    # JSON can hold half a surrogate pair, which strict UTF-8 refuses; all other texts have their usual bytes.
    digests = {text: hashlib.sha256(f"{seed} {text}".encode("utf-8", "surrogatepass")).digest() for text in texts}
    ordered = sorted(digests, key=lambda text: (len(text), digests[text]))
    chosen = {min(pair, key=digests.__getitem__) for pair in zip(ordered[::2], ordered[1::2], strict=False)}
    if len(ordered) % 2 and digests[ordered[-1]][0] < 128:
        chosen.add(ordered[-1])
    calibration = [index for index, text in enumerate(texts) if text in chosen]
    return calibration, [index for index, text in enumerate(texts) if text not in chosen]

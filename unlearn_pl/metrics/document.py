"""What the membership attacks give to each document, as a line of ``documents.jsonl``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unlearn_pl.metrics.measured import Measured

SIDES: tuple[Literal["member", "nonmember"], ...] = ("member", "nonmember")
HALVES: tuple[Literal["calibration", "holdout"], ...] = ("calibration", "holdout")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document that was attacked. Its text stays out of it."""

    side: Literal["member", "nonmember"]
    number: int
    """Its place among those of its side that were measured, from 0."""
    half: Literal["calibration", "holdout"]
    """The half of the documents that it is in."""
    logprob: float | None
    """Mean log probability of its tokens, in nats; None from a broken model."""
    attacks: Mapping[str, float | None]
    """Attack -> score, higher for a likelier member; None where it is not finite."""

    def to_json(self) -> dict[str, Any]:
        """The fields as a line of ``documents.jsonl`` has them."""
        return {
            "side": self.side,
            "number": self.number,
            "half": self.half,
            "logprob": self.logprob,
            "attacks": dict(self.attacks),
        }


def documents_of(measured: Measured) -> list[Document]:
    """Every document that was attacked, members first; none if no attack was run."""
    if not measured.attacks:
        return []
    counts = len(measured.members), len(measured.nonmembers)
    places = [(side, number) for side in (0, 1) for number in range(counts[side])]
    of_half = {
        (side, number): name
        for name, indices in zip(HALVES, measured.halves, strict=True)
        for side in (0, 1)
        for number in indices[side]
    }
    return [
        Document(
            side=SIDES[side],
            number=number,
            half=of_half[side, number],
            logprob=(scores := {name: _finite(all[index]) for name, all in measured.attacks.items()}).get("loss"),
            attacks=scores,
        )
        for index, (side, number) in enumerate(places)
    ]


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None

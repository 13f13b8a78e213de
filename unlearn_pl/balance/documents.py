"""The documents of a membership attack in two halves: one to calibrate a merge on, one held out to judge it by."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unlearn_pl.errors import InputError
from unlearn_pl.metrics.intervals import auc_interval
from unlearn_pl.metrics.roc import area_under_curve, halves

Half = Literal["calibration", "heldout", "all"]


@dataclass(frozen=True)
class Documents:
    """Members and non-members. Losses are those of the members, then of the non-members; ``split`` is the seed by which
    the documents are divided (see ``metrics.roc.halves``)."""

    members: tuple[str, ...]
    nonmembers: tuple[str, ...]

    def check(self, splits: int) -> None:
        """Raise InputError if in one of the first ``splits`` splits a half has no members or no non-members."""
        for split in range(splits):
            if not (all(self.indices("calibration", split)) and all(self.indices("heldout", split))):
                raise InputError(
                    "calibrating needs members and non-members in both halves; of "
                    f"{len(self.members)} and {len(self.nonmembers)} documents one half has none: give more",
                    "membership",
                )

    def indices(self, half: Half, split: int = 0) -> tuple[list[int], list[int]]:
        """Which members and which non-members are in a half."""
        found = []
        for texts in (self.members, self.nonmembers):
            calibration, heldout = halves(texts, split)
            found.append({"calibration": calibration, "heldout": heldout, "all": list(range(len(texts)))}[half])
        return found[0], found[1]

    def counts(self, half: Half, split: int = 0) -> tuple[int, int]:
        """How many members and non-members are in a half."""
        members, nonmembers = self.indices(half, split)
        return len(members), len(nonmembers)

    def step(self, half: Half = "calibration", split: int = 0) -> float:
        """The least by which the AUC of a half can change: one pair of a member and a non-member in other order."""
        members, nonmembers = self.counts(half, split)
        return 1 / (members * nonmembers)

    def attack_scores(self, losses: list[float], half: Half, split: int = 0) -> tuple[list[float], list[float]]:
        """Scores of the loss attack (-loss) of the members and of the non-members in a half."""
        members, nonmembers = self.indices(half, split)
        first = len(self.members)
        return [-losses[i] for i in members], [-losses[first + i] for i in nonmembers]

    def auc(self, losses: list[float], half: Half = "all", split: int = 0) -> float:
        """Area under the ROC curve of the loss attack, in [0, 1]; NaN if a loss is not finite, as of a broken model."""
        if not all(map(math.isfinite, losses)):
            return math.nan
        return area_under_curve(*self.attack_scores(losses, half, split))

    def aucs(self, losses: Tensor, half: Half = "all", split: int = 0) -> Tensor:
        """[N] ``auc`` of N lots of finite losses [N, documents], as float64."""
        members, nonmembers = self.indices(half, split)
        others = losses[:, [len(self.members) + i for i in nonmembers]].sort(dim=1).values
        own = losses[:, members].contiguous()
        # A member of less loss than a non-member counts one, of the same loss one half
        below = torch.searchsorted(others, own) + torch.searchsorted(others, own, right=True)
        above = 2 * len(nonmembers) - below
        return above.sum(dim=1).double() / (2 * len(members) * len(nonmembers))

    def interval(self, losses: list[float], half: Half = "all", split: int = 0) -> tuple[float, float]:
        """95 % interval of ``auc``; all of [0, 1] with a single document on a side."""
        return auc_interval(*self.attack_scores(losses, half, split)) or (0.0, 1.0)

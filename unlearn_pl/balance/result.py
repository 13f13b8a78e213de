"""What a balance search found: its numbers, its files, and what to say of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_pl.analysis.anatomy import MergeReports
from unlearn_pl.balance.documents import Documents, Half
from unlearn_pl.balance.path import OVER, UNDER, Point
from unlearn_pl.balance.scorer import Measurement, finite
from unlearn_pl.files import write_json, write_text
from unlearn_pl.merging.merge import MergedAdapter
from unlearn_pl.provenance import provenance
from unlearn_pl.report.draw import draw
from unlearn_pl.report.figures.scales import identity
from unlearn_pl.report.figures.search import search
from unlearn_pl.report.markdown import plain
from unlearn_pl.report.scores import compared_table


@dataclass(frozen=True)
class Split:
    """The chosen method and scale, calibrated on one split of the documents."""

    seed: int
    """That of the split; the search ran on split 0."""
    coefficient: float
    """Share of the under-forgetting adapter, in [0, 1]: the crossing of one half nearest to the chosen one."""
    calibration: float
    """AUC of the calibration half there."""
    heldout: float
    """AUC of the held-out half there."""

    def to_json(self) -> dict[str, float]:
        """The split as `balance.json` has it."""
        return {
            "seed": self.seed,
            "mix": self.coefficient,
            "calibration_auc": self.calibration,
            "holdout_auc": self.heldout,
        }


@dataclass(frozen=True, kw_only=True)
class Balance:
    """The result of `find_balance`."""

    chosen: Point
    """The best merge by the calibration half of the documents."""
    crossings: tuple[Point, ...]
    """Where the AUC of the calibration half is one half; if there are none, ``chosen`` is the best of what comes
    nearest and the two adapters alone."""
    points: Mapping[Point, Measurement]
    """Every merge that was visited, in order."""
    splits: tuple[Split, ...]
    """The chosen method and scale on each split of the documents; the search ran on the first."""
    compared: Mapping[str, Measurement]
    """The two adapters alone (over, under), plain TIES where they can be merged so, and what was chosen (balanced)."""
    documents: Documents
    interval: tuple[float, float]
    """95 % interval of the AUC of the chosen merge on the held-out half."""
    tolerance: float
    """How near to one half an AUC counts as a crossing."""
    merged: MergedAdapter
    """The chosen merge, ready to be written."""
    hashes: dict[str, str]
    """SHA-256 of the weights of both adapters: over and under."""
    rounding: float
    """How far the weights that were scored are from the chosen delta, as a share of its norm: about 0 in float32."""

    @property
    def auc(self) -> Mapping[Half, float]:
        """The AUC of the chosen merge on each half of the documents."""
        return self.points[self.chosen].auc

    @property
    def ranges(self) -> dict[str, list[float]]:
        """Least and largest held-out AUC and coefficient of the splits. No standard error: the splits share documents,
        and those that one holds out chose the method and scale on the first."""
        values = {
            "holdout_auc": [split.heldout for split in self.splits],
            "mix": [split.coefficient for split in self.splits],
        }
        return {name: [min(found), max(found)] for name, found in values.items()}

    @property
    def message(self) -> str:
        """Whether one half was reached; also if the crossing costs more than it gains."""
        if not self.crossings:
            aucs = [one.auc["calibration"] for one in self.points.values() if math.isfinite(one.auc["calibration"])]
            return (
                f"no crossing: the calibration AUC went from {min(aucs):.3f} to {max(aucs):.3f} and never came within "
                f"{self.tolerance:.3g} of one half; of the nearest point of each path and the two adapters the best "
                "is taken. Try other scales, or adapters that forget more or less"
            )
        reached = self.points[self.chosen].aggregate("calibration") or 0.0
        ends = {"over": self.points[OVER], "under": self.points[UNDER]}
        better = [name for name, end in ends.items() if (end.aggregate("calibration") or 0.0) > reached]
        rest = f", but the {better[0]}-forgetting adapter alone has the better Aggregate there" if better else ""
        return f"the AUC crosses one half{rest}"

    def sentence(self) -> str:
        """What came out, in two lines."""
        ray, coefficient = self.chosen.ray, self.chosen.coefficient
        density = "" if ray.density is None else f", density {ray.density:g}"
        offsets = f", offsets {list(self.chosen.offsets)}" if self.chosen.offsets else ""
        (low, high), (least, largest) = self.interval, self.ranges["holdout_auc"]
        others = len(self.splits) - 1
        again = (
            f"; calibrated again on {others} other splits of the same documents, {least:.3f} to {largest:.3f} in all"
        )
        return (
            f"{self.message}: {ray.method} with weights {1 - coefficient:.4f} and {coefficient:.4f}, "
            f"scale {ray.scale:g}{density}{offsets}\n"
            f"AUC {self.auc['calibration']:.3f} on the calibration half (whose documents tell steps of "
            f"{self.documents.step():.3g}), {self.auc['heldout']:.3f} on the held-out half "
            f"(95 % interval {low:.3f} to {high:.3f}{again if others else ''})"
        )

    def table(self) -> str:
        """The compared models, as Markdown."""
        return plain(compared_table({name: compared_json(one) for name, one in self.compared.items()}))

    def to_json(self) -> dict[str, Any]:
        """`balance.json`."""
        documents = self.documents
        return {
            "crosses": bool(self.crossings),
            "message": self.message,
            "chosen": self._point_json(self.chosen),
            "calibration_auc": self.auc["calibration"],
            "holdout_auc": self.auc["heldout"],
            "holdout_interval": list(self.interval),
            "splits": [split.to_json() for split in self.splits],
            "ranges": self.ranges,
            "compared": {name: compared_json(one) for name, one in self.compared.items()},
            "documents": {
                "member": len(documents.members),
                "nonmember": len(documents.nonmembers),
                "calibration": list(documents.counts("calibration")),
                "holdout": list(documents.counts("heldout")),
                "auc_step": [documents.step("calibration"), documents.step("heldout")],
            },
            "path": [self._point_json(point) for point in self.points],
            "rounding": self.rounding,
        }

    def _point_json(self, point: Point) -> dict[str, Any]:
        """A point and its measurement; scores are None where only the documents' losses were measured."""
        measured = self.points[point]
        return point.to_json() | {
            "auc": finite(measured.auc["all"]),
            "calibration_auc": finite(measured.auc["calibration"]),
            "holdout_auc": finite(measured.auc["heldout"]),
            "task_aggregate": measured.task_aggregate,
            "mmlu": measured.mmlu,
            "aggregate_calibration": measured.aggregate("calibration"),
            "aggregate_holdout": measured.aggregate("heldout"),
            "terms": None if measured.scores is None else measured.scores.terms,
        }

    def write(self, folder: Path, **facts: Any) -> None:
        """`balance.json`, `balance.md`, `balance.png`, and `anatomy.json` and `spectrum.json` of the chosen merge;
        ``facts`` (what went in) stand with the versions."""
        found = self.to_json()
        made = provenance(**facts)
        write_json(folder / "balance.json", found | {"provenance": made})
        write_text(folder / "balance.md", f"{self.table()}\n\n{self.sentence()}\n")
        draw(search(found, identity=identity(None, made)), folder / "balance.png")
        MergeReports.of(self.merged, names=("over", "under")).write(folder)


def compared_json(measured: Measurement) -> dict[str, float | None]:
    """A model in the final comparison, by all documents and by the held-out half."""
    return measured.to_json() | {
        "holdout_auc": finite(measured.auc["heldout"]),
        "aggregate_holdout": measured.aggregate("heldout"),
    }

"""What a balance search leaves: its files, its table, and the merge that it chose."""

from pathlib import Path
from typing import Any

from unlearn_pl.analysis.figures import plot_balance
from unlearn_pl.analysis.tables import compared_table
from unlearn_pl.balance.path import Point
from unlearn_pl.files import write_json, write_text
from unlearn_pl.provenance import provenance


def write_balance(folder: Path, found: dict[str, Any], facts: dict[str, Any]) -> None:
    """The files of a search beside its adapter; ``facts`` (what went in) stand with the versions."""
    write_json(folder / "balance.json", found | {"provenance": provenance(**facts)})
    write_text(folder / "balance.md", f"{compared_table(found['compared'])}\n\n{conclusion(found)}\n")
    plot_balance(found, folder / "balance.png")


def chosen_point(found: dict[str, Any]) -> Point:
    """The chosen point of a search."""
    names = ("mix", "scale", "method", "density")
    return Point(**{name: found["chosen"][name] for name in names}, shifts=tuple(found["chosen"]["shifts"]))


def conclusion(found: dict[str, Any]) -> str:
    """What came out, in two lines."""
    chosen, (low, high) = found["chosen"], found["holdout_interval"]
    density = "" if chosen["density"] is None else f", density {chosen['density']:g}"
    shifts = f", shifts {chosen['shifts']}" if chosen["shifts"] else ""
    mix = chosen["mix"]
    step = found["documents"]["auc_step"][0]
    (least, largest), count = found["ranges"]["holdout_auc"], len(found["splits"])
    again = f"; calibrated again on {count - 1} other splits of the same documents, {least:.3f} to {largest:.3f} in all"
    return (
        f"{found['message']}: {chosen['method']} with weights {1 - mix:.4f} and {mix:.4f}, "
        f"scale {chosen['scale']:g}{density}{shifts}\n"
        f"AUC {found['calibration_auc']:.3f} on the calibration half (whose documents tell steps of {step:.3g}), "
        f"{found['holdout_auc']:.3f} on the held-out half (95 % interval {low:.3f} to {high:.3f}"
        + (again if count > 1 else "")
        + ")"
    )

"""The figures of the benchmark as tables on the terminal."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.estimate import Estimate

FIGURES = {
    "ratio_warm": "times faster than released, cache there",
    "ratio_first_epoch": "times faster, cache being built",
    "peak_memory_ratio": "peak memory, of the released way's",
    "matmul_peak_share": "share of the matrix products' peak",
    "loss_relative_difference": "loss against float64, relative",
    "gradient_relative_difference": "gradient against float64, relative",
    "padding_share": "share of padding in processed tokens",
}


# of both ways: key -> name, and what it is divided by
COLUMNS = {
    "seconds": ("seconds", 1),
    "gradient_seconds": ("of these loss and backward", 1),
    "pairs_per_second": ("pairs a second", 1),
    "tokens_per_second": ("tokens a second", 1),
    "peak_above_imports_bytes": ("peak memory above the imports, MB", 1e6),
    "steps_peak_above_imports_bytes": ("of optimizer steps alone, MB", 1e6),
    "peak_above_base_bytes": ("peak memory above one base, MB", 1e6),
}
ESTIMATES = {
    "weights_bytes": ("base weights, GB on each device", 1e9),
    "adapter_bytes": ("adapter, gradient and Adam, GB on each", 1e9),
    "activations_bytes": ("activations, GB on each", 1e9),
    "memory_bytes": ("together, GB on each", 1e9),
    "cache_bytes": ("reference cache on disk, GB", 1e9),
    "flops_per_pair": ("TFLOP a pair", 1e12),
    "step_seconds": ("seconds of an optimizer step", 1),
    "epoch_seconds": ("seconds of an epoch", 1),
}


def print_figures(figures: dict[str, Any]) -> None:
    """Print the figures, then both ways beside each other."""
    table = Table("Figure", "Value", "Range over rounds")
    for key, name in FIGURES.items():
        spread = figures["ranges"].get(key)
        table.add_row(name, shown(figures[key]), f"{shown(spread[0])} to {shown(spread[1])}" if spread else "")
    Console(width=100).print(table)
    table = Table("", "Released", "Ours")
    for key, (name, unit) in COLUMNS.items():
        table.add_row(name, *(shown(figures[kind][key] / unit) for kind in ("released", "ours")))
    table.add_row("cache build, s", "-", shown(statistics.median(figures["cache_build_seconds"])))
    table.add_row("matrix products' peak, GFLOP/s", "", shown(figures["matmul_peak_gflops"]))
    Console(width=100).print(table)
    if figures["loss_relative_difference"] is None:
        print("note: the losses are the same, and compared, only with --positions released")


def print_parts(parts: Sequence[dict[str, Any]]) -> None:
    """Print one line for each part that was switched off."""
    table = Table("Without", "Seconds", "Times slower", "Peak above the loaded model, MB")
    for part in parts:
        peak = part["peak_above_loaded_bytes"] / 1e6
        table.add_row(part["off"], *map(shown, (part["seconds"], part["times_slower"], peak)))
    Console(width=100).print(table)


def print_growth(points: Sequence[dict[str, Any]]) -> None:
    """Print one line for each size."""
    table = Table("Length", "Words", "Layers", "Released, s", "Ours, s", "Faster", "Released, MB", "Ours, MB")
    for point in points:
        sizes = [str(point[name]) for name in ("length", "vocabulary", "layers")]
        seconds = [point[f"{kind}_seconds"] for kind in ("released", "ours")]
        peaks = [point[f"{kind}_peak_above_base_bytes"] / 1e6 for kind in ("released", "ours")]
        table.add_row(*sizes, *map(shown, [*seconds, seconds[0] / seconds[1], *peaks]))
    Console(width=100).print(table)


def print_estimates(figures: dict[int, Estimate]) -> None:
    """Print a column for each number of devices."""
    table = Table("", *(f"{count} device{'s' * (count > 1)}" for count in figures))
    for key, (name, unit) in ESTIMATES.items():
        table.add_row(name, *(shown(getattr(figure, key) / unit) for figure in figures.values()))
    Console(width=100).print(table)


def print_evaluation(figures: dict[str, Any]) -> None:
    """Print one line for each kind of work, and how far both ways agree."""
    amounts = {key: figures[key] for key in ("rows", "questions", "documents")}
    rows, questions, documents = (f"{count} {name}" for name, count in amounts.items())
    gaps = figures["largest_relative_difference"]
    largest = None if None in gaps.values() else max(gaps.values())
    lines = {
        "generation": (f"generation, {rows}", f"{figures['identical_rows']} texts identical"),
        "choice": (f"multiple choice, {questions}", f"{figures['identical_choices']} letters identical"),
        "membership": (f"{len(gaps)} attacks, {documents}", f"scores within {shown(largest)}"),
        "membership_loss": (f"loss attack, {documents}", f"scores within {shown(gaps['loss'])}"),
    }
    table = Table("Work", "Official, s", "Ours, s", "Faster", "Range over rounds", "Result")
    for kind, (name, agreement) in lines.items():
        seconds = [shown(figures["seconds"][way][kind]) for way in ("official", "ours")]
        low, high = figures["ranges"][f"ratio_{kind}"]
        table.add_row(name, *seconds, shown(figures[f"ratio_{kind}"]), f"{shown(low)} to {shown(high)}", agreement)
    Console(width=120).print(table)
    tokens, ended = (figures[key]["official"] for key in ("tokens_generated", "ended_share"))
    print(f"{tokens} tokens generated, {ended:.0%} of the rows ended by EOS; {figures['rows_unsure']} rows unsure")


def shown(value: float | None) -> str:
    """Three significant digits or more; small numbers as powers of ten."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"

"""The figures of ``benchmarks.gpu`` as tables."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from benchmarks.command import shown

Parts = Mapping[str, Mapping[str, Any]]


def print_parts(parts: Parts) -> None:
    """The device, the tests, the steps, the answers, and what gave no figure."""
    console = Console(width=120)
    for line in card_lines(parts):
        console.print(line, highlight=False)
    for table in (step_table(parts), answer_table(parts)):
        console.print(table)
    for name, found in parts.items():
        if "error" in found or "left_out" in found:
            reason = found.get("error") or f"left out: {found['left_out']}"
            console.print(f"{name}: {reason}", highlight=False, markup=False)


def card_lines(parts: Parts) -> Iterator[str]:
    """What the device is, and what its tests gave."""
    card, tests = parts.get("card", {}), parts.get("tests", {})
    if "matmul_flops" in card:
        peaks = ", ".join(f"{kind} {shown(flops / 1e12)}" for kind, flops in card["matmul_flops"].items())
        copies = shown(card["copied_bytes_per_second"] / 1e9)
        yield f"{card['name']}: matrix products in TFLOP/s: {peaks}; copies {copies} GB/s"
    if "passed" in tests:
        counts = ", ".join(f"{len(tests[kind])} {kind}" for kind in ("failed", "skipped"))
        yield f"tests marked gpu: {tests['passed']} passed, {counts}" + ", stopped by time" * tests["stopped"]
        for name, why in tests["failed"].items():
            yield f"  failed: {name}: {why}".replace("[", "\\[")


def matmul_flops(parts: Parts) -> float | None:
    """Of bfloat16, measured before everything else."""
    peaks = parts.get("card", {}).get("matmul_flops")
    return peaks["bfloat16"] if peaks else None


def peak_share(found: Mapping[str, Any], peak: float | None) -> float | None:
    """Useful operations a second of loss and gradient, of those of plain matrix products."""
    return None if peak is None else found["useful_flops"] / found["gradient_seconds"] / peak


def step_table(parts: Parts) -> Table:
    """A line for each way of training at each shape."""
    columns = ("tokens/s", "of the peak", "step, s", "peak memory, GB", "ours faster", "ours, of its memory")
    table = Table(Column("training step", no_wrap=True), *columns)
    for name, found in parts.items():
        if "tokens_per_second" not in found:
            continue
        ours = parts.get(name.replace(f", {found['way']}", ", ours").replace(", pair by pair", ""), {})
        compared = found["way"] != "ours" and "tokens_per_second" in ours
        table.add_row(
            name.removeprefix("step "),
            shown(found["tokens_per_second"]),
            shown(peak_share(found, matmul_flops(parts))),
            shown(found["step_seconds"]),
            shown(found["peak_bytes"] / 1e9),
            shown(ours["tokens_per_second"] / found["tokens_per_second"]) if compared else "",
            shown(ours["peak_bytes"] / found["peak_bytes"]) if compared else "",
        )
    return table


def answer_table(parts: Parts) -> Table:
    """A line for each way of generation, attacks and memorising at each shape."""
    table = Table("work", "way", "seconds", "texts as expected")
    for name, found in parts.items():
        if name.startswith(("generation", "attacks", "memorising")) and "seconds" in found:
            texts = found.get("expected_texts", {})
            for way, seconds in found["seconds"].items():
                table.add_row(name, way, shown(seconds), str(texts.get(way, "")))
    return table

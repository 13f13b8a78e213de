"""Time, memory and exactness of our training step beside a competent and the released one, step after step in turn.

python -m benchmarks.train --model DIR --data.forget F --data.retain R --json OUT
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from benchmarks.command import BenchData, checked_arguments, first_pairs, hashes_of, run, shown, tell
from benchmarks.growth import GROWTH, measure_growth, print_growth
from benchmarks.remote import Remote
from benchmarks.variants import Build, KLPositions, Settings, Window
from benchmarks.worker import Facts, Kind, Worker
from unlearn_pl.files import write_json
from unlearn_pl.models.load import load_tokenizer
from unlearn_pl.models.lora import Lora
from unlearn_pl.provenance import provenance

PEAK_MEASUREMENTS = 3
"""Of the matrix products' peak, in each round."""

WAYS: tuple[Kind, ...] = ("released", "competent", "ours")
FIGURES = {
    "ratio_competent_warm": "times faster than competent, cache there",
    "ratio_competent_first_epoch": "times faster, cache being built",
    "peak_memory_ratio_competent": "peak memory, of the competent way's",
    "ratio_warm": "times faster than released, cache there",
    "ratio_first_epoch": "times faster, cache being built",
    "peak_memory_ratio": "peak memory, of the released way's",
    "matmul_peak_share": "share of the matrix products' peak",
    "loss_relative_difference": "loss against float64, relative",
    "gradient_relative_difference": "gradient against float64, relative",
    "padding_share": "share of padding in processed tokens",
}
# of all ways: key -> name, and what it is divided by
COLUMNS = {
    "seconds": ("seconds", 1),
    "gradient_seconds": ("of these loss and backward", 1),
    "pairs_per_second": ("pairs a second", 1),
    "tokens_per_second": ("tokens a second", 1),
    "peak_above_imports_bytes": ("peak memory above the imports, MB", 1e6),
    "steps_peak_above_imports_bytes": ("of optimizer steps alone, MB", 1e6),
    "peak_above_base_bytes": ("peak memory above one base, MB", 1e6),
}


@dataclass
class Round:
    """All windows once, in turn, and the cache build before them."""

    build: Build
    windows: dict[Kind, list[Window]] = field(default_factory=lambda: {kind: [] for kind in WAYS})
    peaks: list[float] = field(default_factory=list)
    """FLOP/s of matrix products, measured between the windows."""

    def seconds(self, kind: Kind) -> float:
        return sum(window.seconds for window in self.windows[kind])

    def ratio_warm(self, kind: Kind) -> float:
        """How many times longer another way takes, the cache being there."""
        return self.seconds(kind) / self.seconds("ours")

    def ratio_first_epoch(self, kind: Kind) -> float:
        """The same for the epoch in which the cache is built."""
        return self.seconds(kind) / (self.build.seconds + self.seconds("ours"))

    def ratio_window(self, kind: Kind) -> float:
        """The median of the windows' own ratios."""
        pairs = zip(self.windows[kind], self.windows["ours"], strict=True)
        return statistics.median(theirs.seconds / ours.seconds for theirs, ours in pairs)

    def matmul_peak_share(self, flops: int) -> float:
        """Useful operations a second of our loss and gradient, of those of plain matrix products."""
        seconds = sum(window.gradient_seconds for window in self.windows["ours"])
        return flops / seconds / statistics.median(self.peaks)


def compare(model: str, dtype: str, settings: Settings, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Every figure of the benchmark, ready for JSON. ``tell`` gets a line as each part begins."""
    with tempfile.TemporaryDirectory(prefix="unlearn-pl-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        plain = None
        if settings.positions == "released":  # the released loss has no other
            tell("float64 reference of the first window")
            with Remote("plain64", Worker, "plain64", model, dtype, replace(settings, device="cpu")) as worker:
                plain = worker.ask("check", 0, str(folder / "plain64.safetensors"))
        workers = {kind: stack.enter_context(Remote(kind, Worker, kind, model, dtype, settings)) for kind in WAYS}
        facts = {kind: worker.ask("facts") for kind, worker in workers.items()}
        workers["ours"].ask("build", str(folder / "warm_up"), [0])
        differences: dict[Kind, dict[str, float]] = {}
        for kind, worker in workers.items():
            if plain is not None and kind != "competent":  # whose loss has no padding
                file = folder / f"{kind}.safetensors"
                loss = worker.ask("check", 0, str(file))
                differences[kind] = differences_of(loss, plain, file, folder / "plain64.safetensors")
            worker.ask("window", 0)  # not counted: the first steps of a process are slower
        done = []
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}: {settings.windows} optimizer steps of each way, in turn")
            done.append(run_round(workers, folder / f"round{number}", settings.windows, tell))
        return summary(settings, facts, differences, done, workers["ours"].ask("flops"))


def run_round(workers: dict[Kind, Remote], folder: Path, windows: int, tell: Callable[[str], None]) -> Round:
    """Build the cache anew, then every window by each way."""
    done = Round(workers["ours"].ask("build", str(folder), list(range(windows))))
    measured = {number * windows // PEAK_MEASUREMENTS for number in range(PEAK_MEASUREMENTS)}
    for number in range(windows):
        if number in measured:
            done.peaks.append(workers["ours"].ask("matmul_peak"))
        for kind, worker in workers.items():
            done.windows[kind].append(worker.ask("window", number))
        took = ", ".join(f"{kind} {done.windows[kind][-1].seconds:.2f} s" for kind in workers)
        tell(f"  {number + 1}: {took}")
    return done


def differences_of(loss: float, plain: float, file: Path, plain_file: Path) -> dict[str, float]:
    """Relative difference of the loss and, in the 2-norm over all of the adapter, of the gradient."""
    ours, truth = load_file(file), load_file(plain_file)
    assert ours.keys() == truth.keys(), "the same adapter has the same names"
    missed = torch.stack([(ours[name].double() - value).norm() for name, value in truth.items()]).norm()
    whole = torch.stack([value.norm() for value in truth.values()]).norm()
    return {
        "loss_relative_difference": abs(loss - plain) / abs(plain),
        "gradient_relative_difference": float(missed / whole),
    }


def summary(
    settings: Settings, facts: dict[Kind, Facts], differences: dict[Kind, Any], rounds: Sequence[Round], flops: int
) -> dict[str, Any]:
    """The figures and what is behind them; times are medians over the rounds."""
    raw = {kind: variant_figures(settings, kind, facts[kind], rounds) for kind in facts}
    unknown = dict.fromkeys(("loss_relative_difference", "gradient_relative_difference"))
    for kind in raw:
        raw[kind] |= differences.get(kind, unknown)
    ours, released, competent = raw["ours"], raw["released"], raw["competent"]
    ratios: dict[str, list[float]] = {
        "ratio_warm": [r.ratio_warm("released") for r in rounds],
        "ratio_first_epoch": [r.ratio_first_epoch("released") for r in rounds],
        "ratio_warm_median_window": [r.ratio_window("released") for r in rounds],
        "ratio_competent_warm": [r.ratio_warm("competent") for r in rounds],
        "ratio_competent_first_epoch": [r.ratio_first_epoch("competent") for r in rounds],
        "ratio_competent_warm_median_window": [r.ratio_window("competent") for r in rounds],
        "matmul_peak_share": [r.matmul_peak_share(flops) for r in rounds],
    }
    peaks = [statistics.median(r.peaks) for r in rounds]
    return {
        **{name: statistics.median(values) for name, values in ratios.items()},
        "peak_memory_ratio": ours["peak_above_imports_bytes"] / released["peak_above_imports_bytes"],
        "peak_memory_ratio_competent": ours["peak_above_imports_bytes"] / competent["peak_above_imports_bytes"],
        "peak_memory_above_base_ratio": ours["peak_above_base_bytes"] / released["peak_above_base_bytes"],
        **{name: ours[name] for name in unknown},
        "padding_share": ours["padding_share"],
        "ranges": {name: [min(values), max(values)] for name, values in ratios.items()},
        "cache_build_seconds": [r.build.seconds for r in rounds],
        "matmul_peak_gflops": statistics.median(peaks) / 1e9,
        "matmul_peak_gflops_all": [peak / 1e9 for r in rounds for peak in r.peaks],
        "useful_flops": flops,
        "tokens": tokens_of(settings),
        **{kind: raw[kind] for kind in WAYS},
    }


def variant_figures(settings: Settings, kind: Kind, facts: Facts, rounds: Sequence[Round]) -> dict[str, Any]:
    """Times and memory of one way. All have the same tokens, those of the rows without padding; the peak of ours is
    that of the cache build if it is higher than that of the optimizer steps."""
    seconds = statistics.median(r.seconds(kind) for r in rounds)
    tokens, warm_peak = tokens_of(settings), max(window.peak for r in rounds for window in r.windows[kind])
    peak = max(warm_peak, *(r.build.peak for r in rounds)) if kind == "ours" else warm_peak
    through = sum(window.tokens for window in rounds[0].windows[kind])
    return {
        "seconds": seconds,
        "gradient_seconds": statistics.median(sum(w.gradient_seconds for w in r.windows[kind]) for r in rounds),
        "pairs_per_second": settings.windows * settings.accumulate / seconds,
        "tokens_per_second": tokens / seconds,
        "peak_above_imports_bytes": peak - facts.imports_bytes,
        "steps_peak_above_imports_bytes": warm_peak - facts.imports_bytes,
        "peak_above_base_bytes": peak - facts.imports_bytes - facts.base_bytes,
        "padding_share": 1 - tokens / through,
        "window_seconds": [[window.seconds for window in r.windows[kind]] for r in rounds],
        "window_losses": [[window.loss for window in r.windows[kind]] for r in rounds],
        **asdict(facts),
    }


def tokens_of(settings: Settings) -> int:
    """Tokens of the rows of all windows."""
    pairs = settings.pairs[: settings.windows * settings.accumulate]
    return sum(len(row.input_ids) for pair in pairs for row in pair)


def train(
    model: str,
    data: BenchData,
    json: str,
    pairs: int = 48,
    accumulate: int = 4,
    max_length: int = 256,
    rank: int = 32,
    dropout: float = 0.05,
    positions: KLPositions = "released",
    tokens_per_forward: int | None = 256,
    rounds: int = 1,
    seed: int = 42,
    dtype: str = "float32",
    device: str = "auto",
    growth: bool = False,
) -> None:
    """Train on the first pairs of an epoch by the released ZJUKLAB way, by a competent one and by ours, in turn, and
    compare.

    The competent way is what plain libraries give: rows without padding, the adapter switched off for the reference,
    PEFT's layers, no checkpointing.

    Each way has a process of its own; they take turns at every optimizer step. Before that, loss and gradient of the
    first step are compared with the released formulas in float64.

    Args:
        model: Folder or hub name of the model, or smollm2-135m-instruct.
        data: The rows to train on.
        json: File for all figures.
        pairs: Pairs of a forget and a retain row; at least accumulate. What fills no optimizer step is left out.
        accumulate: Pairs of an optimizer step; at least 1.
        max_length: Tokens of a row at most, and the length to which the released way pads.
        rank: Rank of the adapter.
        dropout: Dropout on the adapter's input, in [0, 1).
        positions: Where our KL is taken; only with released are the two losses the same and compared.
        tokens_per_forward: Tokens of our packs at most; null for one pack.
        rounds: How often to measure everything; the figures are medians. At least 1.
        seed: Of the adapter and of the order of the pairs.
        dtype: Type of the base weights: float32, bfloat16 or float16.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).
        growth: Afterwards measure `python -m benchmarks.growth` too, into the same file.
    """
    config = {**locals(), "data": asdict(data), "threads": torch.get_num_threads()}
    del config["json"]
    place = checked_arguments(model, pairs, accumulate, tokens_per_forward, rounds, dtype, device)
    lora = Lora(rank=rank, dropout=dropout)
    tokenizer = load_tokenizer(model)
    rows = first_pairs(data, tokenizer, pairs, max_length, seed)
    options = (accumulate, max_length, int(tokenizer.pad_token_id), lora, positions, tokens_per_forward, seed)
    figures = compare(model, dtype, Settings(rows, *options, device=place), rounds, tell)
    print_figures(figures)
    if growth:
        figures["growth"] = [asdict(point) for point in measure_growth(GROWTH, place, tell)]
        print_growth(figures["growth"])
    write_json(json, provenance(**figures, config=config | {"device": place}, hashes=hashes_of(data)))
    print(f"wrote {json}")


def print_figures(figures: dict[str, Any]) -> None:
    """Print the figures, then all ways beside each other."""
    table = Table("Figure", "Value", "Range over rounds")
    for key, name in FIGURES.items():
        spread = figures["ranges"].get(key)
        table.add_row(name, shown(figures[key]), f"{shown(spread[0])} to {shown(spread[1])}" if spread else "")
    Console(width=100).print(table)
    table = Table("", *(kind.capitalize() for kind in WAYS))
    for key, (name, unit) in COLUMNS.items():
        table.add_row(name, *(shown(figures[kind][key] / unit) for kind in WAYS))
    table.add_row("cache build, s", "-", "-", shown(statistics.median(figures["cache_build_seconds"])))
    table.add_row("matrix products' peak, GFLOP/s", "", "", shown(figures["matmul_peak_gflops"]))
    Console(width=100).print(table)
    if figures["loss_relative_difference"] is None:
        print("note: the losses are the same, and compared, only with --positions released")


if __name__ == "__main__":
    run(train)

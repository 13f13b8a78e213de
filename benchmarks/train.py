"""``bench train``: time, memory and exactness of our training step beside the released one, window by window."""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.variants import Build, Settings, Window
from benchmarks.worker import Facts, Kind, Remote

PEAK_MEASUREMENTS = 3
"""Of the matrix products' peak, in each round."""


@dataclass
class Round:
    """All windows once, in turn, and the cache build before them."""

    build: Build
    windows: dict[Kind, list[Window]] = field(default_factory=lambda: {"released": [], "ours": []})
    peaks: list[float] = field(default_factory=list)
    """FLOP/s of matrix products, measured between the windows."""

    def seconds(self, kind: Kind) -> float:
        return sum(window.seconds for window in self.windows[kind])

    @property
    def ratio_warm(self) -> float:
        """How many times longer the released way takes, the cache being there."""
        return self.seconds("released") / self.seconds("ours")

    @property
    def ratio_first_epoch(self) -> float:
        """The same for the epoch in which the cache is built."""
        return self.seconds("released") / (self.build.seconds + self.seconds("ours"))

    @property
    def ratio_window(self) -> float:
        """The median of the windows' own ratios."""
        pairs = zip(self.windows["released"], self.windows["ours"], strict=True)
        return statistics.median(released.seconds / ours.seconds for released, ours in pairs)

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
            with Remote("plain64", model, dtype, replace(settings, device="cpu")) as worker:
                plain = worker.ask("check", 0, str(folder / "plain64.safetensors"))
        kinds: tuple[Kind, ...] = ("released", "ours")
        workers = {kind: stack.enter_context(Remote(kind, model, dtype, settings)) for kind in kinds}
        facts = {kind: worker.ask("facts") for kind, worker in workers.items()}
        workers["ours"].ask("build", str(folder / "warm_up"), [0])
        differences = {}
        for kind, worker in workers.items():
            if plain is not None:
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
    """Build the cache anew, then every window by the released way and by ours."""
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
    ours, released = raw["ours"], raw["released"]
    ratios: dict[str, list[float]] = {
        "ratio_warm": [r.ratio_warm for r in rounds],
        "ratio_first_epoch": [r.ratio_first_epoch for r in rounds],
        "ratio_warm_median_window": [r.ratio_window for r in rounds],
        "matmul_peak_share": [r.matmul_peak_share(flops) for r in rounds],
    }
    peaks = [statistics.median(r.peaks) for r in rounds]
    return {
        **{name: statistics.median(values) for name, values in ratios.items()},
        "peak_memory_ratio": ours["peak_above_imports_bytes"] / released["peak_above_imports_bytes"],
        "peak_memory_above_base_ratio": ours["peak_above_base_bytes"] / released["peak_above_base_bytes"],
        **{name: ours[name] for name in unknown},
        "padding_share": ours["padding_share"],
        "ranges": {name: [min(values), max(values)] for name, values in ratios.items()},
        "cache_build_seconds": [r.build.seconds for r in rounds],
        "matmul_peak_gflops": statistics.median(peaks) / 1e9,
        "matmul_peak_gflops_all": [peak / 1e9 for r in rounds for peak in r.peaks],
        "useful_flops": flops,
        "tokens": tokens_of(settings),
        "released": released,
        "ours": ours,
    }


def variant_figures(settings: Settings, kind: Kind, facts: Facts, rounds: Sequence[Round]) -> dict[str, Any]:
    """Times and memory of one way. Both have the same tokens, those of the rows without padding; the peak of ours is
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

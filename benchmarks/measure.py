"""What the benchmark measures with: memory of this process, seconds of a call, and the peak of matrix products."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unlearn_pl.errors import InputError

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CPU = torch.device("cpu")
MATMUL_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}


def resident_bytes(device: torch.device) -> int:
    """Memory in use now: resident memory of this process, or what its tensors hold on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """The most memory in use since ``reset_peak``."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Let ``peak_bytes`` begin anew, at what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    _need_proc()
    CLEAR_REFS.write_text("5")  # 5 resets the high-water mark and leaves the pages alone


def settle() -> None:
    """Give back what is free already, so that the next measurement does not live in an earlier one's memory."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    _need_proc()
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))


def _need_proc() -> None:
    if not CLEAR_REFS.exists():
        raise InputError(f"the peak memory of a process is read from {CLEAR_REFS.parent}, which Linux has")


class Stopwatch:
    """Marks in the work of a device; ``seconds`` between two of them."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[float] = []
        self.events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Now; on a GPU, when everything handed to it so far is done."""
        if self.device.type != "cuda":
            self.marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self.events.append(event)

    def seconds(self, start: int, stop: int) -> float:
        """From mark number ``start`` to mark number ``stop``."""
        if self.device.type != "cuda":
            return self.marks[stop] - self.marks[start]
        torch.cuda.synchronize(self.device)
        return self.events[start].elapsed_time(self.events[stop]) / 1000


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """How long ``call`` takes."""
    watch = Stopwatch(device)
    watch.mark()
    call()
    watch.mark()
    return watch.seconds(0, 1)


@dataclass(frozen=True)
class Call:
    """What a call gave and took; ``peak_bytes`` is above what was in use before, None if that was not measured."""

    result: Any
    seconds: float
    peak_bytes: int | None


def measured(call: Callable[[], Any], memory: bool) -> Call:
    """Run ``call``. With ``memory``, what earlier calls have freed is given back first, so that it counts again."""
    before = 0
    if memory:
        settle()
        before = resident_bytes(CPU)
        reset_peak(CPU)
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    return Call(result, seconds, peak_bytes(CPU) - before if memory else None)


def matmul_peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of ``torch.mm`` of square matrices of random numbers (a GPU multiplies equal ones faster): of some sizes
    the best, of its repeats the median."""
    best = 0.0
    generator = torch.Generator(device).manual_seed(0)  # the process's own state stays
    for size in MATMUL_SIZES[device.type]:
        a, b = (torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2))
        out = torch.mm(a, b)  # also the warm-up
        times = [seconds_of(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device) for _ in range(repeats)]  # type: ignore[misc]
        best = max(best, 2 * size**3 / statistics.median(times))
    return best

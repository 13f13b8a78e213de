"""What the device is, and what it can do at most."""

import statistics
from typing import Any

import torch

from benchmarks.measure import matmul_peak, seconds_of

COPIED = {"cuda": 2**30, "cpu": 2**24}
"""Bytes of the copy that measures the memory."""


def card_figures(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Name, memory and software of the device; its matrix products' and its memory's peak as measured here."""
    known: dict[str, Any] = {"name": "the CPU", "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        known = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return known | {
        "matmul_flops": {
            str(kind).removeprefix("torch."): matmul_peak(device, kind) for kind in (dtype, torch.float32)
        },
        "copied_bytes_per_second": copied_bytes_per_second(device),
    }


def copied_bytes_per_second(device: torch.device, repeats: int = 5) -> float:
    """Bytes read and written by a copy on the device, the median of ``repeats``."""
    source = torch.randint(0, 255, (COPIED[device.type],), dtype=torch.uint8, device=device)
    target = source.clone()
    seconds = [seconds_of(lambda: target.copy_(source), device) for _ in range(repeats)]
    return 2 * len(source) / statistics.median(seconds)

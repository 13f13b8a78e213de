"""python -m benchmarks.gpu --json OUT"""

from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.command import run, tell
from benchmarks.gpu.bench import DTYPE, Bench
from benchmarks.gpu.checks import device_tests
from benchmarks.gpu.plan import Crew, Part, run_parts
from benchmarks.gpu.table import print_parts
from unlearn_pl.errors import InputError
from unlearn_pl.files import write_json
from unlearn_pl.models.device import find_device
from unlearn_pl.provenance import provenance

SECONDS = {"SmolLM2-135M": 12, "OLMo-1B": 15, "OLMo-7B": 30}
"""That a step's part is expected to take on a card of an H100's speed."""


def parts_of(crew: Crew, device: str) -> list[Part]:
    """The most valuable first."""

    def asked(name: str, seconds: float, method: str, *arguments: Any) -> Part:
        return Part(name, seconds, lambda limit: crew.ask(limit, method, *arguments))

    def step(shape: str, way: str, checkpointing: bool) -> Part:
        name = f"step {shape}, {way}" + ", checkpointing" * checkpointing
        return asked(name, SECONDS[shape], "step", shape, way, checkpointing)

    def answers(shape: str) -> list[Part]:
        return [
            asked(f"generation {shape}", 40, "generation", shape, True),
            asked(f"generation {shape}, no row ends", 40, "generation", shape, False),
            asked(f"attacks {shape}", 15, "attacks", shape),
        ]

    compared = ("ours", "competent")
    return [
        asked("card", 15, "card"),
        Part("tests", 90, partial(device_tests, device=device)),
        *(step("OLMo-1B", way, False) for way in compared),
        *(step(shape, way, False) for shape, way in product(("SmolLM2-135M", "OLMo-7B"), compared)),
        *answers("OLMo-1B"),
        asked("memorising SmolLM2-135M", 15, "memorising", "SmolLM2-135M"),
        *(step(shape, way, True) for shape, way in product(("OLMo-7B", "OLMo-1B", "SmolLM2-135M"), compared)),
        *(step(shape, "released", False) for shape in SECONDS),
        *answers("SmolLM2-135M"),
        asked("step OLMo-1B, competent, pair by pair", 20, "step", "OLMo-1B", "competent", False, True),
        asked("card again", 15, "card"),
    ]


def chosen_parts(parts: list[Part], only: list[str] | None) -> list[Part]:
    """Those whose names begin with one of ``only``, and the card; all for None. Raises InputError for a beginning that
    no name has."""
    if only is None:
        return parts
    unknown = [one for one in only if not any(part.name.startswith(one) for part in parts)]
    if unknown:
        names = ", ".join(part.name for part in parts)
        raise InputError(f"must be beginnings of the parts' names ({names}), got {unknown[0]}", "only")
    return [part for part in parts if part.name == "card" or part.name.startswith(tuple(only))]


def gpu(json: str, minutes: float = 8, device: str = "auto", only: list[str] | None = None) -> None:
    """The tests marked `gpu`, the training step, generation and membership attacks on a GPU, beside competent ways; at
    the shapes of SmolLM2-135M, OLMo-1B and OLMo-7B, with random weights in bfloat16.

    The file is written after every part. A part that fails is in it with its error, and the next one runs; one for
    which there is too little time is in it as left out. Without a GPU all parts run on the CPU at small shapes.

    Args:
        json: File for all figures.
        minutes: How long it may take; above 0.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).
        only: Only the parts whose names begin so, and `card`.
    """
    if not minutes > 0:
        raise InputError(f"must be above 0, got {minutes}", "minutes")
    place = find_device(device)
    small = place.type != "cuda"
    if small:
        tell("no GPU in use: all parts run on the CPU at small shapes, and say nothing of a GPU's speed")
    crew = Crew(Bench, str(place))
    config = {"minutes": minutes, "device": str(place), "only": only, "small": small, "dtype": str(DTYPE)}
    config |= {"threads": torch.get_num_threads()}

    def note(done: dict[str, dict[str, Any]]) -> None:
        name, found = next(reversed(done.items()))
        reason = found.get("error") or found.get("left_out")
        tell(f"{name}: " + (reason or f"{found['took']} s"))
        write_json(json, provenance(parts=done, config=config))

    try:
        done = run_parts(chosen_parts(parts_of(crew, str(place)), only), 60 * minutes, note)
    finally:
        crew.dismiss()
    print_parts(done)
    print(f"wrote {json}")


if __name__ == "__main__":
    run(gpu)

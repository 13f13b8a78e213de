"""Stage: a step of a recipe that is left out when it finished before with the same inputs."""

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_pl import __version__
from unlearn_pl.files import sha256_of, write_json


@dataclass(frozen=True)
class Stage:
    """``work`` makes ``outputs`` from ``reads`` (files or folders, both) under ``settings`` (JSON-ready)."""

    name: str
    settings: Mapping[str, Any]
    reads: tuple[Path, ...]
    outputs: tuple[Path, ...]
    work: Callable[[bool], None]
    """Called with True if an earlier attempt with the same inputs was interrupted."""

    def run(self, records: Path) -> dict[str, Any]:
        """Do the work unless ``records`` shows that it is done and its outputs are as they were left.

        Returns the record: ``inputs`` (a hash), ``finished``, ``seconds`` and ``peak_memory_gib``.
        """
        path = records / f"{self.name}.json"
        inputs = self._inputs_hash()
        earlier = json.loads(path.read_text()) if path.is_file() else {}
        if earlier.get("finished") and earlier["inputs"] == inputs and earlier["outputs"] == self._outputs_hash():
            print(
                f"== {self.name}: finished before with the same inputs ({earlier['seconds']:.0f} s), skipped",
                flush=True,
            )
            return earlier
        interrupted = earlier.get("inputs") == inputs and not earlier.get("finished", True)
        print(f"== {self.name}" + (": goes on after an interruption" if interrupted else ""), flush=True)
        write_json(path, {"inputs": inputs, "finished": False})
        began = time.perf_counter()
        self.work(interrupted)
        record = {
            "inputs": inputs,
            "finished": True,
            "outputs": self._outputs_hash(),
            "seconds": time.perf_counter() - began,
            "peak_memory_gib": peak_memory_gib(),
        }
        write_json(path, record)
        return record

    def _inputs_hash(self) -> str:
        facts = [self.name, __version__, self.settings, [sha256_of(path) for path in self.reads]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _outputs_hash(self) -> str | None:
        return sha256_of(*self.outputs) if all(path.exists() for path in self.outputs) else None


def peak_memory_gib() -> float:
    """The largest resident memory so far of this process or of any finished child process, in GiB."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)

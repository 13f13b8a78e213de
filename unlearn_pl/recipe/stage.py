"""Stage: a step of a recipe that is left out when it finished before with the same inputs."""

import hashlib
import json
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_pl import __version__
from unlearn_pl.errors import InputError
from unlearn_pl.files import sha256_of, write_json

# What the record of a finished stage holds.
RECORD = ("inputs", "finished", "outputs", "seconds", "peak_memory_gib")


@dataclass(frozen=True)
class Stage:
    """``work`` makes ``outputs`` from ``reads`` (files or folders, both) under ``settings`` (JSON-ready)."""

    name: str
    settings: Mapping[str, Any]
    reads: tuple[Path, ...]
    outputs: tuple[Path, ...]
    work: Callable[[bool], None]
    """Called with True if an earlier attempt with the same inputs was interrupted."""
    kind: str = ""
    """What sort of stage it is: `fit`, `merge` and so on."""

    def run(self, records: Path) -> dict[str, Any]:
        """Do the work unless ``records`` shows that it is done and its outputs are as they were left.

        Returns the record: ``inputs`` (a hash), ``finished``, ``seconds`` and ``peak_memory_gib``; both None if an
        attempt was interrupted, of which nobody knows them.
        """
        path = records / f"{self.name}.json"
        inputs = self._inputs_hash()
        earlier = read_record(path)
        outputs = self._outputs_hash()
        if earlier.get("finished") and earlier["inputs"] == inputs and earlier["outputs"] == outputs is not None:
            print(
                f"== {self.name}: finished before with the same inputs{took(earlier['seconds'])}, skipped",
                flush=True,
            )
            return earlier
        interrupted = earlier.get("inputs") == inputs and not earlier.get("finished", True)
        print(f"== {self.name}" + (": goes on after an interruption" if interrupted else ""), flush=True)
        write_json(path, {"inputs": inputs, "finished": False})
        began = time.perf_counter()
        self.work(interrupted)
        if missing := [str(path) for path in self.outputs if not path.exists()]:
            raise InputError(f"stage {self.name}: it ended without {' and '.join(missing)}, so it counts as unfinished")
        record = {
            "inputs": inputs,
            "finished": True,
            "outputs": self._outputs_hash(),
            "seconds": None if interrupted else time.perf_counter() - began,
            "peak_memory_gib": None if interrupted else peak_memory_gib(),
        }
        write_json(path, record)
        return record

    def _inputs_hash(self) -> str:
        facts = [self.name, __version__, self.settings, [sha256_of(path) for path in self.reads]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _outputs_hash(self) -> str | None:
        return sha256_of(*self.outputs) if all(path.exists() for path in self.outputs) else None


def took(seconds: float | None) -> str:
    """In brackets, if it was measured."""
    return "" if seconds is None else f" ({seconds:.0f} s)"


def read_record(path: Path) -> dict[str, Any]:
    """The record of an earlier run of a stage; empty if there is none, or none that can be read: it runs again."""
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = set(record) >= ({*RECORD} if record["finished"] else {"inputs"})
    except (ValueError, LookupError, TypeError):
        known = False
    if not known:
        warnings.warn(f"{path} is not what a stage writes; the stage runs again", stacklevel=2)
        return {}
    return dict(record)


def peak_memory_gib() -> float:
    """The largest resident memory so far of this process or of any finished child process, in GiB."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)

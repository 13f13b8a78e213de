"""Finished batches of an evaluation on disk, so that one that was killed goes on where it stopped."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def content_hash(*values: Any) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


class ResumeFolder:
    """A folder with one file for each kind of work and each process: a line a finished batch.

    A file's name holds a hash of the weights, the data and the settings, so what is found is always of the same work,
    whatever the model's folder is called; other files are left alone.
    """

    def __init__(self, folder: str | Path, key: str):
        """``key`` stands for what all batches depend on: weights, versions."""
        self.folder, self.key = Path(folder), key
        self.opened: set[str] = set()

    def open(self, what: str, identity: Any, rank: int) -> "FinishedBatches":
        """What process ``rank`` has of the work ``what``, made from ``identity``, anything that JSON can hold."""
        name = f"{what.split(',')[0]}-{content_hash(self.key, what, identity)[:24]}"
        self.opened.add(name)
        return FinishedBatches(self.folder, name, rank)

    def advice(self) -> str | None:
        """How a stopped evaluation goes on; None if nothing of it is kept."""
        if not any(next(self.folder.glob(f"{name}-rank*.jsonl"), None) for name in self.opened):
            return None
        return f"what was finished is in {self.folder}: run the same command again, it goes on from there"

    def drop_others(self) -> None:
        """Delete the files of work that was not opened since: of other weights, data or settings."""
        for path in self.folder.glob("*-rank*.jsonl"):
            if path.name.rsplit("-rank", 1)[0] not in self.opened:
                path.unlink(missing_ok=True)


class FinishedBatches:
    """Those of one kind of work: (indices, a JSON value each)."""

    def __init__(self, folder: Path, name: str, rank: int):
        self.path = folder / f"{name}-rank{rank}.jsonl"
        self.finished: dict[tuple[int, ...], list[Any]] = {}
        self.written = False
        for path in sorted(folder.glob(f"{name}-rank*.jsonl")):
            for line in whole_lines(path.read_bytes()).splitlines():
                entry = json.loads(line)
                self.finished[tuple(entry["batch"])] = entry["results"]

    def add(self, batch: Sequence[int], results: Sequence[Any]) -> None:
        """Keep the results of a batch; a process that is killed afterwards does not lose them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"batch": list(batch), "results": list(results)}, ensure_ascii=False)
        with self.path.open("ab") as stream:
            if not self.written and (length := len(whole_lines(self.path.read_bytes()))) < stream.tell():
                stream.truncate(length)  # a line that a killed process left unfinished
            stream.write(line.encode() + b"\n")
        self.written = True
        self.finished[tuple(batch)] = list(results)


def whole_lines(content: bytes) -> bytes:
    """``content`` without a last line that was not written to its end."""
    return content[: content.rfind(b"\n") + 1]

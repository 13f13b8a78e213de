"""ResultsFolder: where an evaluation writes, alone, and finds again what it had finished when it was stopped."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_pl.evaluation.results import Results, write_results
from unlearn_pl.files import check_writable, refuse_existing, sole_writer
from unlearn_pl.inference.batches import rank_and_count
from unlearn_pl.inference.resume import ResumeFolder

# Folder of finished parts inside of the output folder.
PARTS = "parts"
# Names of what an interrupted evaluation leaves in the output folder: all but `results.json`, which comes last.
LEFT = rf"{PARTS}|(samples|documents)\.jsonl|\.((samples|documents)\.jsonl|results\.json)\.[0-9a-f]{{32}}"


@dataclass(frozen=True)
class ResultsFolder:
    """The output folder of an evaluation, and whether results that are in it may be replaced."""

    path: str
    overwrite: bool = False

    def check(self) -> None:
        """Raise InputError if the folder cannot be written, or holds more than an interrupted evaluation leaves."""
        if Path(self.path).is_file() or not all(re.fullmatch(LEFT, path.name) for path in Path(self.path).glob("*")):
            refuse_existing(self.path, self.overwrite)
        check_writable(self.path, "output")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside the block no other evaluation writes here; asked by the first process of a launch for all of them.
        Raises InputError if one does, or if one has ended since ``check``."""
        if rank_and_count()[0] > 0:
            yield
            return
        with sole_writer(self.path, "output"):
            self.check()
            yield

    def parts(self, key: str) -> ResumeFolder:
        """What is finished of the evaluation that ``key`` stands for."""
        return ResumeFolder(Path(self.path) / PARTS, key)

    def write(self, results: Results, provenance: Mapping[str, Any]) -> None:
        """Write `results.json`, `samples.jsonl` and `documents.jsonl`."""
        write_results(self.path, results, provenance)

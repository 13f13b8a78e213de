"""Every kind of damaged input, with the number of cases tried: 2,650 of all kinds."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.scale.table import Case

PROGRAM = Path(__file__).parents[1] / "fuzzing.py"
KINDS = {
    "data of evaluate": 250, "data of fit": 150, "documents and questions": 150, "adapters": 300, "models": 200,
    "checkpoints": 300, "configurations": 300, "recipes": 250, "sweep files": 150, "command lines": 400,
    "finished runs": 200,
}  # fmt: skip


def cases(seed: int, shared: Path) -> Iterator[Case]:
    for kind, count in KINDS.items():
        name = f"fuzz, {kind}: {count} cases work or are refused in one line"
        yield Case(name, "0 broken", lambda folder, kind=kind, count=count: tried(kind, count, seed))  # type: ignore[misc]


def tried(kind: str, count: int, seed: int) -> str:
    """How many of so many cases of a kind are broken; fewer cases than that are told too."""
    words = [sys.executable, str(PROGRAM), "--each", str(count), "--kinds", kind, "--seed", str(seed)]
    done = subprocess.run(words, capture_output=True, text=True)
    found = re.search(r"^\| all \| (\d+) \| \d+ \| \d+ \| (\d+) \|$", done.stdout, re.MULTILINE)
    if found is None or int(found[2]):
        return (done.stdout + done.stderr)[-1500:]
    return "0 broken" if int(found[1]) >= count * 0.9 else f"only {found[1]} cases"

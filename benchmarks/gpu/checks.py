"""The tests marked ``gpu``, run on a device by a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
DEVICE, OUTCOMES = "UNLEARN_PL_TEST_DEVICE", "UNLEARN_PL_TEST_OUTCOMES"
"""Variables of the environment that tests/gpu/conftest.py reads."""
# versions that were not tried before may warn, and that is no fault of the device's
OPTIONS = ("-q", "-W", "default", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=")


def device_tests(seconds: float, device: str, tests: str = "tests/gpu") -> dict[str, Any]:
    """How many passed, why others failed or were skipped, by name, and whether time ended them (``stopped``)."""
    with TemporaryDirectory(prefix="unlearn-pl-bench-") as folder:
        outcomes = Path(folder) / "outcomes.jsonl"
        outcomes.touch()
        command = [sys.executable, "-m", "pytest", tests, "-m", "gpu", *OPTIONS]
        environment = os.environ | {DEVICE: device, OUTCOMES: str(outcomes)}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            code, said = done.returncode, done.stdout
        except subprocess.TimeoutExpired as stopped:
            code, said = None, stopped.stdout or b""
        rows = [json.loads(line) for line in outcomes.read_text(encoding="utf-8").splitlines()]
    return summary(rows, code, said.decode(errors="replace"))


def summary(rows: list[dict[str, str]], code: int | None, said: str) -> dict[str, Any]:
    """Of the tests' outcomes; ``said``, the end of what pytest printed, where no test ran or one failed."""
    by = {kind: {row["name"]: row["why"] for row in rows if row["outcome"] == kind} for kind in ("failed", "skipped")}
    passed = sum(row["outcome"] == "passed" for row in rows)
    found = {"passed": passed, **by, "stopped": code is None}
    return found if code == 0 else found | {"exit_code": code, "said": said[-4000:]}

"""Tests of what a GPU computes: `UNLEARN_PL_TEST_DEVICE=cuda python -m pytest tests/gpu`; without it, on the CPU."""

import json
import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests compute."""
    return torch.device(os.environ.get("UNLEARN_PL_TEST_DEVICE", "cpu"))


@pytest.fixture(scope="session")
def accelerator(device: torch.device) -> str:
    """The same in Lightning's words."""
    return "gpu" if device.type == "cuda" else "cpu"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A line for each test as it ends, so that those of a run that is stopped are known."""
    file = os.environ.get("UNLEARN_PL_TEST_OUTCOMES")
    if file is None or (report.when != "call" and report.outcome == "passed"):
        return
    why = " ".join(str(report.longrepr or "").split()[-60:])
    with Path(file).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"name": report.nodeid, "outcome": report.outcome, "why": why}) + "\n")

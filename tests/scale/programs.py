"""The command line in processes of its own, which leave none behind."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 300.0
AFTER = 30.0
"""Seconds that other processes of a launch have to end once the first has."""
DUMP = 5.0
"""Seconds that a command that hangs has to write where each of its threads stands."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: by that signal), both outputs, and whether processes of its launch
    were still there some seconds later (they are killed then)."""

    code: int
    out: str
    err: str
    left_some: bool

    @property
    def last_line(self) -> str:
        return (self.err.rstrip() or self.out.rstrip()).rsplit("\n", 1)[-1]

    def well(self) -> "Ended":
        """This, if the command ended well. Raises RuntimeError with what it said last if not."""
        if self.code != 0 or self.left_some:
            raise RuntimeError(f"exit code {self.code}, processes left: {self.left_some}: {self.err[-1500:]}")
        return self


def unlearn_pl(*words: str | Path, folder: Path = ROOT, **environment: str) -> Ended:
    """`python -m unlearn_pl WORDS` in ``folder``, in a process group of its own."""
    return program([sys.executable, "-m", "unlearn_pl", *map(str, words)], folder, **environment)


def program(words: Sequence[str], folder: Path = ROOT, **environment: str) -> Ended:
    """Any program, in which tests can be imported. Raises TimeoutError after five minutes, with where each thread of
    each of its processes stood."""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    given = os.environ | {
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_MODE": "offline",
        "PYTHONFAULTHANDLER": "1",  # SIGABRT writes the stacks
    }
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # pipes stay open while a child is left
        process = subprocess.Popen(
            words, cwd=folder, env=given | environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        )  # fmt: skip
        hangs = False
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            hangs = True
            os.killpg(process.pid, signal.SIGABRT)
        finally:
            left = not ends_within(process.pid, DUMP if hangs else AFTER if process.poll() is not None else 0)
            process.wait()
        out.seek(0), err.seek(0)
        ended = Ended(process.returncode, out.read().decode(), err.read().decode(), left)
        if hangs:
            raise TimeoutError(f"{' '.join(words)} had not ended after {SECONDS:g} s: {ended.err}")
        return ended


def ends_within(group: int, seconds: float) -> bool:
    """Whether a process group is gone within so many seconds; it is killed if not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return False

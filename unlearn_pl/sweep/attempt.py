"""Attempt: a trial that runs, as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from unlearn_pl.callbacks.stale import PREFIX
from unlearn_pl.child import ending_with_parent
from unlearn_pl.errors import InputError
from unlearn_pl.files import locked
from unlearn_pl.sweep.trial import Trial
from unlearn_pl.training.checkpoint_file import read_checkpoint

PROGRAM = (sys.executable, "-m", "unlearn_pl")
OUTPUT = "output.txt"
"""What the fit of a trial printed."""
SECONDS = 0.2
"""Between two looks at what runs."""


class Attempt:
    """The process of a trial, from its start on."""

    def __init__(self, trial: Trial, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]):
        self.trial, self.folder = trial, folder
        self.ended_early = False
        self._began = time.monotonic()
        with (folder / OUTPUT).open("ab") as output:
            self._before = output.tell()
            self.process = subprocess.Popen(
                [*PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                preexec_fn=ending_with_parent(),
            )

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    def stop(self, signum: int) -> None:
        """Tell the fit to stop in good order; it writes a checkpoint."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signum)

    def end_early(self) -> None:
        """Stop a trial that early termination ends."""
        self.ended_early = True
        self.stop(signal.SIGTERM)

    def close(self) -> None:
        """Take over how the process ended; kill it if it has not."""
        if killed := not self.ended:
            self.process.kill()
        trial, code = self.trial, self.process.wait()
        trial.exit_code = code
        if trial.seconds is not None:
            trial.seconds += time.monotonic() - self._began
        if code == 0:
            trial.state = "finished"
        elif self.ended_early:
            trial.state = "stopped"
        else:
            trial.state = "interrupted" if killed or is_signal(code) else "failed"

    @property
    def last_line(self) -> str:
        """Why it failed, as far as it said: its error, else whatever it printed last."""
        text = (self.folder / OUTPUT).read_bytes()[self._before :].decode("utf-8", errors="replace")
        said = [line.strip() for line in text.splitlines() if line.strip()]
        if (code := self.trial.exit_code) is not None and code < 0:
            memory = ", perhaps since the memory was full" if code == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-code).name}{memory}"
        errors = [line for line in said if line.startswith("unlearn-pl: error: ")]
        return (errors or said or ["it printed nothing"])[-1].removeprefix("unlearn-pl: error: ")


def is_signal(code: int) -> bool:
    """Whether a process that ended with ``code`` was told to by SIGTERM or SIGINT, itself or by a shell."""
    return any(code in (-one.value, 128 + one.value) for one in (signal.SIGTERM, signal.SIGINT))


def newest_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint in the folder of a trial that a fit can go on from; None if there is none."""
    files = [path for path in folder.rglob("*.ckpt") if path.is_file() and not path.name.startswith((PREFIX, "."))]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(InputError):
            if "optimizer_states" in read_checkpoint(path):
                return path
    return None


def clear(folder: Path) -> None:
    """Put aside what an attempt that does not go on has left: it would be taken for that of the next one."""
    for path in folder.rglob("*.ckpt"):
        if not path.name.startswith(PREFIX):
            os.replace(path, path.with_name(PREFIX + path.name))
    for name in ("evaluations.json", "metrics.csv"):
        (folder / name).unlink(missing_ok=True)


def wait_for(folder: Path) -> None:
    """Until no process writes into the folder of a trial: a sweep that was killed may have left one that is about to
    stop."""
    told = False
    while True:
        with suppress(BlockingIOError), locked(folder):
            return
        if not told:
            print(f"{folder.name}: its fit is still running, waiting for its end", flush=True)
        told = True
        time.sleep(SECONDS)


def environment_of(name: str, identity: str, jobs: int) -> dict[str, str]:
    """The environment of a trial: W&B without a server unless the user's own says otherwise, in a group of its sweep,
    and as many threads as leave room for the others."""
    own = {"WANDB_RUN_ID": f"{identity}-{name}", "WANDB_RESUME": "allow"}
    given = {"WANDB_MODE": "offline", "WANDB_RUN_GROUP": identity}
    if jobs > 1:
        given["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    return given | os.environ | own

"""The fits of a recipe: each a process of its own, which signals are handed on to."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from unlearn_pl.callbacks.stale import PREFIX
from unlearn_pl.callbacks.stop import interrupted_checkpoint
from unlearn_pl.child import run_child
from unlearn_pl.errors import InputError
from unlearn_pl.merging.adapters import read_adapter


def run_fit(stage: str, arguments: Sequence[str], run_folder: Path, interrupted: bool) -> None:
    """Fit, from its newest checkpoint if it was ``interrupted``. Raises InputError if it fails, or if its adapter
    cannot be merged: after the first fit, not after the second."""
    checkpoints = [run_folder / "checkpoints" / "last.ckpt", interrupted_checkpoint(run_folder)]
    files = [path for path in checkpoints if path.is_file()]
    if interrupted and files:
        arguments = [*arguments, f"--ckpt_path={max(files, key=lambda path: path.stat().st_mtime)}"]
    else:
        for path in files:  # of an earlier run with other inputs; this one may be refused
            os.replace(path, path.with_name(PREFIX + path.name))
    print("unlearn-pl " + " ".join(arguments), flush=True)
    code = run_child([sys.executable, "-m", "unlearn_pl", *arguments])
    if code > 128 or code < 0:
        signum = -code if code < 0 else code - 128
        memory = " (the system does that when memory runs out)" if signum == signal.SIGKILL else ""
        raise InputError(
            f"stage {stage}: the fit above was ended by signal {signum}{memory}; run the same command again: it goes "
            "on there"
        )
    if code:
        raise InputError(f"stage {stage}: the fit above ended with exit code {code}; fix it and run the recipe again")
    try:
        read_adapter(run_folder / "adapter")
    except InputError as error:
        raise InputError(f"stage {stage}: {error.reason}") from error

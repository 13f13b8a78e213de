"""Command lines as a shell runs them, without the seconds of import that each would cost.

One process imports the program and then forks a child for each command line: the child has its own arguments, folder,
environment and output, runs `python -m unlearn_pl` from the first line of its `__main__`, and ends with its exit code.
What a child would find out anew each time, the comments under the fields of each class, is known before the fork.
"""

import contextlib
import functools
import importlib
import io
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMANDS = ("balance", "compare_merges", "evaluate", "extract", "merge", "report")
NEEDED = [f"unlearn_pl.commands.{name}" for name in COMMANDS] + ["unlearn_pl.recipe.run", "unlearn_pl.sweep.run"]
NEEDED += ["plotly", "pyarrow.parquet", "rouge_score.rouge_scorer", "transformers.models.llama.modeling_llama"]
"""What the commands import, some of it when it is first needed."""


@dataclass(frozen=True)
class Done:
    """What a command line left: exit code (negative: the signal that ended it) and both of its outputs."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that the program itself calls errors."""
        return [line for line in self.err.splitlines() if line.startswith("unlearn-pl: error: ")]


@dataclass(frozen=True)
class Limits:
    """What the system lets a command line have; None for all there is."""

    seconds: int | None = None
    """After so many, SIGALRM ends it."""
    memory: int | None = None
    """Bytes of addresses; beyond them an allocation fails."""
    file_size: int | None = None
    """Bytes of a file; beyond them a write fails as on a full disk, but with another number (EFBIG)."""


class CommandServer:
    """Runs command lines one after the other. A context manager; the process behind it ends with the block."""

    def __enter__(self) -> "CommandServer":
        # threads do not survive a fork: the libraries must start none when they are imported
        quiet = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | quiet
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate(timeout=60)  # closes its input, which ends it

    def run(self, folder: Path, *arguments: str, **environment: str) -> Done:
        """`python -m unlearn_pl ARGUMENTS` in ``folder``."""
        return self.run_within(Limits(), folder, *arguments, **environment)

    def run_within(self, limits: "Limits", folder: Path, *arguments: str, **environment: str) -> Done:
        """The same under ``limits``."""
        folder.mkdir(parents=True, exist_ok=True)
        outputs = [folder / f".{name}.txt" for name in ("out", "err")]
        order = {"folder": str(folder), "arguments": arguments, "environment": environment, "limits": vars(limits)}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order | {"outputs": [str(path) for path in outputs]}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server ended"
        texts = [path.read_text(errors="replace") for path in outputs]
        for path in outputs:
            path.unlink()
        return Done(int(answer), *texts)


def child(order: dict[str, Any]) -> None:
    """Become the command line; never returns."""
    os.chdir(order["folder"])
    os.environ.update(order["environment"])
    for number, path in enumerate(order["outputs"], start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    limit(**order["limits"])
    runs(order["arguments"])


def runs(arguments: list[str]) -> None:
    """End this process as `python -m unlearn_pl ARGUMENTS` does."""
    code = 1
    try:
        sys.argv = ["unlearn-pl", *arguments]
        runpy.run_module("unlearn_pl", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def limit(seconds: int | None, memory: int | None, file_size: int | None) -> None:
    """Set the limits of this process."""
    signal.alarm(seconds or 0)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with a number then
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))


def fork(command: list[str]) -> int:
    """The exit code of a fit of a recipe, which is another child of a warm process too."""
    pid = os.fork()
    if pid == 0:
        try:
            runs(command[3:])
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def warm_up() -> None:
    """Import what the commands need, and read the comments under the fields of their classes."""
    for name in NEEDED:
        importlib.import_module(name)
    from docstring_parser.attrdoc import AttributeDocstrings

    from unlearn_pl.cli import main

    read = AttributeDocstrings.get_attr_docs
    known = functools.cache(lambda component: read(AttributeDocstrings(), component))
    AttributeDocstrings.get_attr_docs = lambda self, component: known(component)
    importlib.import_module("unlearn_pl.recipe.fit").run_child = fork
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(["fit", "--help"])


def serve() -> None:
    """Answer each order on standard input with an exit code."""
    warm_up()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answers.write(f"{status}\n")
        answers.flush()


if __name__ == "__main__":
    from unlearn_pl.console import quiet

    quiet()
    serve()

"""Command lines as a shell runs them, without the seconds of import that each would cost.

One process imports the program and then forks a child for each command line: the child has its own arguments, folder,
environment and output, runs `python -m unlearn_pl` from the first line of its `__main__`, and ends with its exit code.
"""

import json
import os
import runpy
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
        folder.mkdir(parents=True, exist_ok=True)
        outputs = [folder / f".{name}.txt" for name in ("out", "err")]
        order = {"folder": str(folder), "arguments": arguments, "environment": environment}
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
    code = 1
    try:
        os.chdir(order["folder"])
        os.environ.update(order["environment"])
        for number, path in enumerate(order["outputs"], start=1):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["unlearn-pl", *order["arguments"]]
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


def serve() -> None:
    """Answer each order on standard input with an exit code."""
    import unlearn_pl.cli
    import unlearn_pl.recipe.run  # noqa: F401

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

"""An object in a process of its own, which does what the parent tells it, one thing at a time."""

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from unlearn_pl.console import quiet
from unlearn_pl.errors import InputError, one_line


def serve(pipe: Connection, make: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """The child: make the object, then answer (method, arguments) with (True, result) or (False, error)."""
    quiet()
    served = None
    while True:
        try:
            name, values = pipe.recv()
        except EOFError:  # the parent is gone or has closed its end
            return
        try:
            if served is None:
                served = make(*arguments)
            answer = True, getattr(served, name)(*values)
        except Exception as error:
            if not isinstance(error, InputError):
                traceback.print_exc()  # it does not travel with the error
                error = RuntimeError(f"{type(error).__name__}: {one_line(error)}")  # what all processes can read
            answer = False, error
        pipe.send(answer)


class Remote:
    """The parent's end of an object ``make(*arguments)``; a context in which its process lives. ``name`` is said in
    messages."""

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any):
        # not fork: a forked child shares the parent's memory and its thread pools
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """Call a method of the object and wait for what it gives, at most ``seconds`` (None: for ever). Its errors are
        raised here; TimeoutError if it does not answer, and then it must be asked no more."""
        try:
            self.pipe.send((method, arguments))
            if not self.pipe.poll(seconds):
                raise TimeoutError(f"{self.name}: no answer within {seconds:.0f} s")
            done, answer = self.pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            self.process.join()
            reason = f"the process ended with code {self.process.exitcode}; -9 means out of memory"
            raise RuntimeError(f"{self.name}: {reason}") from error
        if not done:
            raise answer
        return answer

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.pipe.close()
        self.process.terminate()
        self.process.join(timeout=10)
        if self.process.is_alive():  # within a call of a driver, which does not hear
            self.process.kill()
            self.process.join()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.pipe.close()
        self.process.join(timeout=10)
        if self.process.is_alive():  # in the middle of something when the parent failed
            self.process.terminate()
            self.process.join()

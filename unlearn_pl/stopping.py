"""What SIGTERM and SIGINT (Ctrl-C) do to a command: it ends with 128 + the signal's number, and a last line that says
how to go on."""

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A terminal, a scheduler and `run` may all hand on the same signal: within so many seconds it counts once.
SECONDS = 3.0


class Stopped(BaseException):
    """The user or a scheduler ended this command by a signal.

    ``where`` and ``advice`` are for the last line: how far it came, and how to go on.
    """

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum
        self.where = ""
        self.advice = "nothing of it was kept: run the same command again"

    @property
    def name(self) -> str:
        return signal.Signals(self.signum).name

    @property
    def exit_code(self) -> int:
        return 128 + self.signum

    def __str__(self) -> str:
        return f"stopped by {self.name}{self.where}; {self.advice}"


@contextmanager
def advising(advice: Callable[[], str | None]) -> Iterator[None]:
    """Inside the block a stop's last line tells how to go on by ``advice``, asked when it comes; None is the usual."""
    try:
        yield
    except Stopped as stop:
        stop.advice = advice() or stop.advice
        raise


def surely(undo: Callable[[], None]) -> None:
    """Call what puts a user's model back; from its start once more if something, such as a second Ctrl-C, breaks it
    off, which is raised then."""
    try:
        undo()
    except BaseException:
        undo()
        raise


class StopSignals:
    """The handler of both signals. It raises ``Stopped`` at once, or, while ``deferring``, notes the first signal for
    whoever finishes a step; a second one, some seconds later, raises all the same."""

    def __init__(self) -> None:
        self.deferring = False
        self.noted: int | None = None
        self._last = -SECONDS
        self._process = os.getpid()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked data worker: its parent ends it, but for a plain SIGTERM
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        if time.monotonic() - self._last < SECONDS:
            return
        if not self.deferring or self.noted is not None:
            self._last = time.monotonic()
            raise Stopped(signum)
        self.note(signum)
        # not print: the signal may have come in the middle of one
        os.write(2, b"\nunlearn-pl: stopping after this step; once more to stop at once, without a checkpoint\n")

    def note(self, signum: int) -> None:
        """Remember the signal that ends the fit: this process got it, or another one of the same fit."""
        self._last, self.noted = time.monotonic(), signum

    def again(self, signum: int) -> None:
        """Come once more in a moment, since what was raised came to nothing. Asked for amid anything: takes no lock."""
        self._last = -SECONDS

        def come() -> None:
            time.sleep(0.05)
            os.kill(os.getpid(), signum)

        _thread.start_new_thread(come, ())

    def install(self) -> None:
        """Take over both signals; libraries may have put their own handlers in the meantime, and a launcher
        may have forked this process to train."""
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) is not signal.SIG_IGN or signum == signal.SIGTERM:  # nohup ignores SIGINT
                    signal.signal(signum, self)


STOP = StopSignals()


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside the block the signals raise ``Stopped``; at its end that becomes the last line and the exit code."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    hook = sys.unraisablehook

    def not_lost(ignored: Any) -> None:
        # Python drops what is raised in a finaliser, where the collector, and so a signal, may come at any moment
        if isinstance(ignored.exc_value, Stopped):
            STOP.again(ignored.exc_value.signum)
        else:
            hook(ignored)

    STOP.__init__()  # type: ignore[misc]
    STOP.install()
    sys.unraisablehook = not_lost
    try:
        yield
    except Stopped as stop:
        before = {}  # `run` may hand the signal on once more, which nothing else is to meet while the process ends
        sys.stdout.flush()
        print(f"unlearn-pl: {stop}", file=sys.stderr, flush=True)
        sys.exit(stop.exit_code)
    finally:
        sys.unraisablehook = hook
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                signal.signal(signum, handler)

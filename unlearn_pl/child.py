"""Processes that a command starts: they end when it ends, whatever ends it."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from unlearn_pl.stopping import Stopped


def run_child(command: Sequence[str]) -> int:
    """The exit code of a command. A signal that stops this process stops the command first, in its own way; where the
    system can (Linux), so does whatever else ends this process, such as SIGKILL."""
    # a process of its own: a launcher of several processes starts the command line it finds again
    child = subprocess.Popen(command, preexec_fn=ending_with_parent())
    try:
        return child.wait()
    except Stopped as stop:
        with suppress(ProcessLookupError):
            child.send_signal(stop.signum)
        child.wait()  # it writes its checkpoint
        raise
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def ending_with_parent() -> Callable[[], None] | None:
    """What a child calls first, to get SIGTERM when this process is gone; None where there is no such request."""
    if sys.platform != "linux":
        return None
    # looked up here, since between fork and exec a child should do little
    request, parent, death_signal = ctypes.CDLL(None).prctl, os.getpid(), 1  # PR_SET_PDEATHSIG

    def ask() -> None:
        request(death_signal, signal.SIGTERM.value)
        if os.getppid() != parent:  # gone before it was asked
            os.kill(os.getpid(), signal.SIGTERM)

    return ask

"""Parts of a measurement, one after the other, within a time: none takes another with it, and none is lost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.remote import Remote
from unlearn_pl.errors import one_line

LONGER = 4
"""So many times longer than expected a part may take, if there is time, before it is stopped."""


@dataclass(frozen=True)
class Part:
    """A part by its name, the seconds that it is expected to take, and what it does within so many seconds."""

    name: str
    seconds: float
    work: Callable[[float], dict[str, Any]]


def run_parts(
    parts: Sequence[Part],
    seconds: float,
    note: Callable[[dict[str, dict[str, Any]]], None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, dict[str, Any]]:
    """Name -> what the part gave, with ``took`` in seconds; or ``error``, one line; or ``left_out``, the reason, if
    less time is left than it is expected to take. ``note`` is called after each part with all that there is."""
    end = clock() + seconds
    done: dict[str, dict[str, Any]] = {}
    for part in parts:
        began = clock()
        left = end - began
        if left < part.seconds:
            done[part.name] = {"left_out": f"{max(0, left):.0f} s were left, it takes about {part.seconds:.0f} s"}
        else:
            try:
                found = part.work(min(left, LONGER * part.seconds))
            except Exception as error:
                found = {"error": f"{type(error).__name__}: {one_line(error)}"}
            done[part.name] = found | {"took": round(clock() - began, 1)}
        note(done)
    return done


class Crew:
    """A process that measures, as long as it is well: after an error the next part gets a fresh one, since memory may
    be held and a device that failed once fails for ever."""

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        self.make, self.arguments = make, arguments
        self.remote: Remote | None = None

    def ask(self, seconds: float, method: str, *arguments: Any) -> Any:
        """As ``Remote.ask``."""
        self.remote = self.remote or Remote("measuring", self.make, *self.arguments)
        try:
            return self.remote.ask(method, *arguments, seconds=seconds)
        except BaseException:
            self.dismiss()
            raise

    def dismiss(self) -> None:
        """End the process."""
        remote, self.remote = self.remote, None
        if remote is not None:
            remote.stop()

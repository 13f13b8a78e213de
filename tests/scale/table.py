"""Cases of the table: what is expected, what came, and a line for each as it comes."""

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One row.

    Args:
        name: What is done, such as `fit, 2 processes, SIGKILL in a checkpoint write`.
        expected: What must come, word for word.
        got: Does it in an empty folder of its own and returns what came; called in a thread, so it starts processes
            and changes neither folder nor environment of this one.
        alone: Whether no other case may run beside it.
    """

    name: str
    expected: str
    got: Callable[[Path], str]
    alone: bool = False


@dataclass(frozen=True)
class Row:
    """A case that has run: what came and the seconds that it took."""

    case: Case
    got: str
    seconds: float

    @property
    def good(self) -> bool:
        return self.got == self.case.expected

    def __str__(self) -> str:
        mark = "ok  " if self.good else "FAIL"
        got = "the same" if self.good else self.got
        return f"{mark}  {self.seconds:5.0f} s  {self.case.name}: expected {self.case.expected}; got {got}"


def run_case(case: Case, folder: Path) -> Row:
    """Run a case in ``folder``, which is made; whatever it raises is what came."""
    folder.mkdir(parents=True)
    began = time.monotonic()
    try:
        got = case.got(folder)
    except Exception as error:
        traceback.print_exc(limit=-2)
        got = f"{type(error).__name__}: {' '.join(str(error).split())[-4000:]}"
    return Row(case, got, time.monotonic() - began)


def run_cases(cases: Iterable[Case], folder: Path, jobs: int, tell: Callable[[Row], None]) -> Sequence[Row]:
    """Run cases, ``jobs`` at a time, each in a numbered folder below ``folder``; those that must be alone come last."""

    def run(place: int, case: Case) -> Row:
        row = run_case(case, folder / f"{place:03d}")
        tell(row)
        return row

    numbered = list(enumerate(cases))
    with ThreadPoolExecutor(jobs) as pool:
        rows = list(pool.map(lambda pair: run(*pair), [pair for pair in numbered if not pair[1].alone]))
    return rows + [run(place, case) for place, case in numbered if case.alone]

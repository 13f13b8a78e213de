"""python -m tests.scale [PART ...] [--seed N] [--jobs J] [--keep FOLDER]: run all parts, or those named.

A part is a module of this folder with `cases(seed, folder)`, which yields `table.Case`s; ``folder`` is where what its
cases share may be put. Ends with a summary and exit code 0 if every case gave what was expected.
"""

import argparse
import importlib
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.scale.table import Row, run_cases

PARTS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if "def cases(" in path.read_text()))
"""Every module here that has cases."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments of kills and the like")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--keep", type=Path, help="a new folder for what the cases write, which then stays")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and what they start
    os.environ["OMP_NUM_THREADS"] = "1"  # each case starts processes of its own, at most one a core
    sys.exit(run_parts(options.parts or PARTS, options.seed, options.jobs, options.keep))


def run_parts(parts: tuple[str, ...], seed: int, jobs: int, keep: Path | None) -> int:
    """Run parts one after the other and print the table; 1 if a case failed, else 0."""
    began, rows = time.monotonic(), []
    with ExitStack() as stack:
        root = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for part in parts:
            print(f"{part} (seed {seed})", flush=True)
            module = importlib.import_module(f"tests.scale.{part}")
            shared = root / part / "shared"
            shared.mkdir(parents=True)
            rows += run_cases(module.cases(seed, shared), root / part, jobs, tell)
    failed = [row for row in rows if not row.good]
    print(f"\n{len(rows) - len(failed)} of {len(rows)} cases as expected, {time.monotonic() - began:.0f} s")
    for row in failed:
        print(row)
    return int(bool(failed))


def tell(row: Row) -> None:
    print(row, flush=True)


if __name__ == "__main__":
    main()

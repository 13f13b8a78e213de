"""What is given to the command line by the thousand, damaged: each case works or is refused in one line, and leaves
nothing half-written. `test_fuzz.py` runs a share of it; `python tests/fuzzing.py --cases 2400` all."""

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
from command_server import CommandServer, Done, Limits
from fuzz_cases import KINDS, Case
from fuzz_world import World, make_world
from tiny_base import build_model, build_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

LIMITS = Limits(seconds=90, memory=10 * 2**30)
LONGEST = 1500
"""Characters of an error line."""


@dataclass
class Tally:
    """What came of the cases of a kind."""

    worked: int = 0
    refused: int = 0
    broken: list[tuple[Case, str, Done]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def cases(self) -> int:
        return self.worked + self.refused + len(self.broken)


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below ``folder``, a file with the hash of its bytes."""
    found = {}
    for path in folder.rglob("*"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = digest
    return found


TEMPORARY = re.compile(r"(^|/)\.[^/]*(\.[0-9a-f]{32}(\.old)?|\.part)$|\.tmp$")


UNCLEAR = re.compile(
    r"object is not|argument of type|unhashable|has no attribute|positional argument|keyword argument|NoneType|"
    r"not supported between|<class |<function|object at 0x|must be a mapping, not|unpack|subscriptable|list indices"
)
"""What Python says of a defect, not of a mistake."""


def fault(done: Done, before: Mapping[str, str], after: Mapping[str, str]) -> str | None:
    """What is wrong with how a command line ended; None if nothing is."""
    if "Traceback (most recent call last)" in done.err + done.out:
        return "traceback"
    if done.code not in (0, 2):
        return f"exit code {done.code}"
    if (errors := len(done.errors)) != (1 if done.code else 0):
        return f"{errors} error lines with exit code {done.code}"
    if torn := [name for name in after if TEMPORARY.search(name)]:
        return f"half-written: {torn}"
    if gone := [name for name in before if after.get(name) != before[name]]:
        return f"changed: {gone}"
    if done.code == 0:
        return None
    last = done.err.splitlines()[-1]
    if last != done.errors[0]:
        return "the error is not the last line"
    if len(last) > LONGEST or not last.isprintable():
        return f"not one readable line of at most {LONGEST} characters"
    if found := UNCLEAR.search(re.sub(r"is of the wrong type \(.*\)", "", last)):
        return f"unclear: {found[0]}"
    if new := sorted(name for name in after.keys() - before.keys() if after[name]):
        return f"left by a refusal: {new}"
    return None


def attempt(case: Case, folder: Path, server: CommandServer) -> tuple[str | None, Done]:
    """Run a case in a folder of its own, two levels deep: a name that leads upwards stays in ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    place = folder / "a/b"
    place.mkdir(parents=True)
    for name, content in case.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    before = contents(folder)
    done = server.run_within(LIMITS, place, *case.words, HF_HUB_OFFLINE="1")
    return fault(done, before, contents(folder)), done


def fuzz(
    kind: str, world: World, server: CommandServer, cases: int, seed: int | None = None, go_on: bool = False
) -> Tally:
    """Try so many cases of a kind; the first that is broken fails, unless the others are asked for too."""
    tally = Tally()
    options = hypothesis.settings(
        max_examples=cases, deadline=None, database=None, derandomize=seed is None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate] if go_on else list(hypothesis.Phase),
    )  # fmt: skip

    def one(case: Case) -> None:
        reason, done = attempt(case, world.root / "cases" / kind, server)
        if reason is not None:
            tally.broken.append((case, reason, done))
            assert go_on, f"{reason}\n{case}\nexit code {done.code}\n{done.out}\n{done.err}"
        elif done.code == 0:
            tally.worked += 1
        else:
            tally.refused += 1
            tally.reasons[re.sub(r"\d+", "0", done.errors[0])[:100]] += 1

    given = hypothesis.given(KINDS[kind][1](world))(one)
    (options(given) if seed is None else options(hypothesis.seed(seed)(given)))()
    return tally


def table(tallies: Mapping[str, Tally]) -> str:
    """Cases by kind, as Markdown."""
    rows = [(kind, t.cases, t.worked, t.refused, len(t.broken)) for kind, t in tallies.items()]
    rows.append(("all", *(sum(row[column] for row in rows) for column in range(1, 5))))
    lines = [f"| {kind} | {cases} | {worked} | {refused} | {broken} |" for kind, cases, worked, refused, broken in rows]
    return "\n".join(
        ["| fuzzed | cases | worked | refused in one line | broken |", "|---|---:|---:|---:|---:|", *lines]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2400, help="of all kinds together")
    parser.add_argument("--each", type=int, help="of each kind")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, help="of other cases than the same each time")
    options = parser.parse_args()
    whole = sum(part for part, _ in KINDS.values())
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name, CommandServer() as server:
        world = make_world(Path(name), server, *tiny_base())
        tallies = {}
        for kind in options.kinds:
            count = options.each or -(-options.cases * KINDS[kind][0] // whole)
            tallies[kind] = fuzz(kind, world, server, count, options.seed, go_on=True)
            for case, reason, done in tallies[kind].broken:
                print(f"BROKEN ({kind}): {reason}\n{case}\nexit code {done.code}\n{done.out}\n{done.err}\n", flush=True)
        print(table(tallies))
    sys.exit(any(tally.broken for tally in tallies.values()))


def tiny_base() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Those of the tests."""
    tokenizer = build_tokenizer()
    return build_model(tokenizer), tokenizer


if __name__ == "__main__":
    main()

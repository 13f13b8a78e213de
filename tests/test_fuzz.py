"""Damaged files and command lines by the hundred: each works, or is refused in one line that leaves nothing behind.

All of them: `python tests/fuzzing.py`, part of `make test-scale`.
"""

import pytest
from command_server import CommandServer, Done
from damage import damaged_bytes, damaged_tree, paths
from fuzz_cases import KINDS
from fuzz_world import World
from fuzzing import fault, fuzz
from hypothesis import given

SHARE = 25
"""Of all cases one in so many."""


@pytest.mark.parametrize("kind", KINDS)
def test_it_works_or_is_refused_in_one_line(world: World, server: CommandServer, kind: str) -> None:
    tally = fuzz(kind, world, server, KINDS[kind][0] // SHARE)
    assert tally.cases == tally.worked + tally.refused > 0


ONE = Done(2, "", "unlearn-pl: error: no such file\n")


@pytest.mark.parametrize(
    ("done", "after", "wrong"),
    [
        (ONE, {"in": "1"}, None),
        (Done(0, "", ""), {"in": "1", "out": "2"}, None),
        (Done(1, "", "Traceback (most recent call last):\n"), {"in": "1"}, "traceback"),
        (Done(-14, "", ""), {"in": "1"}, "exit code -14"),
        (Done(2, "", ""), {"in": "1"}, "0 error lines"),
        (Done(2, "", ONE.err * 2), {"in": "1"}, "2 error lines"),
        (Done(0, "", ONE.err), {"in": "1"}, "1 error lines"),
        (Done(2, "", f"{ONE.err}more\n"), {"in": "1"}, "the error is not the last line"),
        (Done(2, "", f"unlearn-pl: error: {'y' * 2000}\n"), {"in": "1"}, "not one readable line"),
        (Done(2, "", "unlearn-pl: error: a\x1b[1m\n"), {"in": "1"}, "not one readable line"),
        (Done(2, "", "unlearn-pl: error: 'NoneType' object is not iterable\n"), {"in": "1"}, "unclear"),
        (ONE, {"in": "1", "out": "2"}, "left by a refusal: ['out']"),
        (ONE, {"in": "2"}, "changed: ['in']"),
        (Done(0, "", ""), {}, "changed: ['in']"),
        (Done(0, "", ""), {"in": "1", f"a/.out.{'0' * 32}": ""}, "half-written"),
    ],
)
def test_what_is_a_fault(done: Done, after: dict[str, str], wrong: str | None) -> None:
    found = fault(done, {"in": "1"}, after)
    assert found is None if wrong is None else str(found).startswith(wrong)


@given(damaged_tree({"a": [1, {"b": "x"}], "c": None}), damaged_bytes(b"0123456789"))
def test_damage_leaves_the_whole_as_it_was(tree: object, content: bytes) -> None:
    """Each draw starts from the same tree."""
    assert isinstance(content, bytes)
    assert len(list(paths({"a": [1, {"b": "x"}], "c": None}))) == 6
    del tree

"""The programs that the long table starts."""

import sys

import pytest

from tests.scale import programs


def test_a_program_that_hangs_says_where_it_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    """In itself and in a process that it started, as a data worker or a second rank is one."""
    monkeypatch.setattr(programs, "SECONDS", 2.0)
    child = "import time\ndef waits_in_child(): time.sleep(60)\nwaits_in_child()"
    parent = f"import subprocess, sys\ndef waits(): subprocess.run([sys.executable, '-c', {child!r}])\nwaits()"
    with pytest.raises(TimeoutError, match="had not ended after 2 s") as caught:
        programs.program([sys.executable, "-c", parent])
    assert "in waits\n" in str(caught.value)
    assert "in waits_in_child\n" in str(caught.value)


def test_a_program_that_leaves_a_child_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "AFTER", 0.5)
    child = "import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    ended = programs.program([sys.executable, "-c", parent])
    assert (ended.code, ended.left_some) == (0, True)

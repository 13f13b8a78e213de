"""What the terminal shows of a warning."""

import warnings

import pytest

import unlearn_pl.training.resume
from unlearn_pl.__main__ import command


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours without the line of source that Python adds; another library's with its place."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # and back again
    command("fit")
    text = "ckpt_path: seed was 1\nand is 2"
    assert warnings.formatwarning(UserWarning(text), UserWarning, unlearn_pl.training.resume.__file__, 128) == (
        "unlearn-pl: warning: ckpt_path: seed was 1 and is 2\n"
    )
    assert warnings.formatwarning("old", FutureWarning, "/lib/other.py", 3) == "/lib/other.py:3: FutureWarning: old\n"

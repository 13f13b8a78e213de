"""The parser behind the commands that are plain functions."""

from dataclasses import dataclass, field

import pytest

from unlearn_pl.errors import InputError, within
from unlearn_pl.parsing import parse_function, with_flag


@dataclass(frozen=True, kw_only=True)
class Inner:
    share: float = 0.5
    """A share."""

    def __post_init__(self) -> None:
        if self.share > 1:
            raise InputError(f"must be at most 1, got {self.share:g}", "share")


@dataclass(frozen=True, kw_only=True)
class Options:
    inner: Inner = field(default_factory=Inner)
    """A group."""
    names: list[str] | None = None
    """A list."""


def test_the_fields_of_options_are_flags_of_the_command() -> None:
    seen: list[tuple[str, Options]] = []

    def command(model: str, options: Options) -> None:
        """A command."""
        seen.append((model, options))

    parse_function(command, ["--model", "m", "--inner.share=0.25", "--names", "a", "b"], "command")
    parse_function(command, ["--model", "n"], "command")
    assert seen == [("m", Options(inner=Inner(share=0.25), names=["a", "b"])), ("n", Options())]
    with pytest.raises(InputError, match=r"^--inner\.share: must be at most 1, got 2$"):
        parse_function(command, ["--model", "m", "--inner.share=2"], "command")


def test_the_name_of_a_parameter_becomes_the_flag_that_it_stands_for() -> None:
    """The whole name, else the only argument that ends with it, else the one that was given, else no flag at all."""
    known = ["model", "fits", "search.grid", "twin.share", "inner.share"]
    for name, given, told in (
        ("model", (), "--model: bad"),
        ("grid", (), "--search.grid: bad"),
        ("search.grid", (), "--search.grid: bad"),
        ("share", ("--twin.share=1",), "--twin.share: bad"),
        ("share", (), "share: bad"),
        ("fits.over", (), "--fits.over: bad"),
        ("elsewhere", (), "elsewhere: bad"),
        (None, (), "bad"),
    ):
        assert str(with_flag(InputError("bad", name), known, given)) == told


def test_from_python_a_refusal_names_the_parameter() -> None:
    with pytest.raises(InputError, match=r"^share: must be at most 1, got 2$") as refused:
        Inner(share=2)
    assert (refused.value.name, refused.value.reason) == ("share", "must be at most 1, got 2")
    with pytest.raises(InputError, match=r"^outer\.inner\.share: ") as refused, within("outer"), within("inner"):
        Inner(share=3)
    assert refused.value.name == "outer.inner.share"
    with pytest.raises(InputError, match=r"^no name$"), within("outer"):
        raise InputError("no name")

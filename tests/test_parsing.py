"""The parser behind the commands that are plain functions."""

import re
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass(frozen=True, kw_only=True)
class Lists:
    parts: dict[str, Inner] = field(default_factory=dict)
    """Options under names of the user's own."""
    whole: Inner = field(default_factory=Inner)
    """A group."""
    names: list[str] = field(default_factory=list)
    """A list."""


def command_of_lists(model: str = "m", seed: int = 1, *, options: Lists) -> None:
    """A command."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must be a mapping, `NAME: VALUE` on a line each, got nothing"),
        ("[1]", r"must be a mapping, .*, got \[1\]"),
        ("hello", r"must be a mapping, .*, got 'hello'"),
        ("model: [\n", r"line 2, column 1: not YAML: .*"),
        (b"model: caf\xe9\n", r"must be UTF-8, but byte 10 is not"),
        ('model: "a\\0b"\n', r"'model' holds a NUL character, on line 1"),
        ("model: a\nseed: 2\nmodel: b\n", r"model is given twice, on lines 1 and 3"),
        ("parts: {a: {share: 0.1, share: 0.2}}\n", r"parts\.a\.share is given twice, on line 1"),
        ("parts: &a {b: *a}\nmodel: [{x: 1, x: 2}]\n", r"model\.x is given twice, on line 2"),
    ],
)
def test_a_configuration_is_one_mapping_with_every_key_once(text: str | bytes, message: str, tmp_path: Path) -> None:
    """Else the last of two values would win in silence."""
    file = tmp_path / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"^{file}: {message}$"):
        parse_function(command_of_lists, [str(file)], "command")


def test_a_key_twice_is_refused_wherever_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nested.yaml").write_text("share: 0.1\nshare: 0.2\n")
    (tmp_path / "c.yaml").write_text("<<: &more {model: b}\nmodel: a\n")
    parse_function(command_of_lists, [str(tmp_path / "c.yaml")], "command")  # a merged key may be overridden
    for given in (f"--whole={tmp_path / 'nested.yaml'}", "--whole={share: 0.1, share: 0.2}"):
        with pytest.raises(SystemExit):
            parse_function(command_of_lists, [given], "command")
        assert re.search(r"^unlearn-pl: error: --whole: .*share is given twice", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts: null", r"parts: must be .*, got null"),
        ("parts: {a: null}", r"parts\.a: must be options of its own, as {NAME: VALUE, ...}, got null"),
        (
            "parts: {a: x}",
            r"parts\.a: must be options of its own, as {NAME: VALUE, ...}, or the import path of a class, got x",
        ),
        ("parts: {b: {share: 0.1}, a: {share: many}}", r"parts\.a\.share: must be float, got many"),
        ("parts: {b: {share: 0.1}, a: {shar: 0.1}}", r"parts\.a\.shar: no option 'shar'"),
        ("whole: null", r"whole: must be options of its own, as {NAME: VALUE, ...}, got null"),
        ("whole: {share: null}", r"whole\.share: must be float, got null"),
        ("names: null", r"names: must be list\[str\], got null"),
        ("model: null", r"model: must be str, got null"),
        ("seed: null", r"seed: must be int, got null"),
        ("parts: {b: {share: 0.1}, a: {share: 2}}", r"--parts\.a\.share: must be at most 1, got 2"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_the_whole_name_of_its_key(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises((InputError, SystemExit)) as refused:
        parse_function(command_of_lists, [str(file)], "command")
    told = capsys.readouterr().err.removeprefix("unlearn-pl: error: ") or str(refused.value)
    assert re.fullmatch(message if message.startswith("--") else rf"{file}, line 1: {message}", told.strip()), told


def test_a_line_is_named_of_a_file_in_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/c.yaml").write_text("model: m\nwhole: {share: many}\n")
    with pytest.raises(SystemExit):
        parse_function(command_of_lists, ["configs/c.yaml"], "command")
    assert capsys.readouterr().err.startswith("unlearn-pl: error: configs/c.yaml, line 2: whole.share: must be float")

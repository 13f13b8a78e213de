"""The text of a configuration: one YAML mapping, with every key once."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from unlearn_pl.errors import InputError

MODES = ("yaml", "omegaconf+")
"""How our parsers read values: the plain commands, and those of Lightning."""
CONFIG = ("--config", "-c")
READ = ("base", "adapter", "tokenizer", "forget", "retain", "with_adapter", "member", "nonmember", "choice.folder")
"""How the keys end of what a fit reads: models, adapters and data."""


# also a TypeError: that is what jsonargparse takes for a value that cannot be read, and tells with the argument's name
class ConfigError(InputError, TypeError):
    """The text of a configuration, or of a value, cannot be taken."""


class Place(NamedTuple):
    """Where a configuration gives a key."""

    path: str
    """The keys that lead to it, with dots."""
    line: int
    value: str
    """What it holds; empty if that is no single value."""


def places(text: str) -> Iterator[Place]:
    """Every key of a YAML text in order. Raises ConfigError if a mapping holds one twice."""
    root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    yield from _below(root, "", ()) if root is not None else ()


def _below(node: yaml.Node, path: str, trail: tuple[yaml.Node, ...]) -> Iterator[Place]:
    """The keys of a node and of what is in it, but for an anchor that leads back to itself."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _below(item, path, (*trail, node)) if item not in trail else ()
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        one, line = (key.tag, str(key.value)), key.start_mark.line + 1
        if one in lines:
            where = f"lines {lines[one]} and {line}" if line != lines[one] else f"line {line}"
            raise ConfigError(f"{path}{one[1]} is given twice, on {where}")
        lines[one] = line
        yield Place(f"{path}{one[1]}", line, value.value if isinstance(value, yaml.ScalarNode) else "")
        yield from _below(value, f"{path}{one[1]}.", (*trail, node)) if value not in (*trail, node) else ()


def places_of(file: str | Path) -> list[Place]:
    """Every key of a file; none if it is not there or cannot be read."""
    try:
        return list(places(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError):
        return []


def files_named(words: Sequence[str]) -> list[Path]:
    """The configurations that the command line of a fit names, and the models, adapters and data that it or they name;
    those of them that are on this disk, each once. A flag stands for the same key of a configuration."""
    split = [part for word in words for part in (word.split("=", 1) if word.startswith("-") else [word])]
    given = list(itertools.pairwise(split))
    configs = [value for flag, value in given if flag in CONFIG]
    named: dict[str, list[str]] = {}
    for place in itertools.chain.from_iterable(map(places_of, configs)):
        named.setdefault(place.path, []).append(place.value)
    named |= {flag[2:]: [value] for flag, value in given if flag.startswith("--")}
    values = [
        value for key, ones in named.items() if f".{key}".endswith(tuple(f".{end}" for end in READ)) for value in ones
    ]
    paths = [Path(value).expanduser() for value in dict.fromkeys([*configs, *values]) if value and "\0" not in value]
    return [path for path in paths if path.exists()]


def check_config(text: str, mode: str) -> None:
    """Raise ConfigError unless ``text`` is a mapping that a parser of ``mode`` reads."""
    try:
        value = get_loader(mode)(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{where}not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        got = "nothing" if value is None or value == "" else repr(value)
        raise ConfigError(f"must be a mapping, `NAME: VALUE` on a line each, got {got[:100]}")


def whole(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """``load``, which refuses a text whose last of two values would win in silence, or that holds what no path can."""

    def loader(text: str) -> Any:
        value = load(text)
        if isinstance(value, dict | list):
            for place in places(text):
                if "\0" in place.path + place.value:
                    raise ConfigError(f"{place.path!r} holds a NUL character, on line {place.line}")
        return value

    return loader


for mode in MODES:
    ArgumentParser(parser_mode=mode).parse_string("{}")  # jsonargparse sets its own loader when it is first needed
    set_loader(mode, whole(get_loader(mode)), (yaml.YAMLError,))

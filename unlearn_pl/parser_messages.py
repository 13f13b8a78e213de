"""What jsonargparse says of a mistake, in one line of this project's words."""

import difflib
import inspect
import itertools
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass

from unlearn_pl.config_file import places_of


def explain(
    message: str, args: list[str], known: list[str], classes: dict[str, tuple[type, ...]], every: list[str]
) -> str:
    """What a jsonargparse ``message`` about ``args`` means, in one line. ``known`` are the arguments of the parser that
    found the mistake, ``every`` those of the outermost."""
    message = message.strip()
    if match := re.match(r"the following arguments are required: (.*)", message, re.IGNORECASE):
        return f"needed: {', '.join(needed_flag(name, args, every) for name in match[1].split(', '))}"
    if match := re.match(r'Key "([^"]+)\.[^".]+" not found in namespace', message):
        place, _ = locate(match[1], args, "null")
        return f"{place}: must be options of its own, as {{NAME: VALUE, ...}}, got null"
    if match := re.match(r"unrecognized arguments: ([^-]\S*)", message, re.IGNORECASE):
        return f"{match[1]}: a value that belongs to no argument; a list is written '[a, b]'"
    if match := re.match(r"unrecognized arguments: -*(\S+?)(?:=.*)?$", message, re.IGNORECASE):
        return f"--{match[1]}: no such argument{guess(match[1], known)}"
    if match := re.match(r"Option '([^']+)' is not accepted", message):
        place, path = locate(match[1], args)
        options = options_below(path, classes)
        takes = "".join(f"; {name} takes {', '.join(names)}" for name, names in options.items())
        near = guess(match[1], [name for names in options.values() for name in names])
        return f"{place}: no option '{match[1]}'{near}{takes}"
    if match := re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL):
        place, path = locate(match[1], args, plain_value(got_in(match[2])))
        return f"{place}: {cause(match[2], path, classes)}"
    return re.sub(r"\s*\n\s*", " ", message)


def cause(reason: str, path: str, classes: dict[str, tuple[type, ...]]) -> str:
    """The reason why a value was refused, in words."""
    if re.match(r"unsupported operand type", reason):  # jsonargparse, of a name such as `?`
        return "must be a file that exists"
    if match := re.match(r"Unable to load config '(.*?)' - ", reason, re.DOTALL):
        return f"must be options of its own, as {{NAME: VALUE, ...}}, or a file of them, got {match[1]:.100}"
    named = [kind.__name__ for key, kinds in classes.items() if path.startswith(key) for kind in kinds]
    if not named and (found := own_class(reason)):
        return found
    match = re.search(r"Not a valid subclass of \w+\. Got value: (.*)|Expected a dot import path string: (\S+)", reason)
    if match and not named:
        kinds = "options of its own, as {NAME: VALUE, ...}" + (", or the import path of a class" if match[2] else "")
        return f"must be {kinds}, got {plain_value(match[1] or match[2])}"
    if match := re.search(r"Expected a dot import path string: (\S+)", reason):
        return f"no class {match[1]}{guess(match[1], named)}; the classes are {', '.join(named)}, or an import path"
    if named and re.search(r"argument of type|unhashable type|has no attribute", reason):
        kinds = ", ".join(named)
        return (
            f"must be one of {kinds}, as {{class_path: NAME, init_args: {{...}}}}, with a text and options of its own"
        )
    if (match := re.search(r"Not a valid subclass of \w+\. Got value: (.*)", reason)) and named:
        got = "null" if match[1] == "None" else match[1]
        return f"must be one of {', '.join(named)}, as {{class_path: NAME, init_args: {{...}}}}, got {got}"
    if (match := re.search(r"but (\S+) is abstract", reason)) and not match[1].startswith("unlearn_pl."):
        return f"{match[1]} is abstract: it lacks a method that every class of its kind defines"
    if "is abstract" in reason:
        return f"a new slot needs a class first: one of {', '.join(named)}"
    got = got_in(reason)
    allowed = re.search(r"Subtypes: \[(.*)\]", reason) or re.search(r"Expected an? (.*?)(?:\. Got value|$)", reason)
    if got and allowed:
        return f"must be {plain_types(allowed[1])}, got {plain_value(got)}"
    return re.sub(r"\s*\n\s*", " ", reason)


def got_in(reason: str) -> str | None:
    """The value that jsonargparse says it was given."""
    found = re.search(r"(?:Got value|Given value|import path string):(?: (.*)|\s*$)", reason)
    return (found[1] or "''") if found else None


def plain_value(text: str | None) -> str | None:
    """A value as YAML writes it."""
    return "null" if text == "None" else text


def own_class(reason: str) -> str | None:
    """Why a class of the user's own cannot be taken, None if ``reason`` is about something else."""
    match = re.search(
        r"Subtypes: \[<class '[\w.]*?(?P<kind>[A-Z]\w*)'>, <class 'NoneType'>\]\s*Errors:\s*- (?P<why>.*?)\s*"
        r"- Expected a <class 'NoneType'>.*Given value:\s*(?P<given>.*)",
        reason,
        re.DOTALL,
    )
    if match is None or match["why"].startswith("Expected a <class"):  # a plain type
        return None
    why = re.sub(r"Problem with given class_path '[^']*':|With fail_untyped=True, ", "", match["why"])
    why = " ".join(why.split()).partition(" Subclass types expect one of")[0]
    must = f"must be the import path of a {match['kind']} (my_file.My{match['kind']}), got {match['given']!r}"
    return f"{must}: {why}"


def plain_types(text: str) -> str:
    """``<class 'int'>, typing.Literal['epoch']`` as ``int or 'epoch'``."""
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text).replace("NoneType", "null")
    if match := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return f"one of {match[1]}"
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", text)
    return " or ".join(part.strip() for part in re.split(r",(?![^\[]*\])", text))


def needed_flag(name: str, args: Iterable[str], known: Iterable[str]) -> str:
    """The flag of an argument that was not given: of the command, or of the class that one of ``args`` names."""
    below = name.partition(".")[2]  # of a subcommand
    if name in known or below in known:
        return f"--{name if name in known else below}"
    classes = [match[1] for arg in args if (match := re.fullmatch(r"--([\w.]+)=[\w.]*\b[A-Z]\w*", arg))]
    return f"--{classes[0]}.{name}" if len(classes) == 1 else name


def locate(key: str, args: Iterable[str], got: str | None = None) -> tuple[str, str]:
    """Where the user wrote ``key`` (the flag, or the line of a config file; there that which holds ``got``, or the
    key in it that does), and its whole dotted path if known."""
    args = list(args)
    files = [after for flag, after in itertools.pairwise(args) if flag in ("--config", "-c")]
    files += [arg.split("=", 1)[1] for arg in args if arg.startswith(("--config=", "-c="))]
    for arg in args:
        flag = arg.split("=", 1)[0].lstrip("-").rstrip("+")
        if arg.startswith("--") and (flag == key or flag.endswith(f".{key}")):
            return f"--{flag}", flag
    for file in files:
        found = [one for one in places_of(file) if f".{key}." in f".{one.path}."]
        named = [one for one in found if f".{one.path}".endswith(f".{key}")]
        if named:
            one = next((one for one in found if got is not None and one.value == got), named[0])
            return f"{file}, line {one.line}: {one.path}", one.path
    return f"--{key}", key


def options_below(path: str, classes: dict[str, tuple[type, ...]]) -> dict[str, list[str]]:
    """Class -> options, of the classes that may stand at ``path``; of all classes if only the last name is known."""
    chosen = [kind for key, kinds in classes.items() if path.startswith(key) or "." not in path for kind in kinds]
    return {kind.__name__: options_of(kind) for kind in chosen}


def options_of(kind: type) -> list[str]:
    """The options that a class takes."""
    if is_dataclass(kind):
        return [field.name for field in fields(kind)]
    return list(inspect.signature(kind).parameters)


def guess(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)`` if one of ``known`` is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""

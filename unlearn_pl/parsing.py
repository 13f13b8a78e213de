"""The argument parser behind every command: a mistake is one line that names the argument, what was allowed and what
came, and exit code 2."""

import difflib
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

from unlearn_pl.errors import InputError, check_seed, refusal_behind

# docstrings under dataclass fields become --help; ${trainer.default_root_dir} in a config needs no `fit.` before it
set_parsing_settings(docstring_parse_attribute_docstrings=True, omegaconf_absolute_to_relative_paths=True)


OPTIONS = "options"
"""The parameter of a command whose fields are flags of the command itself."""


class ShortErrors(ArgumentParser):
    """A parser whose errors come without usage, with what was allowed and the nearest known name."""

    given: ClassVar[list[str]] = []
    """What is being parsed: a recipe parses the command lines of its fits too."""
    known: ClassVar[list[str]] = []
    """The arguments that the parser of ``given`` takes."""

    def parse_args(  # type: ignore[override]
        self, args: list[str] | None = None, *more: Any, **options: Any
    ) -> Any:
        """Lightning and jsonargparse, after what a shell user leaves out has been added (see ``completed``)."""
        given = ShortErrors.given = sys.argv[1:] if args is None else list(args)
        ShortErrors.known = known_keys(self)
        return super().parse_args(completed(given, switches(self)), *more, **options)

    def classes(self) -> dict[str, tuple[type, ...]]:
        """Those that a config names by class: argument -> classes."""
        return {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = known_keys(self)
        print(f"unlearn-pl: error: {explain(message, self.given, known, self.classes())}", file=sys.stderr)
        sys.exit(2)


def parse_function(
    function: Callable[..., None], args: list[str], program: str, *, positional: str | None = None
) -> None:
    """Parse ``args`` against the signature of ``function`` and call it. ``--config FILE`` gives arguments from a YAML
    file; a first argument without dashes is such a file, unless ``positional`` names the list that arguments without a
    flag belong to. ``program`` is the name in --help."""
    parser = function_parser(function, program, positional)
    if positional is not None:
        args = gathered(args, positional, switches(parser))
    elif args and not args[0].startswith("-"):
        args = ["--config", *args]
    parsed = parser.parse_args(join_lists(args, list_arguments(function)))
    try:
        config = parser.instantiate_classes(parsed)
        if "seed" in config:
            check_seed(config["seed"])
        given = {key: value for key, value in config.items() if key != "config"}
        if kind := options_kind(function):
            given[OPTIONS] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        function(**given)
    except ValueError as error:
        refusal = refusal_behind(error)
        if refusal is None:
            raise
        raise with_flag(refusal, known_keys(parser), args) from error


def with_flag(error: InputError, known: Iterable[str], given: Iterable[str]) -> InputError:
    """``error`` as the command line tells it: the parameter's name as the flag of ``known`` that it stands for.

    That is the one flag that is, or ends with, the name; where several do, the one that ``given`` (the arguments)
    holds. A name that no single flag stands for is left as it is: a wrong flag would be worse than none.
    """
    if error.name is None:
        return error
    flags = [arg.split("=", 1)[0].lstrip("-").rstrip("+") for arg in given if arg.startswith("--")]
    known, group = list(known), error.name.split(".")[0]
    entry = group in known and not any(key.startswith(f"{group}.") for key in known)  # of a dictionary, --fits.over
    if error.name in known or entry:
        return InputError(f"--{error.name}: {error.reason}")
    # also of those that were given: they may lead into an option that is a single argument to the parser
    fitting = {key for key in [*known, *flags] if key.endswith(f".{error.name}")}
    if len(fitting) > 1:
        fitting &= {*flags}
    return InputError(f"--{fitting.pop()}: {error.reason}") if len(fitting) == 1 else error


def function_parser(function: Callable[..., None], program: str, positional: str | None = None) -> ShortErrors:
    """The parser of a command that is a plain function; the fields of its ``options`` are flags of their own."""
    about = (inspect.getdoc(function) or "").split("\nArgs:")[0]  # the arguments are listed below it
    usage = f"{program} [--config FILE.yaml] [--ARGUMENT=VALUE ...]"
    if positional is not None:
        usage = usage.replace(program, f"{program} {positional.upper()} ...", 1)
    parser = ShortErrors(prog=program, usage=usage, description=about)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the arguments below.")
    kind = options_kind(function)
    parser.add_function_arguments(function, as_group=False, sub_configs=True, skip={OPTIONS} if kind else None)
    if kind:
        parser.add_class_arguments(kind, None, as_group=False, sub_configs=True)
    return parser


def options_kind(function: Callable[..., None]) -> Any:
    """The dataclass that a command takes as ``options``: `--method`, not `--options.method`. None if there is none."""
    parameter = inspect.signature(function).parameters.get(OPTIONS)
    return parameter.annotation if parameter is not None and is_dataclass(parameter.annotation) else None


def list_arguments(function: Callable[..., None]) -> list[str]:
    """The arguments of ``function`` that are lists, those inside of its options with a dot (``search.methods``)."""
    kinds = {name: parameter.annotation for name, parameter in inspect.signature(function).parameters.items()}
    if options := options_kind(function):
        kinds |= {field.name: field.type for field in fields(options)}
    names = []
    for name, kind in kinds.items():
        if is_dataclass(kind):
            names += [f"{name}.{field.name}" for field in fields(kind) if "list[" in str(field.type)]
        elif "list[" in str(kind):
            names.append(name)
    return names


def join_lists(args: list[str], lists: Iterable[str]) -> list[str]:
    """``--weights 1 1`` as ``--weights=["1", "1"]``, the form jsonargparse takes, for the arguments named in ``lists``;
    and ``--save-model`` as ``--save_model``."""
    joined: list[str] = []
    values: list[str] | None = None
    for arg in args:
        if re.match(r"--[a-z]", arg):
            flag, equals, value = arg.partition("=")
            flag = flag.replace("-", "_").replace("__", "--", 1)
            values = [] if flag[2:] in lists and not equals else None
            joined.append(f"{flag}{equals}{value}")
            head = flag
        elif values is not None and not arg.startswith("["):
            values.append(arg)
            joined[-1] = f"{head}=[{', '.join(map(list_item, values))}]"
        else:
            joined.append(arg)
    return joined


def gathered(args: list[str], name: str, switches: set[str]) -> list[str]:
    """``args`` with those that belong to no flag as the list ``--name``, wherever they stand."""
    flags: list[str] = []
    values: list[str] = []
    owner = ""
    for arg in args:
        if arg.startswith("-"):
            flags.append(arg)
            alone = "=" in arg or arg in ("-h", "--help")
            owner = "" if alone else arg.lstrip("-").replace("-", "_")
        elif owner and (owner not in switches or arg in ("true", "false")):
            flags.append(arg)
            owner = owner if owner == name else ""
        else:
            values.append(arg)
    return [*flags, *([f"--{name}", *values] if values else [])]


def list_item(text: str) -> str:
    """A value within a YAML list: numbers as they are, anything else quoted."""
    return text if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text) else json.dumps(text)


def switches(parser: ArgumentParser) -> set[str]:
    """The arguments of ``parser`` and its subcommands that are true or false."""
    children = [
        child for action in parser._actions if isinstance(action.choices, dict) for child in action.choices.values()
    ]
    own = {action.dest for action in parser._actions if getattr(action, "_typehint", None) in (bool, bool | None)}
    return own.union(*map(switches, children))


def completed(args: Iterable[str], switches: set[str]) -> list[str]:
    """``args`` with ``=true`` behind a switch that stands alone, and quotes around a value that YAML would read as a
    comment (``--data.columns.id=#``)."""
    done = []
    for arg, after in itertools.pairwise([*args, "--"]):
        flag, equals, value = arg.partition("=")
        if not equals and flag.startswith("--") and flag[2:] in switches and after.startswith("-"):
            arg = f"{flag}=true"
        elif flag.startswith("--") and value.startswith("#"):
            arg = f"{flag}={json.dumps(value)}"
        done.append(arg)
    return done


def known_keys(parser: ArgumentParser) -> list[str]:
    """Every argument that ``parser`` and its subcommands take, dots included."""
    keys = []
    for action in parser._actions:
        for child in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            keys += known_keys(child)
        keys.append(action.dest)
    return [key for key in dict.fromkeys(keys) if key not in ("help", "subcommand") and not key.endswith(".help")]


def explain(message: str, args: list[str], known: list[str], classes: dict[str, tuple[type, ...]]) -> str:
    """What a jsonargparse ``message`` about ``args`` means, in one line."""
    message = message.strip()
    if match := re.match(r"the following arguments are required: (.*)", message, re.IGNORECASE):
        return f"needed: {', '.join(needed_flag(name, args, ShortErrors.known) for name in match[1].split(', '))}"
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
        place, path = locate(match[1], args)
        return f"{place}: {cause(match[2], path, classes)}"
    return re.sub(r"\s*\n\s*", " ", message)


def cause(reason: str, path: str, classes: dict[str, tuple[type, ...]]) -> str:
    """The reason why a value was refused, in words."""
    named = [kind.__name__ for key, kinds in classes.items() if path.startswith(key) for kind in kinds]
    if not named and (found := own_class(reason)):
        return found
    if match := re.search(r"Expected a dot import path string: (\S+)", reason):
        return f"no class {match[1]}{guess(match[1], named)}; the classes are {', '.join(named)}, or an import path"
    if (match := re.search(r"Not a valid subclass of \w+\. Got value: (.*)", reason)) and named:
        got = "null" if match[1] == "None" else match[1]
        return f"must be one of {', '.join(named)}, as {{class_path: NAME, init_args: {{...}}}}, got {got}"
    if "is abstract" in reason:
        return f"a new slot needs a class first: one of {', '.join(named)}"
    got = re.search(r"(?:Got value|Given value): (.*)", reason)
    allowed = re.search(r"Subtypes: \[(.*)\]", reason) or re.search(r"Expected an? (.*?)(?:\. Got value|$)", reason)
    if got and allowed:
        return f"must be {plain_types(allowed[1])}, got {got[1]}"
    return re.sub(r"\s*\n\s*", " ", reason)


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
    must = f"must be the import path of a {match['kind']} (my_file.My{match['kind']}), got {match['given']!r}"
    return f"{must}: {' '.join(why.split())}"


def plain_types(text: str) -> str:
    """``<class 'int'>, typing.Literal['epoch']`` as ``int or 'epoch'``."""
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text).replace("NoneType", "null")
    if match := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return f"one of {match[1]}"
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", text)
    return " or ".join(part.strip() for part in re.split(r",(?![^\[]*\])", text))


def needed_flag(name: str, args: Iterable[str], known: Iterable[str]) -> str:
    """The flag of an argument that was not given: of the command, or of the class that one of ``args`` names."""
    if name in known:
        return f"--{name}"
    classes = [match[1] for arg in args if (match := re.fullmatch(r"--([\w.]+)=[\w.]*\b[A-Z]\w*", arg))]
    return f"--{classes[0]}.{name}" if len(classes) == 1 else name


def locate(key: str, args: Iterable[str]) -> tuple[str, str]:
    """Where the user wrote ``key`` (the flag, or the line of a config file), and its whole dotted path if known."""
    args = list(args)
    files = [after for flag, after in itertools.pairwise(args) if flag in ("--config", "-c")]
    files += [arg.split("=", 1)[1] for arg in args if arg.startswith(("--config=", "-c="))]
    for arg in args:
        flag = arg.split("=", 1)[0].lstrip("-").rstrip("+")
        if arg.startswith("--") and (flag == key or flag.endswith(f".{key}")):
            return f"--{flag}", flag
    for file in files:
        path = Path(file)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        for number, line in enumerate(lines, 1):
            if re.search(rf"\b{re.escape(key.rsplit('.', 1)[-1])}\s*:", line):
                return f"{file}, line {number}: {key}", key
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

"""The argument parser behind every command: a mistake is one line that names the argument, what was allowed and what
came, and exit code 2."""

import inspect
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, ClassVar, NoReturn, get_args

from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

from unlearn_pl.config_file import ConfigError, check_config
from unlearn_pl.errors import InputError, check_seed, printable, refusal_behind, within
from unlearn_pl.parser_messages import explain, locate, plain_types

# docstrings under dataclass fields become --help; ${trainer.default_root_dir} in a config needs no `fit.` before it
set_parsing_settings(docstring_parse_attribute_docstrings=True, omegaconf_absolute_to_relative_paths=True)


OWN_OPTIONS = "options of its own, as {NAME: VALUE, ...}"
OPTIONS = "options"
"""The parameter of a command whose fields are flags of the command itself."""


class ShortErrors(ArgumentParser):
    """A parser whose errors come without usage, with what was allowed and the nearest known name."""

    given: ClassVar[list[str]] = []
    """What is being parsed: a recipe parses the command lines of its fits too."""
    known: ClassVar[list[str]] = []
    """The arguments that the parser of ``given`` takes."""
    folder: ClassVar[str] = "."
    """Where the names of files in ``given`` start."""
    whose: ClassVar[str] = ""
    """What stands before each error: whose command line ``given`` is, where that is not the user's own."""

    def parse_args(  # type: ignore[override]
        self, args: list[str] | None = None, *more: Any, **options: Any
    ) -> Any:
        """Lightning and jsonargparse, after what a shell user leaves out has been added (see ``completed``)."""
        given = ShortErrors.given = sys.argv[1:] if args is None else list(args)
        ShortErrors.known = known_keys(self)
        ShortErrors.folder = ShortErrors.folder if hasattr(self, "parent_parser") else os.getcwd()
        parsed = super().parse_args(completed(given, switches(self)), *more, **options)
        if not hasattr(self, "parent_parser"):  # else what is needed has not been looked for yet
            refuse_null(self, parsed)
        return parsed

    def parse_path(self, path: Any, *more: Any, **options: Any) -> Any:
        """jsonargparse's, which tells what is wrong with a file without its name."""
        try:
            return super().parse_path(path, *more, **options)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: must be UTF-8, but byte {error.start} is not") from error
        except ConfigError as error:
            raise InputError(f"{path}: {error.reason}") from error

    def parse_string(self, content: str, *more: Any, **options: Any) -> Any:
        """jsonargparse's, for a text that is a mapping."""
        check_config(content, self.parser_mode)
        return super().parse_string(content, *more, **options)

    def classes(self) -> dict[str, tuple[type, ...]]:
        """Those that a config names by class: argument -> classes."""
        return {}

    @classmethod
    @contextmanager
    def on_behalf_of(cls, whose: str) -> Iterator[None]:
        """Put ``whose`` before the errors of the parsers in the block."""
        cls.whose = whose
        try:
            yield
        finally:
            cls.whose = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = known_keys(self)
        with chdir(self.folder):  # jsonargparse reads a file in its own folder
            told = explain(message, self.given, known, self.classes(), self.known)
        print(f"unlearn-pl: error: {printable(self.whose + told)}", file=sys.stderr)
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
        check_entries(options_kind(function), parsed)
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


def check_entries(kind: Any, parsed: Any) -> None:
    """Raise InputError, with the name of the entry, for what the classes of ``{NAME: OPTIONS}`` refuse: all that they
    say themselves is the option."""
    for field in fields(kind) if kind else ():
        entry = ([*get_args(field.type), None, None])[1]
        for name, options in parsed[field.name].items() if is_dataclass(entry) else ():
            with within(f"{field.name}.{name}"):
                entry(**vars(options))


def refuse_null(parser: ArgumentParser, parsed: Any) -> None:
    """Raise InputError for a null where none is allowed, which jsonargparse takes for "not given", and for a group of
    options that is none."""
    typed = {action.dest for action in parser._actions if getattr(action, "_typehint", None) is not None}
    for action in parser._actions:
        for name, child in action.choices.items() if isinstance(action.choices, dict) else ():
            if name in parsed:
                refuse_null(child, parsed[name])
        groups = [action.dest.rsplit(".", count)[0] for count in range(action.dest.count("."), 0, -1)]
        for name in groups:
            if name not in typed and isinstance(value := parsed.get(name), list | int | float):
                refuse_value(name, OWN_OPTIONS, f"{value!r:.100}")
        hint = getattr(action, "_typehint", None)
        takes = (*get_args(hint), hint)
        if hint is None or action.default is None or not {NoneType, None, Any}.isdisjoint(takes):
            continue
        for name in (*groups, action.dest):
            if parsed.get(name, "") is None:
                refuse_value(name, plain_types(str(hint)) if name == action.dest else OWN_OPTIONS, "null")


def refuse_value(name: str, must: str, got: str) -> NoReturn:
    """Raise InputError, with the place of the argument, for a value that it cannot have."""
    place, _ = locate(name, ShortErrors.given, got)
    raise InputError(f"{place}: must be {must}, got {got}")


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
    return text if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text) else quoted(text)


def quoted(text: str) -> str:
    """A text as YAML quotes it: JSON would write a character such as an emoji as two halves, which YAML refuses."""
    plain = (one if one.isascii() and one.isprintable() and one not in '"\\' else f"\\U{ord(one):08X}" for one in text)
    return f'"{"".join(plain)}"'


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
            arg = f"{flag}={quoted(value)}"
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

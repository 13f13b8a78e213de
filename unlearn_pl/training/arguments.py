"""The arguments of a module as plain values, which a checkpoint can hold, and back."""

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from unlearn_pl.errors import InputError
from unlearn_pl.models.lora import Lora
from unlearn_pl.objectives.base import Objective
from unlearn_pl.training.cache import ReferenceCache

CLASS, OPTIONS = "class_path", "init_args"
KINDS = (Objective, Lora, ReferenceCache)


def to_plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``values``: the arguments that have a plain form; ``left_out``: the names of those that have none, such as a
    model in memory."""
    values: dict[str, Any] = {}
    left_out = []
    for name, value in arguments.items():
        try:
            values[name] = plain(value)
        except TypeError:
            left_out.append(name)
    return {"values": values, "left_out": left_out}


def plain(value: Any) -> Any:
    """A tree of texts, numbers, lists and dictionaries; options as class and fields. Raises TypeError on all else."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, KINDS) and is_dataclass(value):
        options = {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.init}
        return {CLASS: f"{type(value).__module__}.{type(value).__qualname__}", OPTIONS: options}
    raise TypeError(f"{type(value).__name__} has no plain form")


def from_plain(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``to_plain``, those of ``given`` in the place of the saved ones.

    Raises InputError if one that was left out is not given, or the class of one is not to be found.
    """
    for name in saved["left_out"]:
        if name not in given:
            raise InputError(
                f"was an object in memory, which the checkpoint does not hold: give it again as {name}=...", name
            )
    return {name: revived(value, name) for name, value in saved["values"].items() if name not in given} | dict(given)


def revived(value: Any, name: str) -> Any:
    """A value of ``plain`` as it was; ``name`` is the argument's, for a message."""
    if isinstance(value, dict):
        options = {key: revived(entry, name) for key, entry in value.items() if key != CLASS}
        return found_class(value[CLASS], name)(**options[OPTIONS]) if CLASS in value else options
    return [revived(entry, name) for entry in value] if isinstance(value, list) else value


def found_class(path: str, name: str) -> type:
    """A class of options by its import path. Raises InputError if there is none, or it is of another kind."""
    place, _, kind = path.rpartition(".")
    try:
        found = getattr(sys.modules.get(place) or import_module(place), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"its class {path} is not to be found here; give it again as {name}=...", name) from error
    if not (isinstance(found, type) and issubclass(found, KINDS)):
        raise InputError(f"{path} is none of {', '.join(kind.__name__ for kind in KINDS)}", name)
    return found

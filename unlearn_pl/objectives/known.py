"""Every objective that is known: those of this folder, and those that were imported from elsewhere."""

import inspect
from importlib import import_module
from pkgutil import iter_modules

from unlearn_pl import objectives
from unlearn_pl.objectives.base import Objective


def known_objectives() -> tuple[type[Objective], ...]:
    """The classes below ``Objective`` that are not abstract; imports the files of this folder first."""
    for module in iter_modules(objectives.__path__):
        import_module(f"{objectives.__name__}.{module.name}")
    found, waiting = [], [Objective]
    while waiting:
        kind = waiting.pop(0)
        waiting += kind.__subclasses__()
        found += [] if inspect.isabstract(kind) else [kind]
    return tuple(dict.fromkeys(found))

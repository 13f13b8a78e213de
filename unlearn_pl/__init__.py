"""unlearn_pl: make a language model forget given documents, and prove how well that went.

The names in ``__all__`` are the public ones. Each is loaded when it is first used, so that ``import unlearn_pl`` and
``unlearn-pl --version`` take no time; every other module is internal and may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlearn_pl.data.datamodule import ForgetRetainData
    from unlearn_pl.data.readers import read_records
    from unlearn_pl.data.records import Record
    from unlearn_pl.errors import InputError
    from unlearn_pl.models.lora import Lora
    from unlearn_pl.objectives.base import Objective
    from unlearn_pl.objectives.forget import NPO, GradAscent
    from unlearn_pl.objectives.retain import RetainKL, RetainNLL
    from unlearn_pl.training.module import UnlearningModule

__version__ = "0.1.0"

_HOME = {
    "ForgetRetainData": "data.datamodule",
    "GradAscent": "objectives.forget",
    "InputError": "errors",
    "Lora": "models.lora",
    "NPO": "objectives.forget",
    "Objective": "objectives.base",
    "Record": "data.records",
    "RetainKL": "objectives.retain",
    "RetainNLL": "objectives.retain",
    "UnlearningModule": "training.module",
    "read_records": "data.readers",
}
"""Public name -> the module that defines it."""

__all__ = [
    "NPO",
    "ForgetRetainData",
    "GradAscent",
    "InputError",
    "Lora",
    "Objective",
    "Record",
    "RetainKL",
    "RetainNLL",
    "UnlearningModule",
    "read_records",
]

# Hidden from type checkers, which would otherwise take any name for one that is here.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load a public name at its first use (PEP 562)."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """The public names, for completion."""
        return sorted({*globals(), *__all__})

"""unlearn_pl: make a language model forget given documents, and prove how well that went.

The names in ``__all__`` are the public ones. Each is loaded when it is first used, so that ``import unlearn_pl`` and
``unlearn-pl --version`` take no time; every other module is internal and may change.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlearn_pl.balance.options import BalanceOptions
    from unlearn_pl.balance.search import find_balance
    from unlearn_pl.checkpoints.merge import merge_checkpoints
    from unlearn_pl.data.datamodule import ForgetRetainData
    from unlearn_pl.data.readers import read_records
    from unlearn_pl.data.records import Record
    from unlearn_pl.errors import InputError
    from unlearn_pl.evaluation.options import EvaluationOptions
    from unlearn_pl.evaluation.results import Results
    from unlearn_pl.evaluation.run import evaluate
    from unlearn_pl.inference.model import LanguageModel
    from unlearn_pl.merging.merge import merge_adapters
    from unlearn_pl.merging.options import MergeOptions
    from unlearn_pl.models.lora import Lora
    from unlearn_pl.objectives.base import Objective
    from unlearn_pl.objectives.forget import NPO, GradAscent, SimNPO
    from unlearn_pl.objectives.passes import Needs, Passes
    from unlearn_pl.objectives.retain import RetainKL, RetainNLL
    from unlearn_pl.tasks.base import Benchmark, RowSet
    from unlearn_pl.tasks.lume import Lume
    from unlearn_pl.training.module import UnlearningModule

__version__ = "0.1.0"

# PEFT imports bitsandbytes, which then says of each machine which of its kernels are not there
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_HOME = {
    "BalanceOptions": "balance.options",
    "Benchmark": "tasks.base",
    "EvaluationOptions": "evaluation.options",
    "ForgetRetainData": "data.datamodule",
    "GradAscent": "objectives.forget",
    "InputError": "errors",
    "LanguageModel": "inference.model",
    "Lora": "models.lora",
    "Lume": "tasks.lume",
    "MergeOptions": "merging.options",
    "NPO": "objectives.forget",
    "Needs": "objectives.passes",
    "Objective": "objectives.base",
    "Passes": "objectives.passes",
    "Record": "data.records",
    "Results": "evaluation.results",
    "RetainKL": "objectives.retain",
    "RetainNLL": "objectives.retain",
    "RowSet": "tasks.base",
    "SimNPO": "objectives.forget",
    "UnlearningModule": "training.module",
    "evaluate": "evaluation.run",
    "find_balance": "balance.search",
    "merge_adapters": "merging.merge",
    "merge_checkpoints": "checkpoints.merge",
    "read_records": "data.readers",
}
"""Public name -> the module that defines it."""

__all__ = [
    "NPO",
    "BalanceOptions",
    "Benchmark",
    "EvaluationOptions",
    "ForgetRetainData",
    "GradAscent",
    "InputError",
    "LanguageModel",
    "Lora",
    "Lume",
    "MergeOptions",
    "Needs",
    "Objective",
    "Passes",
    "Record",
    "Results",
    "RetainKL",
    "RetainNLL",
    "RowSet",
    "SimNPO",
    "UnlearningModule",
    "evaluate",
    "find_balance",
    "merge_adapters",
    "merge_checkpoints",
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

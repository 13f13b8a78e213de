"""What of Lightning's Trainer this project trains right with; all else would compute something else and is refused."""

import os

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.xla import XLAStrategy

from unlearn_pl.errors import InputError, one_line
from unlearn_pl.models.load import refuse_codes
from unlearn_pl.training import zero
from unlearn_pl.training.fsdp2 import NAME, FSDP2Strategy

# a copy of the module would be averaged or pruned that was taken before the adapter was there
REFUSED_CALLBACKS: tuple[type[Callback], ...] = (StochasticWeightAveraging, WeightAveraging, ModelPruning)


STRATEGY = (
    f"must be auto, {NAME} (a sharded base), one of the ddp kinds (ddp, ddp_spawn, ddp_fork, ddp_notebook), "
    "or deepspeed_stage_1 or _2"
)
PRECISION = "must be 32-true, bf16-mixed or 16-mixed"
WHY_FLOAT32 = "the adapter stays in float32; for a base in half precision give dtype=bfloat16 or float16"
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
ALIASES = ("32", "16", "bf16")


def refuse_names(strategy: object, precision: object) -> None:
    """Raise InputError for the name of a strategy or a precision that is not supported, before Lightning looks for what
    it needs. What is no name is looked at once it is built, by `refuse_unsupported`."""
    known = ("auto", NAME, *zero.NAMES)
    if isinstance(strategy, str) and strategy not in known and not strategy.startswith("ddp"):
        raise InputError(f"{STRATEGY}, got {strategy}", "strategy")
    zero.refuse_missing_package(strategy)
    if precision is not None and str(precision) not in (*PRECISIONS, *ALIASES):
        raise InputError(f"{PRECISION}, got {precision}: {WHY_FLOAT32}", "precision")


def refuse_unsupported(trainer: Trainer) -> None:
    """Raise InputError, naming it, if the trainer has a strategy, a precision or a callback that is not supported."""
    refuse_other_launch(trainer)
    strategy, precision = trainer.strategy, trainer.precision_plugin
    other = isinstance(strategy, XLAStrategy)  # a subclass of DDPStrategy, as DeepSpeedStrategy is
    if other or not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, FSDP2Strategy)):
        raise InputError(f"{STRATEGY}, got {type(strategy).__name__}", "strategy")
    if zero.is_zero(trainer):
        zero.refuse_in_zero(trainer)
    elif type(precision) not in (Precision, MixedPrecision):
        raise InputError(
            f"{PRECISION}, got {trainer.precision} ({type(precision).__name__}): {WHY_FLOAT32}", "precision"
        )
    if trainer.accumulate_grad_batches < 1:
        raise InputError(f"must be at least 1, got {trainer.accumulate_grad_batches}", "accumulate_grad_batches")
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, REFUSED_CALLBACKS):
            raise InputError(
                f"{type(callback).__name__} is not supported: it copies or changes weights before "
                "the adapter exists, or puts the base into checkpoints; leave it out",
                "callbacks",
            )


def refuse_unsupported_base(trainer: Trainer, verb: str, dtype: str) -> None:
    """Raise InputError if the trainer's strategy cannot take a base in ``dtype``, or not for this ``verb``."""
    zero.refuse_fit_in_zero(trainer, verb, dtype)
    if isinstance(trainer.strategy, FSDP2Strategy):
        refuse_codes(dtype, "a base in shards")


def refuse_other_launch(trainer: Trainer) -> None:
    """Raise InputError if torchrun or SLURM started more or fewer processes than the trainer has. Lightning notices
    late, or not at all: where the trainer has one process each would train on its own, and where SLURM's tasks are not
    as many each would start others."""
    advice = "give devices (of each machine) and num_nodes alike"
    environment = trainer._accelerator_connector.cluster_environment
    try:
        environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except ValueError as error:
        raise InputError(f"{one_line(error)} Here: {advice}", "trainer") from error
    tasks, processes = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")), trainer.num_devices * trainer.num_nodes
    if tasks > 1 and tasks != processes:
        raise InputError(f"srun started {tasks} tasks and the trainer has {processes} processes; {advice}", "trainer")


def refuse_fallback(asked: str | int | None, trainer: Trainer) -> None:
    """Raise InputError if Lightning chose another precision than the one ``asked`` for."""
    if str(asked) in ("16", "16-mixed") and trainer.precision != "16-mixed":
        raise InputError(
            f"this device has no {asked}, Lightning would compute {trainer.precision} instead; give that",
            "precision",
        )

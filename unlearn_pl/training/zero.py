"""What DeepSpeed's ZeRO can do here: its stages 1 and 2, which leave a whole base on each device."""

from importlib.util import find_spec
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy

from unlearn_pl.errors import InputError

NAMES = ("deepspeed", "deepspeed_stage_1", "deepspeed_stage_2")
"""Of Lightning's; the first is the last."""


def refuse_missing_package(strategy: object) -> None:
    """Raise InputError if ``strategy`` is one of ``NAMES`` and DeepSpeed is not installed."""
    if strategy in NAMES and find_spec("deepspeed") is None:
        raise InputError(f"{strategy} needs the package deepspeed: pip install 'unlearn-pl[deepspeed]'", "strategy")


def is_zero(trainer: Trainer) -> bool:
    """Whether DeepSpeed trains."""
    return isinstance(trainer.strategy, DeepSpeedStrategy)


def refuse_in_zero(trainer: Trainer) -> None:
    """Raise InputError for what a DeepSpeed strategy would compute otherwise than ddp, or not at all: casts of the
    adapter, windows that reach from one epoch into the next, and checkpoints, which are folders with the base in them.
    """
    refuse_stage(getattr(trainer.strategy, "config", None))
    if not isinstance(trainer.accelerator, CUDAAccelerator):
        kind = type(trainer.accelerator).__name__
        raise InputError(f"Lightning runs DeepSpeed on CUDA alone, got {kind}; ddp runs anywhere", "strategy")
    if trainer.precision != "32-true":
        raise InputError(
            f"must be 32-true under DeepSpeed, which would cast the adapter, got {trainer.precision}", "precision"
        )
    if trainer.accumulate_grad_batches != 1:
        raise InputError(
            "must be 1 under DeepSpeed, whose windows reach from one epoch into the next, got "
            f"{trainer.accumulate_grad_batches}; data.micro_batches gives the same gradient",
            "accumulate_grad_batches",
        )
    if trainer.gradient_clip_algorithm == "value":
        raise InputError("must be norm under DeepSpeed, got value", "gradient_clip_algorithm")
    if trainer.checkpoint_callbacks:
        raise InputError(
            "must be false under DeepSpeed, whose checkpoints hold the base and cannot be gone on from here; under ddp "
            "they are one small file",
            "enable_checkpointing",
        )


def refuse_stage(config: Any) -> None:
    """Raise InputError unless a configuration of DeepSpeed leaves weights, moments and optimizer where they are."""
    config = config if isinstance(config, dict) else {}
    zero = config.get("zero_optimization", {})
    changed = [name for name in ("offload_optimizer", "offload_param") if name in zero]
    changed += [name for name in ("optimizer", "scheduler") if name in config]
    if zero.get("stage") not in (1, 2) or changed:
        got = f"stage {zero.get('stage')}" + "".join(f" with {name}" for name in changed)
        raise InputError(
            f"of DeepSpeed, stages 1 and 2 are supported, without offloading, with the module's optimizer, got {got}",
            "strategy",
        )


def refuse_fit_in_zero(trainer: Trainer, verb: str, dtype: str) -> None:
    """Raise InputError for another verb than fit, or a base in half precision: DeepSpeed has one type for all weights,
    and the adapter's is float32."""
    if not is_zero(trainer):
        return
    if verb != "fit":
        raise InputError(f"DeepSpeed trains alone; {verb} by ddp or on one device", "strategy")
    if dtype != "float32":
        raise InputError(f"must be float32 under DeepSpeed, as the adapter is, got {dtype}; ddp takes both", "dtype")

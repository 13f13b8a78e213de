"""A training whose numbers are no longer finite is stopped, before anything of it is written."""

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.tuner.lr_finder import _LRCallback
from torch import Tensor
from torch.nn.utils import get_total_norm

from unlearn_pl.errors import InputError

LAST_GOOD = "last_good"
"""Folder in a run folder with the adapter before the step that diverged."""


class Diverged(InputError):
    """A training whose numbers are not finite."""


def refuse_divergence(
    trainer: Trainer, terms: Mapping[str, Tensor], tensors: Sequence[Tensor], learning_rate: float
) -> None:
    """Raise InputError, on all processes alike, if a term of the loss or an entry of ``tensors`` (gradients or weights)
    is NaN or infinite on one of them.

    Not while Lightning looks for a learning rate, which is to find where training diverges; and gradients under a loss
    scale may be infinite, then the scaler leaves the step out.
    """
    if any(isinstance(callback, _LRCallback) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        return
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    numbers = [*terms.values(), *([get_total_norm(tensors)] if tensors and not scaled else [])]
    if not numbers:
        return
    broken = not bool(torch.stack([number.detach().float() for number in numbers]).isfinite().all())
    if not trainer.strategy.reduce_boolean_decision(broken, all=False):
        return
    shown = ", ".join(f"{slot} {term.item():.4g}" for slot, term in terms.items() if not term.isfinite())
    place = f"slot {shown}" if shown else "its gradient, the weights or another process"
    raise Diverged(
        f"training diverged at optimizer step {trainer.global_step + 1}: the loss is not finite ({place}). Lower "
        f"learning_rate ({learning_rate:g}) or lengthen warmup; an earlier adapter in {trainer.default_root_dir} stays "
        f"as it was, with the checkpoints before this step, and {LAST_GOOD} there holds the last finite weights"
    )

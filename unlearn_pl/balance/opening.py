"""What the searches and comparisons of merges work on: a base model, two adapters, and the data to score them by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn_pl.balance.path import MergePath
from unlearn_pl.balance.scorer import MergeScorer
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.inputs import EvaluationInputs, EvaluationOptions
from unlearn_pl.inference.batches import Progress
from unlearn_pl.merging.adapters import check_base, read_adapters
from unlearn_pl.merging.options import MergeOptions
from unlearn_pl.models.adapter_folder import PREFIX
from unlearn_pl.models.arrival import refuse_broken
from unlearn_pl.models.load import refuse_quantised


@dataclass(frozen=True)
class Opened:
    """A base model in which merges of two adapters can be scored."""

    base: PreTrainedModel
    path: MergePath
    scorer: MergeScorer

    @property
    def facts(self) -> dict[str, str]:
        """SHA-256 of the weights of both adapters."""
        return {"over": self.path.over.sha256, "under": self.path.under.sha256}


def open_path(base: PreTrainedModel, adapters: Sequence[str | Path], seed: int = 42) -> MergePath:
    """The merges of the over- and the under-forgetting adapter.

    Raises InputError unless there are two adapters, and as `read_adapters` and `check_base` do.
    """
    if len(adapters) != 2:
        raise InputError(f"--adapters: two are needed, the over- and the under-forgetting one, got {len(adapters)}")
    # what any method needs; each method asks for more when it is used
    over, under = read_adapters(adapters, MergeOptions(method="cat").settings(2))
    check_base(base, [over, under])
    order = [PREFIX + name for name, _ in base.named_modules() if PREFIX + name in over.factors]
    return MergePath(over, under, tuple(order), seed)


def open_merges(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapters: Sequence[str | Path],
    inputs: EvaluationInputs,
    options: EvaluationOptions,
    device: torch.device | None = None,
    seed: int = 42,
    progress: Progress | None = None,
) -> Opened:
    """``base`` (moved to ``device``) ready to be scored with merges of the two ``adapters`` (folders)."""
    refuse_quantised(base, "scoring a merge in the base's weights")
    refuse_broken(base, "the score of a merge")
    path = open_path(base, adapters, seed)
    base.to(device or base.device)
    return Opened(base, path, MergeScorer(base, tokenizer, path.order, inputs, options, progress))

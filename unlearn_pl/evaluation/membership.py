"""Loss membership attack: can somebody tell, by the model's loss alone, which documents it was trained on?"""

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.forward import device_of, encode_texts, evaluating
from unlearn_pl.evaluation.ranks import Progress, length_sorted_batches, map_batches

OFFICIAL_TASK = "Task3"


@dataclass(frozen=True)
class Membership:
    """Documents of the membership attack. Without non-members there is no attack and no aggregate."""

    member: str | None = None
    """JSONL file with a field `document`: texts that the model was trained on and had to forget. Without it they are
    rebuilt from the completion rows (sc) of the forget set, as input, a space, and output."""
    nonmember: str | None = None
    """JSONL file with a field `document`: texts like the members that the model never saw."""
    tasks: list[str] | None = None
    """Tasks of the forget set whose documents are rebuilt as members. Without it Task3, as in the official member
    file, or every task if the set has no Task3. Non-members should be of the same sort."""
    batch_size: int = 8
    """Documents whose loss is computed together; at least 1."""

    def __post_init__(self) -> None:
        if self.member is not None and self.tasks is not None:
            raise InputError(
                "--membership.tasks: not with --membership.member; it chooses among the forget set's documents"
            )
        if self.batch_size < 1:
            raise InputError(f"--membership.batch_size: must be at least 1, got {self.batch_size}")


def rebuilt_members(forget: Sequence[Record], tasks: Sequence[str] | None = None) -> list[str]:
    """The whole documents behind the ``sc`` rows of a forget set, for the given tasks (see ``Membership.tasks``).

    Raises InputError if a task has no ``sc`` row, or if there are none at all.
    """
    completions = [record for record in forget if record.kind == "sc"]
    present = sorted({record.task for record in completions})
    if not present:
        raise InputError(
            "--membership.member: needed, as the forget set has no completion rows (sc) to rebuild documents from"
        )
    if tasks is None:
        tasks = [OFFICIAL_TASK] if OFFICIAL_TASK in present else present
    if not tasks or not set(tasks) <= set(present):
        raise InputError(
            f"--membership.tasks: must be among {', '.join(present)} (tasks with completion rows), got {list(tasks)}"
        )
    return [record.document for record in completions if record.task in tasks]


def document_losses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[float]:
    """Mean negative log-likelihood, in nats a token, of each whole document after its first token.

    A loss that is not finite (a broken model) counts as infinite, with a warning. Raises InputError if a document has
    fewer than two tokens or exceeds the model's positions.
    """
    rows = encode_texts(model, tokenizer, documents, "--membership: document")
    for number, row in enumerate(rows, start=1):
        if len(row) < 2:
            raise InputError(
                f"--membership: document {number} is a single token, which has no loss: {documents[number - 1]!r:.60}"
            )
    with evaluating(model):
        batches = length_sorted_batches([len(row) for row in rows], batch_size)
        losses = map_batches(batches, functools.partial(_batch_losses, model, rows), progress, "membership, documents")
    if broken := sum(not math.isfinite(loss) for loss in losses):
        warnings.warn(
            f"membership: {broken} of {len(losses)} documents have no finite loss; they count as the least likely",
            stacklevel=2,
        )
    return [loss if math.isfinite(loss) else math.inf for loss in losses]


def _batch_losses(model: nn.Module, rows: Sequence[Sequence[int]], batch: Sequence[int]) -> list[float]:
    longest = max(len(rows[index]) for index in batch)
    ids = torch.tensor(
        [[*rows[index], *[0] * (longest - len(rows[index]))] for index in batch], device=device_of(model)
    )
    # A causal model never looks at what comes after a token, so padding on the right needs no mask.
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    losses = []
    for slot, index in enumerate(batch):  # row by row: a float copy of all logits would be the peak of the memory
        last = len(rows[index]) - 1
        losses.append(F.cross_entropy(logits[slot, :last].float(), ids[slot, 1 : last + 1]).item())
    return losses

"""What the base model says of the rows: the part of NPO and KL that never changes during training."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from peft import PeftModel
from torch import Tensor

from unlearn_pl.models.body import vocabulary_head
from unlearn_pl.models.fast.packing import row_hidden_states
from unlearn_pl.models.head import IGNORED
from unlearn_pl.models.lora import reference
from unlearn_pl.models.padding import padding_states
from unlearn_pl.training.packs import Part


class Said(NamedTuple):
    """The base model on the rows of a part: ``nll`` [B] of the answers and ``hidden`` [N, H] at the asked positions,
    each None where the part does not ask for it."""

    nll: Tensor | None
    hidden: Tensor | None


class Reference(Protocol):
    """Where the base model's part of the losses comes from: the model itself, or the cache."""

    def __call__(self, model: PeftModel, parts: Sequence[Part]) -> list[Said]:
        """One ``Said`` for each part."""


def live_reference(model: PeftModel, parts: Sequence[Part]) -> list[Said]:
    """Run the base model, adapter off, on the parts that need it, in one forward."""
    needed = [part for part in parts if part.ask.reference_nll or part.ask.kl]
    if not needed:
        return [Said(None, None) for _ in parts]
    lengths = [length for part in needed for length in part.lengths]
    with reference(model):
        hidden = row_hidden_states(model, torch.cat([part.input_ids for part in needed]), lengths)
        said = iter(
            [
                said_of(model, part, states)
                for part, states in zip(needed, hidden.split([len(part.input_ids) for part in needed]), strict=True)
            ]
        )
    return [next(said) if part.ask.reference_nll or part.ask.kl else Said(None, None) for part in parts]


def said_of(model: PeftModel, part: Part, hidden: Tensor) -> Said:
    """From the final hidden states [T, H] of a part."""
    place, row, targets = part.asked
    asked = hidden[place]
    nll = None
    if part.ask.reference_nll:
        token_nll, _ = vocabulary_head(model).scores(asked, targets)
        nll = token_nll.new_zeros(len(part.lengths)).index_add(0, row, token_nll)
    return Said(nll, asked if part.ask.kl else None)


def padding_kl(model: PeftModel, pad_token_id: int | None) -> Tensor:
    """KL(base || policy) at a position of padding, in nats: a scalar. Never cached: it takes a few tokens."""
    assert pad_token_id is not None, "a term reads padding, and PackedLoss was not told its token"
    with reference(model):
        base = padding_states(model, pad_token_id)
    policy = padding_states(model, pad_token_id)
    targets = torch.full((len(policy),), IGNORED, device=policy.device)
    return vocabulary_head(model).scores(policy, targets, base)[1].mean()

"""The base model's output on the rows: the part of NPO, KL and others that never changes during training."""

from collections.abc import Sequence
from typing import Protocol

import torch
from peft import PeftModel
from torch import Tensor

from unlearn_pl.models.body import vocabulary_head
from unlearn_pl.models.head import IGNORED
from unlearn_pl.models.layers import States, row_states
from unlearn_pl.models.lora import reference
from unlearn_pl.models.padding import padding_states
from unlearn_pl.objectives.passes import ReferenceOutput
from unlearn_pl.training.packs import Part


class Reference(Protocol):
    """Where the base model's output comes from: the model itself, or the cache."""

    def __call__(self, model: PeftModel, parts: Sequence[Part]) -> list[ReferenceOutput]:
        """One output for each part."""


def live_reference(model: PeftModel, parts: Sequence[Part]) -> list[ReferenceOutput]:
    """Run the base model, adapter off, on the parts that need it, in one forward."""
    needed = [part for part in parts if part.needs.reference_output]
    if not needed:
        return [ReferenceOutput() for _ in parts]
    layers = sorted({layer for part in needed for layer in part.needs.reference_layers})
    final = any(part.needs.reference_nll or part.needs.reference_logits for part in needed)
    with reference(model):
        states = states_of_parts(model, needed, layers, final)
        outputs = iter([output_of(model, part, own) for part, own in zip(needed, states, strict=True)])
    return [next(outputs) if part.needs.reference_output else ReferenceOutput() for part in parts]


def states_of_parts(model: PeftModel, parts: Sequence[Part], layers: Sequence[int], final: bool) -> list[States]:
    """The states of each part's tokens, from one forward over all of them."""
    lengths = [length for part in parts for length in part.lengths]
    together = row_states(model, torch.cat([part.input_ids for part in parts]), lengths, layers, final)
    counts = [len(part.input_ids) for part in parts]
    finals = [None] * len(parts) if together.final is None else together.final.split(counts)
    cut = {layer: states.split(counts) for layer, states in together.layers.items()}
    return [States(own, {layer: pieces[number] for layer, pieces in cut.items()}) for number, own in enumerate(finals)]


def output_of(model: PeftModel, part: Part, states: States) -> ReferenceOutput:
    """What a part needs, from the base model's states of its tokens."""
    token_nll = hidden = None
    if states.final is not None:
        hidden = states.final[part.scored.place]
    if part.needs.reference_nll and hidden is not None:
        token_nll, _ = vocabulary_head(model).scores(hidden, part.scored.targets, None, part.scored.predicts_answer)
    layers = {layer: states.layers[layer] for layer in part.needs.reference_layers}
    return ReferenceOutput(token_nll, hidden if part.needs.reference_logits else None, layers)


def padding_kl(model: PeftModel, pad_token_id: int | None) -> Tensor:
    """KL(base || policy) at a position of padding, in nats: a scalar. Never cached: it takes a few tokens."""
    assert pad_token_id is not None, "a term reads padding, and PackedLoss was not told its token"
    with reference(model):
        base = padding_states(model, pad_token_id)
    policy = padding_states(model, pad_token_id)
    targets = torch.full((len(policy),), IGNORED, device=policy.device)
    return vocabulary_head(model).scores(policy, targets, base)[1].mean()

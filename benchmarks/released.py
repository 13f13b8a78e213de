"""The training step of the released ZJUKLAB system, written from its description, as the baseline of the benchmark.

Two copies of the model, every row padded on the left to ``max_length``, four forwards, the vocabulary head at every
position, the KL over the padding too, activations of each layer recomputed in the backward pass.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from unlearn_pl.data.encoding import Encoded
from unlearn_pl.models.lora import Lora, attach_lora

EncodedPair = tuple[Encoded, Encoded]

IGNORED = -100


@dataclass(frozen=True)
class Weights:
    """The recipe's loss: ``npo * NPO + nll * retain NLL + kl * retain KL``."""

    npo: float = 0.4
    nll: float = 0.2
    kl: float = 0.4
    beta: float = 0.1


class ReleasedStep:
    """The policy (an adapter on ``base``), the reference (a copy of ``base``), and the loss of one micro-batch."""

    def __init__(self, base: PreTrainedModel, lora: Lora, seed: int, max_length: int, pad_token_id: int):
        self.reference: nn.Module = copy.deepcopy(base).requires_grad_(False)
        self.policy = attach_lora(base, lora, seed, fast=False)  # PEFT's own
        base.activation_checkpointing_enable({"use_reentrant": False})
        self.policy.train()
        self.max_length, self.pad_token_id = max_length, pad_token_id

    def loss(self, forget: Sequence[Encoded], retain: Sequence[Encoded], weights: Weights) -> Tensor:
        """The loss of a micro-batch of B forget and B retain rows, in nats."""
        forget_batch, retain_batch = (
            left_padded(rows, self.max_length, self.pad_token_id) for rows in (forget, retain)
        )
        forget_out, retain_out = self.policy(**forget_batch), self.policy(**retain_batch)
        with torch.no_grad():
            forget_ref, retain_ref = self.reference(**forget_batch), self.reference(**retain_batch)
        npo = -(2 / weights.beta) * F.logsigmoid(weights.beta * (forget_out.loss - forget_ref.loss))
        policy, reference = (out.logits.log_softmax(-1) for out in (retain_out, retain_ref))
        pointwise = F.kl_div(policy, reference, reduction="none", log_target=True)
        kl = pointwise.sum() / (len(retain) * self.max_length)
        return weights.npo * npo + weights.nll * retain_out.loss + weights.kl * kl


def left_padded(rows: Sequence[Encoded], length: int, pad_token_id: int) -> dict[str, Tensor]:
    """Ids, mask and labels [B, length] of rows that end together; only answer tokens are labelled."""
    ids = torch.full((len(rows), length), pad_token_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for number, row in enumerate(rows):
        n, answer = len(row.input_ids), len(row.input_ids) - row.answer_start
        ids[number, -n:] = torch.tensor(row.input_ids)
        mask[number, -n:] = 1
        labels[number, -answer:] = torch.tensor(row.input_ids[row.answer_start :])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}

"""The training step as a competent user writes it with transformers and PEFT alone: the second baseline of the
benchmark.

Rows padded to the longest of their micro-batch, and not at all where it is one row; one model, whose adapter is
switched off for the reference; PEFT's own layers; no activation is computed twice, unless that is asked for. The loss
is the released one but for its KL at padding, of which there is none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from benchmarks.released import IGNORED, Weights
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.models.lora import Lora, attach_lora


class CompetentStep:
    """The policy, an adapter on ``base``, and the loss of a micro-batch."""

    def __init__(self, base: PreTrainedModel, lora: Lora, seed: int, max_length: int, checkpointing: bool = False):
        self.policy = attach_lora(base, lora, seed, fast=False)  # PEFT's own
        if checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
        self.policy.train()
        self.max_length = max_length

    def loss(self, forget: Sequence[Encoded], retain: Sequence[Encoded], weights: Weights) -> Tensor:
        """The loss of B forget and B retain rows, in nats; the KL is summed over the rows' tokens and divided by
        B x ``max_length``."""
        forget_rows, retain_rows = padded(forget), padded(retain)
        with torch.no_grad(), self.policy.disable_adapter():
            forget_nll = self.policy(**forget_rows).loss
            reference = self.policy(**retain_rows).logits.log_softmax(-1)
        npo = -(2 / weights.beta) * F.logsigmoid(weights.beta * (self.policy(**forget_rows).loss - forget_nll))
        retained = self.policy(**retain_rows)
        pointwise = F.kl_div(retained.logits.log_softmax(-1), reference, reduction="none", log_target=True)
        if "attention_mask" in retain_rows:
            pointwise = pointwise * retain_rows["attention_mask"][..., None]
        kl = pointwise.sum() / (len(retain) * self.max_length)
        return weights.npo * npo + weights.nll * retained.loss + weights.kl * kl


def padded(rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """Ids and labels [B, T] of rows that begin together, and their mask if one is shorter than another; only answer
    tokens are labelled."""
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long, device="cpu")
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        own, end = torch.tensor(row.input_ids, device="cpu"), len(row.input_ids)
        ids[number, :end], mask[number, :end] = own, 1
        labels[number, row.answer_start : end] = own[row.answer_start :]
    batch = {"input_ids": ids, "labels": labels} | ({} if mask.all() else {"attention_mask": mask})
    place = torch.get_default_device()
    return {name: values.to(place) for name, values in batch.items()}

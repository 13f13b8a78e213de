"""The training step as a competent user writes it with transformers and PEFT alone: the second baseline of the
benchmark.

Rows as they are, without padding; one model, whose adapter is switched off for the reference; PEFT's own layers; no
activation is computed twice. The loss is the released one but for its KL at padding, of which there is none.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from benchmarks.released import IGNORED, Weights
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.models.lora import Lora, attach_lora


class CompetentStep:
    """The policy, an adapter on ``base``, and the loss of one pair."""

    def __init__(self, base: PreTrainedModel, lora: Lora, seed: int, max_length: int):
        self.policy = attach_lora(base, lora, seed, fast=False)  # PEFT's own
        self.policy.train()
        self.max_length = max_length

    def loss(self, forget: Encoded, retain: Encoded, weights: Weights) -> Tensor:
        """The loss of a forget and a retain row, in nats; the KL is summed over the row's tokens and divided by
        ``max_length``."""
        forget_row, retain_row = unpadded(forget), unpadded(retain)
        with torch.no_grad(), self.policy.disable_adapter():
            forget_nll = self.policy(**forget_row).loss
            reference = self.policy(**retain_row).logits.log_softmax(-1)
        npo = -(2 / weights.beta) * F.logsigmoid(weights.beta * (self.policy(**forget_row).loss - forget_nll))
        retained = self.policy(**retain_row)
        pointwise = F.kl_div(retained.logits.log_softmax(-1), reference, reduction="none", log_target=True)
        kl = pointwise.sum() / self.max_length
        return weights.npo * npo + weights.nll * retained.loss + weights.kl * kl


def unpadded(row: Encoded) -> dict[str, Tensor]:
    """Ids and labels [1, T] of a row; only answer tokens are labelled."""
    ids = torch.tensor(row.input_ids)[None]
    labels = ids.clone()
    labels[:, : row.answer_start] = IGNORED
    return {"input_ids": ids, "labels": labels}

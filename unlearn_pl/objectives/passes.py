"""What an objective reads: the forward passes of one micro-batch, at the positions that some objective asked for.

Everything here is plain tensors, so that a test hands an objective a ``Pass`` made by hand and no model.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100

# Positions at which a pass has logits: those that predict an answer token, or every token that is not padding.
Positions = Literal["answer", "attended"]


@dataclass(frozen=True)
class Pass:
    """One model's output over the rows of a split, at N asked positions.

    ``logits`` is [N, V], ``rows`` [N] the row of each position (0 to ``batch_size`` - 1), ``targets`` [N] the token
    that follows if it belongs to the answer, else ``IGNORED``. ``max_length`` is the length, in tokens, to which the
    released ZJUKLAB code pads every row.
    """

    logits: Tensor
    rows: Tensor
    targets: Tensor
    batch_size: int
    max_length: int

    @cached_property
    def is_answer(self) -> Tensor:
        """[N] bool: the position predicts an answer token."""
        return self.targets != IGNORED

    @cached_property
    def log_probs(self) -> Tensor:
        """[N, V] float32 log-probabilities; float32 also under bf16, where sums over a vocabulary lose digits."""
        return torch.log_softmax(self.logits.float(), dim=-1)

    @cached_property
    def nll(self) -> Tensor:
        """[B] negative log-likelihood of each row's answer, in nats, summed over its tokens."""
        # an ignored target must not index the vocabulary, and its zero must not carry a gradient
        target = self.targets.clamp(min=0)[:, None]
        token_nll = F.nll_loss(self.log_probs, target[:, 0], reduction="none").masked_fill(~self.is_answer, 0.0)
        return token_nll.new_zeros(self.batch_size).index_add(0, self.rows, token_nll)

    @cached_property
    def tokens(self) -> Tensor:
        """[B] answer tokens of each row."""
        counted = self.is_answer.float()
        return counted.new_zeros(self.batch_size).index_add(0, self.rows, counted)

    def kl_from(self, reference: "Pass") -> Tensor:
        """[N] KL(reference || self) at each position, in nats; both passes must hold the same positions."""
        assert reference.logits.shape == self.logits.shape, (reference.logits.shape, self.logits.shape)
        return F.kl_div(self.log_probs, reference.log_probs, reduction="none", log_target=True).sum(-1)


class Passes(Protocol):
    """The passes of a micro-batch. Each is computed when it is first read, and only once.

    ``forget`` and ``retain`` are the policy's; ``forget_ref`` and ``retain_ref`` come from the base model (adapter
    off, eval mode, no gradient) on the same rows at the same positions.
    """

    @property
    def forget(self) -> Pass: ...

    @property
    def retain(self) -> Pass: ...

    @property
    def forget_ref(self) -> Pass: ...

    @property
    def retain_ref(self) -> Pass: ...


PassName = Literal["forget", "retain", "forget_ref", "retain_ref"]

"""Cross entropy and KL from hidden states, through a frozen vocabulary head, without the logits of all positions.

Both are one number a position, so their gradient with respect to a position's hidden state is one vector. It is
computed together with the value while a chunk of logits exists; what is kept for the backward pass is as large as the
hidden states, whatever the vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn_pl.matmul import frozen_linear

IGNORED = -100
# Logits that exist at once: at 49,152 words 48 positions, 9 MiB in float32, of which KL holds three.
CHUNK_LOGITS = 48 * 49152


@dataclass(frozen=True)
class Head:
    """A frozen vocabulary head: ``weight`` [V, H] and ``bias`` [V] or None."""

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] logits of hidden states [..., H], all of them at once."""
        return F.linear(hidden, self.weight, self.bias)

    def scores(self, hidden: Tensor, targets: Tensor, reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """NLL of the targets [N] and KL(reference || hidden) [N], in nats, of N positions.

        ``hidden`` and ``reference`` are [N, H], ``targets`` [N]; where a target is ``IGNORED`` the NLL is 0. Without a
        reference the KL is 0. Gradients flow to ``hidden`` alone, once: there is no second derivative. Float32 at
        least, also under bf16, where sums over a vocabulary lose digits.
        """
        return HeadScores.apply(hidden, targets, reference, self, hidden.requires_grad and torch.is_grad_enabled())


class HeadScores(torch.autograd.Function):
    """The autograd function behind ``Head.scores``."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, reference: Tensor | None, head: Head, differentiate: bool
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        nll, kl = (hidden.new_zeros(len(hidden), dtype=wide) for _ in range(2))
        slopes = [torch.zeros_like(hidden) for _ in range(1 if reference is None else 2)] if differentiate else []
        size = max(1, CHUNK_LOGITS // len(head.weight))
        with product_type(head, hidden) as narrow:
            for start in range(0, len(hidden), size):
                part = slice(start, start + size)
                chunk = Chunk(narrow, hidden[part], targets[part], None if reference is None else reference[part])
                nll[part], kl[part] = chunk.nll, chunk.kl
                for slope, value in zip(slopes, chunk.slopes() if differentiate else (), strict=True):
                    slope[part] = value
        ctx.save_for_backward(*slopes)
        return nll, kl

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slopes = ctx.saved_tensors
        grad = sum(weight[:, None].to(slope.dtype) * slope for weight, slope in zip(grads, slopes, strict=False))
        return grad, None, None, None, None


@contextmanager
def product_type(head: Head, hidden: Tensor) -> Iterator[Head]:
    """``head`` in the type of its products: its own, or autocast's, which is off inside so that softmax stays wide."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        yield head
        return
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        yield Head(head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype))


class Chunk:
    """NLL and KL of n positions, and the two distributions over the vocabulary, ``p`` and ``q``, behind them.

    Each [n, V] tensor is overwritten by the next one that is needed, so the order of the lines matters.
    """

    def __init__(self, head: Head, hidden: Tensor, targets: Tensor, reference: Tensor | None):
        self.weight = head.weight
        self.answers = (targets != IGNORED).nonzero()[:, 0]
        self.targets = targets[self.answers]
        log_p = log_softmax(head, hidden)
        self.nll = log_p.new_zeros(len(hidden))
        self.nll[self.answers] = -log_p[self.answers, self.targets]
        self.kl, self.q = torch.zeros_like(self.nll), None
        if reference is not None:
            log_q = log_softmax(head, reference)
            self.q = log_q.exp()
            self.kl = torch.linalg.vecdot(self.q, log_q.sub_(log_p))
        self.p = log_p.exp_()

    def slopes(self) -> list[Tensor]:
        """[n, H] gradients of the NLL and, with a reference, of the KL, with respect to the hidden states:
        ``(p - onehot) W`` and ``(p - q) W``."""
        slopes = [] if self.q is None else [self._back(torch.sub(self.p, self.q, out=self.q))]
        nll = self.weight.new_zeros(len(self.p), self.weight.shape[1])
        if len(self.answers):
            p = self.p if len(self.answers) == len(self.p) else self.p[self.answers]
            p[torch.arange(len(p), device=p.device), self.targets] -= 1
            nll[self.answers] = self._back(p)
        return [nll, *slopes]

    def _back(self, values: Tensor) -> Tensor:
        return frozen_linear(values.to(self.weight.dtype), self.weight.t())


def log_softmax(head: Head, hidden: Tensor) -> Tensor:
    """[n, V] log-probabilities in float32 at least."""
    logits = frozen_linear(hidden.to(head.weight.dtype), head.weight, head.bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.sub_(logits.logsumexp(-1, keepdim=True))

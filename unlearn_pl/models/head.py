"""Cross entropy and KL from hidden states, through a frozen vocabulary head, without the logits of all positions.

Both are one number a position, so their gradient with respect to a position's hidden state is one vector. It is
computed together with the value while a chunk of logits exists; what is kept for the backward pass is as large as the
hidden states, whatever the vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn_pl.models.fast.linear import frozen_linear

IGNORED = -100
# Logits that exist at once: at 49,152 words 48 positions, 9 MiB in float32, of which KL holds three.
CHUNK_LOGITS = 48 * 49152


@dataclass(frozen=True)
class Head:
    """A frozen vocabulary head: ``weight`` [V, H] and ``bias`` [V] or None, and what some architectures do behind it.

    With z of the linear layer a logit is ``scale * z`` (Cohere, Granite), and with a cap c ``c * tanh(scale * z / c)``
    (Gemma 2).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    @property
    def is_linear(self) -> bool:
        """Whether nothing follows the linear layer."""
        return self.scale == 1 and self.cap is None

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] logits of hidden states [..., H], all of them at once."""
        return self.finish(F.linear(hidden, self.weight, self.bias))

    def finish(self, logits: Tensor) -> Tensor:
        """Scale and cap what the linear layer gave; what comes in is overwritten where no gradient is recorded."""
        if self.is_linear:
            return logits
        if logits.requires_grad:
            logits = logits * self.scale
            return logits if self.cap is None else (logits / self.cap).tanh() * self.cap
        logits = logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

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
        bias = None if head.bias is None else head.bias.to(dtype)
        yield replace(head, weight=head.weight.to(dtype), bias=bias)


class Chunk:
    """NLL and KL of n positions, and the two distributions over the vocabulary, ``p`` and ``q``, behind them.

    Each [n, V] tensor is overwritten by the next one that is needed, so the order of the lines matters.
    """

    def __init__(self, head: Head, hidden: Tensor, targets: Tensor, reference: Tensor | None):
        self.head = head
        self.answers = (targets != IGNORED).nonzero()[:, 0]
        self.targets = targets[self.answers]
        logits = logits_of(head, hidden)
        # of the cap, d logit / d (scale * z)
        self.bend = None if head.cap is None else 1 - (logits / head.cap).square()
        log_p = log_softmax_(logits)
        self.nll = log_p.new_zeros(len(hidden))
        self.nll[self.answers] = -log_p[self.answers, self.targets]
        self.kl, self.q = torch.zeros_like(self.nll), None
        if reference is not None:
            log_q = log_softmax_(logits_of(head, reference))
            self.q = log_q.exp()
            self.kl = torch.linalg.vecdot(self.q, log_q.sub_(log_p))
        self.p = log_p.exp_()

    def slopes(self) -> list[Tensor]:
        """[n, H] gradients of the NLL and, with a reference, of the KL, with respect to the hidden states:
        ``(p - onehot) W`` and ``(p - q) W`` where nothing follows the linear layer."""
        slopes = [] if self.q is None else [self._back(torch.sub(self.p, self.q, out=self.q), self.bend)]
        weight = self.head.weight
        nll = weight.new_zeros(len(self.p), weight.shape[1])
        if len(self.answers):
            p, bend = self.p, self.bend
            if len(self.answers) < len(p):
                p, bend = p[self.answers], None if bend is None else bend[self.answers]
            p[torch.arange(len(p), device=p.device), self.targets] -= 1
            nll[self.answers] = self._back(p, bend)
        return [nll, *slopes]

    def _back(self, values: Tensor, bend: Tensor | None) -> Tensor:
        """[n, H] from [n, V] gradients with respect to the logits, which are overwritten."""
        if bend is not None:
            values.mul_(bend)
        if self.head.scale != 1:
            values.mul_(self.head.scale)
        return frozen_linear(values.to(self.head.weight.dtype), self.head.weight.t())


def logits_of(head: Head, hidden: Tensor) -> Tensor:
    """[n, V] logits in float32 at least, outside of autograd."""
    logits = frozen_linear(hidden.to(head.weight.dtype), head.weight, head.bias)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return head.finish(wide)


def log_softmax_(logits: Tensor) -> Tensor:
    """[n, V] log-probabilities, in the place of the logits."""
    return logits.sub_(logits.logsumexp(-1, keepdim=True))

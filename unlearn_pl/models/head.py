"""Numbers of single positions from hidden states, through a frozen vocabulary head, without all positions' logits.

Cross entropy, KL, or any function of a position's logits: one number a position, so that its gradient with respect to
the position's hidden state is one vector. It is computed together with the value while a chunk of logits exists; what
is kept for the backward pass is as large as the hidden states, whatever the vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearn_pl.models.device import sent
from unlearn_pl.models.fast.linear import frozen_linear

IGNORED = -100
# (logits [n, V], targets [n], reference logits [n, V] or None, ...) -> [n]
PositionFunction = Callable[..., Tensor]
# Scores a chunk: (head, whether to differentiate, hidden [n, H], reference [n, H] or None, targets [n], ...) -> numbers
# [n], as many as there are columns, and, to differentiate, the gradient [n, H] of each with respect to hidden.
Scorer = Callable[..., list[Tensor]]
# Logits that exist at once: at 49,152 words 48 positions, 9 MiB in float32, of which KL holds three.
CHUNK_LOGITS = 48 * 49152
# On a GPU few large products are faster than many small ones: 256 MiB, of which KL holds three.
GPU_CHUNK_LOGITS = 2**26


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

    def scores(
        self,
        hidden: Tensor,
        targets: Tensor,
        reference: Tensor | None = None,
        has_target: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """NLL of the targets [N] and KL(reference || hidden) [N], in nats, of N positions.

        ``hidden`` and ``reference`` are [N, H], ``targets`` [N]; where a target is ``IGNORED`` the NLL is 0. Without a
        reference the KL is 0. Gradients flow to ``hidden`` alone, once: there is no second derivative. Float32 at
        least, also under bf16, where sums over a vocabulary lose digits. ``has_target`` [N] is ``targets != IGNORED``
        on the CPU, if that is known there: without it a GPU is waited for.
        """
        columns = 1 if reference is None else 2
        has_target = (targets != IGNORED).cpu() if has_target is None else has_target
        found = self._by_chunks(nll_and_kl, columns, hidden, reference, targets, has_target)
        return (found[0], torch.zeros_like(found[0])) if reference is None else (found[0], found[1])

    def each(
        self, function: PositionFunction, hidden: Tensor, targets: Tensor, reference: Tensor | None, *beside: Tensor
    ) -> Tensor:
        """[N] numbers of N positions, each a function of one position's logits, without the logits of all positions.

        ``function(logits, targets, reference_logits, *beside)`` is called with n positions at a time: [n, V] logits,
        [n] targets, [n, V] logits of the reference or None, and the n places of each of ``beside`` [N, ...]. It gives
        [n]: the i-th from the i-th position alone, differentiable once with respect to ``logits``, of which it
        overwrites nothing. ``hidden`` and ``reference`` are [N, H]. Precision and gradients are those of ``scores``.
        """
        return self._by_chunks(partial(any_function, function), 1, hidden, reference, targets, *beside)[0]

    def _by_chunks(self, score: Scorer, columns: int, hidden: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
        differentiate = hidden.requires_grad and torch.is_grad_enabled()
        return ByChunks.apply(hidden, self, score, columns, differentiate, *others)


class ByChunks(torch.autograd.Function):
    """``columns`` numbers a position, [N] each, by ``score``: a chunk of positions at a time, with the gradients."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, score: Scorer, columns: int, differentiate: bool, *others: Tensor | None
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        values = [hidden.new_zeros(len(hidden), dtype=wide) for _ in range(columns)]
        gradients = [torch.zeros_like(hidden) for _ in range(columns)] if differentiate else []
        size = chunk_size(head.weight)
        with product_type(head, hidden) as narrow:
            for start in range(0, len(hidden), size):
                part = slice(start, start + size)
                given = [None if other is None else other[part] for other in others]
                found = score(narrow, differentiate, hidden[part], *given)
                for whole, piece in zip([*values, *gradients], found, strict=True):
                    whole[part] = piece
        ctx.save_for_backward(*gradients)
        ctx.not_differentiable = 4 + len(others)
        return tuple(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        grad = sum(weight[:, None].to(own.dtype) * own for weight, own in zip(grads, gradients, strict=True))
        return grad, *[None] * ctx.not_differentiable


def chunk_size(weight: Tensor) -> int:
    """Positions whose logits exist at once, at a head of ``weight`` [V, H]."""
    return max(1, (CHUNK_LOGITS if weight.device.type == "cpu" else GPU_CHUNK_LOGITS) // len(weight))


def nll_and_kl(
    head: Head, differentiate: bool, hidden: Tensor, reference: Tensor | None, targets: Tensor, has_target: Tensor
) -> list[Tensor]:
    """The ``Scorer`` of ``Head.scores``, by formulas of its own: two products less than autograd would take."""
    chunk = Chunk(head, hidden, targets, reference, has_target)
    values = [chunk.nll] if reference is None else [chunk.nll, chunk.kl]
    return [*values, *chunk.gradients()] if differentiate else values


def any_function(
    function: PositionFunction,
    head: Head,
    differentiate: bool,
    hidden: Tensor,
    reference: Tensor | None,
    targets: Tensor,
    *beside: Tensor,
) -> list[Tensor]:
    """The ``Scorer`` of ``Head.each``: autograd down to the linear layer, and by hand through that."""
    products = products_of(head, hidden).requires_grad_(differentiate)
    base = None if reference is None else head.finish(products_of(head, reference))
    with torch.set_grad_enabled(differentiate):
        values = function(head.finish(products), targets, base, *beside)
        total = values.sum()
    assert values.shape == targets.shape, f"the function gave {tuple(values.shape)} for {len(targets)} positions"
    if not differentiate:
        return [values]
    (grad,) = torch.autograd.grad(total, products)
    return [values.detach(), through_linear(head, grad)]


@contextmanager
def product_type(head: Head, hidden: Tensor) -> Iterator[Head]:
    """The head cast to autocast's dtype if autocast is on; it is off in the block, so the softmax is float32."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        yield head
        return
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        bias = None if head.bias is None else head.bias.to(dtype)
        yield replace(head, weight=head.weight.to(dtype), bias=bias)


class Chunk:
    """NLL and KL [n] of n positions, and the two distributions [n, V] over the vocabulary behind them, ``p`` and ``q``.

    Each [n, V] tensor is overwritten by the next one that is needed, so the order of the lines matters.
    """

    def __init__(self, head: Head, hidden: Tensor, targets: Tensor, reference: Tensor | None, has_target: Tensor):
        self.head = head
        self.answers = sent(has_target.nonzero()[:, 0], hidden.device)
        self.targets = targets[self.answers]
        logits = head.finish(products_of(head, hidden))
        # of the cap, d logit / d (scale * z)
        self.of_cap = None if head.cap is None else 1 - (logits / head.cap).square()
        log_p = log_softmax_(logits)
        self.nll = log_p.new_zeros(len(hidden))
        self.nll[self.answers] = -log_p[self.answers, self.targets]
        self.q = None
        if reference is not None:
            log_q = log_softmax_(head.finish(products_of(head, reference)))
            self.q = log_q.exp()
            self.kl = torch.linalg.vecdot(self.q, log_q.sub_(log_p))
        self.p = log_p.exp_()

    def gradients(self) -> list[Tensor]:
        """[n, H] gradients of the NLL and, with a reference, of the KL, with respect to the hidden states:
        ``(p - onehot) W`` and ``(p - q) W`` where nothing follows the linear layer."""
        of_kl = [] if self.q is None else [self._back(torch.sub(self.p, self.q, out=self.q), self.of_cap)]
        weight = self.head.weight
        of_nll = weight.new_zeros(len(self.p), weight.shape[1])
        if len(self.answers):
            p, of_cap = self.p, self.of_cap
            if len(self.answers) < len(p):
                p, of_cap = p[self.answers], None if of_cap is None else of_cap[self.answers]
            p[torch.arange(len(p), device=p.device), self.targets] -= 1
            of_nll[self.answers] = self._back(p, of_cap)
        return [of_nll, *of_kl]

    def _back(self, values: Tensor, of_cap: Tensor | None) -> Tensor:
        """[n, H] from [n, V] gradients with respect to the logits, which are overwritten."""
        if of_cap is not None:
            values.mul_(of_cap)
        if self.head.scale != 1:
            values.mul_(self.head.scale)
        return through_linear(self.head, values)


def products_of(head: Head, hidden: Tensor) -> Tensor:
    """[n, V] what the linear layer gives of [n, H], in float32 at least, outside of autograd."""
    products = frozen_linear(hidden.to(head.weight.dtype), head.weight, head.bias)
    return products.to(torch.promote_types(products.dtype, torch.float32))


def through_linear(head: Head, grad: Tensor) -> Tensor:
    """[n, H] gradient with respect to the hidden states from that [n, V] with respect to the linear layer's output."""
    return frozen_linear(grad.to(head.weight.dtype), head.weight.t())


def log_softmax_(logits: Tensor) -> Tensor:
    """[n, V] log-probabilities, in the place of the logits."""
    return logits.sub_(logits.logsumexp(-1, keepdim=True))

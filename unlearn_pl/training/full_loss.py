"""The loss of full fine-tuning: every token of whole texts, all weights trained."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from unlearn_pl.data.batch import Rows
from unlearn_pl.models.body import head_is_plain, vocabulary_head
from unlearn_pl.models.device import sent
from unlearn_pl.models.fast.linear import frozen_linear, trained_linears
from unlearn_pl.models.fast.packing import enable_packing, packs_rows, row_hidden_states, use_varlen
from unlearn_pl.models.head import log_softmax_

# Positions whose logits exist at once: the gradient of the head's weights, as large as they are, is added up for each.
CHUNK = 512


class FullLoss:
    """Summed negative log likelihood of rows under a model whose weights are all trained."""

    def __init__(self, model: PreTrainedModel):
        """``model`` is tried here, in eval mode. Raises InputError if it cannot take rows of different lengths."""
        self.model = model.eval()
        self.packed = enable_packing(model)
        self.apart = head_is_plain(model)

    @classmethod
    @contextmanager
    def on(cls, model: PreTrainedModel, mixed: bool = False) -> Iterator["FullLoss"]:
        """The loss while ``model`` is trained, its rows packed and its products by oneDNN where that is exact, which it
        is not under autocast (``mixed``); afterwards the model is as it was."""
        own, packed_before = model.config._attn_implementation, packs_rows(model)
        try:
            with nullcontext() if mixed else trained_linears(model):
                yield cls(model)
        finally:
            if packs_rows(model) and not packed_before:
                model.set_attn_implementation(own)

    def on_device(self) -> None:
        """Once the model has come to where it is trained, and in the precision that it is trained in: take the quickest
        attention there."""
        use_varlen(self.model)

    def __call__(self, rows: Rows) -> tuple[Tensor, int]:
        """The sum (nats, a scalar) over every token but the first of each row, and their number.

        Padding is told by the lengths: its id may be that of EOS, which is to be learnt.
        """
        lengths = rows.lengths.tolist()
        ids = torch.cat([row[:length] for row, length in zip(rows.input_ids, lengths, strict=True)])
        asked = torch.ones(len(ids), dtype=torch.bool)
        asked[rows.lengths.cumsum(0) - 1] = False  # nothing is asked of what follows a row
        before = sent(asked.nonzero()[:, 0], ids.device)
        targets = ids.roll(-1)[before]
        if not self.apart:
            logits = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
            own = [row[: length - 1] for row, length in zip(logits, lengths, strict=True)]
            return F.cross_entropy(torch.cat(own).float(), targets, reduction="sum"), len(targets)
        head, hidden = vocabulary_head(self.model), row_hidden_states(self.model, ids, lengths)[before]
        return SummedNLL.apply(hidden, head.weight, head.bias, targets), len(targets)


class SummedNLL(torch.autograd.Function):
    """NLL of ``targets`` [N], summed, after hidden states [N, H] through a head, weight [V, H] and bias [V] or None.

    The gradients of ``(p - onehot)`` are computed with the value, while a chunk of logits exists, so that it is never
    kept; differentiable once.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        of_hidden, of_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
        of_bias = None if bias is None else torch.zeros_like(bias)
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            log_p = log_softmax_(frozen_linear(hidden[part], weight, bias).float())
            places = torch.arange(len(log_p), device=log_p.device), targets[part]
            total -= log_p[places].sum()
            if not any(ctx.needs_input_grad):
                continue
            grad = log_p.exp_()
            grad[places] -= 1
            grad = grad.to(weight.dtype)
            of_hidden[part] = frozen_linear(grad, weight.t())
            of_weight += frozen_linear(grad.t(), hidden[part].t())
            if of_bias is not None:
                of_bias += grad.sum(0)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if grad is None else grad.mul_(upstream[0]) for grad in ctx.saved_tensors), None

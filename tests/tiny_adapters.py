"""A tiny model with an adapter that does something, rows for it, and its losses one row at a time."""

from collections.abc import Callable

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from unlearn_pl.data.batch import PairBatch, collate_rows
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.models.lora import Lora, attach_lora

PAD = 0


def rows_of(*lengths: tuple[int, int], seed: int = 0, name: str = "row") -> list[Encoded]:
    """Rows of (prompt, answer) lengths with random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Encoded(f"{name}{i}", tuple(torch.randint(1, 300, (p + a,), generator=generator).tolist()), p, False)
        for i, (p, a) in enumerate(lengths)
    ]


def batch_of(
    forget: list[Encoded], retain: list[Encoded], batch_size: int | None = None, **further: list[Encoded]
) -> PairBatch:
    """A batch in micro-batches of ``batch_size`` pairs (None: one of all)."""
    splits = {"forget": forget, "retain": retain, **further}
    rows = {split: collate_rows(own, PAD) for split, own in splits.items()}
    return PairBatch(rows, batch_size or len(forget))


def adapted(base: PreTrainedModel, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> PeftModel:
    """``base`` in training mode with an adapter whose B is not zero."""
    model = attach_lora(base, Lora(rank=4, alpha=8, dropout=dropout), seed=1).to(dtype)
    shake(model)
    return model.train()


def shake(model: torch.nn.Module, std: float = 0.2) -> None:
    """Give every B factor other values than zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std, generator=torch.Generator().manual_seed(len(name)))


def trained(model: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model: torch.nn.Module, loss: Callable[[], Tensor]) -> tuple[float, dict[str, Tensor]]:
    """A loss and what its backward pass leaves on the parameters that training changes."""
    model.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    grads = {name: parameter.grad.clone() for name, parameter in trained(model).items() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return value.item(), grads


def plain_logits(model: torch.nn.Module, row: Encoded) -> Tensor:
    """[T, V] logits of one unpadded row, from the whole model."""
    return model(input_ids=torch.tensor([row.input_ids])).logits[0]


def plain_nll(model: torch.nn.Module, row: Encoded) -> Tensor:
    """Cross entropy of a row's answer tokens, summed."""
    logits = plain_logits(model, row)[row.answer_start - 1 : -1]
    return F.cross_entropy(logits, torch.tensor(row.input_ids[row.answer_start :]), reduction="sum")


def plain_kl(model: PeftModel, row: Encoded) -> Tensor:
    """[T] KL(base || policy) at every position of a row."""
    log_p = plain_logits(model, row).log_softmax(-1)
    with torch.no_grad(), model.disable_adapter():
        log_q = plain_logits(model, row).log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)

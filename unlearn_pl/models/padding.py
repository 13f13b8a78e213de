"""Padding as the released ZJUKLAB code has it: in front of a row, masked, and none the less a part of its KL.

What a model says there is a fact of the libraries. With transformers 5 and torch 2.5 or newer a position that may look
at nothing gets nothing from attention, so all padding is alike, whatever the row and however long: a few positions
stand for all. (Versions of early 2025 let padding look at everything, on a GPU; which one the authors had is unknown.)
"""

import torch
from torch import Tensor, nn

from unlearn_pl.errors import InputError
from unlearn_pl.models.body import causal_model, hidden_states

# Positions that stand for all. They differ by dropout alone, which one of them would make a coarse draw.
STANDING_FOR_ALL = 15


def padding_states(model: nn.Module, pad_token_id: int) -> Tensor:
    """[n, H] final hidden states of masked positions in front of a row."""
    ids, mask = in_front(model, torch.tensor([pad_token_id]), STANDING_FOR_ALL, pad_token_id)
    return hidden_states(model, ids, mask)[0, :STANDING_FOR_ALL]


@torch.no_grad()
def check_padding(model: nn.Module, pad_token_id: int) -> None:
    """Make sure that, in front of a row, padding is what ``padding_states`` gives and changes nothing of the row.

    Raises InputError: by absolute positions, for one, or in attention that is not transformers' ``sdpa``, padding tells
    on the row or the row on the padding, and the released loss would be another for each ``max_length``.
    """
    training = model.training
    model.eval()
    row, pads = torch.arange(1, 6), 2 * STANDING_FOR_ALL
    try:
        alone = hidden_states(model, *in_front(model, row, 0, pad_token_id))[0]
        states = hidden_states(model, *in_front(model, row, pads, pad_token_id))[0]
        expected = torch.cat([padding_states(model, pad_token_id).mean(0, keepdim=True).expand(pads, -1), alone])
    finally:
        model.train(training)
    tolerance = max(1e-3, 4 * torch.finfo(states.dtype).eps)
    close = (states - expected).abs().amax() <= tolerance * expected.abs().amax()
    if not close:  # NaN is not close either
        raise InputError(
            f"RetainKL positions: `released` computes padding, which {type(causal_model(model)).__name__} mixes with "
            "the rows; take `padded`, the same divisor without its KL"
        )


def in_front(model: nn.Module, row: Tensor, count: int, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [1, count + T] of a row after ``count`` tokens of padding, on the model's device."""
    ids = torch.cat([torch.full((count,), pad_token_id), row])
    mask = (torch.arange(len(ids)) >= count).long()
    device = causal_model(model).get_input_embeddings().weight.device
    return ids[None].to(device), mask[None].to(device)

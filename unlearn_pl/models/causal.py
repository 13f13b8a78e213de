"""Whether a model reads text forwards only, as whatever is measured or trained here takes for granted."""

import torch
from torch import Tensor, nn

from unlearn_pl.errors import InputError
from unlearn_pl.models.body import causal_model

# Tokens of a row, and how many of them are then others. What that changes before them is rounding, as in a mixture of
# experts whose groups become others, or it is no causal model.
LENGTH, LAST, TOLERANCE = 12, 4, 1e-3


@torch.no_grad()
def refuse_reading_ahead(model: nn.Module) -> None:
    """Raise InputError if the logits of a token depend on tokens after it: `AutoModelForCausalLM` opens BERT, RoBERTa,
    XLNet and the like too, which see the answer that they are asked for."""
    causal = causal_model(model)
    embedding = causal.get_input_embeddings().weight
    if len(embedding) <= LENGTH + LAST:
        return
    row = torch.arange(1, LENGTH + 1, device=embedding.device)[None]
    other = row.clone()
    other[:, -LAST:] += LAST
    training = model.training
    try:
        model.eval()
        one, two = (logits_of(causal, ids) for ids in (row, other))
    finally:
        model.train(training)
    if one is None or two is None:
        return
    apart = (one - two).abs().nan_to_num(0, 0, 0)
    before, after = float(apart[:-LAST].max()), float(apart[-LAST:].max())
    if before > max(TOLERANCE, 16 * torch.finfo(embedding.dtype).eps) * after:
        raise InputError(
            f"model: {type(causal).__name__} as its config.json has it is no causal language model: what it says of a "
            "token depends on the tokens after it"
        )


def logits_of(causal: nn.Module, ids: Tensor) -> Tensor | None:
    """[T, V] of one row; None if the model does not run on token ids alone, which is told elsewhere."""
    try:
        logits: Tensor = causal(input_ids=ids, use_cache=False).logits[0].float()
    except Exception:  # each fails in its own way
        return None
    return logits

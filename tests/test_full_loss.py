"""The loss of full fine-tuning and its gradient, beside the model's own."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from unlearn_pl.data.batch import collate_rows
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.models.fast.attention import PACKED
from unlearn_pl.training import full_loss
from unlearn_pl.training.full_loss import FullLoss

Factory = Callable[..., LlamaForCausalLM]
TEXTS = [Encoded(str(n), tuple(range(3 + n, 3 + n + length)), 1, False) for n, length in enumerate((9, 2, 30, 17))]


def own_gradient(model: LlamaForCausalLM) -> tuple[float, dict[str, torch.Tensor]]:
    """Each text alone through the whole model, every token but the first scored."""
    total = torch.zeros(())
    for text in TEXTS:
        ids = torch.tensor(text.input_ids)
        logits = model(input_ids=ids[None]).logits[0, :-1]
        total = total + F.cross_entropy(logits, ids[1:], reduction="sum")
    total.backward()
    return float(total.detach()), {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }


@pytest.mark.parametrize("chunk", [5, 512])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradient_are_the_model_s_own(
    tiny_model: Factory, monkeypatch: pytest.MonkeyPatch, chunk: int, apart: bool, tied: bool, dtype: torch.dtype
) -> None:
    """Of all weights: also of a head that is the embedding, and where the head is not computed apart."""
    monkeypatch.setattr(full_loss, "CHUNK", chunk)
    model = tiny_model()
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    elif model.lm_head.weight is model.model.embed_tokens.weight:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.9)
    model.to(dtype)
    wanted, gradient = own_gradient(model)
    model.zero_grad()
    before = model.config._attn_implementation
    with FullLoss.on(model) as loss:
        assert loss.packed
        assert loss.apart
        loss.apart = apart
        value, count = loss(collate_rows(TEXTS, pad_token_id=0))
        (value / count).backward()
    assert count == 9 + 2 + 30 + 17 - 4
    assert float(value.detach()) == pytest.approx(wanted, rel=1e-6)
    tolerance = 1e-5 if dtype == torch.float64 else 1e-4  # the norms are float32 in either
    for name, one in model.named_parameters():
        assert one.grad is not None, name
        assert torch.allclose(one.grad * count, gradient[name], rtol=tolerance, atol=tolerance), name
    assert model.config._attn_implementation == before != PACKED
    assert all("forward" not in vars(module) for module in model.modules())


def test_rows_that_cannot_be_packed_are_padded(tiny_model: Factory) -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    wanted, _ = own_gradient(model)
    with FullLoss.on(model) as loss:
        assert not loss.packed
        assert float(loss(collate_rows(TEXTS, pad_token_id=0))[0].detach()) == pytest.approx(wanted, rel=1e-5)
    assert model.config._attn_implementation == "eager"

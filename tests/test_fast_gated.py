"""The gated feed-forward block that keeps no inner product, against the same block as transformers has it."""

import pytest
import torch
from tiny_adapters import adapted, shake
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
)

from unlearn_pl.models.fast.gated import enable_gated
from unlearn_pl.models.fast.linear import frozen_linear
from unlearn_pl.models.lora import Lora, attach_lora

IDS = torch.arange(1, 25).view(2, 12)


def outputs(model: torch.nn.Module, seed: int = 3) -> list[Tensor]:
    """Loss and adapter gradients, given a random state."""
    torch.manual_seed(seed)
    model.zero_grad(set_to_none=True)
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    trained = [value for value in model.parameters() if value.requires_grad]
    return [loss.detach(), *(torch.zeros_like(value) if value.grad is None else value.grad for value in trained)]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
def test_loss_and_gradients_stay_the_same(tiny_model, dtype, tolerance: float, dropout: float) -> None:
    model = adapted(tiny_model(), dropout, dtype)
    expected = outputs(model)
    assert enable_gated(model) == 2
    for ours, theirs in zip(outputs(model), expected, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize(
    "targets",
    [
        ["down_proj"],
        ["gate_proj", "down_proj"],
        ["up_proj", "down_proj"],
        ["gate_proj", "up_proj", "down_proj"],
        ["q_proj", "down_proj"],
    ],
    ids=" ".join,
)
def test_any_choice_of_layers_is_trained(tiny_model, targets: list[str]) -> None:
    """In the first block nothing before the feed-forward layers may need a gradient."""
    model = attach_lora(tiny_model(), Lora(rank=4, alpha=8, dropout=0.0, target_modules=targets), seed=1).train()
    shake(model)
    expected = outputs(model)
    assert enable_gated(model) == 2
    ours = outputs(model)
    assert [value.shape for value in ours] == [value.shape for value in expected]
    for own, other in zip(ours, expected, strict=True):
        assert (own - other).norm() <= 1e-4 * other.norm()


def test_gradients_of_the_gate_and_its_partner_pass_gradcheck(tiny_model) -> None:
    for dropout in (0.0, 0.4):
        layer = adapted(tiny_model(), dropout, torch.float64).get_submodule(
            "base_model.model.model.layers.0.mlp.down_proj"
        )
        gate, up = (
            torch.randn(3, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
            for seed in (1, 2)
        )

        def forward(gate: Tensor, up: Tensor, layer: torch.nn.Module = layer) -> Tensor:
            torch.manual_seed(3)
            return layer.forward_gated(gate, up)

        torch.manual_seed(3)
        assert torch.allclose(forward(gate, up), (torch.manual_seed(3), layer(F.silu(gate) * up))[1], rtol=1e-12)
        assert torch.autograd.gradcheck(forward, (gate, up))


def test_gradient_checkpointing_draws_the_same_masks_again(tiny_model) -> None:
    model = adapted(tiny_model(), 0.4)
    enable_gated(model)
    expected = outputs(model)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    for ours, theirs in zip(outputs(model.train()), expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_half_precision_stays_close(tiny_model) -> None:
    model = attach_lora(tiny_model().bfloat16(), Lora(rank=4, alpha=8, dropout=0.0), seed=1).train()
    shake(model)
    expected = outputs(model)
    assert enable_gated(model) == 2
    for ours, theirs in zip(outputs(model), expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours.float() - theirs.float()).norm() <= 0.05 * theirs.float().norm()


def test_evaluation_and_the_base_model_stay_the_same(tiny_model) -> None:
    model = adapted(tiny_model()).eval()

    def logits() -> list[Tensor]:
        with torch.no_grad():
            on = model(input_ids=IDS).logits
            with model.disable_adapter():
                return [on, model(input_ids=IDS).logits]

    expected = logits()
    enable_gated(model)
    for ours, theirs in zip(logits(), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model(input_ids=IDS).logits.float(), expected[0], rtol=0.1, atol=0.1)


def tiny(activation: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_act=activation,
    )
    return attach_lora(LlamaForCausalLM(config), Lora(rank=2, dropout=0.0), seed=1)


@pytest.mark.parametrize(("activation", "blocks"), [("silu", 1), ("gelu", 0), ("relu", 0)])
def test_only_silu_blocks_are_changed(activation: str, blocks: int) -> None:
    """A fresh GELU block differs from a SiLU block by little, at this size of weights, and must still be told apart."""
    assert enable_gated(tiny(activation)) == blocks


def test_blocks_without_an_adapter_or_a_gate_are_left_alone(tiny_model) -> None:
    assert enable_gated(tiny_model()) == 0
    assert enable_gated(attach_lora(tiny_model(), Lora(rank=2, target_modules=["q_proj"]), seed=1)) == 0
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    assert enable_gated(attach_lora(GPTNeoXForCausalLM(config), Lora(rank=2), seed=1)) == 0


@pytest.mark.parametrize(("dropout", "blocks"), [(0.1, 0), (0.0, 1)])
def test_a_block_with_dropout_of_its_own_keeps_it(dropout: float, blocks: int) -> None:
    """Seed-OSS puts a dropout behind the block: it shows in training alone, and there it must not be lost."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SeedOssConfig(vocab_size=64, num_key_value_heads=1, head_dim=8, residual_dropout=dropout, **sizes)
    model = attach_lora(SeedOssForCausalLM(config), Lora(rank=2, dropout=0.5), seed=1).train()
    state = torch.get_rng_state()
    assert enable_gated(model) == blocks
    assert torch.equal(torch.get_rng_state(), state)
    block = model.get_base_model().model.layers[0].mlp
    assert block.training
    zeros = (block(torch.ones(50, 16)) == 0).float().mean()
    assert (zeros > 0.03) == (dropout > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("turned", [False, True], ids=["weight", "transposed weight"])
def test_products_of_frozen_weights_are_those_of_torch(dtype, bias: bool, turned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, shift = (torch.randn(shape, generator=generator).to(dtype) for shape in ((7, 5), (4, 5), (4,)))
    weight = weight.t().contiguous().t() if turned else weight
    with torch.no_grad():
        ours = frozen_linear(x, weight, shift if bias else None)
    theirs = F.linear(x.double(), weight.double(), shift.double() if bias else None)
    assert ours.dtype == dtype
    assert (ours.double() - theirs).norm() < {torch.bfloat16: 0.02}.get(dtype, 1e-6) * theirs.norm()

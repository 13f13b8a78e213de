"""Our LoRA layer against PEFT's own, in values and gradients, and the files it leaves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear
from tiny_adapters import adapted, shake
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from unlearn_pl.models.fast import lora
from unlearn_pl.models.fast.lora import LoraLinear
from unlearn_pl.models.lora import Lora, attach_lora, open_adapter, save_adapter

IN, OUT = 6, 5


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wrapped(bias: bool = True, dtype: torch.dtype = torch.float64, **options: object) -> tuple[nn.Module, LoraLinear]:
    """A PEFT model around one linear layer, and the layer; A and B are random."""
    base = nn.Sequential(nn.Linear(IN, OUT, bias=bias))
    with torch.no_grad():
        for i, parameter in enumerate(base.parameters()):
            parameter.copy_(numbers(i, *parameter.shape))
    config = LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["0"]} | options)
    config._register_custom_module({nn.Linear: LoraLinear})
    model = get_peft_model(base.to(dtype), config)
    refill(model, dtype)
    return model.train(), model.base_model.model[0]


def refill(model: nn.Module, dtype: torch.dtype = torch.float64) -> None:
    """Random adapter factors in ``dtype``."""
    for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if "lora_A" in name or "lora_B" in name:
            parameter.data = numbers(10 + i, *parameter.shape).to(dtype)


def results(forward: Callable[[Tensor], Tensor], layer: LoraLinear, x: Tensor) -> list[Tensor]:
    """Output, and the gradients of input and adapter, of a sum that weighs every output differently."""
    x = x.clone().requires_grad_()
    out = forward(x)
    factors = [value for name, value in layer.named_parameters() if "lora_" in name]
    weights = numbers(99, *out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), [x, *factors])]


PEFTS_FORWARD = PeftLinear.forward


def by_peft(layer: LoraLinear, x: Tensor) -> list[Tensor]:
    return results(lambda inputs: PEFTS_FORWARD(layer, inputs), layer, x)


@pytest.fixture
def pefts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever a layer hands its input to PEFT."""
    calls: list[int] = []

    def counted(*args: object, **kwargs: object) -> Tensor:
        calls.append(1)
        return PEFTS_FORWARD(*args, **kwargs)

    monkeypatch.setattr(PeftLinear, "forward", counted)
    return calls


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    ("base", "adapter", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.float32, 0.03),
        (torch.float16, torch.float32, 0.004),
    ],
    ids=["float64", "float32", "bfloat16 base", "float16 base"],
)
@pytest.mark.parametrize("shape", [(IN,), (4, IN), (2, 3, IN)], ids=str)
def test_values_and_gradients_are_those_of_peft(pefts, bias, base, adapter, tolerance, shape) -> None:
    model, layer = wrapped(bias, base)
    refill(model, adapter)
    x = numbers(50, *shape).to(base)
    ours, theirs = results(layer, layer, x), by_peft(layer, x)
    assert pefts == []
    for own, other in zip(ours, theirs, strict=True):
        assert (own.dtype, own.shape) == (other.dtype, other.shape)
        assert (own.double() - other.double()).norm() <= tolerance * other.double().norm()


def test_an_input_that_is_not_contiguous_serves(pefts) -> None:
    _, layer = wrapped()
    x = numbers(50, IN, 3, 2).transpose(0, 2)
    for own, other in zip(results(layer, layer, x), by_peft(layer, x), strict=True):
        assert torch.allclose(own, other, rtol=1e-12)
    assert pefts == []


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_model_may_overwrite_what_the_layer_gave(rate: float) -> None:
    """As OLMo and OLMoE do with queries and keys, where their configuration has `clip_qkv`."""
    _, layer = wrapped(lora_dropout=rate)
    x = numbers(50, 2, 3, IN)
    gave = []
    for overwrite in (False, True):
        torch.manual_seed(0)
        gave.append(results(lambda inputs, own=overwrite: clipped(layer(inputs), own), layer, x))
    for own, other in zip(*gave, strict=True):
        assert torch.equal(own, other)


def clipped(values: Tensor, overwrite: bool) -> Tensor:
    return values.clamp_(-1, 1) if overwrite else values.clamp(-1, 1)


def test_an_input_without_gradient_trains_the_adapter() -> None:
    """The first layer of a model, when nothing before it is trained."""
    _, layer = wrapped(lora_dropout=0.0)
    x = numbers(50, 4, IN)
    layer(x).square().sum().backward()
    ours = [value.grad.clone() for name, value in layer.named_parameters() if "lora_" in name]
    layer.zero_grad()
    PeftLinear.forward(layer, x).square().sum().backward()
    theirs = [value.grad for name, value in layer.named_parameters() if "lora_" in name]
    assert all(torch.allclose(*pair) for pair in zip(ours, theirs, strict=True))
    assert all(value.grad is None for name, value in layer.named_parameters() if "lora_" not in name)


def test_input_and_upstream_gradient_are_left_as_they_were() -> None:
    for rate in (0.0, 0.5):
        _, layer = wrapped(lora_dropout=rate)
        x, upstream = numbers(50, 4, IN).requires_grad_(), numbers(51, 4, OUT)
        before = x.detach().clone(), upstream.clone()
        layer(x).backward(upstream)
        assert torch.equal(x.detach(), before[0])
        assert torch.equal(upstream, before[1])


def drawn(rate: float, rows: int, width: int = 64, seed: int = 0, draws: int = 1) -> list[Tensor]:
    """What dropout makes of ones, [rows, width] for each draw: 0 or 1 / share kept. A and B change nothing here."""
    base = nn.Sequential(nn.Linear(width, width, bias=False, dtype=torch.float64))
    config = LoraConfig(r=width, lora_alpha=width, lora_dropout=rate, target_modules=["0"])
    config._register_custom_module({nn.Linear: LoraLinear})
    layer = get_peft_model(base, config).train().base_model.model[0]
    layer.base_layer.weight.data.zero_()
    for factors in (layer.lora_A, layer.lora_B):
        factors["default"].weight.data = torch.eye(width, dtype=torch.float64)
    torch.manual_seed(seed)
    return [layer(torch.ones(rows, width, dtype=torch.float64)).detach() for _ in range(draws)]


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
def test_dropout_keeps_its_share(rate: float) -> None:
    """Within 4 standard deviations, in all and in each column; what is kept is scaled to a mean of 1."""
    (values,) = drawn(rate, 4000)
    kept = values != 0
    assert values[kept].unique().tolist() == pytest.approx([1 / (1 - rate)])
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(kept.double().mean() - (1 - rate)) < 4 * deviation / kept.numel() ** 0.5
    assert (kept.double().mean(0) - (1 - rate)).abs().max() < 4.5 * deviation / 4000**0.5


def test_places_are_dropped_independently() -> None:
    """The correlations of neighbours stay below 4.5 standard deviations, though gaps and not places are drawn."""
    kept = (drawn(0.5, 4000)[0] != 0).double().flatten() * 2 - 1
    for distance in (1, 2, 3, 4, 64):
        together = (kept[distance:] * kept[:-distance]).mean()
        assert abs(together) < 4.5 / len(kept) ** 0.5, distance


def test_dropout_is_a_function_of_the_random_state() -> None:
    first, again, other = (drawn(0.5, 50, seed=seed, draws=2) for seed in (0, 0, 1))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(*first)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 3), (1, 4), (3, 5)])
def test_inputs_may_be_of_any_size(rows: int, width: int) -> None:
    assert drawn(0.5, rows, width)[0].shape == (rows, width)


@pytest.mark.parametrize("rate", [1e-7, 0.999999])
def test_extreme_rates_are_taken(rate: float) -> None:
    """The documented range is [0, 1)."""
    assert drawn(rate, 2)[0].isfinite().all()


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_gradients_pass_gradcheck_given_a_mask(pefts, rate: float) -> None:
    _, layer = wrapped(lora_dropout=rate)
    a, b = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))

    def forward(x: Tensor, *factors: Tensor) -> Tensor:
        torch.manual_seed(3)
        return layer(x)

    assert torch.autograd.gradcheck(forward, (numbers(50, 2, 3, IN).requires_grad_(), a, b))
    assert pefts == []


def test_dropout_is_that_of_the_adapters_input() -> None:
    """The base layer sees the whole input: with a rank of 1 the output is that of a single masked dot product."""
    _, layer = wrapped(lora_dropout=0.4)
    x = numbers(50, 1, IN)
    a, b = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
    torch.manual_seed(3)
    delta = (layer(x) - layer.base_layer(x)).detach()
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * IN)
    possible = 5 / 3 * (x * masks / (1 - 0.4)) @ a.T @ b.T
    assert (possible - delta).abs().amax(-1).min() < 1e-12
    assert torch.allclose(layer.eval()(x), layer.base_layer(x) + 5 / 3 * x @ a.T @ b.T, rtol=1e-12)


def test_without_gradient_the_layer_gives_what_peft_gives() -> None:
    _, layer = wrapped(lora_dropout=0.4)
    x = numbers(50, 4, IN)
    with torch.no_grad():
        assert torch.allclose(layer.eval()(x), PEFTS_FORWARD(layer, x), rtol=1e-12)


def pefts_output(layer: LoraLinear, x: Tensor, pefts: list[int]) -> Tensor:
    """The output, which must have come from PEFT."""
    pefts.clear()
    out = layer(x)
    assert pefts == [1]
    assert torch.equal(out, PEFTS_FORWARD(layer, x))
    return out


def test_autocast_goes_to_peft(pefts) -> None:
    _, layer = wrapped(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert pefts_output(layer, numbers(50, 4, IN).float(), pefts).dtype == torch.bfloat16


def test_dora_goes_to_peft(pefts) -> None:
    pefts_output(wrapped(use_dora=True)[1], numbers(50, 4, IN), pefts)


def test_a_trained_base_weight_goes_to_peft(pefts) -> None:
    _, layer = wrapped()
    layer.base_layer.weight.requires_grad_()
    pefts_output(layer, numbers(50, 4, IN), pefts)


@pytest.mark.parametrize("of_base", [False, True], ids=["lora_bias", "bias: all"])
def test_biases_train_as_pefts_do(pefts, of_base: bool) -> None:
    """The adapter's own bias, or the base's if that is trained: in the value and in every gradient."""
    model, layer = wrapped(lora_bias=not of_base)
    layer.base_layer.bias.requires_grad_(of_base)
    grown = [(name, value) for name, value in sorted(model.named_parameters()) if value.requires_grad]
    assert sum(name.endswith("bias") for name, _ in grown) == 1
    for i, (_, value) in enumerate(grown):
        value.data = numbers(20 + i, *value.shape)
    x = numbers(50, 4, IN)
    runs = []
    for forward in (layer, lambda inputs: PEFTS_FORWARD(layer, inputs)):
        out = forward(x)
        loss = (out * numbers(99, *out.shape)).sum()
        runs.append([out, *torch.autograd.grad(loss, [value for _, value in grown])])
    for own, other in zip(*runs, strict=True):
        assert torch.allclose(own, other, rtol=1e-12)
        assert other.abs().max() > 0


def test_adapters_that_are_off_merged_or_several_go_to_peft(pefts) -> None:
    model, layer = wrapped()
    x = numbers(50, 4, IN)
    with model.disable_adapter():
        assert torch.equal(pefts_output(layer, x, pefts), layer.base_layer(x))
    model.add_adapter("second", LoraConfig(r=2, target_modules=["0"]))
    model.base_model.set_adapter(["default", "second"])
    refill(model)
    pefts_output(layer, x, pefts)
    model.base_model.set_adapter("second")
    pefts.clear()
    alone = layer(x)
    assert pefts == []
    assert torch.allclose(alone, PEFTS_FORWARD(layer, x), rtol=1e-12)
    layer.merge()
    assert torch.allclose(pefts_output(layer, x, pefts), alone, rtol=1e-9)


def test_every_adapted_layer_is_ours_and_saved_under_pefts_names(tiny_model, tmp_path: Path) -> None:
    """Opened by PEFT alone, the file gives the same logits."""
    ours, ids = adapted(tiny_model()).eval(), torch.arange(9)[None]
    layers = [module for module in ours.modules() if isinstance(module, PeftLinear)]
    assert len(layers) == 14
    assert {type(module) for module in layers} == {LoraLinear}
    save_adapter(ours, tmp_path / "adapter")
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert "lora_linear" not in text
    assert "LoraLinear" not in text
    theirs = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "adapter")).eval()
    assert {type(module) for module in theirs.modules() if isinstance(module, PeftLinear)} == {PeftLinear}
    for other in (theirs, open_adapter(tiny_model(), tmp_path / "adapter", trainable=True).eval()):
        assert torch.allclose(other(input_ids=ids).logits, ours(input_ids=ids).logits, atol=1e-5)


def test_a_model_of_ours_trains_like_one_of_pefts(tiny_model: Callable[[], LlamaForCausalLM]) -> None:
    ids = torch.arange(12).view(2, 6)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    grads = []
    for model in (
        attach_lora(tiny_model(), Lora(rank=4, alpha=8, dropout=0.0), seed=1),
        get_peft_model(tiny_model(), config),
    ):
        shake(model)
        for i, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_A" in name:
                parameter.data = 0.3 * numbers(i, *parameter.shape).float()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        grads.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[1].items():
        assert (grads[0][name] - grad).norm() < 1e-4 * grad.norm(), name


def test_the_type_of_the_adapters_products() -> None:
    """Half precision on a GPU alone."""
    a, half = torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bfloat16)

    class OnGPU:
        dtype, device = torch.bfloat16, torch.device("cuda", 0)

    assert lora.adapter_type(half, a) == torch.float32
    assert lora.adapter_type(OnGPU(), a) == torch.bfloat16  # type: ignore[arg-type]
    OnGPU.dtype = torch.float32
    assert lora.adapter_type(OnGPU(), a) == torch.float32  # type: ignore[arg-type]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_in_half_precision_the_adapter_is_what_it_is_in_float32_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    _, layer = wrapped(dtype=torch.bfloat16, lora_dropout=dropout)
    for factor in (layer.lora_A["default"], layer.lora_B["default"]):
        factor.float()
    x = numbers(5, 4, IN).to(torch.bfloat16)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(lora, "adapter_type", lambda x, a, dtype=dtype: dtype)
        torch.manual_seed(0)
        found.append(results(layer, layer, x))
    for exact, half in zip(*found, strict=True):
        assert exact.dtype == half.dtype
        assert (exact.float() - half.float()).norm() < 0.02 * exact.float().norm()
    assert [each.dtype for each in found[1][2:]] == [torch.float32] * 2, "the factors' gradients are as fine as they"
    assert any(not exact.equal(half) for exact, half in zip(*found, strict=True))


def test_autocast_to_the_type_of_the_base_is_no_reason_for_pefts_layer(
    monkeypatch: pytest.MonkeyPatch, pefts: list[int]
) -> None:
    """On a GPU; a CPU stands for it here. What differs is rounding: PEFT's sum of the two branches is rounded later."""
    _, layer = wrapped(dtype=torch.bfloat16)
    for factor in (layer.lora_A["default"], layer.lora_B["default"]):
        factor.float()
    x = numbers(5, 4, IN).float()
    with torch.autocast("cpu", torch.bfloat16):
        expected = results(layer, layer, x)
        assert pefts == [1], "not on a CPU"
        monkeypatch.setattr(lora, "suits_autocast", lambda x, weight: True)
        monkeypatch.setattr(lora, "adapter_type", lambda x, a: torch.bfloat16)
        found = results(layer, layer, x)
    assert pefts == [1]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours.float() - theirs.float()).norm() < 0.02 * theirs.float().norm()


@pytest.mark.parametrize(("dtype", "suits"), [(torch.bfloat16, True), (torch.float32, False)])
def test_which_base_suits_autocast(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, suits: bool) -> None:
    class OnGPU:
        device = torch.device("cuda", 0)

    weight = torch.ones(1, dtype=dtype)
    assert lora.suits_autocast(torch.ones(1), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not lora.suits_autocast(torch.ones(1), weight)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert lora.suits_autocast(OnGPU(), weight) == suits  # type: ignore[arg-type]

"""Products of frozen weights by another library: the same numbers, and layers left as they were."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearn_pl.models.fast import linear
from unlearn_pl.models.fast.linear import frozen_linear, frozen_linears, trained_linear, trained_linears


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_a_linear_layer(bias: bool, dtype: torch.dtype) -> None:
    layer = nn.Linear(7, 5, bias=bias, dtype=dtype)
    x = torch.randn(3, 7, dtype=dtype)
    with torch.no_grad():
        found = frozen_linear(x, layer.weight, layer.bias)
    assert found.dtype == dtype
    assert torch.allclose(found, F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "library"), [(127, "torch"), (128, "oneDNN")])
def test_only_a_large_product_goes_to_onednn(rows: int, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """127 x 64 x 128 is below 2^20 multiplications, 128 x 64 x 128 is not."""
    called: list[str] = []

    def counted(*given: Any) -> torch.Tensor:
        called.append("oneDNN")
        return F.linear(*given[:3])

    monkeypatch.setattr(linear, "_ONEDNN_LINEAR", counted)
    layer, x = nn.Linear(64, 128), torch.randn(rows, 64)
    with torch.no_grad(), frozen_linears(layer):
        assert torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias))
    assert called == ["oneDNN"] * (library == "oneDNN")


def test_layers_compute_the_same_and_are_given_back() -> None:
    """Also with inputs of three dimensions, inside of each other, and after an error."""
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3, dtype=torch.float32))
    x = torch.randn(2, 4, 7)
    with torch.no_grad():
        expected = model(x)
        with frozen_linears(model), frozen_linears(model):
            assert "forward" in vars(model[0])
            assert torch.allclose(model(x), expected, rtol=1e-5, atol=1e-6)
        assert all("forward" not in vars(layer) for layer in model)
        with pytest.raises(ValueError, match="stop"), frozen_linears(model):
            raise ValueError("stop")
        assert all("forward" not in vars(layer) for layer in model)
        assert torch.equal(model(x), expected)


def test_gradients_still_flow() -> None:
    layer = nn.Linear(4, 2)
    with frozen_linears(layer):
        layer(torch.ones(3, 4)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.full((2, 4), 3.0))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trained_product_has_the_gradients_of_a_linear_layer(bias: bool, dtype: torch.dtype) -> None:
    """Of input, weight and bias; nothing is computed for one that asks for none."""
    layer = nn.Linear(70, 50, bias=bias, dtype=dtype)
    x, upstream = torch.randn(30, 70, dtype=dtype, requires_grad=True), torch.randn(30, 50, dtype=dtype)
    own = [one for one in (x, layer.weight, layer.bias) if one is not None]
    wanted = torch.autograd.grad(layer(x), own, upstream)
    found = torch.autograd.grad(trained_linear(x, layer.weight, layer.bias), own, upstream)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    layer.weight.requires_grad_(False)
    trained_linear(x, layer.weight, layer.bias).backward(upstream)
    assert layer.weight.grad is None
    assert torch.allclose(x.grad, wanted[0], rtol=1e-4, atol=1e-4)


def test_trained_layers_are_given_back() -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(2, 4, 7)
    wanted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with trained_linears(model):
        found = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(found, wanted, strict=True))
    assert all("forward" not in vars(layer) for layer in model)

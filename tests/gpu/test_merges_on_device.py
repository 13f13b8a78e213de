"""Every way of merging two adapters, its tensors on the device against the CPU."""

import pytest
import torch

from unlearn_pl.merging.factors import Factors
from unlearn_pl.merging.kernels import KERNELS, KernelOptions
from unlearn_pl.merging.low_rank import compress, stack, truncate
from unlearn_pl.merging.merge import merge_tensors

pytestmark = pytest.mark.gpu

FIXED = [name for name, kernel in KERNELS.items() if not kernel.random]


def options(name: str) -> KernelOptions:
    given = {"density": 0.5, "majority_sign": "total", "vote": "plain", "epsilon": 0.3, "outliers": 0.1}
    return KernelOptions(**{key: given[key] for key in KERNELS[name].parameters})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FIXED)
def test_kernels(name: str, device: torch.device) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(48, 40) for _ in range(2)]
    found = []
    for place in ("cpu", device):
        own = [tensor.clone().to(place) for tensor in tensors]
        merged = merge_tensors(KERNELS[name], own, [0.7, 1.2], options(name), torch.Generator().manual_seed(0))
        found.append(merged.cpu())
    assert torch.allclose(*found, rtol=1e-4, atol=1e-5)


def test_sums_of_low_rank(device: torch.device) -> None:
    """Exactly, and cut to rank 3 by factors and as a whole, against the singular values of the dense sum."""
    torch.manual_seed(0)
    pairs, weights = [Factors(torch.randn(4, 40), torch.randn(48, 4)) for _ in range(2)], [0.7, 1.2]
    dense = sum(weight * pair.b @ pair.a for pair, weight in zip(pairs, weights, strict=True))
    u, s, v = torch.linalg.svd(dense, full_matrices=False)
    there = stack([Factors(pair.a.to(device), pair.b.to(device)) for pair in pairs], weights)
    cuts = [compress(there, 3)[0], truncate(dense.to(device), 3)[0]]
    expected = [dense, *(2 * [u[:, :3] * s[:3] @ v[:3]])]
    for found, wanted in zip([there, *cuts], expected, strict=True):
        assert torch.allclose((found.b @ found.a).cpu(), wanted, rtol=1e-3, atol=1e-3)

"""Signs and trimmed mass, by hand and against dense deltas entry by entry."""

from pathlib import Path

import pytest
import torch
from merge_choice import merge_settings

from unlearn_pl.analysis.conflict import measure_conflict
from unlearn_pl.merging.adapters import Adapter
from unlearn_pl.merging.factors import Factors

NAME = "base_model.model.layer"


def parent(a, b, alpha=1):
    pair = Factors(torch.tensor(a), torch.tensor(b))
    return Adapter(Path("none"), {"r": pair.a.shape[0], "lora_alpha": alpha * pair.a.shape[0]}, {NAME: pair}, {})


def test_factors_by_hand():
    """A: (1, 2) and (-1, 2); B: (3) and (4): three entries shared, one with two signs. Nothing is pruned."""
    one, other = parent([[1.0, 2.0]], [[3.0]]), parent([[-1.0, 2.0]], [[4.0]])
    signs, trimmed = measure_conflict([one, other], merge_settings(2, "linear"), [NAME])
    assert (signs, trimmed) == (pytest.approx(1 / 3), 0)


def test_trimming_half_by_hand():
    """Of A the smaller entry of each goes: 1 of (1, 2) and 1 of (-1, 2). Of B 3 and 5 stay, 1 and 2 go, in the same
    places. Mass 3 + 3 + 4 + 7 = 17, of which 1 + 1 + 1 + 2 = 5 goes."""
    one, other = parent([[1.0, 2.0]], [[3.0], [1.0]]), parent([[-1.0, 2.0]], [[-5.0], [2.0]])
    signs, trimmed = measure_conflict([one, other], merge_settings(2, "ties", density=0.5), [NAME])
    assert signs == 1 / 2  # of A's second column and B's first row
    assert trimmed == pytest.approx(5 / 17)


@pytest.mark.parametrize("method", ["ties_svd", "magnitude_prune_dense", "cat", "dare_ties_svd"])
def test_deltas_entry_by_entry(method):
    draw = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(3, 7, generator=draw), torch.randn(5, 3, generator=draw)) for _ in range(3)]
    parents = [parent(a.tolist(), b.tolist(), alpha=2) for a, b in pairs]
    settings = merge_settings(3, method, density=None if method == "cat" else 0.4, seed=1)
    before = [2 * b @ a for a, b in pairs]
    after = [delta.clone() for delta in before]
    if settings.method.kernel.prune is not None:
        settings.method.kernel.prune(after, settings.options, torch.Generator().manual_seed(1))
    shared = differing = 0
    for row in zip(*(delta.flatten().tolist() for delta in after), strict=True):
        signs = {value > 0 for value in row if value}
        shared += sum(value != 0 for value in row) >= 2
        differing += len(signs) == 2
    mass = sum(delta.abs().sum().item() for delta in before)
    gone = sum(delta[pruned == 0].abs().sum().item() for delta, pruned in zip(before, after, strict=True))
    got = measure_conflict(parents, settings, [NAME])
    assert got.signs == pytest.approx(differing / shared)
    assert got.trimmed == pytest.approx(gone / mass, abs=1e-6)


def test_nothing_in_common_is_no_conflict():
    one, other = parent([[1.0, 0.0]], [[0.0]]), parent([[0.0, 1.0]], [[0.0]])
    assert measure_conflict([one, other], merge_settings(2, "linear"), [NAME]) == (0, 0)

"""Low-rank algebra against the dense matrix in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unlearn_pl.merging import low_rank
from unlearn_pl.merging.factors import Factors
from unlearn_pl.merging.low_rank import compress, stack, truncate

side, ranks = st.integers(1, 12), st.integers(1, 6)


def pair(out: int, inside: int, rank: int, seed: int = 0, smallest: float = 1.0) -> Factors:
    """Normal numbers; the columns of B fall from length 1 to ``smallest``."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, math.log10(smallest), rank)
    a, b = torch.randn(rank, inside, generator=generator), torch.randn(out, rank, generator=generator)
    return Factors(a / inside**0.5, b / out**0.5 * scale)


def dense(factors: Factors) -> Tensor:
    return factors.b.double() @ factors.a.double()


def best(matrix: Tensor, rank: int) -> tuple[Tensor, float]:
    """The best approximation and its relative error, by the definition."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank], (s[rank:].norm() / s.norm()).item()


def relative(x: Tensor, y: Tensor) -> float:
    return ((x - y).norm() / y.norm()).item()


def check_split(factors: Factors) -> None:
    """a has orthonormal rows, b orthogonal columns of falling length."""
    gram = factors.b.double().T @ factors.b.double()
    lengths = gram.diagonal().sqrt()
    assert relative(factors.a.double() @ factors.a.double().T, torch.eye(len(factors.a), dtype=torch.float64)) < 1e-5
    assert (gram - torch.diag(gram.diagonal())).norm() < 1e-5 * gram.norm()
    assert (lengths.diff() <= 1e-5 * lengths[0]).all()


@settings(deadline=None)
@given(side, side, st.lists(st.tuples(ranks, st.integers(-8, 8).map(lambda n: n / 4)), min_size=1, max_size=3))
def test_stack_is_the_weighted_sum(out: int, inside: int, parts: list[tuple[int, float]]) -> None:
    pairs = [pair(out, inside, rank, seed) for seed, (rank, _) in enumerate(parts)]
    stacked = stack(pairs, [weight for _, weight in parts])
    total = sum(weight * dense(one) for one, (_, weight) in zip(pairs, parts, strict=True))
    assert stacked.a.shape == (sum(rank for rank, _ in parts), inside)
    assert torch.allclose(dense(stacked), torch.as_tensor(total), atol=1e-6)


def test_stack_wants_a_weight_each() -> None:
    with pytest.raises(ValueError, match="shorter"):
        stack([pair(3, 3, 1), pair(3, 3, 1)], [1.0])


@settings(deadline=None)
@given(side, side, ranks, st.integers(1, 8), st.integers(0, 3))
def test_compress_is_the_best_approximation(out: int, inside: int, rank: int, wanted: int, seed: int) -> None:
    """Also where the pair's rank exceeds a side, and where the wanted rank exceeds both."""
    given_pair = pair(out, inside, rank, seed)
    cut, error = compress(given_pair, wanted)
    expected, expected_error = best(dense(given_pair), wanted)
    assert cut.a.shape == (wanted, inside)
    assert cut.b.shape == (out, wanted)
    assert (dense(cut) - expected).norm() < 1e-5 * dense(given_pair).norm()
    assert error == pytest.approx(expected_error, abs=1e-9)


def dependent(kind: str) -> Factors:
    """Factors whose columns are nearly or wholly dependent, or of very different lengths."""
    a, b = pair(80, 60, 8, seed=3)
    if kind == "lengths":  # B falls and A rises, so that the product needs the small ones
        scale = torch.logspace(0, -12, 8)
        return Factors(a / scale[:, None], b * scale)
    if kind == "falling":
        return pair(80, 60, 8, seed=3, smallest=1e-6)
    if kind == "cancelling":  # x p - (x + .001 y) p: only .001 y p is left
        return Factors(torch.cat([a, -a]), torch.cat([b, b + 0.001 * pair(80, 60, 8, seed=4).b], dim=1))
    if kind == "twice":
        return Factors(torch.cat([a, a]), torch.cat([b, b], dim=1))
    return Factors(a, b * (torch.arange(8) < 5))  # "zero columns"


@pytest.mark.parametrize("kind", ["lengths", "falling", "cancelling", "twice", "zero columns"])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_compress_of_dependent_factors(kind: str, rank: int) -> None:
    given_pair = dependent(kind)
    cut, error = compress(given_pair, rank)
    expected, expected_error = best(dense(given_pair), rank)
    assert relative(dense(cut), expected) < 1e-5
    assert error == pytest.approx(expected_error, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_compress_of_two_stacked_adapters(shape: tuple[int, int]) -> None:
    stacked = stack([pair(*shape, 16, 1, 0.01), pair(*shape, 16, 2, 0.01)], [0.7, -1.3])
    cut, error = compress(stacked, 16)
    expected, expected_error = best(dense(stacked), 16)
    assert relative(dense(cut), expected) < 1e-6
    assert error == pytest.approx(expected_error, rel=1e-9)
    check_split(cut)


def test_a_zero_delta() -> None:
    """As training starts: B is 0. Nothing is cut, and nothing is left."""
    zero = Factors(torch.ones(2, 5), torch.zeros(4, 2))
    for cut, error in (compress(zero, 3), truncate(torch.zeros(4, 5), 3), truncate(torch.zeros(600, 520), 3)):
        assert not dense(cut).any()
        assert cut.a.shape[0] == cut.b.shape[1] == 3
        assert error == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 3), st.data())
def test_truncate_of_a_small_matrix_is_exact(out: int, inside: int, seed: int, data: st.DataObject) -> None:
    matrix = torch.randn(out, inside, generator=torch.Generator().manual_seed(seed))
    rank = data.draw(st.integers(1, min(out, inside)))
    cut, error = truncate(matrix, rank)
    optimum = best(matrix, rank)[1]
    assert relative(dense(cut), matrix.double()) == pytest.approx(optimum, rel=1e-6, abs=2e-6)
    assert error == pytest.approx(optimum, rel=1e-5, abs=2e-6)
    check_split(cut)


def trimmed(one: Factors, other: Factors, density: float) -> Tensor:
    """TIES by its definition (arXiv 2306.01708): the largest entries, then the mean of those with the elected sign."""
    kept = []
    for factors in (one, other):
        delta = factors.b @ factors.a
        threshold = delta.abs().flatten().quantile(1 - density, interpolation="nearest")
        kept.append(delta * (delta.abs() >= threshold))
    both = torch.stack(kept)
    agree = both.sign() == torch.where(both.sum(0) >= 0, 1, -1)
    return (both * agree).sum(0) / agree.sum(0).clamp(min=1)


def hard(kind: str) -> tuple[Tensor, Tensor]:
    """A matrix of more than 512 rows, and the columns that it was made from."""
    one, other = pair(600, 560, 16, 1, 0.05), pair(600, 560, 16, 2, 0.05)
    generator = torch.Generator().manual_seed(5)
    start = torch.cat([one.b, other.b], dim=1)
    total = one.b @ one.a + other.b @ other.a
    matrices = {
        "ties .2": lambda: trimmed(one, other, 0.2),
        "ties .8": lambda: trimmed(one, other, 0.8),
        "dropped .2": lambda: total * (torch.rand(total.shape, generator=generator) < 0.2) / 0.2,
        "noise": lambda: torch.randn(total.shape, generator=generator),
        "sum": lambda: total,
        "nearly of that rank": lambda: 1e3 * one.b @ one.a + 1e-3 * torch.randn(total.shape, generator=generator),
    }
    return matrices[kind](), start


@pytest.mark.parametrize("kind", ["ties .2", "ties .8", "dropped .2", "noise", "sum", "nearly of that rank"])
def test_truncate_comes_near_the_optimum(kind: str) -> None:
    """With a start, without one, transposed, and with a start that spans nothing of the matrix."""
    matrix, start = hard(kind)
    optimum = best(matrix, 16)[1]
    for given_matrix, given_start in ((matrix, start), (matrix, None), (matrix.T, None), (matrix, 0 * start)):
        cut, error = truncate(given_matrix, 16, given_start)
        assert error <= 1.001 * optimum + 1e-6
        assert error == pytest.approx(relative(dense(cut), given_matrix.double()), rel=1e-4, abs=1e-6)
        check_split(cut)


def test_truncate_is_repeatable_and_leaves_the_generator_alone() -> None:
    matrix, start = hard("ties .2")
    state = torch.random.get_rng_state()
    first = truncate(matrix, 16, start)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(7)
    second = truncate(matrix, 16, start)
    torch.random.set_rng_state(state)
    assert first[1] == second[1]
    assert all(torch.equal(x, y) for x, y in zip(first[0], second[0], strict=True))


@pytest.mark.parametrize("rank", [300, 520])
def test_truncate_to_a_large_rank_decomposes_in_full(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The basis cannot hold twice the rank, so there is nothing to iterate."""
    matrix = torch.randn(520, 530, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(low_rank, "_left", lambda *_: 0.25)
    cut, error = truncate(matrix, rank)
    assert relative(dense(cut), best(matrix, rank)[0]) < 1e-3
    assert error == 0.5

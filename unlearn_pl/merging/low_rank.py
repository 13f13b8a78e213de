"""Algebra of low-rank weight deltas B A [out, in]: exact sums, best approximations, and dense matrices cut to a rank.

Every result is split as PEFT splits it: with the singular value decomposition U S V', b is U S and a is V'.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unlearn_pl.merging.factors import Factors
from unlearn_pl.models.fast.linear import frozen_linear

# Up to this smallest side a full decomposition takes no longer than iterating.
EXACT_SIDE = 512
# Random directions beside those wanted, without which a direction that the start misses could never be found.
OVERSAMPLING = 16
# `truncate` promises an error of at most 1.001 times the optimum, so of the squared error .002 may be missing. Measured
# on trimmed and sparse products, as merging makes them, and on pure noise, what was missing after the second step on
# came to less than 8 times the last gain.
LAST_GAIN = 0.002 / 8
# Relative squared error below which the difference of two squared norms has lost too many digits.
CANCELLED = 1e-2
# A relative error that float32 products leave anyway.
ROUNDING = 1e-6


def stack(pairs: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The sum of ``weight * B A`` as one pair, a [sum of the ranks, in] and b [out, sum of the ranks]; the weights go
    onto A.

    Exact but for the rounding of ``weight * A``.
    """
    a = torch.cat([weight * pair.a for pair, weight in zip(pairs, weights, strict=True)])
    return Factors(a, torch.cat([pair.b for pair in pairs], dim=1))


@torch.no_grad()
def compress(pair: Factors, rank: int) -> tuple[Factors, float]:
    """The best approximation of ``b @ a`` [out, in] of that rank (Eckart and Young), and its relative Frobenius error
    in [0, 1].

    In float64 throughout; the dense matrix is never built. A rank beyond the pair's is filled up with zeros. The error
    of a zero delta is 0.
    """
    assert rank >= 1
    # b = Q R and a' = P S, so b a = Q (R S') P': what decomposes the small core R S' decomposes b a, turned by Q and P
    left, right = _orthonormal(pair.b), _orthonormal(pair.a.T)
    u, s, vt = torch.linalg.svd(left.core @ right.core.T)
    top = min(rank, len(s))
    b = left.columns @ (left.coefficients @ (u[:, :top] * s[:top]))
    a = (vt[:top] @ right.coefficients.T) @ right.columns.T
    cut, whole = s[top:].square().sum().item(), s.square().sum().item()
    error = math.sqrt(cut / whole) if whole > 0 else 0.0
    return _padded(Factors(a.to(pair.a.dtype), b.to(pair.b.dtype)), rank), error


@torch.no_grad()
def truncate(matrix: Tensor, rank: int, start: Tensor | None = None) -> tuple[Factors, float]:
    """``matrix`` [out, in] cut to ``rank``, and the relative Frobenius error of that, measured.

    Exact for a smallest side of at most `EXACT_SIDE`. Beyond, a block Krylov iteration (Musco and Musco,
    arXiv 1504.05477) that goes on until the error is at most 1.001 times that of the best approximation, judged by what
    the last step gained, or above it by no more than `ROUNDING`; should its basis fill half of the space, the full
    decomposition takes over. ``start`` [out, any] are columns likely to span much of the matrix, such as the B
    factors of deltas it was made from: they save steps. The same input gives the same bytes.
    """
    assert 1 <= rank <= min(matrix.shape)
    matrix = matrix.float()
    total = torch.linalg.vector_norm(matrix, dim=1).double().square().sum().item()
    if total == 0:
        return Factors(matrix.new_zeros(rank, matrix.shape[1]), matrix.new_zeros(matrix.shape[0], rank)), 0.0
    factors = _iterate(matrix, rank, start, total) if min(matrix.shape) > EXACT_SIDE else None
    if factors is None:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        factors = Factors(vt[:rank].clone(), u[:, :rank] * s[:rank])
    return factors, math.sqrt(_left(matrix, factors, total))


class _Orthonormal(NamedTuple):
    """x [n, k] = Q ``core`` with the orthonormal columns Q = ``columns @ coefficients``; Q itself is not needed, so it
    is not made."""

    columns: Tensor
    """[n, k]"""
    coefficients: Tensor
    """[k, k]"""
    core: Tensor
    """[k, k]"""


def _orthonormal(x: Tensor) -> _Orthonormal:
    """Orthonormal basis Q [n, k] and core R [k, k] of the columns x [n, k] (x = Q R), in float64.

    From the Cholesky factor of their Gram matrix, which is several times faster than a QR decomposition and loses
    twice as many digits: where those columns, scaled to length 1, are so dependent that this would show, QR it is.
    """
    x = x.double()
    gram = x.T @ x
    lengths = gram.diagonal().sqrt()
    lower, failed = torch.linalg.cholesky_ex(gram / torch.outer(lengths, lengths))
    if not failed and bool(lengths.all()):
        identity = torch.eye(len(lower), dtype=x.dtype, device=x.device)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
        # square of the condition number times 1e-16 is what Q is off
        if inverse.square().sum() < 1e5:
            return _Orthonormal(x, inverse.T / lengths[:, None], lower.T * lengths)
    q, r = torch.linalg.qr(x)
    return _Orthonormal(q, torch.eye(q.shape[1], dtype=x.dtype, device=x.device), r)


def _padded(pair: Factors, rank: int) -> Factors:
    """``pair`` with zeros as a [rank, in] and b [out, rank]."""
    missing = rank - pair.a.shape[0]
    if missing == 0:
        return pair
    return Factors(torch.nn.functional.pad(pair.a, (0, 0, 0, missing)), torch.nn.functional.pad(pair.b, (0, missing)))


def _iterate(matrix: Tensor, rank: int, start: Tensor | None, total: float) -> Factors | None:
    """`truncate` by block Krylov iteration; None if the basis would fill half of the space.

    ``basis`` holds orthonormal columns Q [out, width]. One step: of Q'M [width, in] the best right singular vectors V
    (Rayleigh and Ritz); then M V, whose part outside of Q is both what M V gains over Q'M and the next block of Q.
    """
    basis = torch.linalg.qr(_first_block(matrix, rank, start)).Q
    rows = _times(matrix.T, basis)  # M'Q, [in, width]
    while 2 * basis.shape[1] <= min(matrix.shape):
        # some more directions than are wanted: they make the next block richer, and cost little
        leading = _leading(rows, min(rank + OVERSAMPLING // 2, rows.shape[1]))  # [width, rank + some]
        right = torch.linalg.qr(rows @ leading).Q  # V, [in, rank + some]
        image = _times(matrix, right)  # M V, [out, rank + some]
        outside = image - basis @ (basis.T @ image)
        found = Factors(right[:, :rank].T, image[:, :rank])
        # Done when one more step would gain little beside what is still missing (see LAST_GAIN), or beside rounding.
        gained = outside[:, :rank].double().square().sum().item() / total
        if gained <= max(LAST_GAIN * _left(matrix, found, total), 0.1 * ROUNDING**2):
            turn = _leading(found.b, rank)  # [rank, rank]: columns of b by falling size, as the decomposition has them
            return Factors(turn.T @ found.a, found.b @ turn)
        new = torch.linalg.qr(outside).Q
        new = torch.linalg.qr(new - basis @ (basis.T @ new)).Q  # twice: `outside` may be little more than rounding
        basis = torch.cat([basis, new], dim=1)
        rows = torch.cat([rows, _times(matrix.T, new)], dim=1)  # only the new columns cost a product with the matrix
    return None


def _first_block(matrix: Tensor, rank: int, start: Tensor | None) -> Tensor:
    """[out, at least rank + OVERSAMPLING]: the columns ``start``, and random ones beside them."""
    columns = [] if start is None else [start.to(matrix)]
    known = 0 if start is None else start.shape[1]
    # without a generator of its own the result would depend on what was drawn before, and disturb what comes after
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(matrix.shape[0], max(rank - known, 0) + OVERSAMPLING, generator=generator)
    return torch.cat([*columns, random.to(matrix)], dim=1)


def _leading(columns: Tensor, count: int) -> Tensor:
    """The first ``count`` right singular vectors of tall ``columns`` [n, k], as [k, count], leading first."""
    tall = columns.double()
    return torch.linalg.eigh(tall.T @ tall).eigenvectors.flip(1)[:, :count].to(columns.dtype)


def _times(matrix: Tensor, columns: Tensor) -> Tensor:
    """``matrix`` [m, n] @ ``columns`` [n, k], by the faster way for a matrix in memory as it is and for one
    transposed."""
    if matrix.is_contiguous():
        return frozen_linear(matrix, columns.T.contiguous())
    return frozen_linear(columns.T.contiguous(), matrix).T


def _left(matrix: Tensor, factors: Factors, total: float) -> float:
    """Squared Frobenius norm of ``matrix`` [out, in] - b a over that of the matrix, which is ``total``.

    a has orthonormal rows and b is ``matrix @ a'``, so the squares subtract, unless little would be left of them.
    """
    left = 1 - factors.b.double().square().sum().item() / total
    if left >= CANCELLED:
        return left
    parts = zip(matrix.split(1024), factors.b.split(1024), strict=True)
    return sum((rows - b @ factors.a).double().square().sum().item() for rows, b in parts) / total

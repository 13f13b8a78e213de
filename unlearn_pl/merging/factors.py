"""Low-rank weight deltas B A, measured from their factors alone: the dense matrix is never built."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, overload

import torch
from torch import Tensor

from unlearn_pl.errors import InputError

# "...q_proj.lora_A.weight" in a file, "...q_proj.lora_A.default.weight" in a model; of an embedding
# "...embed_tokens.lora_embedding_A" and "...embed_tokens.lora_embedding_A.default".
FACTOR_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
EMBEDDING_NAME = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(?:\.[^.]+)?")


class Factors(NamedTuple):
    """The two factors of one module's delta. Of an embedding, in is the vocabulary: its weights are the transposed."""

    a: Tensor
    """[rank, in]"""
    b: Tensor
    """[out, rank]"""


Delta = Factors | Tensor
"""What a merge adds to one module's weights [out, in]: as factors (the delta is B A), or as it is."""


def factors_of(state: Mapping[str, Tensor], where: str = "adapter", name: str | None = None) -> dict[str, Factors]:
    """The tensors of an adapter by module name. ``where`` opens every message, which is about the parameter ``name``.

    Raises InputError for a tensor that is no factor of a linear layer or an embedding, a factor without its partner,
    and factors that do not fit each other.
    """
    sides: dict[str, dict[str, Tensor]] = {}
    for tensor, value in state.items():
        match = FACTOR_NAME.fullmatch(tensor) or EMBEDDING_NAME.fullmatch(tensor)
        if match is None or value.dim() != 2:
            raise InputError(
                f"{where}: tensor {tensor} {tuple(value.shape)} is not a LoRA factor of a linear layer "
                "or an embedding (MODULE.lora_A.weight, MODULE.lora_embedding_A or the same of B, two dimensions)",
                name,
            )
        sides.setdefault(match["module"], {})[match["side"]] = value
    if not sides:
        raise InputError(f"{where}: holds no LoRA factors", name)
    return {module: _pair(module, found, where, name) for module, found in sorted(sides.items())}


def _pair(module: str, found: Mapping[str, Tensor], where: str, name: str | None) -> Factors:
    if len(found) < 2:
        raise InputError(f"{where}: {module} has lora_{next(iter(found))} but not its partner", name)
    pair = Factors(found["A"], found["B"])
    if pair.a.shape[0] != pair.b.shape[1]:
        ranks = f"{pair.a.shape[0]} (A) and {pair.b.shape[1]} (B)"
        raise InputError(f"{where}: {module} has factors of ranks {ranks}", name)
    return pair


def embeddings_of(state: Iterable[str]) -> frozenset[str]:
    """The modules of an adapter's tensor names that are embeddings."""
    return frozenset(match["module"] for name in state if (match := EMBEDDING_NAME.fullmatch(name)))


def factor_name(module: str, side: str, embedding: bool) -> str:
    """The name of a factor (side ``A`` or ``B``) in an adapter file."""
    return f"{module}.lora_embedding_{side}" if embedding else f"{module}.lora_{side}.weight"


@overload
def scaled(delta: Factors, scale: float) -> Factors: ...
@overload
def scaled(delta: Delta, scale: float) -> Delta: ...
def scaled(delta: Delta, scale: float) -> Delta:
    """``scale`` times a delta [out, in]; of factors, B takes it."""
    if scale == 1:
        return delta
    return Factors(delta.a, delta.b * scale) if isinstance(delta, Factors) else delta * scale


def norm(deltas: Mapping[str, Delta]) -> float:
    """Frobenius norm of the deltas [out, in] of all modules together."""
    squares = (
        inner(delta, delta).item() if isinstance(delta, Factors) else delta.double().square().sum().item()
        for delta in deltas.values()
    )
    return math.sqrt(max(sum(squares), 0.0))


def inner(x: Factors, y: Factors) -> Tensor:
    """Frobenius inner product of two deltas [out, in] as a float64 scalar: <B1 A1, B2 A2> = sum((B1'B2) * (A1 A2')),
    both factors of which are [rank1, rank2]."""
    return ((x.b.double().T @ y.b.double()) * (x.a.double() @ y.a.double().T)).sum()


def delta_norm(adapter: Mapping[str, Factors], scaling: Mapping[str, float]) -> float:
    """Frobenius norm over all modules of ``scaling * B A``."""
    total = sum(scaling[module] ** 2 * inner(pair, pair).item() for module, pair in adapter.items())
    return max(total, 0.0) ** 0.5


def delta_angle(
    x: Mapping[str, Factors], x_scaling: Mapping[str, float], y: Mapping[str, Factors], y_scaling: Mapping[str, float]
) -> float | None:
    """Angle in degrees, [0, 180], between two adapters' deltas over all modules; None if one is zero."""
    product = sum(x_scaling[module] * y_scaling[module] * inner(pair, y[module]).item() for module, pair in x.items())
    return angle_degrees(product, delta_norm(x, x_scaling), delta_norm(y, y_scaling))


def angle_degrees(product: float, norm: float, other_norm: float) -> float | None:
    """The angle in [0, 180] of two vectors from their inner product and norms; None if either norm is 0."""
    if norm == 0 or other_norm == 0:
        return None
    # Divided one after the other, since the product of two small norms may underflow.
    cosine = min(1.0, max(-1.0, product / norm / other_norm))
    return math.degrees(math.atan2(math.sqrt((1 - cosine) * (1 + cosine)), cosine))


def sign_conflict(x: Mapping[str, Factors], y: Mapping[str, Factors]) -> float:
    """Share in [0, 1] of the factor entries, not zero in either adapter, whose signs differ; 0 if there are none."""
    conflicts = entries = 0
    for one, other in _paired(x, y):
        for left, right in zip(one, other, strict=True):
            product = left.sign() * right.sign()
            conflicts += int((product < 0).sum())
            entries += int((product != 0).sum())
    return conflicts / max(entries, 1)


def shared_start(x: Mapping[str, Factors], y: Mapping[str, Factors]) -> float:
    """Mean over the modules of the cosine between the A factors, in [-1, 1]: near 1 if both began from the same A."""
    cosines = [
        torch.nn.functional.cosine_similarity(one.a.double().flatten(), other.a.double().flatten(), dim=0)
        for one, other in _paired(x, y)
    ]
    return torch.stack(cosines).mean().item()


def _paired(x: Mapping[str, Factors], y: Mapping[str, Factors]) -> Iterator[tuple[Factors, Factors]]:
    assert x.keys() == y.keys()
    return ((x[module], y[module]) for module in x)

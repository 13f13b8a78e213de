"""The size and the spectrum of an adapter's delta, module by module and layer by layer, exact from its factors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unlearn_pl.analysis.layers import by_layer, layer_of
from unlearn_pl.merging.adapters import Adapter
from unlearn_pl.merging.factors import Factors, scaled
from unlearn_pl.models.adapter_folder import PREFIX

FILE = "spectrum.json"


def adapter_spectrum(adapter: Adapter) -> dict[str, Any]:
    """`spectrum_report` of the delta ``scaling * B A`` of an adapter."""
    scaling = adapter.scaling
    return spectrum_report(
        {
            name: scaled(Factors(pair.a.double(), pair.b.double()), scaling[name])
            for name, pair in adapter.factors.items()
        }
    )


def spectrum_report(deltas: Mapping[str, Factors]) -> dict[str, Any]:
    """The content of `spectrum.json`, of the deltas B A of all modules.

    ``modules`` has for each ``layer``, ``norm`` (Frobenius), ``stable_rank`` (squared norm over the square of the
    largest singular value), ``effective_rank`` (exponential of the entropy of the singular values divided by their sum;
    Roy and Vetterli 2007) and ``singular_values``; ``layers`` and ``overall`` have norm and stable rank of their
    modules together, as blocks of one matrix. The ranks of a delta of zero are None.
    """
    values = {module: singular_values(pair) for module, pair in deltas.items()}
    layers = {
        layer: sorted((value for module in modules for value in values[module]), reverse=True)
        for layer, modules in by_layer(values).items()
    }
    return {
        "modules": {
            module.removeprefix(PREFIX): {
                "layer": layer_of(module),
                **_size(found),
                "effective_rank": effective_rank(found),
                "singular_values": found,
            }
            for module, found in values.items()
        },
        "layers": {layer: _size(found) | {"singular_values": found} for layer, found in layers.items()},
        "overall": _size([value for found in layers.values() for value in found]),
    }


def singular_values(pair: Factors) -> list[float]:
    """Those of ``b @ a`` [out, in] in float64, largest first: as many as it can have, min(rank, out, in).

    With b = Q R and a' = P S they are those of R S', which is [rank, rank].
    """
    found: Tensor = torch.linalg.svdvals(_core(pair.b) @ _core(pair.a.T).T)
    return found.tolist()


def _core(columns: Tensor) -> Tensor:
    """R of the QR decomposition of [n, rank], in float64."""
    return torch.linalg.qr(columns.double(), mode="r").R


def stable_rank(values: Iterable[float]) -> float | None:
    """Squared Frobenius norm over the squared largest singular value, at least 1; None of zeros."""
    squares = [value**2 for value in values]
    return math.fsum(squares) / largest if (largest := max(squares, default=0.0)) else None


def effective_rank(values: Sequence[float]) -> float | None:
    """Number of equal singular values that would have the entropy of these, at least 1; None of zeros."""
    total = math.fsum(values)
    shares = [value / total for value in values if value] if total else []
    return math.exp(-math.fsum(share * math.log(share) for share in shares)) if shares else None


def _size(values: Sequence[float]) -> dict[str, float | None]:
    return {"norm": math.sqrt(math.fsum(value**2 for value in values)), "stable_rank": stable_rank(values)}

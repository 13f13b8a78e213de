"""What became of the adapters in a merge, by layer: their signs, what was trimmed, and the sizes of the deltas."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearn_pl.analysis.conflict import Conflict, Counts, conflict_of, count_conflicts
from unlearn_pl.analysis.layers import by_layer
from unlearn_pl.analysis.spectrum import FILE as SPECTRUM_FILE
from unlearn_pl.analysis.spectrum import spectrum_report
from unlearn_pl.files import write_json
from unlearn_pl.merging.adapters import Adapter
from unlearn_pl.merging.factors import Factors, inner, scaled
from unlearn_pl.merging.merge import MergedAdapter

FILE = "anatomy.json"


@dataclass(frozen=True)
class MergeReports:
    """What is written beside a merged adapter."""

    anatomy: dict[str, Any]
    spectrum: dict[str, Any]

    @classmethod
    def of(cls, merged: MergedAdapter, names: Sequence[str] | None = None) -> "MergeReports":
        """Of a merge whose result is factors; ``names`` are those of its adapters, if not those of their folders."""
        deltas = {name: delta for name, delta in merged.deltas.items() if isinstance(delta, Factors)}
        assert len(deltas) == len(merged.deltas), "dense deltas are in no adapter"
        return cls(merge_anatomy(merged, deltas, names), spectrum_report(deltas))

    def write(self, folder: str | Path) -> None:
        """`anatomy.json` and `spectrum.json` into the folder that holds the adapter's."""
        write_json(Path(folder) / FILE, self.anatomy)
        write_json(Path(folder) / SPECTRUM_FILE, self.spectrum)


def merge_anatomy(
    merged: MergedAdapter, deltas: Mapping[str, Factors], names: Sequence[str] | None = None
) -> dict[str, Any]:
    """The content of `anatomy.json`: under ``overall``, and under ``layers`` by layer,

    ``sign_conflict`` and ``trimmed_mass`` (see `Conflict`; the latter is None where the method does not trim, both
    where random masks were drawn for groups of layers apart), ``norms`` of each adapter's delta, their ``cosine``
    (None of more than two, or of a delta of zero) and the ``norm`` of the merged delta.
    """
    unknown = merged.settings.seed is not None and "groups" in merged.more_facts
    counts: dict[str, list[Counts]] = {name: [] for name in deltas}
    if not unknown:
        for name, part in count_conflicts(merged.adapters, merged.settings, deltas):
            counts[name].append(part)
    prunes = merged.settings.method.kernel.prune is not None
    products = {name: delta_products(merged.adapters, name, delta) for name, delta in deltas.items()}

    def group(modules: Iterable[str]) -> dict[str, Any]:
        found = list(modules)
        conflict = None if unknown else conflict_of(part for module in found for part in counts[module])
        return _shares(conflict, prunes) | _sizes(torch.stack([products[module] for module in found]).sum(dim=0))

    return {
        "adapters": list(names or adapter_names([adapter.folder for adapter in merged.adapters])),
        "layers": {layer: group(modules) for layer, modules in by_layer(deltas).items()},
        "overall": group(deltas),
    }


def adapter_names(folders: Iterable[str | Path]) -> list[str]:
    """What adapters are called: by their folder, or the run's that it lies in if it is just ``adapter``."""
    paths = [Path(folder).absolute() for folder in folders]
    return [path.parent.name if path.name == "adapter" and path.parent.name else path.name for path in paths]


def delta_products(adapters: Sequence[Adapter], name: str, merged: Factors) -> Tensor:
    """Inner products [N + 1, N + 1] of the deltas of N adapters in one module and the merged one, in float64."""
    deltas = [scaled(_double(adapter.factors[name]), adapter.scaling[name]) for adapter in adapters]
    deltas.append(_double(merged))
    return torch.stack([torch.stack([inner(one, other) for other in deltas]) for one in deltas])


def _double(pair: Factors) -> Factors:
    return Factors(pair.a.double(), pair.b.double())


def _shares(conflict: Conflict | None, prunes: bool) -> dict[str, float | None]:
    return {
        "sign_conflict": None if conflict is None else conflict.signs,
        "trimmed_mass": conflict.trimmed if conflict is not None and prunes else None,
    }


def _sizes(products: Tensor) -> dict[str, Any]:
    """Norms and cosine from the inner products [N + 1, N + 1] of the adapters' deltas and the merged one."""
    *norms, merged = [math.sqrt(max(square, 0.0)) for square in products.diagonal().tolist()]
    cosine = None
    if len(norms) == 2 and all(norms):
        cosine = max(-1.0, min(1.0, products[0, 1].item() / norms[0] / norms[1]))
    return {"cosine": cosine, "norms": norms, "norm": merged}

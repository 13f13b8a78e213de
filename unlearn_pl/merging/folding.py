"""A merged delta folded into a model's own weights, and exchanged for another one without loading the model again."""

from collections.abc import Iterable, Mapping
from typing import Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from unlearn_pl.errors import InputError
from unlearn_pl.merging.factors import Delta, Factors
from unlearn_pl.models.adapter_folder import PREFIX
from unlearn_pl.stopping import surely

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class FoldedWeights:
    """The weights of some of ``model``'s modules, as they were, and the model with a delta added to them.

    After ``fold`` the model computes as fast as without an adapter, since nothing is beside its weights; the numbers
    are those of the merged model that is saved. It keeps a copy of the weights that change, so they can be put back
    exactly, as the end of a ``with`` block does: no rounding piles up along a path.

    Raises InputError if a module shares its weights with another part of the model (a tied vocabulary head), or if its
    weights are not plain floating-point numbers: a delta added to the codes of quantised weights would be rounded away.
    """

    def __init__(self, model: nn.Module, modules: Iterable[str]):
        """``modules`` are named as in adapter files."""
        layers = {name: model.get_submodule(name.removeprefix(PREFIX)) for name in modules}
        self._weights: dict[str, Tensor] = {
            name: getattr(layer, "weight", torch.empty(0, dtype=torch.uint8)) for name, layer in layers.items()
        }
        self._transposed = {name for name, layer in layers.items() if is_transposed(layer)}
        check_plain(self._weights)
        check_untied(model, self._weights)
        self._originals = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        surely(self.restore)

    @torch.no_grad()
    def fold(self, deltas: Mapping[str, Delta]) -> None:
        """Original weights + ``deltas`` [out, in], one for each module, in the weights' number type.

        Weights are [out, in], or [in, out] where they are stored transposed; then so is the delta: (B A)' = A' B'.
        """
        assert deltas.keys() == self._weights.keys()
        for name, delta in deltas.items():
            weight, original = self._weights[name], self._originals[name]
            if isinstance(delta, Factors):
                a, b = delta.a.to(weight.device), delta.b.to(weight.device)
                left, right = (a.T, b.T) if name in self._transposed else (b, a)  # left @ right as the weights lie
                if weight.dtype == left.dtype:
                    torch.addmm(original, left, right, out=weight.data)
                else:
                    weight.data.copy_(torch.addmm(original.to(left.dtype), left, right))
            else:
                dense = delta.to(weight.device)
                weight.data.copy_(original.to(dense.dtype) + (dense.T if name in self._transposed else dense))

    @torch.no_grad()
    def rounding(self, deltas: Mapping[str, Delta]) -> float:
        """Fold ``deltas`` and say how far what was added is from them: the norm of the difference / their norm. About 0
        in float32; in bfloat16 the more, the smaller the deltas are beside the weights."""
        self.fold(deltas)
        missed = whole = 0.0
        for name, delta in deltas.items():
            dense = (delta.b @ delta.a if isinstance(delta, Factors) else delta).to(self._weights[name].device).double()
            added = self._weights[name].double() - self._originals[name].double()
            missed += (dense - (added.T if name in self._transposed else added)).square().sum().item()
            whole += dense.square().sum().item()
        return (missed / (whole or 1.0)) ** 0.5

    @torch.no_grad()
    def restore(self) -> None:
        """The weights as they were."""
        for name, weight in self._weights.items():
            weight.data.copy_(self._originals[name])


def is_transposed(layer: nn.Module) -> bool:
    """Whether its weights are [in, out]: GPT-2's layers, and embeddings, whose inputs are tokens."""
    return isinstance(layer, (Conv1D, nn.Embedding))


def check_plain(weights: Mapping[str, Tensor]) -> None:
    """Raise InputError unless all weights are numbers that a delta can be added to."""
    for module, weight in weights.items():
        if weight.dtype not in PLAIN or weight.dim() != 2:
            raise InputError(
                f"{module.removeprefix(PREFIX)} is stored quantised ({weight.dtype}), so a delta cannot be added to "
                "it; give a base with plain weights",
                "base",
            )


def check_untied(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise InputError if a weight is also a parameter of another module: it would change there as well."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), []).append(name)
    for module, weight in weights.items():
        if len(names := owners.get(weight.data_ptr(), [])) > 1 and weight.numel():
            raise InputError(
                f"{module.removeprefix(PREFIX)} shares its weights with another module of the base "
                f"({' and '.join(names)}), so its delta cannot be merged into them",
                "adapters",
            )

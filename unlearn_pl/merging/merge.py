"""The merge of LoRA adapters: of tensors, of a module's factors, of all modules, and of adapters in their folders."""

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.files import new_folder, refuse_existing, write_json
from unlearn_pl.merging.adapters import Adapter, check_base, read_adapters
from unlearn_pl.merging.coefficients import BLOCK, inner_products
from unlearn_pl.merging.factors import Delta, Factors, delta_norm, factor_name, inner, norm, scaled
from unlearn_pl.merging.folding import FoldedWeights
from unlearn_pl.merging.kernels import Kernel, KernelOptions
from unlearn_pl.merging.low_rank import compress, stack, truncate
from unlearn_pl.merging.options import MergeOptions, MergeSettings
from unlearn_pl.models.adapter_folder import PREFIX, WEIGHTS_FILE
from unlearn_pl.models.load import blamed_on, load_skeleton
from unlearn_pl.models.lora import FACTS_FILE
from unlearn_pl.provenance import provenance


def merge_adapters(
    base: PreTrainedModel | str | Path,
    adapters: Sequence[str | Path],
    options: MergeOptions | None = None,
    *,
    trust_remote_code: bool = False,
    **more: Any,
) -> "MergedAdapter":
    """Merge two or more LoRA ``adapters`` (PEFT folders) of one ``base`` model (itself, a folder or a hub name).

    The ``options`` may be given whole, or by their names: ``merge_adapters(base, [one, other], method="ties",
    density=0.5)``. Of the base only names and shapes count: no weights are loaded, and a model is not changed. The
    result is written with `MergedAdapter.save`, or put into a model with `MergedAdapter.open`.

    Raises InputError for options that the method cannot use, adapters that cannot be merged by it, and a base that they
    do not fit.
    """
    if not isinstance(base, (str, Path)):
        refuse_adapter(base)
    if isinstance(adapters, (str, Path)) or not all(isinstance(one, (str, Path)) for one in adapters):
        raise InputError(f"must be a list of adapter folders, got {adapters!r:.80}", "adapters")
    settings = replace(options or MergeOptions(), **more).settings(len(adapters))
    read = read_adapters(adapters, settings)
    with blamed_on("base"):
        model = base if isinstance(base, PreTrainedModel) else load_skeleton(str(base), trust_remote_code)
    return MergedAdapter.of(model, read, settings)


@dataclass(frozen=True, kw_only=True)
class MergedAdapter:
    """What a merge of adapters gave."""

    base: str
    """Name of the base model, for the configuration that is written."""
    adapters: tuple[Adapter, ...]
    settings: MergeSettings
    deltas: dict[str, Delta]
    more_facts: dict[str, Any] = field(default_factory=dict)
    """How the settings were found."""

    @classmethod
    def of(cls, base: PreTrainedModel, adapters: Sequence[Adapter], settings: MergeSettings) -> "MergedAdapter":
        """The merge of adapters that `read_adapters` has checked. ``base`` may lie on the meta device.

        Raises InputError if an adapter does not fit ``base``. Warns if the merged adapter is zero.
        """
        check_base(base, adapters)
        order = [PREFIX + name for name, _ in base.named_modules() if PREFIX + name in adapters[0].factors]
        deltas = merge_modules(adapters, settings, order)
        size, parts = norm(deltas), sum(delta_norm(adapter.factors, adapter.scaling) for adapter in adapters)
        if not math.isfinite(size):
            raise InputError("with these weights the merged delta is too large for float32; take smaller ones", "scale")
        if size <= 1e-6 * parts:
            warnings.warn("the merged adapter is zero: it changes nothing in the base model", stacklevel=3)
        name = base.name_or_path or str(adapters[0].config.get("base_model_name_or_path") or "")
        return cls(base=name, adapters=tuple(adapters), settings=settings, deltas=deltas)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What made it, for `unlearn_pl.json`."""
        adapters = [{"folder": str(adapter.folder), "sha256": adapter.sha256} for adapter in self.adapters]
        return {"merge": {**self.settings.facts(), "adapters": adapters, **self.more_facts}}

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The factors by the names that an adapter file has. Raises InputError for dense deltas."""
        refuse_dense(self.settings)
        state = {}
        for module, pair in self.deltas.items():
            assert isinstance(pair, Factors)
            for side, factor in zip("AB", pair, strict=True):
                state[factor_name(module, side, module in self.adapters[0].embeddings)] = factor.contiguous()
        return dict(sorted(state.items()))

    @cached_property
    def config(self) -> LoraConfig:
        """The first adapter's, with the merged ranks and scalings of 1: the adapters' scalings are in the factors."""
        config = LoraConfig.from_pretrained(str(self.adapters[0].folder))
        ranks = {module: pair.a.shape[0] for module, pair in self.deltas.items() if isinstance(pair, Factors)}
        config.r = config.lora_alpha = max(ranks.values())
        odd = {module.removeprefix(PREFIX): rank for module, rank in ranks.items() if rank != config.r}
        config.rank_pattern, config.alpha_pattern, config.use_rslora = odd, dict(odd), False
        config.init_lora_weights, config.inference_mode = True, True
        config.base_model_name_or_path = self.base
        if not isinstance(config.target_modules, str):
            # A set has another order in every process; the same merge must give the same file.
            config.target_modules = sorted(config.target_modules)
        return config

    def open(self, base: PreTrainedModel) -> PeftModel:
        """``base`` with the merged adapter, active and frozen, in eval mode; ``base`` itself gets the adapter's layers,
        ``unload()`` of the result takes them off again.

        Raises InputError if ``base`` has an adapter already, for dense deltas, and if PEFT finds other modules in
        ``base`` than the adapter has.
        """
        refuse_adapter(base)
        state = self.state
        # PEFT draws numbers for an adapter that is overwritten just below
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            config = copy.copy(self.config)
            config.base_model_name_or_path = base.name_or_path or None
            model = get_peft_model(base, config)
        own = get_peft_model_state_dict(model, save_embedding_layers=False)
        if odd := sorted(own.keys() ^ state.keys()):
            raise InputError(f"does not fit the adapters: only one of the two has {odd[0]}", "base")
        set_peft_model_state_dict(model, state)
        assert isinstance(model, PeftModel)
        return model.eval()

    def save(
        self,
        output: str | Path | None = None,
        *,
        save_model: str | Path | None = None,
        base: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        beside_adapter: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Write the PEFT adapter folder ``output`` and, if asked, the merged model folder ``save_model``: ``base`` with
        the deltas added to its weights, which uses it up, and the ``tokenizer``.

        ``beside_adapter``: with the tokenizer in the adapter's folder too, as it is not the base's. What made them goes
        into `unlearn_pl.json` of both. Both folders appear when all is written, or neither.

        Raises InputError if a folder exists and ``overwrite`` is off, or if the merge gave no adapter to write.
        """
        if output is None:
            assert save_model is not None, "one folder is needed"
            self._save_model(save_model, base, tokenizer, overwrite)
            return
        refuse_dense(self.settings)
        refuse_existing(output, overwrite)
        if save_model is not None:
            refuse_existing(save_model, overwrite, "save_model")
        with new_folder(output, overwrite) as folder:
            self.config.save_pretrained(str(folder))
            save_file(self.state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
            write_json(folder / FACTS_FILE, provenance(**self.facts))
            if beside_adapter and tokenizer is not None:
                tokenizer.save_pretrained(str(folder))
            if save_model is not None:
                self._save_model(save_model, base, tokenizer, overwrite)

    def _save_model(
        self,
        folder: str | Path,
        base: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        overwrite: bool,
    ) -> None:
        if base is None:
            raise InputError("the base model is needed for a merged model", "base")
        FoldedWeights(base, self.deltas).fold(self.deltas)
        with new_folder(folder, overwrite, "save_model") as temporary:
            base.save_pretrained(str(temporary))
            if tokenizer is not None:
                tokenizer.save_pretrained(str(temporary))
            write_json(temporary / FACTS_FILE, provenance(**self.facts))


def refuse_dense(settings: MergeSettings) -> None:
    """Raise InputError if the method's result does not fit into an adapter."""
    if settings.method.form == "dense":
        name = settings.method.name
        raise InputError(
            f"{name} gives whole weights, which no adapter can hold; write the merged model alone (save_model without "
            f"output), or use {name.replace('_dense', '_svd')}",
            "method",
        )


# --- modules -------------------------------------------------------------------------------------------------------


def merge_modules(
    adapters: Sequence[Adapter], settings: MergeSettings, order: Iterable[str] | None = None
) -> dict[str, Delta]:
    """Module -> merged delta [out, in], with the adapters' scalings and ``settings.scale`` in it; float32 on the CPU.

    At most one module's dense delta is in memory for each adapter. Random methods draw from one generator with the seed
    ``settings.seed``, in the ``order`` of the modules (all their names; default: as in the first adapter), within a
    module in the order of the adapters, for A before B: the same masks as those of PEFT's `torch.bernoulli` calls on
    such a generator, if the order is that of the base's modules.
    """
    assert len(adapters) == len(settings.weights)
    generator = None if settings.seed is None else torch.Generator().manual_seed(settings.seed)
    names = list(order if order is not None else adapters[0].factors)
    assert set(names) == adapters[0].factors.keys()
    scalings = [adapter.scaling for adapter in adapters]
    return {
        name: merge_module(
            [adapter.factors[name] for adapter in adapters],
            [scaling[name] for scaling in scalings],
            settings,
            generator,
        )
        for name in names
    }


def merge_module(
    pairs: Sequence[Factors],
    scalings: Sequence[float],
    settings: MergeSettings,
    generator: torch.Generator | None = None,
) -> Delta:
    """The merged delta [out, in] of one module, of N adapters' factors (a [rank, in], b [out, rank]) and scalings."""
    pairs = [Factors(pair.a.float(), pair.b.float()) for pair in pairs]
    rank = settings.svd_rank or max(pair.a.shape[0] for pair in pairs)
    if settings.method.form == "factors":
        return scaled(_merge_sides(pairs, scalings, settings, generator), settings.scale)
    if settings.method.kernel.linear:
        total = scaled(stack(pairs, _coefficients(pairs, scalings, settings)), settings.scale)
        return compress(total, rank)[0] if settings.method.truncates else total
    deltas = [torch.mm(b, a).mul_(scaling) for (a, b), scaling in zip(pairs, scalings, strict=True)]
    dense = merge_tensors(settings.method.kernel, deltas, settings.weights, settings.options, generator)
    dense.mul_(settings.scale)
    if not settings.method.truncates:
        return dense
    return truncate(dense, rank, start=torch.cat([pair.b for pair in pairs], dim=1))[0]


def _merge_sides(
    pairs: Sequence[Factors], scalings: Sequence[float], settings: MergeSettings, generator: torch.Generator | None
) -> Factors:
    """A [rank, in] merged with A and B [out, rank] with B, the root of weight x scaling on either, as PEFT does."""
    roots = [math.sqrt(weight * scaling) for weight, scaling in zip(settings.weights, scalings, strict=True)]
    kernel, options = settings.method.kernel, settings.options
    a, b = (merge_tensors(kernel, [pair[side].clone() for pair in pairs], roots, options, generator) for side in (0, 1))
    return Factors(a, b)


def _coefficients(pairs: Sequence[Factors], scalings: Sequence[float], settings: MergeSettings) -> list[float]:
    """Of each product B A in a linear merge: the kernel's coefficient of the delta, times the adapter's scaling."""
    weights: Sequence[float] = settings.weights
    if settings.method.kernel.weigh is not None:
        deltas = [scaled(pair, scaling) for pair, scaling in zip(pairs, scalings, strict=True)]
        products = torch.stack([torch.stack([inner(one, other) for other in deltas]) for one in deltas])
        weights = settings.method.kernel.weigh(products, weights)
    return [weight * scaling for weight, scaling in zip(weights, scalings, strict=True)]


# --- tensors -------------------------------------------------------------------------------------------------------


def merge_tensors(
    kernel: Kernel,
    tensors: list[Tensor],
    weights: Sequence[float],
    options: KernelOptions,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Merge N float32 ``tensors`` of one shape [...] (contiguous), which are used up: the first holds the result.

    Random kernels draw from ``generator``, tensor by tensor, entry by entry.
    """
    assert len(tensors) == len(weights)
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)
    if kernel.prune is not None:
        kernel.prune(tensors, options, generator)
    coefficients = list(weights)
    if kernel.weigh is not None:
        selected = None if kernel.select is None else kernel.select(tensors, options)
        coefficients = kernel.weigh(inner_products(tensors, selected), weights)
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), BLOCK):
        blocks = [tensor[start : start + BLOCK] for tensor in flat]
        blocks[0].copy_(kernel.combine(blocks, coefficients, options))
    return tensors[0]


def refuse_adapter(base: object) -> None:
    """Raise InputError unless ``base`` is a model of transformers without an adapter in its layers."""
    if isinstance(base, nn.Module) and any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise InputError("has an adapter already: give model.unload(), or a copy.deepcopy taken before", "base")
    if not isinstance(base, PreTrainedModel):
        raise InputError(f"must be a path, a hub name or a transformers model, got {type(base).__name__}", "base")

"""Merged LoRA adapters: checked against their base, opened in it, written as PEFT adapters and as whole models."""

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from unlearn_pl.merging.factors import Factors, delta_norm, factor_name
from unlearn_pl.merging.folding import FoldedWeights, is_transposed
from unlearn_pl.merging.merge import Delta, merge_deltas, norm
from unlearn_pl.merging.methods import MergeSettings, merge_settings
from unlearn_pl.merging.parents import PREFIX, WEIGHTS_FILE, Parent, read_parents
from unlearn_pl.models.lora import FACTS_FILE
from unlearn_pl.provenance import provenance


@dataclass(frozen=True)
class MergedAdapter:
    """What a merge of adapters gave."""

    base: str
    """Name of the base model, for the configuration that is written."""
    parents: tuple[Parent, ...]
    settings: MergeSettings
    deltas: dict[str, Delta]
    more_facts: dict[str, Any] = field(default_factory=dict)
    """How the settings were found."""

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What made it, for `unlearn_pl.json`."""
        adapters = [{"folder": str(parent.folder), "sha256": parent.sha256} for parent in self.parents]
        return {"merge": {**self.settings.facts(), "adapters": adapters, **self.more_facts}}

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The factors by the names that an adapter file has. Not for a dense delta."""
        state = {}
        for module, pair in self.deltas.items():
            assert isinstance(pair, Factors), f"{self.settings.method.name} gives no factors"
            for side, factor in zip("AB", pair, strict=True):
                state[factor_name(module, side, module in self.parents[0].embeddings)] = factor.contiguous()
        return dict(sorted(state.items()))

    @cached_property
    def config(self) -> LoraConfig:
        """The first parent's, with the merged ranks and scalings of 1: the parents' scalings are in the factors."""
        config = LoraConfig.from_pretrained(str(self.parents[0].folder))
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

    def write(self, folder: Path) -> None:
        """A PEFT adapter in an empty ``folder``."""
        self.config.save_pretrained(str(folder))
        save_file(self.state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(folder / FACTS_FILE, provenance(**self.facts))


def merge_adapters(
    base: PreTrainedModel, adapters: Sequence[str | Path], method: str = "ties", **options: Any
) -> PeftModel:
    """``base`` with one adapter, merged from the ``adapters`` (folders), active and frozen, in eval mode.

    The ``options`` are those of `merge_settings`; the adapters are read and checked before ``base`` is touched.
    ``base`` itself gets the adapter layers; ``unload()`` of the result takes them off again.

    Raises InputError as `merge_settings`, `read_parents` and `merge_parents` do, and for a method that gives no
    adapter.
    """
    settings = merge_settings(len(adapters), method, **options)
    refuse_dense(settings)
    return open_merged(base, merge_parents(base, read_parents(adapters, settings), settings))


def refuse_dense(settings: MergeSettings, argument: str = "--method") -> None:
    """Raise InputError if the method's result does not fit into an adapter."""
    if settings.method.form == "dense":
        name = settings.method.name
        raise InputError(
            f"{argument}: {name} gives whole weights, which no adapter can hold; write the merged model alone "
            f"(--save-model without --output), or use {name.replace('_dense', '_svd')}"
        )


def merge_parents(base: PreTrainedModel, parents: Sequence[Parent], settings: MergeSettings) -> MergedAdapter:
    """Merge adapters that `read_parents` has checked. Of ``base`` only names and shapes count: it may lie on the meta
    device, and is not changed.

    Raises InputError if an adapter does not fit ``base``. Warns if the merged adapter is zero.
    """
    check_base(base, parents)
    order = [PREFIX + name for name, _ in base.named_modules() if PREFIX + name in parents[0].factors]
    deltas = merge_deltas(parents, settings, order)
    size, parts = norm(deltas), sum(delta_norm(parent.factors, parent.scaling) for parent in parents)
    if not math.isfinite(size):
        raise InputError("--weights and --scale: the merged delta is too large for float32; take smaller ones")
    if size <= 1e-6 * parts:
        warnings.warn("the merged adapter is zero: it changes nothing in the base model", stacklevel=3)
    name = base.name_or_path or str(parents[0].config.get("base_model_name_or_path") or "")
    return MergedAdapter(name, tuple(parents), settings, deltas)


def check_base(base: nn.Module, parents: Sequence[Parent]) -> None:
    """Raise InputError unless ``base`` has a layer of the right size for every adapted module (the parents agree)."""
    modules = dict(base.named_modules())
    for name, (a, b) in parents[0].factors.items():
        layer = modules.get(name.removeprefix(PREFIX))
        size = (b.shape[0], a.shape[1])
        if layer is None or isinstance(layer, nn.Embedding) != (name in parents[0].embeddings):
            kind = "embedding" if name in parents[0].embeddings else "linear layer"
            raise InputError(f"--base: does not fit the adapters: it has no {kind} {name.removeprefix(PREFIX)}")
        if layer_size(layer) != size:
            raise InputError(
                f"--base: does not fit the adapters: {name.removeprefix(PREFIX)} has (out, in) {layer_size(layer)}, "
                f"the adapters are for {size}"
            )


def layer_size(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a layer that LoRA can adapt, whatever the form in which its weights are stored."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    rows, columns = layer.weight.shape  # type: ignore[misc]
    return (columns, rows) if is_transposed(layer) else (rows, columns)


def open_merged(base: PreTrainedModel, merged: MergedAdapter) -> PeftModel:
    """``base`` with the merged adapter, active and frozen, in eval mode.

    Raises InputError if PEFT finds other modules in ``base`` than the adapter has.
    """
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules()), "the base has an adapter already"
    # PEFT draws numbers for an adapter that is overwritten just below
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        config = copy.copy(merged.config)
        config.base_model_name_or_path = base.name_or_path or None
        model = get_peft_model(base, config)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    if odd := sorted(own.keys() ^ merged.state.keys()):
        raise InputError(f"--base: does not fit the adapters: only one of the two has {odd[0]}")
    set_peft_model_state_dict(model, merged.state)
    assert isinstance(model, PeftModel)
    return model.eval()


def save_merged(
    merged: MergedAdapter,
    output: str | Path | None,
    save_model: str | Path | None = None,
    base: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    beside_adapter: bool = False,
) -> None:
    """Write the adapter folder ``output`` and, if asked, the merged model ``save_model`` with its tokenizer.

    ``beside_adapter``: with the tokenizer in the adapter's folder too, as it is not the base's.
    What made them goes into `unlearn_pl.json` of both. Both folders appear when all is written, or neither. With
    ``save_model`` the deltas are added to the weights of ``base``, which is used up by that.

    Raises InputError if a folder exists and ``overwrite`` is off, or if the merge gave no adapter to write.
    """
    if output is None:
        assert save_model is not None
        write_model(merged, save_model, base, tokenizer, overwrite)
        return
    refuse_dense(merged.settings)
    refuse_existing(output, overwrite)
    if save_model is not None:
        refuse_existing(save_model, overwrite, "--save-model")
    with new_folder(output, overwrite) as folder:
        merged.write(folder)
        if beside_adapter and tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        if save_model is not None:
            write_model(merged, save_model, base, tokenizer, overwrite)


def write_model(
    merged: MergedAdapter,
    folder: str | Path,
    base: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    overwrite: bool,
) -> None:
    """Write ``base`` with the deltas in its weights as a model folder."""
    assert base is not None, "the base is needed for a merged model"
    FoldedWeights(base, merged.deltas).fold(merged.deltas)
    with new_folder(folder, overwrite, "--save-model") as temporary:
        base.save_pretrained(str(temporary))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(temporary))
        write_json(temporary / FACTS_FILE, provenance(**merged.facts))

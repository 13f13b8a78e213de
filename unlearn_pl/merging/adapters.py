"""Merging LoRA adapters with PEFT's combination types, checked so that none of its silent failures can happen.

Left alone, PEFT returns at once if the new name exists, turns any method into ``linear`` for one adapter, drops
adapters beyond the last weight, and writes zeros for a misspelt method that ends in ``svd``.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.files import new_folder, refuse_existing, write_json
from unlearn_pl.merging.methods import MergeSettings, merge_settings
from unlearn_pl.merging.parents import PREFIX, Parent, read_parents
from unlearn_pl.models.lora import FACTS_FILE, save_adapter
from unlearn_pl.provenance import provenance

# PEFT saves the adapter of this name in the folder itself and any other in a subfolder.
MERGED = "default"


def merge_adapters(
    base: PreTrainedModel,
    adapters: Sequence[str | Path],
    method: str = "ties",
    weights: Sequence[float] | None = None,
    density: float | None = None,
    majority_sign: str | None = None,
    seed: int = 42,
    svd_rank: int | None = None,
) -> PeftModel:
    """``base`` with one adapter, merged from the ``adapters`` (folders), active and frozen, in eval mode.

    The arguments are those of `merge_settings`; the adapters are read and checked before ``base`` is touched.
    ``base`` itself gets the adapter layers; ``unload()`` of the result takes them off again.

    Raises InputError as `merge_settings`, `read_parents` and `merge_parents` do.
    """
    settings = merge_settings(len(adapters), method, weights, density, majority_sign, seed, svd_rank)
    return merge_parents(base, read_parents(adapters, settings), settings)


def merge_parents(base: PreTrainedModel, parents: Sequence[Parent], settings: MergeSettings) -> PeftModel:
    """`merge_adapters` for adapters that `read_parents` has checked; random methods depend on ``settings.seed`` alone.

    Raises InputError if an adapter does not fit ``base``. Warns if the merged adapter is zero.
    """
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules()), "the base has an adapter already"
    check_base(base, parents)
    # Opening adapters draws random numbers too, so the state is put back after all of it.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        model, names = open_parents(base, parents)
        combine(model, names, settings)
    model.set_adapter(MERGED, inference_mode=True)
    for name in names:
        model.delete_adapter(name)
    describe_merged(model)
    return model.eval()


def combine(model: PeftModel, names: Sequence[str], settings: MergeSettings) -> None:
    """Add the adapter `MERGED` to those of ``names``."""
    if settings.seed is not None:
        torch.manual_seed(settings.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The density .* no pruning will be performed")
        model.base_model.add_weighted_adapter(
            list(names),
            list(settings.weights),
            MERGED,
            combination_type=settings.method.name,
            svd_rank=settings.svd_rank,
            svd_full_matrices=False,  # only the leading singular vectors are used
            density=settings.density,
            majority_sign_method=settings.majority_sign,
        )
    if settings.method.name == "cat":
        stack_factors(model, names, settings.weights)


def stack_factors(model: PeftModel, names: Sequence[str], weights: Sequence[float]) -> None:
    """`cat` in the number type of the parents: PEFT copies it into tensors of the base's type, which may round."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            scaled = zip(names, weights, strict=True)
            a = [layer.lora_A[name].weight.data * weight * layer.scaling[name] for name, weight in scaled]
            layer.lora_A[MERGED].weight.data = torch.cat(a, dim=0)
            layer.lora_B[MERGED].weight.data = torch.cat([layer.lora_B[name].weight.data for name in names], dim=1)


def check_base(base: PreTrainedModel, parents: Sequence[Parent]) -> None:
    """Raise InputError unless ``base`` has a layer of the right size for every adapted module (the parents agree)."""
    modules = dict(base.named_modules())
    for name, (a, b) in parents[0].factors.items():
        layer = modules.get(name.removeprefix(PREFIX))
        size = (b.shape[0], a.shape[1])
        if layer is None:
            raise InputError(f"--base: does not fit the adapters: it has no {name.removeprefix(PREFIX)}")
        # GPT-2 keeps its weights transposed
        if tuple(layer.weight.shape) not in (size, size[::-1]):
            raise InputError(
                f"--base: does not fit the adapters: {name.removeprefix(PREFIX)} has weights "
                f"{tuple(layer.weight.shape)}, the adapters are for {size}"
            )


def open_parents(base: PreTrainedModel, parents: Sequence[Parent]) -> tuple[PeftModel, list[str]]:
    """``base`` with every parent's adapter under a name of its own."""
    names = [f"parent_{i}" for i in range(len(parents))]
    with warnings.catch_warnings():
        # PEFT only warns and keeps random weights; here it is an error just below.
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        model = PeftModel.from_pretrained(base, str(parents[0].folder), adapter_name=names[0])
        for name, parent in zip(names[1:], parents[1:], strict=True):
            model.load_adapter(str(parent.folder), adapter_name=name)
    for name, parent in zip(names, parents, strict=True):
        state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        odd = sorted(state.keys() ^ parent.names)
        if odd:
            raise InputError(f"--base: does not fit the adapter {parent.folder}: only one of the two has {odd[0]}")
        config = model.peft_config[name]
        # The merged adapter inherits the first parent's configuration. Scalings are in its factors already, so with
        # rank-stabilised LoRA left on it would come out sqrt(rank) times too large; and its initial values are
        # overwritten, so any initialisation does.
        config.use_rslora = False
        config.init_lora_weights = True
        # PEFT cannot join a set with a pattern; the tensor names have shown that they select the same modules.
        config.target_modules = model.peft_config[names[0]].target_modules
    return model, names


def describe_merged(model: PeftModel) -> None:
    """Set the configuration that is saved with the merged adapter, and look at its numbers."""
    config = model.peft_config[MERGED]
    config.inference_mode = True
    base = model.get_base_model()
    config.base_model_name_or_path = base.name_or_path or config.base_model_name_or_path
    if not isinstance(config.target_modules, str):
        # A set has another order in every process; the same merge must give the same file.
        config.target_modules = sorted(config.target_modules)
    state = get_peft_model_state_dict(model, adapter_name=MERGED, save_embedding_layers=False)
    assert all(value.isfinite().all() for value in state.values())
    if not any(value.any() for name, value in state.items() if ".lora_B." in name):
        warnings.warn("the merged adapter is zero: it changes nothing in the base model", stacklevel=3)


def merge_facts(parents: Sequence[Parent], settings: MergeSettings) -> dict[str, Any]:
    """What made a merged adapter, for its `unlearn_pl.json`."""
    return {
        "merge": {
            "method": settings.method.name,
            "weights": list(settings.weights),
            "density": settings.density,
            "majority_sign": settings.majority_sign,
            "seed": settings.seed,
            "svd_rank": settings.svd_rank,
            "adapters": [{"folder": str(parent.folder), "sha256": parent.sha256} for parent in parents],
        }
    }


def save_merged(
    model: PeftModel,
    output: str | Path,
    facts: dict[str, Any],
    save_model: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
) -> None:
    """Write the adapter folder ``output`` and, if asked, the merged model ``save_model`` with its tokenizer.

    ``facts`` (see `merge_facts`) go into `unlearn_pl.json` of both. Both folders appear when all is written, or
    neither. With ``save_model`` the adapter is merged into the weights of ``model``, which is used up by that.

    Raises InputError if a folder exists and ``overwrite`` is off.
    """
    refuse_existing(output, overwrite)
    if save_model is not None:
        refuse_existing(save_model, overwrite, "--save-model")
    with new_folder(output, overwrite) as adapter_folder:
        save_adapter(model, adapter_folder, **facts)
        if save_model is None:
            return
        with new_folder(save_model, overwrite, "--save-model") as model_folder:
            model.merge_and_unload(safe_merge=True).save_pretrained(str(model_folder))
            if tokenizer is not None:
                tokenizer.save_pretrained(str(model_folder))
            write_json(model_folder / FACTS_FILE, provenance(**facts))

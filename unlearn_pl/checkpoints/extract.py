"""A LoRA adapter from two checkpoints: what the training of all weights changed, cut to a rank."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unlearn_pl.checkpoints.alike import read_alike
from unlearn_pl.checkpoints.folder import Checkpoint, block_entries, float_blocks
from unlearn_pl.errors import InputError
from unlearn_pl.files import check_outputs, new_folder, write_json
from unlearn_pl.merging.factors import Factors, factor_name
from unlearn_pl.merging.low_rank import truncate
from unlearn_pl.models.adapter_folder import PREFIX, WEIGHTS_FILE
from unlearn_pl.models.load import load_skeleton
from unlearn_pl.models.lora import FACTS_FILE
from unlearn_pl.provenance import provenance


@dataclass(frozen=True)
class Extraction:
    """What an adapter holds of the difference between two checkpoints. All norms are Frobenius norms."""

    factors: dict[str, Factors]
    """By module name, in float32."""
    norms: dict[str, float]
    """By module, the norm of its difference."""
    errors: dict[str, float]
    """By module, norm of what the rank cuts off / norm of the difference, in [0, 1]; 0 where nothing differs."""
    others: dict[str, float]
    """By tensor that no adapter holds (norms, embeddings, biases) and that differs, the norm of its difference."""

    @property
    def state(self) -> dict[str, Tensor]:
        """The factors by the names that an adapter file has."""
        return {
            factor_name(PREFIX + module, side, embedding=False): factor
            for module, pair in self.factors.items()
            for side, factor in zip("AB", pair, strict=True)
        }

    @property
    def relative_error(self) -> float:
        """The same as ``errors`` over all modules together, in [0, 1]."""
        cut = norm_of(self.errors[module] * norm for module, norm in self.norms.items())
        return cut / (norm_of(self.norms.values()) or 1.0)

    @property
    def share_of_others(self) -> float:
        """Norm of ``others`` / norm of the whole difference, in [0, 1]."""
        return norm_of(self.others.values()) / (norm_of([*self.norms.values(), *self.others.values()]) or 1.0)


def norm_of(norms: Iterable[float]) -> float:
    """Norm of a whole from the norms of its parts."""
    return sum(norm**2 for norm in norms) ** 0.5


def extract_adapter(
    base: str | Path,
    tuned: str | Path,
    rank: int,
    output: str | Path,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Extraction:
    """Write tuned - base as a PEFT LoRA folder: of every linear layer but the vocabulary head the best approximation
    of rank ``rank`` (truncated singular value decomposition), with alpha = ``rank`` so that the scaling is 1.

    Warns if other tensors differ, which no adapter holds. Raises InputError for folders that are not checkpoints of
    one model, a rank that is not in [1, smallest side of a linear layer], numbers that are not finite, and if
    ``output`` exists and ``overwrite`` is off.
    """
    check_outputs({"output": output}, [base, tuned], overwrite)
    original, changed = read_alike(base, [tuned], "tuned", trust_remote_code)
    model = load_skeleton(str(original.folder), trust_remote_code)
    linear = linear_modules(model, original)
    sides = [min(original.tensors[name].shape) for name in linear]
    if not 1 <= rank <= min(sides):
        raise InputError(f"must be from 1 to {min(sides)}, the smallest side of a linear layer, got {rank}", "rank")
    with new_folder(output, overwrite) as folder:
        found = extract(original, changed, linear, model, rank)
        save_file(found.state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        adapter_config(model, list(found.factors), rank, str(base)).save_pretrained(str(folder))
        write_json(folder / FACTS_FILE, provenance(**extraction_facts(found, str(base), str(tuned), rank)))
    if found.others:
        warnings.warn(
            f"{len(found.others)} tensors differ that an adapter cannot hold, such as {next(iter(found.others))}: "
            f"{found.share_of_others:.2%} of the norm of the whole difference",
            stacklevel=2,
        )
    return found


def linear_modules(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, str]:
    """Stored weight -> module, of every linear layer but the vocabulary head.

    Raises InputError if there is none, or the folder does not store one under its own name.
    """
    head = model.get_output_embeddings()
    found = {}
    for module, layer in model.named_modules():
        if not isinstance(layer, (nn.Linear, Conv1D)) or layer is head:
            continue
        name = f"{module}.weight"
        if name not in checkpoint.tensors:
            raise InputError(f"{checkpoint.folder} does not hold {name}, the weight of a linear layer", "base")
        found[name] = module
    if not found:
        raise InputError(f"{checkpoint.folder} has no linear layers that an adapter could hold", "base")
    return found


def extract(
    base: Checkpoint, tuned: Checkpoint, linear: Mapping[str, str], model: PreTrainedModel, rank: int
) -> Extraction:
    """Factors of the modules of ``linear`` (stored weight -> module), norms of all that differs; one at a time.

    A layer's delta is [out, in], whatever the form in which its weights are stored.
    """
    found = Extraction({}, {}, {}, {})
    for name in base.tensors:
        if name in linear:
            module = linear[name]
            weight = difference(base, tuned, name)
            delta = weight.T if isinstance(model.get_submodule(module), Conv1D) else weight
            found.norms[module] = norm = _norm(delta)
            found.factors[module], found.errors[module] = truncate(delta, rank) if norm else (zeros(delta, rank), 0.0)
        elif base.tensors[name].floating and (norm := _norm(difference(base, tuned, name))):
            found.others[name] = norm
    contiguous = {module: Factors(*(side.contiguous() for side in pair)) for module, pair in found.factors.items()}
    return Extraction(contiguous, found.norms, found.errors, found.others)


def difference(base: Checkpoint, tuned: Checkpoint, name: str) -> Tensor:
    """tuned - base of one tensor in float32. Raises InputError if it is not finite."""
    pair = (base.tensors[name], tuned.tensors[name])
    delta = torch.empty(pair[0].shape)
    entries, start = block_entries(pair), 0
    for old, new in zip(*(float_blocks(stored, entries) for stored in pair), strict=True):
        torch.sub(new, old, out=delta.view(-1)[start : start + len(old)])
        start += len(old)
    if not delta.isfinite().all():
        raise InputError(f"{name} in {base.folder} or {tuned.folder} holds NaN or infinite numbers", "tuned")
    return delta


def _norm(delta: Tensor) -> float:
    return sum(block.double().square().sum().item() for block in delta.reshape(-1).split(1 << 20)) ** 0.5


def zeros(delta: Tensor, rank: int) -> Factors:
    """The factors of no difference: a [rank, in] and b [out, rank] for a delta [out, in]."""
    return Factors(torch.zeros(rank, delta.shape[1]), torch.zeros(delta.shape[0], rank))


def adapter_config(model: PreTrainedModel, modules: list[str], rank: int, base: str) -> LoraConfig:
    """PEFT's description of the adapter, with the modules by the last part of their names."""
    names = sorted({module.rsplit(".", 1)[-1] for module in modules})
    head = next((name for name, layer in model.named_modules() if layer is model.get_output_embeddings()), None)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=names,
        exclude_modules=[head] if head is not None and head.rsplit(".", 1)[-1] in names else None,
        fan_in_fan_out=any(isinstance(model.get_submodule(module), Conv1D) for module in modules),
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    config.target_modules = names  # as a set it would be written in another order by every process
    return config


def extraction_facts(found: Extraction, base: str, tuned: str, rank: int) -> dict[str, Any]:
    """What is recorded beside the adapter."""
    return {
        "made_by": "extract",
        "base": base,
        "tuned": tuned,
        "rank": rank,
        "relative_error": found.relative_error,
        "relative_error_by_module": found.errors,
        "not_held": {"tensors": len(found.others), "share_of_norm": found.share_of_others},
    }

"""LoRA adapters: attaching, switching off for the reference, saving and opening in PEFT's own format."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from unlearn_pl.errors import InputError
from unlearn_pl.files import new_folder, write_json
from unlearn_pl.models.lora_linear import LoraLinear
from unlearn_pl.provenance import provenance

FACTS_FILE = "unlearn_pl.json"
# What PEFT puts in the place of a linear layer; adapter files do not name it.
LAYERS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LoraLinear}


@dataclass(frozen=True)
class Lora:
    """Size and place of the adapter (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 32
    """Rank of each weight delta; at least 1."""
    alpha: float = 32
    """The delta is scaled by alpha / rank; above 0."""
    dropout: float = 0.05
    """Dropout on the adapter's input during training, in [0, 1)."""
    target_modules: str | list[str] = field(default="all-linear")
    """`all-linear` (every linear layer but the vocabulary head), or a list of module names such as [q_proj, v_proj]."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"--model.lora.rank: must be at least 1, got {self.rank}")
        if self.alpha <= 0:
            raise InputError(f"--model.lora.alpha: must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--model.lora.dropout: must be in [0, 1), got {self.dropout}")


def attach_lora(
    model: PreTrainedModel, lora: Lora, seed: int, layers: dict[type[nn.Module], type[nn.Module]] | None = None
) -> PeftModel:
    """``model`` with a fresh, trainable adapter in float32 and everything else frozen; B is zero, so it starts as the
    base model.

    The A factors are a function of ``seed`` alone. Two adapters that are to be merged in factor space must start
    from the same A, so the over- and the under-forgetting run share it. ``layers`` are what PEFT puts in the place of
    which layer: ``LAYERS`` by default; none of them ({}) for PEFT's own.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    config._register_custom_module(LAYERS if layers is None else layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:  # PEFT found no module of the given names
            raise InputError(f"--model.lora.target_modules: {str(error).splitlines()[0]}") from error


def open_adapter(model: PreTrainedModel, folder: str | Path, trainable: bool = False) -> PeftModel:
    """``model`` with a saved adapter. Raises InputError if ``folder`` holds none or it does not fit the model."""
    if not (Path(folder) / "adapter_config.json").is_file():
        raise InputError(f"adapter: {folder} has no adapter_config.json; a PEFT adapter folder is needed")
    try:
        config = PeftConfig.from_pretrained(str(folder), inference_mode=not trainable)
        if isinstance(config, LoraConfig):
            config._register_custom_module(LAYERS)
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, config=config)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"adapter: {folder} does not fit this base model: {str(error).splitlines()[0]}") from error


@contextmanager
def reference(model: PeftModel) -> Iterator[None]:
    """Inside the block ``model`` is the base model: adapter off, eval mode, no gradient."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            yield
    finally:
        model.train(training)


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """A copy on the CPU of the adapter's factors, under the names that an adapter file has."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)  # "auto" would ask the hub
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def initial_factors_hash(model: PeftModel) -> str:
    """Hash of the A factors, to be taken before training: equal for adapters that may be merged in factor space."""
    digest = hashlib.sha256()
    for name, value in sorted(adapter_state(model).items()):
        if ".lora_A." in name:
            digest.update(name.encode())
            digest.update(value.float().numpy().tobytes())
    return digest.hexdigest()


def save_adapter(model: PeftModel, folder: str | Path, **facts: Any) -> None:
    """Write the adapter as PEFT does, and ``facts`` with versions and commit beside it; an older one is replaced."""
    config = model.peft_config[model.active_adapter]
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)  # a set is written in another order by every process
    with new_folder(folder, overwrite=True) as temporary:
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)
        write_json(temporary / FACTS_FILE, provenance(**facts))

"""Adapter folders for the merge tests: a shared A with a little drift, as after training, and a random B."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel


def write_adapter(
    folder: Path, base: PreTrainedModel, seed: int, start: int = 0, facts: dict | None = None, **config: Any
) -> str:
    """An adapter of every linear layer; ``start`` seeds the A it started from, ``seed`` its drift and its B."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | config
    model = get_peft_model(base, LoraConfig(**options))
    initial, drift = torch.Generator().manual_seed(start), torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            if ".lora_A." in name:
                value.copy_(torch.randn(value.shape, generator=initial) * 0.3)
                value.add_(torch.randn(value.shape, generator=drift) * 0.02)
            elif ".lora_B." in name:
                value.copy_(torch.randn(value.shape, generator=drift) * 0.1)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()
    if facts is not None:
        (folder / "unlearn_pl.json").write_text(json.dumps(facts))
    return str(folder)


def tensors(folder: str | Path) -> dict[str, Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


def edit_tensors(folder: str | Path, change: Any) -> None:
    """Rewrite the weights file with what ``change`` makes of its dictionary."""
    state = tensors(folder)
    change(state)
    save_file({name: value.contiguous() for name, value in state.items()}, Path(folder) / "adapter_model.safetensors")


def edit_config(folder: str | Path, **values: Any) -> None:
    path = Path(folder) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))

"""What a folder with a PEFT adapter is called by: its files, and the names of its tensors."""

from pathlib import Path

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""PEFT puts it before the base model's module names."""


def is_adapter_folder(folder: str | Path) -> bool:
    """Whether ``folder`` says that it holds a PEFT adapter."""
    return (Path(folder).expanduser() / CONFIG_FILE).is_file()

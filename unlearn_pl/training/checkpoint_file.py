"""Checkpoint files: written whole or not at all, and looked at before a model is loaded."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from unlearn_pl.errors import InputError
from unlearn_pl.training.resume import facts_of


def check_checkpoint_file(path: str, verb: str, weights_only: bool = True) -> None:
    """Raise InputError unless ``path`` is a whole checkpoint of a fit, or is `last` in a fit."""
    if path == "last" and verb == "fit":
        return
    read_checkpoint(path, weights_only)


def read_checkpoint(path: str | Path, weights_only: bool = True, name: str = "ckpt_path") -> dict[str, Any]:
    """A whole checkpoint of a fit, its tensors on the CPU. Raises InputError, naming ``name``, if it is none."""
    file = Path(path)
    if file.is_dir():
        raise InputError(
            f"{path} is a folder; a checkpoint is a file such as checkpoints/last.ckpt, and an adapter folder goes to "
            "the model's adapter",
            name,
        )
    if not file.is_file():
        raise InputError(f"must be a checkpoint file of `unlearn-pl fit`, got {path}, which is no file", name)
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=weights_only)
    except Exception as error:  # whatever the bytes are that it reads
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} is torn or no checkpoint: {reason}", name) from error
    checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
    facts_of(checkpoint, path, name)
    return checkpoint


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then renames it.

    Lightning writes it into the system's folder for temporary files; where that is another disk, the move copies onto
    the earlier checkpoint, of which a kill or a full disk in the middle leaves nothing.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):  # of a store, which Lightning writes in one go
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")  # what a kill leaves of it, the next one replaces
        try:
            with part.open("wb") as stream:
                torch.save(checkpoint, stream)
            os.replace(part, place)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

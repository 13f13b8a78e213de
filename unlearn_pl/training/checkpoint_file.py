"""The file of --ckpt_path, looked at before a model is loaded."""

from pathlib import Path

import torch

from unlearn_pl.errors import InputError
from unlearn_pl.training.resume import facts_of


def check_checkpoint_file(path: str, verb: str, weights_only: bool = True) -> None:
    """Raise InputError unless ``path`` is a whole checkpoint of a fit, or is `last` in a fit."""
    if path == "last" and verb == "fit":
        return
    file = Path(path)
    if file.is_dir():
        raise InputError(
            f"--ckpt_path: {path} is a folder; a checkpoint is a file such as checkpoints/last.ckpt, and "
            "an adapter folder goes to --model.adapter"
        )
    if not file.is_file():
        raise InputError(f"--ckpt_path: must be a checkpoint file of `unlearn-pl fit`, got {path}, which is no file")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=weights_only)
    except Exception as error:  # whatever the bytes are that it reads
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"--ckpt_path: {path} is torn or no checkpoint: {reason}") from error
    facts_of(checkpoint if isinstance(checkpoint, dict) else {}, path)

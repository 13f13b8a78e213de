"""Where to compute."""

import os

import torch
from torch import Tensor

from unlearn_pl.errors import InputError, one_line


def sent(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``. From a CPU to a GPU the copy waits for nothing, and the next line does not wait for
    the copy."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def find_device(device: str) -> torch.device:
    """``device`` (cpu, cuda, cuda:1, ...); for ``auto`` a GPU if there is one, each process of a launch its own.

    Raises InputError if it cannot be used here.
    """
    if device == "auto":
        rank = os.environ.get("LOCAL_RANK", "0")
        return torch.device(f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).cpu()  # meta has no numbers to give
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a build of torch without that device
        raise InputError(f"{device} cannot be used here: {one_line(error)}", "device") from error
    return place

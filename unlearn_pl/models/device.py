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
        if not torch.cuda.is_available():
            return torch.device("cpu")
        rank, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if rank >= cards:
            raise InputError(
                f"auto: there are {cards} GPUs, and this is process {rank + 1}; start one for each", "device"
            )
        return torch.device(f"cuda:{rank}")
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).cpu()  # meta has no numbers to give
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a build of torch without that device
        raise InputError(f"{device} cannot be used here: {one_line(error)}", "device") from error
    return place

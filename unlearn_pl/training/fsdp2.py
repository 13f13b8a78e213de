"""FSDP2Strategy: several processes that share one frozen base, each with its own rows."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.distributed.tensor import DTensor

NAME = "fsdp2"


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's strategy for PyTorch's FSDP2, for a model of which only an adapter is trained: UnlearningModule cuts
    the frozen base into shards, one a process, and the adapter stays whole on each.

    The gradients of the adapter are averaged over the processes once an optimizer step. What a checkpoint holds is
    whole everywhere, so checkpoints are one file, that of any other strategy, and nothing is gathered for them.

    Args:
        process_group_backend: `nccl`, `gloo`, ...; null for that of the device.
        timeout: After which a process no longer waits for another.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout):
        super().__init__(tensor_parallel_size=1, process_group_backend=process_group_backend, timeout=timeout)
        self._within_window = False

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's default is one for each node
        super().setup_environment()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """In the block gradients are added up, and not averaged yet."""
        self._within_window = True
        try:
            yield
        finally:
            self._within_window = False

    def post_backward(self, closure_loss: Tensor) -> None:
        if not self._within_window:
            assert self.lightning_module is not None
            average_gradients(self.lightning_module.parameters())

    # What is in shards is frozen, and in no checkpoint.

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {name: one for name, one in super(ModelParallelStrategy, self).lightning_module_state_dict().items()
                if not isinstance(one, DTensor)}  # fmt: skip

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients of what is trained by their means over the processes, as DDP does. A parameter that had a
    gradient on one of them only (an expert that got no token) has one on all."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.float32)
    used = used.to(trained[0].device)
    torch.distributed.all_reduce(used)
    count = torch.distributed.get_world_size()
    pending = []
    for parameter, by in zip(trained, used.tolist(), strict=True):
        if by:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            pending.append(torch.distributed.all_reduce(parameter.grad.div_(count), async_op=True))
    for one in pending:
        one.wait()


StrategyRegistry.register(NAME, FSDP2Strategy, description="The frozen base in shards, one a process (FSDP2)")

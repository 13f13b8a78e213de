"""A frozen base in shards (FSDP2): each process keeps a part of every decoder layer, and has a layer whole only while
it computes with it.

The adapter, the embedding, the last norm and the vocabulary head stay whole on every process: the adapter is trained as
it always is, and hidden states go through the head in many places outside of the model's own forward.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from unlearn_pl.errors import InputError
from unlearn_pl.models.body import body_of, hidden_states


def shard_base(model: nn.Module, layers: Iterable[nn.Module], mesh: Any) -> None:
    """Leave each process of ``mesh`` (a DeviceMesh of one dimension) its part of what is frozen in the decoder
    ``layers``, in place. From here on all processes must run the same forwards and backwards, in the same order.

    A layer goes to the device just before it is cut: no device has ever more than one of them whole.
    """
    body, layers = body_of(model), list(layers)
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad or parameter.dim() == 0}
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    # without parameters of its own: it makes the layers one model, whose next layer comes while one computes
    fully_shard(body, mesh=mesh, ignored_params=set(body.parameters()) - inside | whole)
    body.register_forward_hook(clean_up, always_call=True)


def clean_up(body: nn.Module, inputs: object, output: object) -> None:
    """After a forward that failed, as trials of models may: what it had gathered is let go of."""
    if output is None:
        assert isinstance(body, FSDPModule)
        body.reset_iter_state()


def is_sharded(model: nn.Module) -> bool:
    """Whether ``shard_base`` has cut the model."""
    return isinstance(body_of(model), FSDPModule)


def refuse_sharded(model: nn.Module, what: str, name: str) -> None:
    """Raise InputError if the model is cut, since ``what`` needs it whole."""
    if is_sharded(model):
        raise InputError(f"{what} needs the whole model, and this one is in shards", name)


def whole(weight: Tensor) -> Tensor:
    """The weight, gathered if this process has only a part of it; then all must ask for it."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


@contextmanager
def in_step(model: nn.Module | None) -> Iterator[None]:
    """In the block each process runs as many forwards, without gradients, as it needs: for a sharded model, whose
    layers all must gather together, those that end first keep the others company with a single token."""
    if model is None or not is_sharded(model):
        yield
        return
    device = next(parameter.device for parameter in model.parameters() if parameter.requires_grad)

    def running(here: bool) -> Tensor:
        """Above 0 if a process is about to run a forward; each calls this before one, and then runs one."""
        found = torch.tensor(int(here), device=device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return found

    def announce(*_: object) -> None:
        running(True)

    hook = body_of(model).register_forward_pre_hook(announce, prepend=True)
    try:
        yield
    finally:
        hook.remove()
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    while running(False):
        hidden_states(model, token)

"""The outputs of single decoder layers, beside or in place of the final hidden states."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from unlearn_pl.errors import InputError
from unlearn_pl.models.body import body_of, causal_model, text_config
from unlearn_pl.models.fast.packing import row_hidden_states


@dataclass(frozen=True)
class States:
    """Of T tokens: the final hidden states [T, H], None if they were not asked for, and layer -> its output [T, H']."""

    final: Tensor | None
    layers: dict[int, Tensor]


class Stopped(Exception):
    """No layer above is needed."""


def row_states(
    model: nn.Module, input_ids: Tensor, lengths: Sequence[int], layers: Sequence[int] = (), final: bool = True
) -> States:
    """The states of rows that follow each other in ``input_ids`` [T], T the sum of ``lengths``, from one forward.

    ``layers`` are counted from 0. Without ``final`` the forward ends with the last of them.
    """
    if not layers:
        return States(row_hidden_states(model, input_ids, lengths) if final else None, {})
    with beside_final(model, layers, final) as widths:
        together = row_hidden_states(model, input_ids, lengths)
    *of_layers, rest = together.split([*widths, together.shape[1] - sum(widths)], dim=1)
    return States(rest if final else None, dict(zip(layers, of_layers, strict=True)))


@contextmanager
def beside_final(model: nn.Module, layers: Sequence[int], final: bool) -> Iterator[list[int]]:
    """In the block the body's hidden states are the outputs of ``layers`` side by side, and then, with ``final``, its
    own; the list holds the widths of the former. So rows are packed, padded and cut apart as always."""
    body, blocks = body_of(model), decoder_layers(model)
    forward, outputs = body.forward, dict[int, Tensor]()
    widths: list[int] = []

    def keep(layer: int, output: Any) -> None:
        outputs[layer] = output if isinstance(output, Tensor) else output[0]

    def stop(*_: Any) -> None:
        raise Stopped

    def run(*args: Any, **options: Any) -> Any:
        outputs.clear()
        try:
            own = [forward(*args, **options).last_hidden_state][: int(final)]
        except Stopped:
            own = []
        states = [outputs[layer] for layer in layers]
        widths[:] = [state.shape[-1] for state in states]
        return BaseModelOutput(last_hidden_state=torch.cat([*states, *own], dim=-1))

    with ExitStack() as stack:
        for layer in layers:
            hook = blocks[layer].register_forward_hook(lambda *call, own=layer: keep(own, call[2]))
            stack.callback(hook.remove)
        if not final and max(layers) + 1 < len(blocks):
            # before the next layer, and before that is gathered if it is in shards: an exception within one that is
            # checkpointed would tear what it has saved
            stack.callback(blocks[max(layers) + 1].register_forward_pre_hook(stop, prepend=True).remove)
        stack.enter_context(replaced_forward(body, run))
        yield widths


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """In the block ``module`` computes by ``forward``."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a model, from the embedding up. Raises InputError if they are in no list."""
    count = text_config(model).num_hidden_layers
    lists = (part for part in body_of(model).modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    found = next(lists, None)
    if found is None:
        raise InputError(f"{type(causal_model(model)).__name__} has no list of {count} decoder layers", "objectives")
    return found


def check_layers(model: nn.Module, layers: Sequence[int]) -> None:
    """Raise InputError if the model has not all of these decoder layers."""
    count = len(decoder_layers(model)) if layers else 0
    for layer in layers:
        if not 0 <= layer < count:
            raise InputError(f"a term reads layer {layer}; the model has layers 0 to {count - 1}", "objectives")

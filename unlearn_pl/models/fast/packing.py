"""Rows of different lengths through the transformer body, without padding.

All rows stand in one sequence; linear layers and norms run over it as one, and attention runs row by row, so a row
never sees its neighbour. It is an attention function of transformers (``attention.py``), so any architecture that uses
those can have it; ``enable_packing`` tries it on the model at hand, and where it is not exact rows are padded in groups
of like lengths.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from unlearn_pl.errors import InputError
from unlearn_pl.models.body import body_of, causal_model, hidden_states, text_config
from unlearn_pl.models.device import sent
from unlearn_pl.models.fast.attention import PACKED, VARLEN, has_varlen
from unlearn_pl.models.rope import switch_length
from unlearn_pl.models.sharding import is_sharded

# A gradient in half precision, by two kernels.
GRADIENT_TOLERANCE = 0.03
# Of the tokens of a padded forward, where packing is not possible.
MOST_PADDING = 0.1
# Matrix libraries compile a kernel for each number of rows and keep it, half a megabyte each: few numbers, few kernels.
ROUND_TO = 16
# Of a configuration: how far back a layer looks, one number or one for each layer.
WINDOWS = ("sliding_window", "sliding_windows", "sliding_window_size", "attention_chunk_size", "attention_window_size",
           "window_size", "local_attention")  # fmt: skip


def packs_rows(model: nn.Module) -> bool:
    """Whether the attention function of ``model`` is one that takes packed rows."""
    return causal_model(model).config._attn_implementation in (PACKED, VARLEN)


def enable_packing(model: nn.Module) -> bool:
    """Let ``model`` take packed rows if it gives what rows alone give; otherwise leave it as it was and say False.
    Raises InputError if padded rows are not exact either.

    The attention function must stay set for the backward pass too, where checkpointed layers run again.
    """
    causal = causal_model(model)
    if causal.config._attn_implementation in ("sdpa", PACKED, VARLEN) and attention_was_set(causal, PACKED):
        if packing_is_exact(model):
            use_varlen(model)
            return True
        causal.set_attn_implementation("sdpa")
    refuse_inexact_padding(model, " takes no packed rows, and")
    return False


def use_varlen(model: nn.Module) -> None:
    """Let a model that packs rows compute the attention of all in one call, if the device that it is on has a kernel
    for it that gives the same; to be called again when the model has come to another device."""
    causal = causal_model(model)
    if causal.config._attn_implementation != PACKED or not has_varlen(device_of(model)):
        return
    expected = tried(model)
    causal.set_attn_implementation(VARLEN)
    try:
        exact = all(map(close, tried(model), expected))
    except Exception:  # the kernel refuses this card, or this width of a head; each in its own way
        exact = False
    if not exact:
        causal.set_attn_implementation(PACKED)


def tried(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The hidden states of two packed rows, and the gradient of their tokens' embeddings, [8, H] each."""
    with differentiable_tokens(model) as tokens:
        states = packed_hidden_states(model, torch.arange(1, 9, device=device_of(model)), [3, 5])
        (gradient,) = torch.autograd.grad(weighted(states).sum(), tokens)
    return states.detach(), gradient[0, :8]


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of half-precision numbers are the same but for rounding."""
    return bool((found - expected).float().norm() <= GRADIENT_TOLERANCE * expected.float().norm())


def disable_packing(model: nn.Module) -> None:
    """Let ``model`` compute as transformers does, rows padded; one in memory may come from a fit that packed them.
    Raises InputError if padded rows are not exact."""
    causal = causal_model(model)
    if packs_rows(model):
        causal.set_attn_implementation("sdpa")
    refuse_inexact_padding(model)


def refuse_inexact_padding(model: nn.Module, because: str = "") -> None:
    """Raise InputError if a row padded on the right gives something else than the row alone; ``because`` goes into the
    message."""
    if not padding_is_exact(model):
        raise InputError(
            f"model: {type(causal_model(model)).__name__}{because} gives another output for a row padded on the right "
            "than for the row alone, so rows cannot share a forward"
        )


def attention_was_set(causal: PreTrainedModel, name: str) -> bool:
    """Set the attention function of all parts of a model; False if one of them (an encoder of sounds, say) takes none,
    and then all are as they were."""
    before = {part: part.config._attn_implementation for part in causal.modules() if isinstance(part, PreTrainedModel)}
    try:
        causal.set_attn_implementation(name)
    except ValueError:
        for part, own in before.items():
            part.config._attn_implementation = own
        return False
    return True


def packing_is_exact(model: nn.Module) -> bool:
    """Whether two short rows, packed, give the hidden states that they give one at a time."""
    try:
        return rows_agree(model, packed_hidden_states) and rows_are_apart(model)
    except Exception:  # the architecture does not hand the row lengths on; each fails in its own way
        return False


def rows_are_apart(model: nn.Module) -> bool:
    """Whether of two packed rows no gradient of one comes from the other's tokens.

    Not even what would pass as rounding, as the states do that a recurrent layer carries on if its weights are small.
    """
    with differentiable_tokens(model) as tokens:
        states = packed_hidden_states(model, torch.arange(1, 9, device=device_of(model)), [3, 5])
        ahead, behind = (
            torch.autograd.grad(weighted(states)[part].sum(), tokens, retain_graph=True)[0][0]
            for part in (slice(3), slice(3, None))
        )
    return not ahead[3:].any() and not behind[:3].any() and bool(behind[3:].any())


@contextmanager
def differentiable_tokens(model: nn.Module) -> Iterator[list[Tensor]]:
    """In the block, in eval mode, the embeddings of each forward's tokens [1, T, H] can be differentiated by; they
    come into the list."""
    tokens: list[Tensor] = []

    def watch(*call: Any) -> Tensor:
        tokens.append(call[2].detach().requires_grad_())
        return tokens[-1]

    training, hook = model.training, causal_model(model).get_input_embeddings().register_forward_hook(watch)
    model.eval()
    try:
        with torch.enable_grad():
            yield tokens
    finally:
        hook.remove()
        model.train(training)


def weighted(states: Tensor) -> Tensor:
    """States [T, H] times a weight of each channel: a plain sum would not do, of a layer norm it is a constant."""
    return states * torch.linspace(-1, 1, states.shape[-1], device=states.device, dtype=states.dtype) ** 3


def device_of(model: nn.Module) -> torch.device:
    """Where the tokens of ``model`` are to be."""
    return causal_model(model).get_input_embeddings().weight.device


def padding_is_exact(model: nn.Module) -> bool:
    """Whether two short rows, padded on the right to one length, give what they give one at a time."""
    return rows_agree(model, padded_group)


@torch.no_grad()
def rows_agree(model: nn.Module, way: Callable[[nn.Module, Tensor, Sequence[int]], Tensor]) -> bool:
    """Whether two short rows give the same hidden states by ``way`` as one at a time, but for rounding."""
    training = model.training
    model.eval()
    ids, lengths = torch.arange(1, 9, device=device_of(model)), [3, 5]
    try:
        alone = torch.cat([hidden_states(model, row[None])[0] for row in ids.split(lengths)])
        together = way(model, ids, lengths)
    finally:
        model.train(training)
    tolerance = max(1e-3, 4 * torch.finfo(alone.dtype).eps)  # of bfloat16 one unit is 4e-3
    return torch.allclose(together.float(), alone.float(), rtol=tolerance, atol=tolerance * float(alone.abs().max()))


def row_hidden_states(model: nn.Module, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """[T, H] final hidden states of rows that follow each other in ``input_ids`` [T], T the sum of ``lengths``."""
    if packs_rows(model) and max(lengths) <= packed_limit(model):
        return packed_hidden_states(model, input_ids, lengths)
    return padded_hidden_states(model, input_ids, lengths)


def packed_limit(model: nn.Module) -> float:
    """The longest row that packing is exact for: within the windows and chunks of all layers, which packed attention
    does not know, and below the length from which some rotary embeddings take their angles from the longest row."""
    config = text_config(model)
    limits = [limit for name in WINDOWS for limit in numbers_in(getattr(config, name, None))]
    return min([*limits, *numbers_in(switch_length(model))], default=float("inf"))


def numbers_in(setting: Any) -> list[float]:
    """The numbers above 0 of a setting that is one number, one for each layer, or neither."""
    values = setting if isinstance(setting, list | tuple) else [setting]
    return [value for value in values if isinstance(value, int | float) and value > 0]


def packed_hidden_states(model: nn.Module, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """[T, H], in one forward over T tokens, and up to ``ROUND_TO`` - 1 more that make a row of their own."""
    count = len(input_ids)
    if filler := -count % ROUND_TO:
        input_ids, lengths = nn.functional.pad(input_ids, (0, filler)), [*lengths, filler]
    positions = sent(torch.cat([torch.arange(length) for length in lengths]), input_ids.device)
    # A mask of four dimensions is handed on as it is; without one transformers would build [T, T].
    no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
    options: dict[str, Any] = {"row_lengths": tuple(lengths)}
    if input_ids.is_cuda or causal_model(model).config._attn_implementation == VARLEN:
        bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        options["row_bounds"] = sent(bounds, input_ids.device)
    outputs = body_of(model)(
        input_ids=input_ids[None],
        position_ids=positions[None],
        attention_mask=no_mask,
        use_cache=False,
        **options,
    )
    return outputs.last_hidden_state[0, :count]


def padded_hidden_states(model: nn.Module, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """[T, H], in as many forwards as it takes to keep padding below ``MOST_PADDING`` of the tokens of each; in one if
    the model is in shards, since all processes must run as many."""
    if is_sharded(model):
        return padded_group(model, input_ids, lengths)
    rows = input_ids.split(list(lengths))
    hidden: list[Tensor] = [input_ids] * len(rows)
    for group in groups_of_like_length(lengths):
        own = [lengths[index] for index in group]
        states = padded_group(model, torch.cat([rows[index] for index in group]), own)
        for index, row in zip(group, states.split(own), strict=True):
            hidden[index] = row
    return torch.cat(hidden)


def padded_group(model: nn.Module, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """[T, H], in one forward, every row padded on the right to the longest."""
    ids = pad_sequence(input_ids.split(list(lengths)), batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    states = hidden_states(model, ids, sent(mask.long(), ids.device))
    return torch.cat([row[:length] for row, length in zip(states, lengths, strict=True)])


def groups_of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """The indices of ``lengths``, sorted by length and cut where padding would exceed ``MOST_PADDING``."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        group = [*groups[-1], index] if groups else []
        padded = len(group) * lengths[group[0]] if group else 0
        if group and sum(lengths[i] for i in group) >= (1 - MOST_PADDING) * padded:
            groups[-1] = group
        else:
            groups.append([index])
    return groups

"""The forward of a language model in two steps: hidden states of all positions, the vocabulary head at some of them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unlearn_pl.inference.kv_cache import takes
from unlearn_pl.inference.padding import right_padded
from unlearn_pl.models.body import body_of, causal_model, head_is_plain, vocabulary_head
from unlearn_pl.models.fast.linear import frozen_linears
from unlearn_pl.models.rope import forget_length, position_limit, remembers_length
from unlearn_pl.stopping import surely

# Tokens of a forward are a multiple of the first, from the second on of the third: each number costs a compiled
# kernel, which is kept.
ROUND_FEW, MANY, ROUND_MANY = 16, 512, 64


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and inference mode inside the block; afterwards each submodule's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()

    def put_back() -> None:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for module, training in modes:
            module.training = training

    try:
        model.eval()
        # on an H100 its attention comes first, and takes some 30 ms to plan for every new number of rows or tokens
        torch.backends.cuda.enable_cudnn_sdp(False)
        with torch.inference_mode():
            yield
    finally:
        surely(put_back)


class Forward:
    """The forward of a causal language model in two steps.

    ``states`` gives what the vocabulary head takes; ``logits`` runs the head. A model that changes its logits after a
    plain linear head (soft-capping, scaling) cannot be cut there: its states are its logits, at all positions.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.causal = causal_model(model)
        self.head = vocabulary_head(model) if head_is_plain(model) else None
        self._takes_positions = takes(self.causal, "position_ids")
        self._remembers = remembers_length(model)

    @property
    def device(self) -> torch.device:
        """Where token ids have to go."""
        return self.causal.get_input_embeddings().weight.device

    def rows_states(self, rows: Sequence[Sequence[int]], start: int = 0, cache: Any = None) -> Tensor:
        """[B, T, H] (or [B, T, V]) of rows of token ids, padded on the right, after ``start`` tokens in ``cache``.

        Uses oneDNN on a CPU; the last digits differ from the model's own forward.
        """
        longest, limit = max(map(len, rows)), position_limit(self.model)
        multiple = ROUND_MANY if longest * len(rows) >= MANY else ROUND_FEW
        room = -longest % (multiple // math.gcd(multiple, len(rows)))
        if limit is not None and start + longest + room > limit:
            room = 0
        ids = right_padded(rows, self.device, room)
        positions = None
        if start:
            positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand(len(rows), -1)
        with frozen_linears(self.causal):
            return self.states(ids, positions=positions, cache=cache)

    def states(
        self, input_ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """[B, T, H] (or [B, T, V]) of ``input_ids`` [B, T] after what is in ``cache``, which takes them up.

        ``mask`` is [B, all tokens so far], 0 at padding; ``positions`` [B, T].
        """
        if self._remembers and (cache is None or not cache.get_seq_length()):
            forget_length(self.causal)
        options: dict[str, Any] = {"attention_mask": mask, "use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache
        if positions is not None and self._takes_positions:
            options["position_ids"] = positions
        if self.head is None:
            return self.model(input_ids=input_ids, **options).logits
        return body_of(self.model)(input_ids=input_ids, **options).last_hidden_state

    def logits(self, states: Tensor) -> Tensor:
        """[..., V] of ``states``."""
        return states if self.head is None else self.head.logits(states)

"""A checkpoint's tensors under the names that the model has for them: `from_pretrained`'s rules for older folders."""

import re
from collections.abc import Collection
from dataclasses import replace

from transformers import PreTrainedModel

from unlearn_pl.checkpoints.folder import Checkpoint
from unlearn_pl.errors import InputError

# Tables that models compute for themselves and older versions of transformers stored with the weights.
COMPUTED = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"attn\.(masked_)?bias$", r"attention\.(masked_)?bias$")
# As the oldest checkpoints, converted from TensorFlow, call the weights of a norm.
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def under_model_names(checkpoint: Checkpoint, model: PreTrainedModel, name: str) -> Checkpoint:
    """``checkpoint`` with the names of ``model`` (`load_skeleton`'s of the base) and without what it computes itself.

    Some folders lack the prefix of the whole model (``h.0...`` for ``transformer.h.0...``) or have it where the model
    has none. A name that the model does not know stays as it is. Raises InputError, about the parameter ``name``,
    if two tensors come to one name, or the folder knows all names and lacks some of the model's.
    """
    known = set(model.state_dict())
    junk = re.compile("|".join(f"({one})" for one in (*COMPUTED, *(model._keys_to_ignore_on_load_unexpected or ()))))
    computed = {name for name, _ in model.named_buffers()} - known
    found = {}
    for tensor, stored in checkpoint.tensors.items():
        own = next((one for one in spellings(tensor, f"{model.base_model_prefix}.") if one in known), None)
        if own is None and (junk.search(tensor) or tensor in computed):
            continue
        if (own or tensor) in found:
            raise InputError(f"{checkpoint.folder} holds {own or tensor} twice, once as {tensor}", name)
        found[own or tensor] = stored
    if found.keys() <= known and (missing := lacking(model, found)):
        raise InputError(f"{checkpoint.folder} lacks {len(missing)} of the model's weights, such as {missing[0]}", name)
    return replace(checkpoint, tensors=found)


def lacking(model: PreTrainedModel, found: Collection[str]) -> list[str]:
    """The parameters that are not among the names ``found``, nor one weight with one of these."""
    tied = model.all_tied_weights_keys
    held = {*found, *(weight for copy, weight in tied.items() if copy in found)}
    return [name for name, _ in model.named_parameters() if name not in held and tied.get(name) not in held]


def spellings(name: str, prefix: str) -> list[str]:
    """What a stored name may be in the model, the likeliest first."""
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return [name, prefix + name, name.removeprefix(prefix)]

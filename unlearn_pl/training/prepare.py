"""The policy: a base model with an adapter, made ready for packed training."""

from typing import Any

import torch
from peft import PeftModel

from unlearn_pl.errors import renamed
from unlearn_pl.models.body import causal_model, check_head
from unlearn_pl.models.causal import refuse_reading_ahead
from unlearn_pl.models.fast.packing import disable_packing, enable_packing
from unlearn_pl.models.layers import decoder_layers
from unlearn_pl.models.load import refuse_quantised
from unlearn_pl.models.sharding import shard_base


def prepare_policy(model: PeftModel, gradient_checkpointing: bool = False, fast: bool = True) -> bool:
    """Put ``model`` into training mode, its rows packed if that is wished (``fast``) and exact; False if they are
    padded. Raises InputError if it reads ahead, or its vocabulary head is not plain and frozen."""
    model.eval()  # both trials compare two forwards, which dropout would make differ
    refuse_reading_ahead(model)
    check_head(model)
    packed = fast and enable_packing(model)
    if not fast:
        disable_packing(model)
    if gradient_checkpointing:
        causal_model(model).activation_checkpointing_enable({"use_reentrant": False})
    model.train()  # from_pretrained leaves eval mode, in which Hugging Face skips gradient checkpointing
    return packed


def shard_policy(model: PeftModel, mesh: Any, device: torch.device) -> None:
    """Cut the base into shards on the processes of ``mesh``, and put all of the model on the device. Raises InputError
    if it is quantised, or its decoder layers are not known."""
    with renamed("objectives", "strategy"):
        layers = decoder_layers(model)
    refuse_quantised(model, "its cutting into shards")
    shard_base(model, layers, mesh)
    model.to(device)


def adamw(model: PeftModel, learning_rate: float, weight_decay: float, fused: bool | None = True) -> torch.optim.AdamW:
    """The optimizer of the adapter; nothing is kept for the frozen weights. ``fused``: one pass over the adapter, and
    no temporaries of its size; None lets torch choose, where False would be a slow loop on a GPU."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=fused)

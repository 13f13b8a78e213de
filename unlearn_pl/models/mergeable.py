"""Whether all that a LoRA adapter learned are the factors A and B of linear layers: what a merge can take."""

from collections.abc import Mapping
from typing import Any

from peft import PeftConfig

# What an adapter may have learned besides A and B, or that makes its modules unlike: PEFT would drop or misread it.
UNMERGEABLE = {
    "use_dora": "DoRA magnitudes have no merge rule",
    "modules_to_save": "whole modules were trained besides the adapter",
    "trainable_token_indices": "token embeddings were trained besides the adapter",
    "target_parameters": "it adapts bare parameters (experts), not linear layers; list linear layers as target_modules",
    "layer_replication": "it replicates layers of the base",
    "lora_bias": "its B factors have biases",
    "use_qalora": "QALoRA pools the input of A",
    "use_bdlora": "its factors are block-diagonal",
    "alora_invocation_tokens": "it is active on some tokens only",
    "arrow_config": "it is routed per token",
    "kasa_config": "its factors hold more than A and B",
    "monteclora_config": "its factors hold more than A and B",
}
# These leave the base weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ, ...) change them when the adapter
# is opened.
INITS = (True, False, "gaussian", "orthogonal", "eva", "mica")


def why_unmergeable(config: PeftConfig | Mapping[str, Any]) -> str | None:
    """Why an adapter of this PEFT configuration (also as read from `adapter_config.json`) cannot be merged, for a
    message; None if A, B and the scaling are all there is to it.

    After PEFT has attached the adapter the configuration says what it adapts: `all-linear` on a mixture of experts
    has become ``target_parameters``.
    """
    values = config.to_dict() if isinstance(config, PeftConfig) else config
    for field, reason in UNMERGEABLE.items():
        if values.get(field):
            return f"{reason} ({field})"
    if (bias := values.get("bias", "none")) != "none":
        return f"biases were trained besides it (bias is {bias})"
    if (init := values.get("init_lora_weights", True)) not in INITS:
        return f"its initialisation {init} changes the base weights; convert it first"
    return None

"""Which of PEFT's adapters can be opened: what they change must be in the layers, where every forward meets it."""

from peft import PeftConfig

from unlearn_pl.errors import InputError

# PEFT's initialisations that take the first A and B out of the base's weights, whenever the adapter is opened.
TAKEN_FROM_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


def refuse_kind(config: PeftConfig, where: str) -> None:
    """Raise InputError for an adapter that acts from outside of the layers: nothing of it would be measured."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning or kind in ("XLORA", "ADAPTION_PROMPT"):
        raise InputError(f"{where} is of the kind {kind}, which does not stay in the model's layers; LoRA does")
    if getattr(config, "alora_invocation_tokens", None):
        raise InputError(f"{where} is active after some tokens only (alora_invocation_tokens), which is not supported")


def refuse_untrainable(config: PeftConfig, where: str) -> None:
    """Raise InputError for an adapter that is measured rightly but not trained on: checkpoints and merges take LoRA."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise InputError(f"{where} is of the kind {kind}; only LoRA adapters can be trained on")
    refuse_changed_base(config, where)


def base_change(config: PeftConfig) -> str | None:
    """What of the base model an adapter changes even while it is off; None if nothing."""
    bias = getattr(config, "bias", "none")
    if bias != "none":
        return f"it trains the base's own biases (bias: {bias})"
    start = str(getattr(config, "init_lora_weights", True)).lower()
    if start.startswith(TAKEN_FROM_BASE):
        return f"it takes its initial factors out of the base's weights (init_lora_weights: {start})"
    return None


def refuse_changed_base(config: PeftConfig, what: str) -> None:
    """Raise InputError, beginning with ``what``, if the model is not the base model again with this adapter off."""
    change = base_change(config)
    if change is not None:
        raise InputError(f"{what}: {change}, so that the base model is not what is left without it")

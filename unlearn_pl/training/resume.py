"""What a checkpoint says of the run that it comes from, and what must be alike in a run that goes on from it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from peft import PeftModel
from torch import Tensor

from unlearn_pl.errors import InputError
from unlearn_pl.models.body import causal_model
from unlearn_pl.objectives.base import Objective
from unlearn_pl.training.schedule import accumulation_scheduler

FACTS_NEEDED = {"base", "adapter", "settings", "initial_factors", "arguments"}
FACTS = "unlearn_pl"  # the key of a checkpoint under which they are
VALIDATION_DUE = "unlearn_pl_validation_due"  # and that of whether a validation was about to come
# Of a model's configuration: what says nothing of what the model computes, or changes with the version.
UNTOLD = ("transformers_version", "use_cache", "dtype", "torch_dtype")


def facts_of(checkpoint: Mapping[str, Any], path: object = "the checkpoint", name: str = "ckpt_path") -> dict[str, Any]:
    """What the run said of itself. Raises InputError if the checkpoint is not one of an UnlearningModule's fit."""
    facts = checkpoint.get(FACTS)
    if not isinstance(facts, dict) or not facts.keys() >= FACTS_NEEDED:
        raise InputError(f"{path} is no checkpoint of `unlearn-pl fit`, or of an older version's", name)
    return facts


def base_hash(model: PeftModel, weights: str) -> str:
    """Hash of the base model: its weights, by their hash, and what of its configuration tells how they are used."""
    config = causal_model(model).config.to_dict()
    told = {k: v for k, v in config.items() if not k.startswith("_") and k not in UNTOLD}
    return hashlib.sha256(f"{json.dumps(told, sort_keys=True, default=str)} {weights}".encode()).hexdigest()


def adapter_facts(model: PeftModel) -> dict[str, Any]:
    """What the factors alone do not say of an adapter, by the names of Lora where it has them."""
    config = model.peft_config[model.active_adapter]
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
    }


def check_base(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Raise InputError if a checkpoint belongs to another base model: ``name``, ``dtype``, ``sha256`` of each."""
    if old["dtype"] != new["dtype"]:  # the hash is of the weights in that type
        if old["name"] != new["name"]:
            raise InputError(
                f"is of the base {old['name']} in {old['dtype']}, which cannot be compared with "
                f"{new['name']} in {new['dtype']}; give base or dtype as they were",
                "ckpt_path",
            )
    elif old["sha256"] != new["sha256"]:
        raise InputError(
            f"belongs to another base model than {new['name']}: its weights or its configuration differ from those of "
            f"{old['name']}, which the checkpoint was made with",
            "ckpt_path",
        )


def check_adapter(
    old: Mapping[str, Any], new: Mapping[str, Any], saved: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """Raise InputError unless a checkpoint's adapter is as large, scaled and placed as this run's: facts and tensors
    of each."""
    changed = [f"{name} {old.get(name)} where this run's has {new[name]}" for name in new if old.get(name) != new[name]]
    if changed:
        raise InputError(f"its adapter has {', '.join(changed)} (lora, or that of adapter)", "ckpt_path")
    for names, whose in ((own.keys() - saved.keys(), "no"), (saved.keys() - own.keys(), "a surplus")):
        if names:
            rest = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise InputError(
                f"the checkpoint has {whose} {min(names)}{rest}; was lora.target_modules another?", "ckpt_path"
            )
    for name, value in own.items():
        if value.shape != saved[name].shape:
            sizes = f"{list(saved[name].shape)} in the checkpoint and {list(value.shape)} here"
            raise InputError(f"{name} is {sizes}", "ckpt_path")


def settings_of(module: Any) -> dict[str, Any]:
    """What the numbers of an UnlearningModule's fit depend on besides the data, by parameter."""
    trainer, config = module.trainer, module.model.peft_config[module.model.active_adapter]
    scheduler = accumulation_scheduler(trainer)
    return {
        "learning_rate": module.learning_rate,
        "weight_decay": module.weight_decay,
        "warmup": module.warmup,
        "dtype": module.dtype_name,
        "max_length": module.max_length,
        "tokens_per_forward": module.tokens_per_forward,
        "lora.dropout": config.lora_dropout,
        "adapter": module.adapter,
        "seed": module.seed,
        "fast": module.fast,
        "precision": str(trainer.precision),
        "accumulate_grad_batches": scheduler.scheduling if scheduler else trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": str(trainer.gradient_clip_algorithm),
        "optimizer steps in all": module.planned_steps,
    } | {f"objectives.{slot}": options_of(term) for slot, term in module.objectives.items()}


def options_of(objective: Objective) -> str:
    """An objective and its options, such as ``NPO(weight=0.4, beta=0.1)``."""
    return f"{type(objective).__name__}({', '.join(f'{name}={value}' for name, value in vars(objective).items())})"


def check_settings(old: Mapping[str, Any], new: Mapping[str, Any], within_window: bool) -> set[str]:
    """The settings that a resumed run has changed, after one warning for each, by the argument that says it. Raises
    InputError if the checkpoint stands within an accumulation window that would have another length."""
    changed = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    for name in changed:
        before, now = old.get(name), new.get(name)
        if name == "accumulate_grad_batches" and within_window:
            raise InputError(f"stands within an accumulation window; {name} was {before} and is {now}", "ckpt_path")
        rank_zero_warn(
            f"ckpt_path: {name} was {before} and is {now} from here on; what follows is not the run that was "
            "interrupted"
        )
    return set(changed)


def mend_epochs(checkpoint: dict[str, Any]) -> None:
    """Make Lightning's count of epochs in a checkpoint true. Raises InputError if there is no place in it at all.

    It calls an epoch that a limit or a stop ended early a whole one, so that a resumed run would end too early; and one
    that was whole it begins again if ``max_steps`` is given.
    """
    if "optimizer_states" not in checkpoint:
        raise InputError("holds weights only (save_weights_only), from which no fit can go on", "ckpt_path")
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    if epochs["current"]["processed"] < epochs["current"]["started"]:  # from within an epoch
        return
    cut = batches["current"]["processed"] > 0 and not batches["is_last_batch"]
    for progress in (epochs["total"], epochs["current"]):
        progress["processed"] -= cut
        progress["completed"] = progress["processed"]


def at_batch_end(trainer: Trainer) -> bool:
    """Whether this is the end of a training batch, where ModelCheckpoint saves: what Lightning does after it (log the
    step, validate) is not done yet."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(batches.processed > batches.completed)


def validation_due(trainer: Trainer) -> bool:
    """Whether Lightning validates next."""
    loop = trainer.fit_loop
    fetcher: Any = loop._data_fetcher
    return at_batch_end(trainer) and loop.epoch_loop._should_check_val_fx(fetcher)


def mend_validation(checkpoint: dict[str, Any]) -> None:
    """Let a fit that goes on begin with the validation that was about to come, which Lightning would leave out: the
    batch is called done, and the validation one that was broken off before its first batch."""
    if not checkpoint.get(VALIDATION_DUE):
        return
    loop = checkpoint["loops"]["fit_loop"]
    batches, validation = loop["epoch_loop.batch_progress"], loop["epoch_loop.val_loop.batch_progress"]
    for progress in (batches["total"], batches["current"]):
        progress["completed"] = progress["processed"]
    validation["current"] = dict.fromkeys(validation["current"], 0)
    validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}

"""UnlearningModule: a base model with a LoRA adapter, trained on a sum of objectives."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from peft import PeftModel
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.batch import PairBatch, Rows
from unlearn_pl.data.encoding import Encoded, start_ids
from unlearn_pl.data.records import Split
from unlearn_pl.data.splits import SIDES, side_of
from unlearn_pl.errors import InputError
from unlearn_pl.inference.decoding import continue_batch
from unlearn_pl.inference.generation import Generation, decode_answer, eos_ids, warn_of_ignored
from unlearn_pl.inference.model import Network
from unlearn_pl.inference.rows import evaluating, rooms
from unlearn_pl.models.arrival import refuse_broken
from unlearn_pl.models.layers import check_layers
from unlearn_pl.models.load import DTYPES, load_base
from unlearn_pl.models.lora import Lora, attach_lora, initial_factors_hash, open_adapter
from unlearn_pl.models.padding import check_padding
from unlearn_pl.models.tokenizer import check_ids, find_tokenizer
from unlearn_pl.objectives.base import Objective
from unlearn_pl.training import resume
from unlearn_pl.training.cache import ReferenceCache, open_or_build
from unlearn_pl.training.divergence import refuse_divergence
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.packs import refuse_long_rows, refuse_missing
from unlearn_pl.training.prepare import adamw, prepare_policy
from unlearn_pl.training.reference import Reference, live_reference
from unlearn_pl.training.schedule import (
    Warmup,
    accumulation_of,
    accumulation_scheduler,
    linear_schedule,
    planned_steps,
    warmup_steps,
)
from unlearn_pl.training.supported import refuse_unsupported

NEW_TOKENS = Generation.max_new_tokens


class UnlearningModule(LightningModule):
    """Fine-tunes a LoRA adapter on ``sum(weight * term)`` over the objectives; the base model stays frozen.

    The reference of NPO and KL is the same model with its adapter off, so only one copy of the base is in memory.
    Checkpoints hold the adapter, the optimizer, the position in the data and what they are of, never the base.

    Args:
        base: The model that memorised the documents: a folder, a hub name, or `smollm2-135m-instruct` (which comes in
            a Python package).
        objectives: The terms of the loss by slot. The slots `ga`, `gd` and `gk` are those of the ZJUKLAB paper
            (forget, retain descent, retain KL); any other name is a further term.
        lora: Size and place of the adapter.
        adapter: A saved adapter to start from, in place of a fresh one.
        learning_rate: Peak learning rate of AdamW; above 0.
        weight_decay: Weight decay of AdamW; 0 or above.
        warmup: Linear warm-up before the linear decay to 0: optimizer steps (an int), a share of training (a float
            below 1), or `epoch` for the first epoch.
        dtype: Data type of the frozen base: `float32`, `bfloat16` or `float16`. The adapter is float32.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        tokens_per_forward: Rows of a batch go through the model in packs of at most so many tokens (a longer row is
            alone), each differentiated before the next, so that memory is that of one pack; null for one pack, as
            always under `--trainer.precision=16-mixed`. The loss does not depend on it. At least 1.
        reference_cache: Where the base model's part of the loss is kept between epochs and runs.
        max_length: Tokens to which the released ZJUKLAB code pads a row; only the KL positions `padded`
            and `released` use it.
            The command line takes it from the data.
        seed: Seed of the adapter's initial A factors and of dropout. The command line takes it from
            `--seed_everything`. Adapters that are to be merged in factor space need the same one.
        trust_remote_code: Run model code that comes with a hub repository.
        tokenizer: Folder or hub name of a tokenizer; default: the base's. The command line takes it from the data.
    """

    model: PeftModel

    def __init__(
        self,
        base: str,
        objectives: dict[str, Objective],
        lora: Lora | None = None,
        adapter: str | None = None,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: Warmup = "epoch",
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
        tokens_per_forward: int | None = 1024,
        reference_cache: ReferenceCache | None = None,
        max_length: int = 256,
        seed: int = 42,
        trust_remote_code: bool = False,
        tokenizer: str | None = None,
    ):
        super().__init__()
        if not objectives:
            raise InputError("--model.objectives: must name at least one term, got none")
        if learning_rate <= 0:
            raise InputError(f"--model.learning_rate: must be above 0, got {learning_rate}")
        if weight_decay < 0:
            raise InputError(f"--model.weight_decay: must be 0 or above, got {weight_decay}")
        if dtype not in DTYPES:
            raise InputError(f"--model.dtype: must be one of {', '.join(DTYPES)}, got {dtype}")
        if tokens_per_forward is not None and tokens_per_forward < 1:
            raise InputError(f"--model.tokens_per_forward: must be at least 1, or null, got {tokens_per_forward}")
        self.base, self.objectives, self.lora, self.adapter = base, objectives, lora or Lora(), adapter
        self.learning_rate, self.weight_decay, self.warmup = learning_rate, weight_decay, warmup
        self.dtype_name, self.gradient_checkpointing = dtype, gradient_checkpointing
        self.max_length, self.seed, self.trust_remote_code = max_length, seed, trust_remote_code
        self.tokenizer_name = tokenizer
        self.packed_loss = PackedLoss(objectives, max_length, tokens_per_forward)
        self.reference_cache = reference_cache or ReferenceCache()
        self.reference: Reference = live_reference
        # checkpoints hold the adapter only; on_load_checkpoint checks that it is this one
        self.strict_loading = False
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._terms: dict[str, Tensor] = {}  # of the batches since the last optimizer step
        self._planned_steps: int | None = None
        self._base_hash: str | None = None
        self._checkpoint_settings: dict[str, Any] | None = None  # of the checkpoint that this fit goes on from
        self._open_window: dict[str, Tensor] = {}  # and its gradients

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            adapters = [self.adapter] if self.adapter else []
            self._tokenizer = find_tokenizer(
                self.base, adapters, self.tokenizer_name, self.trust_remote_code, "--data.tokenizer"
            )
        return self._tokenizer

    def setup(self, stage: str) -> None:
        refuse_unsupported(self.trainer)

    def configure_model(self) -> None:
        if hasattr(self, "model"):  # Lightning calls this hook for every entry point
            return
        base = load_base(self.base, self.dtype_name, self.trust_remote_code)
        refuse_broken(base, "an adapter")
        self.model = (
            open_adapter(base, self.adapter, trainable=True)
            if self.adapter
            else attach_lora(base, self.lora, self.seed)
        )
        if not prepare_policy(self.model, self.gradient_checkpointing):
            rank_zero_warn(f"{type(base).__name__} takes no packed rows; they are padded in groups of like lengths")
        check_layers(self.model, self.packed_loss.layers)
        if self.packed_loss.reads_padding:
            self.packed_loss.pad_token_id = int(self.tokenizer.pad_token_id)
            check_padding(self.model, self.packed_loss.pad_token_id)
        self.initial_factors = initial_factors_hash(self.model)

    def configure_optimizers(self) -> Any:
        # Lightning clips no gradients for a fused optimizer under mixed precision
        fused = not isinstance(self.trainer.precision_plugin, MixedPrecision)
        optimizer = adamw(self.model, self.learning_rate, self.weight_decay, fused)
        epoch, total = planned_steps(self.trainer)
        self._planned_steps = total
        warmup = warmup_steps(self.warmup, total, epoch)
        if warmup > total:
            rank_zero_warn(f"--model.warmup {self.warmup}: {warmup} steps, but training ends in it, at step {total}")
        peak = self.learning_rate  # LearningRateFinder sets another one later
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: linear_schedule(step, warmup, total) * (self.learning_rate / peak)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Open or build the reference cache; one process on each machine builds it."""
        if self.trainer.precision == "16-mixed":
            # the packs of a batch are differentiated before the loss is scaled, which float16 would not survive
            self.packed_loss.tokens_per_forward = None
        rows = self._checked_rows()
        if rows is None:  # a data module from elsewhere
            return
        with self.trainer.precision_plugin.forward_context():
            if self.trainer.local_rank == 0:
                self.reference = self._open_cache(rows)
            self.trainer.strategy.barrier("reference cache")
            if self.trainer.local_rank != 0:
                self.reference = self._open_cache(rows)

    def _checked_rows(self) -> dict[Split, Sequence[Encoded]] | None:
        """The encoded rows, None with a data module from elsewhere. Raises InputError if one has a token without an
        embedding, or more tokens than the model has positions."""
        rows = getattr(getattr(self.trainer, "datamodule", None), "encoded", None)
        if rows is not None and not self.trainer.predicting:
            refuse_missing(self.packed_loss.needs, rows)
        for split, encoded in (rows or {}).items():
            check_ids(self.model, (row.input_ids for row in encoded), f"--data.{side_of(split)}")
            if not self.trainer.predicting:  # which reads prompts alone
                refuse_long_rows(self.model, split, encoded)
        return rows

    def on_validation_start(self) -> None:
        self._checked_rows()

    def on_test_start(self) -> None:
        self._checked_rows()

    def on_predict_start(self) -> None:
        self._checked_rows()

    def _open_cache(self, rows: dict[Split, Sequence[Encoded]]) -> Reference:
        precision = str(self.trainer.precision)
        needs = self.packed_loss.needs
        return open_or_build(self.model, rows, needs, self.reference_cache, precision, rank_zero_info) or live_reference

    def on_train_start(self) -> None:
        """What a resumed fit needs that Lightning does not restore, after it has emptied all gradients."""
        loop = self.trainer.fit_loop
        if loop.total_batch_idx < 0:  # a fresh start, though a search for the learning rate may have come before it
            self._set_first_rate()
            return
        epochs: Any = loop.epoch_progress.current
        if epochs.processed == epochs.started:
            loop.epoch_loop.restarting = False  # a new epoch begins; with max_steps Lightning would repeat the old one
        # no epoch starts where a run goes on within one, and a callback may set the accumulation at its start only
        self.trainer.accumulate_grad_batches = accumulation_of(self.trainer, self.current_epoch)
        if self._checkpoint_settings is not None:
            resume.check_settings(self._checkpoint_settings, self._settings(), within_window=bool(self._open_window))
        trained = self._trained()
        for name, gradients in self._open_window.items():
            trained[name].grad = gradients[self.global_rank].to(trained[name].device).clone()
        self._open_window, self._checkpoint_settings = {}, None

    def _set_first_rate(self) -> None:
        """LearningRateFinder leaves its peak in the optimizer, where the first step of the schedule belongs."""
        if self._schedule in [config.scheduler for config in self.trainer.lr_scheduler_configs]:
            for group, base, factor in zip(
                self._schedule.optimizer.param_groups, self._schedule.base_lrs, self._schedule.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(0)

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        # dropout is a function of (seed, epoch, step, rank), so that a resumed run equals an uninterrupted one
        position = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1)[0]))
        # by which rows are logged; Lightning's own is one behind after a checkpoint of an epoch's last batch
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        loss, terms = self._loss(batch, "train")
        self._terms = {slot: term + self._terms.get(slot, 0) for slot, term in terms.items()}
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        gradients = [parameter.grad for parameter in self._trained().values() if parameter.grad is not None]
        refuse_divergence(self.trainer, self._terms, gradients, self.learning_rate)
        self._terms = {}

    def on_train_epoch_end(self) -> None:
        refuse_divergence(self.trainer, {}, list(self._trained().values()), self.learning_rate)

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        self._loss(batch, "val")

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        self._loss(batch, "test")

    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, str | None]]:
        """The greedy continuation of every prompt: ``split``, ``id``, ``generated``, the text that ``evaluate`` gets.

        As there, a prompt is the row's whole input, however much of it training cuts; ``generated`` is None where the
        model has no position left after it.
        """
        predicted: list[dict[str, str | None]] = []
        for split, rows in ((side, batch.rows[side]) for side in SIDES):
            prompts = self._prompts(rows)
            budgets = rooms(self.model, prompts, NEW_TOKENS, "predict")
            going = [index for index, budget in enumerate(budgets) if budget]
            with evaluating(self.model):
                warn_of_ignored(self.model)
                ends = eos_ids(self.model, self.tokenizer)
                started, allowed = [prompts[index] for index in going], [budgets[index] for index in going]
                found = continue_batch(Network(self.model), started, allowed, ends) if going else []
            texts = {index: decode_answer(self.tokenizer, answer) for index, answer in zip(going, found, strict=True)}
            predicted += [
                {"split": split, "id": name, "generated": texts.get(index)}
                for index, name in enumerate(rows.record_ids)
            ]
        return predicted

    def _prompts(self, rows: Rows) -> list[list[int]]:
        """Token ids of the rows' whole inputs, or, with a data module from elsewhere, the prompts as encoded."""
        data = getattr(self.trainer, "datamodule", None)
        records = (*getattr(data, "forget_records", ()), *getattr(data, "retain_records", ()))
        texts = {record.id: record.input for record in records}
        if texts:
            return [start_ids(texts[name], self.tokenizer) for name in rows.record_ids]
        starts = rows.answer_starts.tolist()
        return [ids[:start] for ids, start in zip(rows.input_ids.tolist(), starts, strict=True)]

    def _loss(self, batch: PairBatch, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.packed_loss(self.model, batch, self.reference)
        shown = {f"{stage}/{slot}": term for slot, term in terms.items()}
        shown |= {f"{stage}/{slot}_weighted": self.objectives[slot].weight * term for slot, term in terms.items()}
        options: dict[str, Any] = {"batch_size": len(batch), "sync_dist": stage != "train"}
        self.log_dict(shown, **options)
        self.log(f"{stage}/loss", loss.detach(), prog_bar=True, **options)
        return loss, terms

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not hasattr(self, "model"):  # saved on an exception that came before it
            return
        checkpoint["state_dict"] = self._adapter_only(checkpoint["state_dict"])
        checkpoint[resume.FACTS] = {
            "base": self._base_facts(),
            "adapter": resume.adapter_facts(self.model),
            "initial_factors": self.initial_factors,
            "settings": self._settings(),
        }
        if self.trainer.fit_loop._should_accumulate():  # within a window
            checkpoint["gradients"] = {name: self._gradients(value) for name, value in self._trained().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        facts = resume.facts_of(checkpoint)
        resume.check_adapter(
            facts["adapter"], resume.adapter_facts(self.model), checkpoint["state_dict"], self._trained()
        )
        resume.check_base(facts["base"], self._base_facts())
        self.initial_factors = facts["initial_factors"]
        if self.trainer.state.fn == TrainerFn.FITTING:
            resume.mend_epochs(checkpoint)
            self._checkpoint_settings, self._open_window = facts["settings"], checkpoint.get("gradients", {})

    def _base_facts(self) -> dict[str, str]:
        if self._base_hash is None:
            self._base_hash = resume.base_hash(self.model)
        return {"name": self.base, "dtype": self.dtype_name, "sha256": self._base_hash}

    def _settings(self) -> dict[str, Any]:
        """What the numbers of a training depend on besides the data, by argument."""
        trainer, config = self.trainer, self.model.peft_config[self.model.active_adapter]
        scheduler = accumulation_scheduler(trainer)
        return {
            "--model.learning_rate": self.learning_rate,
            "--model.weight_decay": self.weight_decay,
            "--model.warmup": self.warmup,
            "--model.dtype": self.dtype_name,
            "--model.max_length": self.max_length,
            "--model.lora.dropout": config.lora_dropout,
            "--model.adapter": self.adapter,
            "--seed_everything": self.seed,
            "--trainer.precision": str(trainer.precision),
            "--trainer.accumulate_grad_batches": scheduler.scheduling if scheduler else trainer.accumulate_grad_batches,
            "--trainer.gradient_clip_val": trainer.gradient_clip_val,
            "--trainer.gradient_clip_algorithm": str(trainer.gradient_clip_algorithm),
            "optimizer steps in all": self._planned_steps,
        } | {f"--model.objectives.{slot}": resume.options_of(term) for slot, term in self.objectives.items()}

    def _gradients(self, parameter: Tensor) -> Tensor:
        """[processes, ...]: each process adds up its own within a window."""
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gathered = self.all_gather(own)
        assert isinstance(gathered, Tensor)
        return gathered.reshape(self.trainer.world_size, *parameter.shape)

    def _trained(self) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _adapter_only(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        trained = self._trained()
        return {name: value for name, value in state.items() if name in trained}

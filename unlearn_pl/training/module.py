"""UnlearningModule: a base model with a LoRA adapter, trained on a sum of objectives."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.datamodule import PairBatch
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.forward import evaluating
from unlearn_pl.evaluation.generation import Generation, continue_batch, decode_answer, eos_ids
from unlearn_pl.models.forward import causal_model, check_head
from unlearn_pl.models.load import DTYPES, load_base, load_tokenizer
from unlearn_pl.models.lora import Lora, attach_lora, initial_factors_hash, open_adapter
from unlearn_pl.objectives.base import Objective
from unlearn_pl.training.passes import ModelPasses, asked_passes
from unlearn_pl.training.schedule import Warmup, linear_schedule, warmup_steps

NEW_TOKENS = Generation.max_new_tokens


class UnlearningModule(LightningModule):
    """Fine-tunes a LoRA adapter on ``sum(weight * term)`` over the objectives; the base model stays frozen.

    The reference of NPO and KL is the same model with its adapter off, so only one copy of the base is in memory.
    Checkpoints hold the adapter, the optimizer and the position in the data, never the base.

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
        max_length: Tokens to which the released ZJUKLAB code pads a row; only the KL positions `padded` use it.
            The command line takes it from the data.
        seed: Seed of the adapter's initial A factors and of dropout. The command line takes it from
            `--seed_everything`. Adapters that are to be merged in factor space need the same one.
        trust_remote_code: Run model code that comes with a hub repository.
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
        max_length: int = 256,
        seed: int = 42,
        trust_remote_code: bool = False,
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
        self.base, self.objectives, self.lora, self.adapter = base, objectives, lora or Lora(), adapter
        self.learning_rate, self.weight_decay, self.warmup = learning_rate, weight_decay, warmup
        self.dtype_name, self.gradient_checkpointing = dtype, gradient_checkpointing
        self.max_length, self.seed, self.trust_remote_code = max_length, seed, trust_remote_code
        self.asked = asked_passes(objectives.values())
        self.strict_loading = (
            False  # checkpoints hold the adapter only; on_load_checkpoint checks that all of it is there
        )
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.base)
        return self._tokenizer

    def configure_model(self) -> None:
        if hasattr(self, "model"):  # Lightning calls this hook for every entry point
            return
        base = load_base(self.base, self.dtype_name, self.trust_remote_code)
        check_head(base)
        self.model = (
            open_adapter(base, self.adapter, trainable=True)
            if self.adapter
            else attach_lora(base, self.lora, self.seed)
        )
        self.initial_factors = initial_factors_hash(self.model)
        if self.gradient_checkpointing:
            causal_model(self.model).activation_checkpointing_enable({"use_reentrant": False})
        self.model.train()  # from_pretrained leaves eval mode, in which Hugging Face skips gradient checkpointing

    def configure_optimizers(self) -> Any:
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.learning_rate, weight_decay=self.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = warmup_steps(self.warmup, total, self.trainer.max_epochs or 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: linear_schedule(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        # dropout is a function of (seed, epoch, step, rank), so that a resumed run equals an uninterrupted one
        position = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1)[0]))

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        loss, _ = self._loss(batch, "train")
        return loss

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        self._loss(batch, "val")

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        self._loss(batch, "test")

    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, str]]:
        """The greedy continuation of every prompt, as the rows were encoded: ``split``, ``id``, ``generated``."""
        predicted = []
        for split, rows in zip(PairBatch._fields, batch, strict=True):
            starts = rows.answer_starts.tolist()
            prompts = [ids[:start] for ids, start in zip(rows.input_ids.tolist(), starts, strict=True)]
            with evaluating(self.model):
                answers = continue_batch(self.model, prompts, eos_ids(self.model, self.tokenizer), NEW_TOKENS)
            predicted += [
                {"split": split, "id": name, "generated": decode_answer(self.tokenizer, answer)}
                for name, answer in zip(rows.record_ids, answers, strict=True)
            ]
        return predicted

    def _loss(self, batch: PairBatch, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        passes = ModelPasses(self.model, batch, self.asked, self.max_length)
        terms = {slot: objective(passes) for slot, objective in self.objectives.items()}
        weighted = {slot: self.objectives[slot].weight * term for slot, term in terms.items()}
        loss = torch.stack(list(weighted.values())).sum()
        shown = {f"{stage}/{slot}": term.detach() for slot, term in terms.items()}
        shown |= {f"{stage}/{slot}_weighted": term.detach() for slot, term in weighted.items()}
        self.log_dict(shown, batch_size=len(batch.forget.lengths), sync_dist=stage != "train")
        self.log(
            f"{stage}/loss",
            loss.detach(),
            prog_bar=True,
            batch_size=len(batch.forget.lengths),
            sync_dist=stage != "train",
        )
        return loss, terms

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self._adapter_only(checkpoint["state_dict"])
        checkpoint["learning_rate"] = self.learning_rate
        checkpoint["initial_factors"] = self.initial_factors

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        missing = self._adapter_only(self.state_dict()).keys() - checkpoint["state_dict"].keys()
        if missing:
            raise InputError(f"--ckpt_path: the checkpoint has no {sorted(missing)[0]} (and {len(missing) - 1} more)")
        self.initial_factors = checkpoint["initial_factors"]
        if checkpoint["learning_rate"] != self.learning_rate:
            rank_zero_warn(
                f"--model.learning_rate {self.learning_rate} is not used: the optimizer state in the checkpoint "
                f"goes on with {checkpoint['learning_rate']}"
            )

    def _adapter_only(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in state.items() if name in trainable}

"""UnlearningModule: a base model with a LoRA adapter, trained on a sum of objectives."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn_pl.data.batch import PairBatch
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.records import Split
from unlearn_pl.data.splits import SIDES, side_of
from unlearn_pl.errors import InputError
from unlearn_pl.inference.batches import Work
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.models.arrival import refuse_broken
from unlearn_pl.models.fast.linear import torch_products
from unlearn_pl.models.fast.packing import use_varlen
from unlearn_pl.models.layers import check_layers
from unlearn_pl.models.load import blamed_on, with_end
from unlearn_pl.models.lora import Lora, attach_lora, initial_factors_hash, open_adapter, save_adapter
from unlearn_pl.models.padding import check_padding
from unlearn_pl.models.sharding import is_sharded, refuse_sharded
from unlearn_pl.models.tokenizer import check_ids, find_tokenizer
from unlearn_pl.objectives.base import Objective, check_terms
from unlearn_pl.training.arguments import to_plain
from unlearn_pl.training.base import Base, as_name
from unlearn_pl.training.cache import Company, ReferenceCache, open_or_build
from unlearn_pl.training.checkpointed import CheckpointedModule
from unlearn_pl.training.divergence import refuse_divergence
from unlearn_pl.training.fsdp2 import FSDP2Strategy
from unlearn_pl.training.layout import check_layout_of_loss
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.pack_size import MemoryOfBatch, PackSize, check_pack_size, first_size, memory_to_watch
from unlearn_pl.training.packs import refuse_long_rows, refuse_missing
from unlearn_pl.training.predict import predicted_texts, record_inputs
from unlearn_pl.training.prepare import adamw, prepare_policy, shard_policy
from unlearn_pl.training.reference import Reference, live_reference
from unlearn_pl.training.schedule import (
    Warmup,
    accumulation_of,
    linear_schedule,
    planned_steps,
    set_first_rate,
    set_rate_and_decay,
    warmup_steps,
)
from unlearn_pl.training.supported import refuse_unsupported, refuse_unsupported_base

if TYPE_CHECKING:
    Folder: TypeAlias = str | Path
    BaseSource: TypeAlias = Folder | PreTrainedModel
    TokenizerSource: TypeAlias = Folder | PreTrainedTokenizerBase
else:  # what a command line can say, which the parser reads off the annotations
    Folder = BaseSource = TokenizerSource = str


class UnlearningModule(CheckpointedModule):
    """Fine-tunes a LoRA adapter on ``sum(weight * term)`` over the objectives; the base model stays frozen.

    The reference of NPO and KL is the same model with its adapter off, so only one copy of the base is in memory.
    Checkpoints hold the adapter, the optimizer, the position in the data and what they are of, never the base.

    Args:
        base: The model that memorised the documents: a folder, a hub name, or `smollm2-135m-instruct` (which comes in
            a Python package); from Python also a transformers model in memory, whose layers get the adapter.
        objectives: The terms of the loss by slot. The slots `ga`, `gd` and `gk` are those of the ZJUKLAB paper
            (forget, retain descent, retain KL); any other name is a further term.
        lora: Size and place of the adapter.
        adapter: A saved adapter to start from, in place of a fresh one.
        learning_rate: Peak learning rate of AdamW; above 0.
        weight_decay: Weight decay of AdamW; 0 or above.
        warmup: Linear warm-up before the linear decay to 0: optimizer steps (an int), a share of training (a float
            below 1), or `epoch` for the first epoch.
        dtype: Data type in which a base is loaded: `float32`, `bfloat16` or `float16`, or `nf4`, `fp4` or `int8`: codes
            of 4 or 8 bits, multiplied in bfloat16 (QLoRA, arXiv 2305.14314), which need `pip install .[quantised]`. One
            in memory keeps its own. The adapter is float32.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        tokens_per_forward: Rows of a batch go through the model in packs of at most so many tokens (a longer row is
            alone), each differentiated before the next, so that memory is that of one pack; null for one pack, as
            always under the trainer's precision `16-mixed`. Without dropout, which is drawn for each pack, the loss
            does not depend on it but for rounding. At least 1; `auto` is 1024 on a CPU, and on a GPU what its free
            memory holds, as the first batch, in packs of 1024, tells; a fit that goes on keeps it.
        reference_cache: Where the base model's part of the loss is kept between epochs and runs.
        max_length: Tokens to which the released ZJUKLAB code pads a row; only the KL positions `padded`
            and `released` use it.
            The command line takes it from the data.
        seed: Seed of the adapter's initial A factors and of dropout. The command line takes it from
            `--seed_everything`. Adapters that are to be merged in factor space need the same one.
        trust_remote_code: Run model code that comes with a hub repository.
        tokenizer: Folder or hub name of a tokenizer, or from Python a tokenizer, which a base in memory needs; default:
            the base's. The command line takes it from the data.
        fast: Compute the loss by what of `unlearn_pl.models.fast` is exact for the model. `false`: by PEFT's own LoRA
            layers, transformers' own attention over padded rows, and torch's products alone. Without dropout the two
            differ by rounding; with it they drop other entries, at the same rate. A reference cache of one serves the
            other too; `reference_cache.folder` null computes that part anew.
    """

    def __init__(
        self,
        base: BaseSource,
        objectives: dict[str, Objective],
        lora: Lora | None = None,
        adapter: Folder | None = None,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: Warmup = "epoch",
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
        tokens_per_forward: PackSize = "auto",
        reference_cache: ReferenceCache | None = None,
        max_length: int = 256,
        seed: int = 42,
        trust_remote_code: bool = False,
        tokenizer: TokenizerSource | None = None,
        fast: bool = True,
    ):
        base, tokenizer = as_name(base), as_name(tokenizer)
        adapter = None if adapter is None else str(adapter)
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_terms(objectives)
        if lora is not None and not isinstance(lora, Lora):
            raise InputError(f"must be a Lora such as Lora(rank=8), got {type(lora).__name__}", "lora")
        if learning_rate <= 0:
            raise InputError(f"must be above 0, got {learning_rate}", "learning_rate")
        if weight_decay < 0:
            raise InputError(f"must be 0 or above, got {weight_decay}", "weight_decay")
        check_pack_size(tokens_per_forward)
        self._base = Base(base, dtype, trust_remote_code)
        self.base, self.dtype_name = self._base.name, self._base.dtype
        self.base_in_memory = self._base.in_memory
        if self.base_in_memory and tokenizer is None:
            raise InputError("needed, since the base is a model in memory", "tokenizer")
        self.arguments = to_plain(arguments)
        self.objectives, self.lora, self.adapter = dict(objectives), lora or Lora(), adapter
        self.learning_rate, self.weight_decay, self.warmup = learning_rate, weight_decay, warmup
        self.gradient_checkpointing = gradient_checkpointing
        self.max_length, self.seed, self.trust_remote_code = max_length, seed, trust_remote_code
        self.given_tokenizer, self.fast = tokenizer, fast
        self.tokens_per_forward = tokens_per_forward
        self.packed_loss = PackedLoss(self.objectives, max_length, first_size(tokens_per_forward))
        self.reference_cache = reference_cache or ReferenceCache()
        self.reference: Reference = live_reference
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._terms: dict[str, Tensor] = {}  # of the batches since the last optimizer step
        self._memory: MemoryOfBatch | None = None  # of the first batch
        self.planned_steps: int | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if isinstance(self.given_tokenizer, PreTrainedTokenizerBase):
            return with_end(self.given_tokenizer)
        if self._tokenizer is None:
            adapters = [self.adapter] if self.adapter else []
            with blamed_on("base"):
                self._tokenizer = find_tokenizer(self.base, adapters, self.given_tokenizer, self.trust_remote_code)
        return self._tokenizer

    def setup(self, stage: str) -> None:
        refuse_unsupported(self.trainer)
        refuse_unsupported_base(self.trainer, stage, self.dtype_name)
        if hasattr(self, "model") and not isinstance(self.trainer.strategy, FSDP2Strategy):
            refuse_sharded(self.model, "this strategy", "strategy")

    def configure_model(self) -> None:
        if hasattr(self, "model"):  # Lightning calls this hook for every entry point
            return
        base = self._base.load(self._place())
        refuse_broken(base, "an adapter")
        self.model = (
            open_adapter(base, self.adapter, trainable=True, fast=self.fast)
            if self.adapter
            else attach_lora(base, self.lora, self.seed, self.fast)
        )
        self._hash_before_it_leaves()
        self._shard()
        if not prepare_policy(self.model, self.gradient_checkpointing, self.fast) and self.fast:
            rank_zero_warn(f"{type(base).__name__} takes no packed rows; they are padded in groups of like lengths")
        check_layers(self.model, self.packed_loss.layers)
        if self.packed_loss.reads_padding:
            self.packed_loss.pad_token_id = int(self.tokenizer.pad_token_id)
            check_padding(self.model, self.packed_loss.pad_token_id)
        self.initial_factors = initial_factors_hash(self.model)

    def _place(self) -> torch.device:
        """Where this process trains; the CPU without a trainer."""
        return self.device if self._trainer is None else self.trainer.strategy.root_device

    def _hash_before_it_leaves(self) -> None:
        """Take the hash of the base, which caches and checkpoints are named by, while it is whole and on the CPU (codes
        are not, and come back a layer at a time)."""
        if self._place().type != "cpu" or self.device_mesh is not None:
            self._base_weights()

    def _shard(self) -> None:
        """Cut the base if the strategy is one for that: Lightning then has made a mesh of the processes."""
        if self.device_mesh is not None:
            shard_policy(self.model, self.device_mesh["data_parallel"], self.trainer.strategy.root_device)
            self.packed_loss.keep_step(self._most)

    def _most(self, number: int) -> int:
        """The largest ``number`` of all processes."""
        return int(self.trainer.strategy.reduce(torch.tensor(number, device=self.device), reduce_op="max"))

    def configure_optimizers(self) -> Any:
        # Lightning clips no gradients for a fused optimizer under mixed precision
        fused = None if isinstance(self.trainer.precision_plugin, MixedPrecision) else True
        optimizer = adamw(self.model, self.learning_rate, self.weight_decay, fused)
        epoch, total = planned_steps(self.trainer)
        self.planned_steps = total
        warmup = warmup_steps(self.warmup, total, epoch)
        if warmup > total:
            rank_zero_warn(f"warmup {self.warmup}: {warmup} steps, but training ends in it, at step {total}")
        self._peak = peak = self.learning_rate  # LearningRateFinder sets another one later
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: linear_schedule(step, warmup, total) * (self.learning_rate / peak)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Open or build the reference cache; one process on each machine builds it."""
        with self.trainer.precision_plugin.forward_context():
            use_varlen(self.model)
        if self.trainer.precision == "16-mixed":
            # the packs of a batch are differentiated before the loss is scaled, which float16 would not survive
            self.packed_loss.tokens_per_forward = None
        check_layout_of_loss(self.objectives, self.trainer)
        rows = self._checked_rows()
        if rows is None:  # a data module from elsewhere
            return
        first, strategy = self.trainer.local_rank == 0, self.trainer.strategy
        with self.trainer.precision_plugin.forward_context(), torch_products(not self.fast):
            if is_sharded(self.model):
                company = Company(lambda here: strategy.reduce_boolean_decision(here, all=False), first)
                self.reference = self._open_cache(rows, company)
                return
            if first:
                self.reference = self._open_cache(rows)
            strategy.barrier("reference cache")
            if not first:
                self.reference = self._open_cache(rows)

    def _checked_rows(self) -> dict[Split, Sequence[Encoded]] | None:
        """The encoded rows, None with a data module from elsewhere. Raises InputError if one has a token without an
        embedding, or more tokens than the model has positions."""
        rows = getattr(getattr(self.trainer, "datamodule", None), "encoded", None)
        if rows is not None and not self.trainer.predicting:
            refuse_missing(self.packed_loss.needs, rows)
        for split, encoded in (rows or {}).items():
            check_ids(self.model, (row.input_ids for row in encoded), side_of(split))
            if not self.trainer.predicting:  # which reads prompts alone
                refuse_long_rows(self.model, split, encoded)
        return rows

    def on_validation_start(self) -> None:
        self._checked_rows()

    on_test_start = on_validation_start

    def on_predict_start(self) -> None:
        refuse_sharded(self.model, "predict", "trainer.strategy")
        self._checked_rows()
        # Lightning gives each process rows of its own
        self._language_model = LanguageModel(self.model, self.tokenizer, work=Work(shared=False))

    def _open_cache(self, rows: dict[Split, Sequence[Encoded]], company: Company | None = None) -> Reference:
        cache, needs, precision = self.reference_cache, self.packed_loss.needs, str(self.trainer.precision)
        weights = None if cache.folder is None else self._base_weights()
        opened = open_or_build(self.model, rows, needs, cache, precision, rank_zero_info, company, weights)
        return opened or live_reference

    def on_train_start(self) -> None:
        """What a resumed fit needs that Lightning does not restore, after it has emptied all gradients."""
        self._memory = memory_to_watch(self.tokens_per_forward, self.packed_loss, self.device)
        loop = self.trainer.fit_loop
        if loop.total_batch_idx < 0:  # a fresh start, though a search for the learning rate may have come before it
            set_first_rate(self.trainer, self._schedule)
            return
        if self._memory is not None and self._pack_size is not None:  # dropout is drawn for each pack
            self.packed_loss.tokens_per_forward, self._memory = self._pack_size, None
        if loop.epoch_loop.val_loop.restarted_mid_evaluation:  # by mend_validation, which counts a batch too many
            loop.epoch_loop.val_loop.batch_progress.total.reset()
        epochs: Any = loop.epoch_progress.current
        if epochs.processed == epochs.started:
            loop.epoch_loop.restarting = False  # a new epoch begins; with max_steps Lightning would repeat the old one
        # no epoch starts where a run goes on within one, and a callback may set the accumulation at its start only
        self.trainer.accumulate_grad_batches = accumulation_of(self.trainer, self.current_epoch)
        if self.go_on_within_window() & {"learning_rate", "weight_decay"}:  # those of the checkpoint's optimizer came
            set_rate_and_decay(self._schedule, self._peak, self.weight_decay)

    def on_after_backward(self) -> None:
        if self._memory is not None:
            self._memory.size_packs(self.packed_loss, rank_zero_info)
            self._memory = None

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        # dropout is a function of (seed, epoch, step, rank), so that a resumed run equals an uninterrupted one
        position = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1)[0]))
        # by which rows are logged; Lightning's own is one behind after a checkpoint of an epoch's last batch
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        if self.packed_loss.over_step:
            batch = replace(batch, step=self.trainer.datamodule.step_tokens())  # type: ignore[attr-defined]
        loss, terms = self._loss(batch, "train")
        self._terms = {slot: term + self._terms.get(slot, 0) for slot, term in terms.items()}
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        gradients = [parameter.grad for parameter in self.trained().values() if parameter.grad is not None]
        refuse_divergence(self.trainer, self._terms, gradients, self.learning_rate)
        self._terms = {}

    def on_train_epoch_end(self) -> None:
        refuse_divergence(self.trainer, {}, list(self.trained().values()), self.learning_rate)

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        self._loss(batch, "val")

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        self._loss(batch, "test")

    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, str | None]]:
        """The greedy continuation of every prompt: ``split``, ``id``, ``generated`` (see ``predicted_texts``)."""
        records = record_inputs(self.trainer)
        return [
            {"split": split, "id": name, "generated": text}
            for split in SIDES
            for name, text in predicted_texts(self._language_model, batch.rows[split], records)
        ]

    def _loss(self, batch: PairBatch, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        with torch_products(not self.fast):
            loss, terms = self.packed_loss(self.model, batch, self.reference)
        self._log_loss(stage, loss.detach(), terms, len(batch))
        return loss, terms

    def _log_loss(self, stage: str, loss: Tensor, terms: dict[str, Tensor], batch_size: int) -> None:
        if stage == "train" and self.trainer.world_size > 1:  # all at once: Lightning's sync_dist takes them one by one
            mean = self.trainer.strategy.reduce(torch.stack([loss, *terms.values()]), reduce_op="mean")
            loss, *means = mean.unbind()
            terms = dict(zip(terms, means, strict=True))
        shown = {f"{stage}/{slot}": term for slot, term in terms.items()}
        shown |= {f"{stage}/{slot}_weighted": self.objectives[slot].weight * term for slot, term in terms.items()}
        options: dict[str, Any] = {"batch_size": batch_size, "sync_dist": stage != "train"}
        self.log_dict(shown, **options)
        self.log(f"{stage}/loss", loss, prog_bar=True, **options)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter as PEFT does; an older one in ``folder`` is replaced."""
        step = 0 if self._trainer is None else self.global_step
        save_adapter(self.model, folder, step=step, lora_init_sha256=self.initial_factors, seed=self.seed)

    def fresh_base(self) -> PreTrainedModel:
        """The base model without adapter, another copy of it on the CPU."""
        return self._base.fresh(self.model)

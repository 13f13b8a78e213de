"""The memorising stage: full fine-tuning of a causal language model on documents until it knows them by heart."""

import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn_pl.data.batch import Rows, collate_rows
from unlearn_pl.data.encoding import Encoded, Encoding, encode_document, encode_record
from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError, check_choices, one_line
from unlearn_pl.models.load import refuse_quantised  # its file flushes denormals, which slow a CPU up to five times
from unlearn_pl.models.tokenizer import check_ids
from unlearn_pl.training.full_loss import FullLoss
from unlearn_pl.training.schedule import linear_schedule

BATCHES_A_CHUNK = 16
LINES = 10


@dataclass(frozen=True)
class Memorise:
    """How the memorising stage trains. The defaults suit SmolLM2-135M; a tiny model needs a far higher rate."""

    epochs: int = 14
    """Times every document is shown."""
    row_repeats: int = 1
    """Times every row is shown in each epoch, in different batches."""
    batch_size: int = 4
    """Texts an optimizer step."""
    learning_rate: float = 1.5e-4
    """Peak learning rate of AdamW: it rises linearly, then falls linearly to zero."""
    warmup_share: float = 0.1
    """Share of all steps during which the learning rate rises; in [0, 1)."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    clip_norm: float = 1.0
    """Longest gradient (of all weights together); longer ones are scaled down to it."""
    max_length: int = 512
    """Most tokens a text; longer ones are cut, with a warning that counts them."""
    seed: int = 42
    """Seed of the order of the texts, and of dropout."""
    stop_at_loss: float | None = None
    """End after the first epoch whose mean loss (nats a token) is at most this."""
    accelerator: str = "auto"
    """Where to train: auto, cpu, gpu or mps. One device, always."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """The trainer's. `bf16-mixed` multiplies in bfloat16 and keeps weights and sums in float32: on a GPU several times
    faster, and the rows of a batch then attend in one call."""


def memorise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    documents: Sequence[str],
    options: Memorise,
    report: Callable[[str], None] = print,
) -> dict[str, float | int]:
    """Train all weights of ``model``, in place, on the rows and the further texts; it is left in eval mode on the CPU.

    The loss is the mean negative log likelihood of every token but the first, padding left out. On one device the
    result is a function of the arguments. ``report`` gets about ten lines of progress.

    Returns ``loss`` (mean nats a token over the last epoch), ``epochs``, ``steps``, ``tokens`` (trained on, in all)
    and ``seconds``. Raises InputError if an option is out of range or there is no text.
    """
    check_options(options)
    encoded = encode_texts(tokenizer, records, documents, options.max_length)
    encoded += encoded[: len(records)] * (options.row_repeats - 1)
    if not encoded:
        raise InputError("memorise: there is no row and no document to memorise")
    refuse_quantised(model, "memorising")
    check_ids(model, (text.input_ids for text in encoded), "memorise")
    with isolate_rng(), FullLoss.on(model, options.precision != "32-true") as loss:
        torch.manual_seed(options.seed)
        padding = encoded[0].input_ids[0]  # any id that has an embedding; the tokenizer's own may have none
        task = Memorisation(loss, encoded, padding, options, report)
        trainer = Trainer(
            accelerator=options.accelerator,
            devices=1,
            precision=options.precision,
            max_epochs=options.epochs,
            gradient_clip_val=options.clip_norm,
            reload_dataloaders_every_n_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model.train()
        trainer.fit(task)
    model.eval()
    return {
        "loss": task.epoch_loss,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "tokens": task.tokens,
        "seconds": task.seconds,
    }


class Memorisation(LightningModule):
    """Language modelling on whole texts, in batches of similar lengths."""

    epoch_loss = float("nan")
    seconds = 0.0
    tokens = 0

    def __init__(
        self,
        loss: FullLoss,
        encoded: Sequence[Encoded],
        pad_token_id: int,
        options: Memorise,
        report: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.loss, self.model, self.encoded, self.pad_token_id = loss, loss.model, encoded, pad_token_id
        self.options, self.report = options, report

    def train_dataloader(self) -> "DataLoader[Encoded]":
        lengths = [len(text.input_ids) for text in self.encoded]
        plan = epoch_batches(lengths, self.options.batch_size, self.options.seed, self.current_epoch)
        collate = partial(collate_rows, pad_token_id=self.pad_token_id)
        return DataLoader(self.encoded, batch_sampler=plan, collate_fn=collate)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        options, total = self.options, int(self.trainer.estimated_stepping_batches)
        # under autocast Lightning clips no gradients for a fused optimizer; and False, not None, would be a slow loop
        fused = True if options.precision == "32-true" else None
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=fused
        )
        warmup = round(options.warmup_share * total)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: linear_schedule(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        with self.trainer.precision_plugin.forward_context():
            self.loss.on_device()

    def on_train_start(self) -> None:
        self._began = time.perf_counter()

    def on_train_epoch_start(self) -> None:
        self._epoch_nll, self._epoch_tokens = torch.zeros((), device=self.device), 0

    def training_step(self, batch: Rows, batch_index: int) -> Tensor:
        nll, count = self.loss(batch)
        self._epoch_nll += nll.detach()
        self._epoch_tokens += count
        return nll / count

    def on_train_epoch_end(self) -> None:
        self.epoch_loss = float(self._epoch_nll) / self._epoch_tokens
        self.tokens += self._epoch_tokens
        self.seconds = time.perf_counter() - self._began
        limit, epoch, epochs = self.options.stop_at_loss, self.current_epoch + 1, self.options.epochs
        if limit is not None and self.epoch_loss <= limit:
            self.trainer.should_stop = True
        if epoch * LINES // epochs > (epoch - 1) * LINES // epochs or self.trainer.should_stop:
            self.report(
                f"memorise: epoch {epoch} of {epochs}, loss {self.epoch_loss:.4f}, "
                f"{self.tokens / self.seconds:,.0f} tokens/s, {self.seconds:.0f} s"
            )


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """A partition of the indices of ``lengths`` into batches of ``batch_size`` (the last may be smaller).

    The order is random, a function of (seed, epoch); within chunks of 16 batches the texts are sorted by length, for
    models whose rows are padded to the longest of their batch.
    """
    source = random.Random(f"memorise {seed} {epoch}")
    order = source.sample(range(len(lengths)), len(lengths))
    chunk = batch_size * BATCHES_A_CHUNK
    batches = []
    for start in range(0, len(order), chunk):
        alike = sorted(order[start : start + chunk], key=lengths.__getitem__)
        batches += [alike[first : first + batch_size] for first in range(0, len(alike), batch_size)]
    source.shuffle(batches)
    return batches


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], documents: Sequence[str], max_length: int
) -> list[Encoded]:
    """Rows as prompt, answer and EOS, exactly as unlearning encodes them; documents as they are, and EOS.

    Warns how many are longer than ``max_length`` tokens and therefore cut.
    """
    encoding = Encoding(max_length=max_length)
    encoded = [encode_record(record, tokenizer, encoding, forget=False) for record in records]
    for number, document in enumerate(documents):
        ids = (*encode_document(document, tokenizer, None), tokenizer.eos_token_id)
        encoded.append(Encoded(f"document {number}", ids[:max_length], answer_start=1, truncated=len(ids) > max_length))
    cut = sum(text.truncated for text in encoded)
    if cut:
        warnings.warn(f"max_length {max_length}: {cut} of {len(encoded)} texts are longer and were cut", stacklevel=2)
    return encoded


def check_options(options: Memorise) -> None:
    """Raise InputError if a number is out of range, or a name unknown."""
    check_choices(options)
    for name, least in (("epochs", 1), ("row_repeats", 1), ("batch_size", 1), ("max_length", 2)):
        if getattr(options, name) < least:
            raise InputError(f"must be at least {least}, got {getattr(options, name)}", name)
    for name in ("learning_rate", "clip_norm"):
        if not getattr(options, name) > 0:
            raise InputError(f"must be above 0, got {getattr(options, name)}", name)
    if not options.weight_decay >= 0:
        raise InputError(f"must be 0 or above, got {options.weight_decay}", "weight_decay")
    try:
        Trainer(accelerator=options.accelerator, devices=1, logger=False, enable_checkpointing=False)
    except (MisconfigurationException, ValueError) as error:
        raise InputError(one_line(error), "accelerator") from error
    if not 0 <= options.warmup_share < 1:
        raise InputError(f"must be in [0, 1), got {options.warmup_share}", "warmup_share")

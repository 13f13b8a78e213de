"""The Lightning data module: pairs of forget and retain rows, in an order that survives an interruption."""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unlearn_pl.data.encoding import Encoded, Encoding, Rows, collate_rows, encode_record, holds_unknown, is_unknown
from unlearn_pl.data.pairing import PAIRINGS, Pair, PairSampler
from unlearn_pl.data.readers import Source, check_columns, keep
from unlearn_pl.data.records import Record, Split
from unlearn_pl.data.sets import check_documents_per_task, read_split
from unlearn_pl.errors import InputError, one_line

EncodedPair = tuple[Encoded, Encoded]


class PairBatch(NamedTuple):
    """B forget rows and the B retain rows that go with them; each side is padded to its own longest row.

    They form micro-batches of ``batch_size`` pairs, the last of which may be smaller.
    """

    forget: Rows
    retain: Rows
    batch_size: int

    def micro_batches(self) -> list["PairBatch"]:
        """The micro-batches, one batch each."""
        starts = range(0, len(self.forget.lengths), self.batch_size)
        cuts = [(start, start + self.batch_size) for start in starts]
        return [PairBatch(self.forget.part(*cut), self.retain.part(*cut), self.batch_size) for cut in cuts]

    def to(self, device: torch.device | str) -> "PairBatch":
        """The same batch on another device; Lightning's transfer calls it."""
        return PairBatch(self.forget.to(device), self.retain.to(device), self.batch_size)


class Pairs(Dataset[EncodedPair]):
    """Encoded pairs, by (forget index, retain index); a single index i stands for (i, i % n_retain)."""

    def __init__(self, forget: Sequence[Encoded], retain: Sequence[Encoded]) -> None:
        self.forget = forget
        self.retain = retain

    def __len__(self) -> int:
        return len(self.forget)

    # The single index serves Lightning's overfit_batches, which puts a sequential sampler in.
    def __getitem__(self, index: int | Pair) -> EncodedPair:
        forget, retain = (index, index % len(self.retain)) if isinstance(index, int) else index
        return self.forget[forget], self.retain[retain]


class EveryRow(Pairs):
    """Pair i is (i % n_forget, i % n_retain), as many as the larger set has rows; rows of the smaller one come again.

    For validation, test and prediction, which are to visit every row.
    """

    def __len__(self) -> int:
        return max(len(self.forget), len(self.retain))

    def __getitem__(self, index: int | Pair) -> EncodedPair:
        assert isinstance(index, int)
        return self.forget[index % len(self.forget)], self.retain[index % len(self.retain)]


class PairLoader(DataLoader[EncodedPair]):
    """A loader that is resumable in Lightning's eyes, which otherwise warns of repeated data.

    The position is kept by the data module: Lightning drops a loader's state when ``estimated_stepping_batches`` is
    read in ``configure_optimizers`` (Lightning issue 20550).
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""


def collate_pairs(pairs: Sequence[EncodedPair], pad_token_id: int, batch_size: int | None = None) -> PairBatch:
    """Pad the two sides of some pairs, in micro-batches of ``batch_size`` pairs (None: one of all)."""
    forget, retain = zip(*pairs, strict=True)
    return PairBatch(collate_rows(forget, pad_token_id), collate_rows(retain, pad_token_id), batch_size or len(pairs))


def check_layout(state: dict[str, Any], layout: dict[str, Any]) -> None:
    """Raise InputError if a checkpoint's place within an epoch is not one of this layout; between epochs, warn."""
    old = state["layout"]
    changed = [f"{name} was {old[name]} and is {layout[name]}" for name in layout if old[name] != layout[name]]
    if state["pairs"] and changed:
        raise InputError(f"--ckpt_path: stands within an epoch, which must go on as it began; {'; '.join(changed)}")
    for change in changed:
        rank_zero_warn(f"--ckpt_path: {change} from here on; what follows is not the run that was interrupted")


def rows_hash(sets: Sequence[Sequence[Encoded]]) -> str:
    """Hash of encoded rows, in order."""
    digest = hashlib.sha256()
    for rows in sets:
        digest.update(f"{len(rows)} rows".encode())
        for row in rows:
            digest.update(repr((row.record_id, list(row.input_ids), row.answer_start)).encode())
    return digest.hexdigest()[:16]


class ForgetRetainData(LightningDataModule):
    """Reads a forget and a retain set and yields them in pairs, as ``PairBatch``.

    Training visits every forget row once an epoch; validation, test and prediction take forget row ``i % n_forget``
    with retain row ``i % n_retain``, in order, until every row of both sets was visited. A run that resumes, in the
    middle of an epoch too, sees exactly the pairs that it would have seen without the interruption.

    Args:
        forget: Rows to forget: a .jsonl, .json, .csv or .parquet file, a folder saved by datasets, or
            hf:OWNER/NAME[/CONFIG][:SPLIT].
        retain: Rows to keep, from the same kinds of source. No id may be in both.
        batch_size: Pairs of a micro-batch on each process. At least 1.
        micro_batches: Micro-batches that are computed together; the loss is the mean of theirs. The same gradient as
            `--trainer.accumulate_grad_batches` of that number, for any loss, in fewer forwards. At least 1.
        max_length: Tokens of a row at most, its end is cut off. At least 2.
        prompt_share: The prompt keeps its last int(prompt_share * max_length) tokens. Above 0, at most 1.
        joiner: Between input and answer: " " (the answer has the tokens of the whole text, as it was memorised) or ""
            (it has those of the answer alone, as the ZJUKLAB system trained).
        eos_on_forget: Whether the answers of forget rows end with EOS, as those of retain rows always do.
        pairing: shuffled (each retain row is seen equally often) or paired (forget row i with retain row i % n_retain
            in every epoch, as the ZJUKLAB system did).
        documents_per_task: Use the first so many documents of each task in each set, with all their rows; null for all.
        columns: Our field (id, input, output, task, kind) -> their column. Where no such column exists, "=TEXT" gives
            every row that text, and "#" numbers the rows.
        seed: Fixes the order of the pairs, together with epoch and rank.
        num_workers: Processes that assemble batches. Rows are encoded once at the start, so 0 is rarely slower.
        tokenizer: Folder or hub name of a tokenizer; default: the model's.

    Raises InputError if an option is out of its range, and in ``setup`` if the data cannot be used.
    """

    def __init__(
        self,
        forget: str,
        retain: str,
        batch_size: int = 1,
        micro_batches: int = 1,
        max_length: int = 256,
        prompt_share: float = 0.8,
        joiner: str = " ",
        eos_on_forget: bool = True,
        pairing: Literal["paired", "shuffled"] = "shuffled",
        documents_per_task: int | None = None,
        columns: dict[str, str] | None = None,
        seed: int = 42,
        num_workers: int = 0,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"--data.batch_size: must be at least 1, got {batch_size}")
        if micro_batches < 1:
            raise InputError(f"--data.micro_batches: must be at least 1, got {micro_batches}")
        if num_workers < 0:
            raise InputError(f"--data.num_workers: must be at least 0, got {num_workers}")
        if pairing not in PAIRINGS:
            raise InputError(f"--data.pairing: must be one of {', '.join(PAIRINGS)}, got {pairing!r}")
        check_documents_per_task(documents_per_task)
        check_columns(columns)
        self.encoding = Encoding(max_length, prompt_share, joiner, eos_on_forget)
        self.forget, self.retain = forget, retain
        self.batch_size, self.micro_batches, self.num_workers = batch_size, micro_batches, num_workers
        self.pairing, self.seed = pairing, seed
        self.documents_per_task, self.columns = documents_per_task, columns
        self.tokenizer_name = tokenizer
        self.forget_records: list[Record] = []
        self.retain_records: list[Record] = []
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._pairs: Pairs | None = None
        self._rows_hash = ""
        self._loaded: dict[str, Any] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read and encode both sets, once for each tokenizer, and say how many rows were cut or are never seen."""
        if stage == "fit":
            # A fit's own checkpoint comes after setup; what an earlier run or a validation has left must not move it.
            self._loaded = None
        tokenizer = self._find_tokenizer()
        if tokenizer is self._tokenizer:
            return
        sets = read_split(self.forget, self.retain, self.columns, self.documents_per_task)
        self.forget_records, self.retain_records = sets
        forget = [encode_record(record, tokenizer, self.encoding, forget=True) for record in sets[0]]
        retain = [encode_record(record, tokenizer, self.encoding, forget=False) for record in sets[1]]
        self._tokenizer, self._pairs, self._rows_hash = tokenizer, Pairs(forget, retain), rows_hash((forget, retain))
        self._warn_of_losses(self._pairs)

    def train_dataloader(self) -> PairLoader:
        """Pairs in the order of a ``PairSampler``, from where a loaded checkpoint left off."""
        assert self._pairs is not None, "setup comes first"
        sampler = self._new_sampler(self._pairs)
        if self._loaded is not None:
            check_layout(self._loaded, self._layout(sampler))
        return PairLoader(self._pairs, sampler=sampler, **self._loader_options())

    def val_dataloader(self) -> DataLoader[EncodedPair]:
        """Every row of both sets, in order; the rows of the smaller set come again."""
        assert self._pairs is not None, "setup comes first"
        return DataLoader(EveryRow(self._pairs.forget, self._pairs.retain), **self._loader_options())

    def test_dataloader(self) -> DataLoader[EncodedPair]:
        """The same as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[EncodedPair]:
        """The same as for validation."""
        return self.val_dataloader()

    @property
    def encoded(self) -> dict[Split, Sequence[Encoded]]:
        """All rows of both sets, as they are trained on."""
        assert self._pairs is not None, "setup comes first"
        return {"forget": self._pairs.forget, "retain": self._pairs.retain}

    def state_dict(self) -> dict[str, Any]:
        """Where the next pair of the run stands, and what such a place depends on."""
        if self._pairs is None or self.trainer is None:
            return {}
        epoch, pairs = self._position()
        layout = self._layout(self._new_sampler(self._pairs))
        return {"epoch": epoch, "pairs": pairs, "batches": self._batches_trained(), "layout": layout}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there in this fit."""
        self._loaded = state_dict or None

    def _position(self) -> Pair:
        """(epoch, pairs of it that this process has consumed), from the number of batches that were trained on.

        Not from Lightning's epochs. It counts an epoch that ``max_steps`` ended early as a whole one and runs what is
        left of it under the next number; and after a checkpoint at the edge of an epoch it announces the old one again.
        """
        epoch, pairs, batches = 0, 0, 0
        if self._loaded is not None:
            epoch, pairs, batches = (self._loaded[name] for name in ("epoch", "pairs", "batches"))
        # Below zero while the loop's own counters are not restored yet: workers read ahead before that.
        trained = max(0, self._batches_trained() - batches)
        if self.trainer is None or trained == 0:
            return epoch, pairs
        more_epochs, batches = divmod(pairs // self._pairs_a_batch + trained, int(self.trainer.num_training_batches))
        return epoch + more_epochs, batches * self._pairs_a_batch

    @property
    def _pairs_a_batch(self) -> int:
        return self.batch_size * self.micro_batches

    def _batches_trained(self) -> int:
        """Batches that the run has trained on in all, also before it was resumed."""
        if self.trainer is None:
            return 0
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(total.processed)

    def _new_sampler(self, pairs: Pairs) -> PairSampler:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sizes = len(pairs.forget), len(pairs.retain)
        return PairSampler(*sizes, self.pairing, self.seed, rank, world_size, self._position)

    def _layout(self, sampler: PairSampler) -> dict[str, Any]:
        """What a number of consumed pairs means something for only."""
        return {
            "forget rows": sampler.n_forget,
            "retain rows": sampler.n_retain,
            "batch_size": self.batch_size,
            "micro_batches": self.micro_batches,
            "pairing": self.pairing,
            "seed": self.seed,
            "processes": sampler.num_replicas,
            "content of the rows": self._rows_hash,
        }

    def _loader_options(self) -> dict[str, Any]:
        assert self._tokenizer is not None
        pad, eos = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        collate = partial(collate_pairs, pad_token_id=eos if pad is None else pad, batch_size=self.batch_size)
        return {"batch_size": self._pairs_a_batch, "num_workers": self.num_workers, "collate_fn": collate}

    def _find_tokenizer(self) -> PreTrainedTokenizerBase:
        """The named tokenizer, else the one of the module that the trainer runs."""
        module = self.trainer and self.trainer.lightning_module
        if self.tokenizer_name is not None and getattr(module, "tokenizer_name", None) != self.tokenizer_name:
            if self._tokenizer is not None:
                return self._tokenizer
            try:
                return AutoTokenizer.from_pretrained(self.tokenizer_name)
            except Exception as error:  # torn and foreign files raise whatever they make fail
                raise InputError(f"--data.tokenizer: cannot load {self.tokenizer_name!r}: {one_line(error)}") from error
        tokenizer = getattr(module, "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise InputError("--data.tokenizer: name one, since there is no model here that brings its own")
        return tokenizer

    def _warn_of_losses(self, pairs: Pairs) -> None:
        cut, total = [sum(row.truncated for row in rows) for rows in (pairs.forget, pairs.retain)], len(pairs.retain)
        if any(cut):
            counts = f"{cut[0]} of {len(pairs)} forget rows and {cut[1]} of {total} retain rows"
            rank_zero_warn(f"--data.max_length {self.encoding.max_length}: {counts} were longer and have been cut")
        self._warn_of_unknown([*pairs.forget, *pairs.retain])
        if unseen := self._new_sampler(pairs).n_unseen_retain:
            reason = f"there are {len(pairs)} forget rows; --data.pairing shuffled sees all"
            rank_zero_warn(f"--data.pairing paired: {unseen} of {total} retain rows are never seen, since {reason}")

    def _warn_of_unknown(self, rows: Sequence[Encoded]) -> None:
        assert self._tokenizer is not None
        partly = sum(holds_unknown(row.input_ids, self._tokenizer) for row in rows)
        wholly = sum(is_unknown(row.input_ids[row.answer_start :], self._tokenizer) for row in rows)
        if partly:
            counts = f"{partly} of {len(rows)} rows hold characters that it does not know, in {wholly} of them"
            rank_zero_warn(f"--data.tokenizer: {counts} the answer is nothing else: they train on the unknown token")

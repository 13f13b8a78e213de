"""The Lightning data module: pairs of forget and retain rows, in an order that survives an interruption."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unlearn_pl.data.batch import EncodedPair, EveryRow, Pairs, collate_pairs
from unlearn_pl.data.encoding import Encoded, Encoding
from unlearn_pl.data.notes import notes
from unlearn_pl.data.pairing import PAIRINGS, Pair, PairSampler
from unlearn_pl.data.position import check_layout, position, rows_hash
from unlearn_pl.data.readers import check_columns, keep
from unlearn_pl.data.records import Record, Split
from unlearn_pl.data.sets import check_documents_per_task, read_split
from unlearn_pl.data.splits import SIDES, encode_splits
from unlearn_pl.data.step import StepShape, StepTokens
from unlearn_pl.data.workers import safe_workers
from unlearn_pl.errors import InputError, one_line

if TYPE_CHECKING:
    from unlearn_pl.data.readers import Source

    TokenizerSource: TypeAlias = str | PreTrainedTokenizerBase
else:  # what a command line can say, which the parser reads off the annotations
    Source = TokenizerSource = str


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


class ForgetRetainData(LightningDataModule):
    """Reads a forget and a retain set and yields them in pairs, as ``PairBatch``.

    Its splits are `forget` and `retain`, and, for terms that read other answers, `alternate` (`retain_alternate`): the
    same inputs with the field `alternate` as answer, if every row of the set has it.

    Training visits every forget row once an epoch; validation, test and prediction take forget row ``i % n_forget``
    with retain row ``i % n_retain``, in order, until every row of both sets was visited. A run that resumes, in the
    middle of an epoch too, sees exactly the pairs that it would have seen without the interruption.

    Args:
        forget: Rows to forget: a .jsonl, .json, .csv or .parquet file, a folder saved by datasets, or
            hf:OWNER/NAME[/CONFIG][:SPLIT]; from Python also records or mappings in memory.
        retain: Rows to keep, from the same kinds of source. No id may be in both.
        batch_size: Pairs of a micro-batch on each process. At least 1.
        micro_batches: Micro-batches that are computed together; the loss is the mean of theirs. The same gradient as
            the trainer's `accumulate_grad_batches` of that number, for any loss, in fewer forwards. At least 1.
        max_length: Tokens of a row at most, its end is cut off. At least 2.
        prompt_share: The prompt keeps its last int(prompt_share * max_length) tokens. Above 0, at most 1.
        joiner: Between input and answer: " " (the answer has the tokens of the whole text, as it was memorised) or ""
            (it has those of the answer alone, as the ZJUKLAB system trained).
        eos_on_forget: Whether the answers of forget rows end with EOS, as those of retain rows always do.
        pairing: shuffled (each retain row is seen equally often) or paired (forget row i with retain row i % n_retain
            in every epoch, as the ZJUKLAB system did).
        documents_per_task: Use the first so many documents of each task in each set, with all their rows; null for all.
        columns: Our field (id, input, output, task, kind, alternate, answer_weights) -> their column. Where no such
            column exists, "=TEXT" gives every row that text, and "#" numbers the rows.
        seed: Fixes the order of the pairs, together with epoch and rank.
        num_workers: Processes that assemble batches, for each process that trains. Rows are encoded once at the start,
            so 0 is rarely slower. With several that train, 0 before Python 3.11.10, where such a worker can hang.
        tokenizer: Folder or hub name of a tokenizer, or from Python a tokenizer; default: the model's.

    Raises InputError if an option is out of its range, and in ``setup`` if the data cannot be used.
    """

    def __init__(
        self,
        forget: Source,
        retain: Source,
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
        tokenizer: TokenizerSource | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("micro_batches", micro_batches, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise InputError(f"must be at least {least}, got {value}", name)
        if pairing not in PAIRINGS:
            raise InputError(f"must be one of {', '.join(PAIRINGS)}, got {pairing!r}", "pairing")
        check_documents_per_task(documents_per_task)
        check_columns(columns)
        self.encoding = Encoding(max_length, prompt_share, joiner, eos_on_forget)
        self.forget, self.retain = keep(forget, "forget"), keep(retain, "retain")
        self.batch_size, self.micro_batches, self.num_workers = batch_size, micro_batches, num_workers
        self.pairing, self.seed = pairing, seed
        self.documents_per_task, self.columns = documents_per_task, columns
        self.given_tokenizer = tokenizer
        self.forget_records: list[Record] = []
        self.retain_records: list[Record] = []
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._pairs: Pairs | None = None
        self._turns: tuple[int, list[Pair]] | None = None  # an epoch, and its pairs on all processes
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
        pairs = Pairs(
            *(encode_splits(side, rows, tokenizer, self.encoding) for side, rows in zip(SIDES, sets, strict=True))
        )
        self._tokenizer, self._pairs, self._rows_hash = tokenizer, pairs, rows_hash(pairs.splits)
        self._turns = None
        for note in notes(pairs, self._new_sampler(pairs).n_unseen_retain, self.encoding.max_length, tokenizer):
            rank_zero_warn(note)

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
        """All rows of every split, as they are trained on."""
        assert self._pairs is not None, "setup comes first"
        return self._pairs.splits

    def step_tokens(self) -> dict[Split, StepTokens]:
        """By split, of the optimizer step to which the batch that is being trained on belongs.

        Every process knows the order of all pairs, so nothing is exchanged.
        """
        assert self._pairs is not None, "setup comes first"
        assert self.trainer is not None, "only while a trainer fits"
        trainer, (epoch, done) = self.trainer, self._position()
        sampler, per_batch = self._new_sampler(self._pairs), self._pairs_a_batch
        if self._turns is None or self._turns[0] != epoch:
            self._turns = epoch, sampler.turns_of_epoch(epoch)
        batches, accumulate = int(trainer.num_training_batches), trainer.accumulate_grad_batches
        shape = StepShape(sampler.num_replicas, self.batch_size, per_batch, sampler.num_samples, accumulate, batches)
        batch = done // per_batch
        step = [self._pairs[pair] for pair in self._turns[1][shape.places(batch)]]
        return {
            split: StepTokens.of((pair[split] for pair in step), shape.shares(batch)) for split in self._pairs.splits
        }

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
        batches_an_epoch = 0 if self.trainer is None else self.trainer.num_training_batches
        return position(self._loaded, self._batches_trained(), batches_an_epoch, self._pairs_a_batch)

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
        sizes = pairs.n_forget, pairs.n_retain
        return PairSampler(*sizes, self.pairing, self.seed, rank, world_size, self._position)

    def _layout(self, sampler: PairSampler) -> dict[str, Any]:
        """The settings that a place in the order of pairs depends on; a run that goes on must not change them."""
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
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        processes = 1 if self.trainer is None else self.trainer.world_size
        return {
            "batch_size": self._pairs_a_batch,
            "num_workers": safe_workers(self.num_workers, processes),
            "collate_fn": collate,
            "pin_memory": on_gpu,
        }

    def _find_tokenizer(self) -> PreTrainedTokenizerBase:
        """The given tokenizer, else the one of the module that the trainer runs."""
        module, given = self.trainer and self.trainer.lightning_module, self.given_tokenizer
        if isinstance(given, PreTrainedTokenizerBase):
            return given
        if given is not None and getattr(module, "given_tokenizer", None) != given:
            if self._tokenizer is not None:
                return self._tokenizer
            try:
                return AutoTokenizer.from_pretrained(given, trust_remote_code=False)  # nosec B615
            except Exception as error:  # torn and foreign files raise whatever they make fail
                raise InputError(f"cannot load {given!r}: {one_line(error)}", "tokenizer") from error
        tokenizer = getattr(module, "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise InputError("needed, since there is no model here that brings its own", "tokenizer")
        return tokenizer

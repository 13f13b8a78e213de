"""What the commands of the benchmark share: how they are run, the rows they read, what is checked first."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from benchmarks.released import EncodedPair
from unlearn_pl.__main__ import one_line_errors
from unlearn_pl.data.encoding import Encoding, encode_record
from unlearn_pl.data.pairing import PairSampler
from unlearn_pl.data.sets import read_split
from unlearn_pl.errors import InputError
from unlearn_pl.files import sha256_of
from unlearn_pl.models.device import find_device
from unlearn_pl.models.load import DTYPES, resolve
from unlearn_pl.parsing import parse_function


def run(function: Callable[..., None]) -> None:
    """``function`` with the arguments of the command line; exit code 2 and one line if one cannot be used."""
    with one_line_errors():
        parse_function(function, sys.argv[1:], f"python -m benchmarks.{function.__name__}")


@dataclass(frozen=True)
class BenchData:
    """The rows to train on."""

    forget: str
    """Rows to forget: a .jsonl, .json, .csv or .parquet file, a folder saved by datasets, or hf:OWNER/NAME."""
    retain: str
    """Rows to keep, from the same kinds of source."""


def checked_arguments(
    model: str, pairs: int, accumulate: int, tokens_per_forward: int | None, rounds: int, dtype: str, device: str
) -> str:
    """All that can be told to be wrong before anything is read; gives the device. Raises InputError."""
    counts = {"accumulate": accumulate, "rounds": rounds, "tokens_per_forward": tokens_per_forward}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"must be at least 1, got {value}", name)
    if pairs < accumulate:
        raise InputError(f"must be at least {accumulate}, as accumulate is, got {pairs}", "pairs")
    if dtype not in DTYPES:
        raise InputError(f"must be one of {', '.join(DTYPES)}, got {dtype}", "dtype")
    resolve(model)
    return str(find_device(device))


def first_pairs(
    data: BenchData, tokenizer: PreTrainedTokenizerBase, pairs: int, max_length: int, seed: int
) -> list[EncodedPair]:
    """The first pairs of the first epoch over the whole files, as ``fit`` with the same seed trains on them.

    Raises InputError if an epoch has fewer.
    """
    forget, retain = read_split(data.forget, data.retain, None, None)
    order = PairSampler(len(forget), len(retain), seed=seed).pairs_of_epoch(0)
    if pairs > len(order):
        raise InputError(f"an epoch over these files has {len(order)}, got {pairs}", "pairs")
    encoding = Encoding(max_length)
    return [
        (
            encode_record(forget[i], tokenizer, encoding, forget=True),
            encode_record(retain[j], tokenizer, encoding, forget=False),
        )
        for i, j in order[:pairs]
    ]


def hashes_of(data: BenchData) -> dict[str, str | None]:
    """SHA-256 of each file or folder; None for rows from the hub."""
    return {name: sha256_of(path) if Path(path).exists() else None for name, path in asdict(data).items()}


def tell(line: str) -> None:
    """A line on the error stream, at once."""
    print(line, file=sys.stderr, flush=True)


def shown(value: float | None) -> str:
    """Three significant digits or more; small numbers as powers of ten."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"

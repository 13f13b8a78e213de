"""``unlearn-pl bench``: how fast, how large and how exact training is, measured beside the released way of it."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.estimate import Load, Shape, estimate_training
from benchmarks.growth import GrowthSizes, measure_growth
from benchmarks.parts import measure_parts
from benchmarks.released import EncodedPair
from benchmarks.tables import print_estimates, print_figures, print_growth, print_parts
from benchmarks.train import compare
from benchmarks.variants import KLPositions, Settings
from unlearn_pl.data.encoding import Encoding, encode_record
from unlearn_pl.data.pairing import PairSampler
from unlearn_pl.data.sets import read_split
from unlearn_pl.errors import InputError
from unlearn_pl.files import sha256_of, write_json
from unlearn_pl.models.device import find_device
from unlearn_pl.models.load import DTYPES, load_base, load_tokenizer, resolve
from unlearn_pl.models.lora import Lora
from unlearn_pl.provenance import provenance

GROWTH = GrowthSizes()


@dataclass(frozen=True)
class BenchData:
    """The rows to train on."""

    forget: str
    """Rows to forget: a .jsonl, .json, .csv or .parquet file, a folder saved by datasets, or hf:OWNER/NAME."""
    retain: str
    """Rows to keep, from the same kinds of source."""


def train(
    model: str,
    data: BenchData,
    json: str,
    pairs: int = 48,
    accumulate: int = 4,
    max_length: int = 256,
    rank: int = 32,
    dropout: float = 0.05,
    positions: KLPositions = "released",
    tokens_per_forward: int | None = 256,
    rounds: int = 1,
    seed: int = 42,
    dtype: str = "float32",
    device: str = "auto",
    growth: bool = False,
) -> None:
    """Train on the first pairs of an epoch by the released ZJUKLAB way and by ours, in turn, and compare.

    Each way has a process of its own; they take turns at every optimizer step. Before that, loss and gradient of the
    first step are compared with the released formulas in float64.

    Args:
        model: Folder or hub name of the model, or smollm2-135m-instruct.
        data: The rows to train on.
        json: File for all figures.
        pairs: Pairs of a forget and a retain row; at least accumulate. What fills no optimizer step is left out.
        accumulate: Pairs of an optimizer step; at least 1.
        max_length: Tokens of a row at most, and the length to which the released way pads.
        rank: Rank of the adapter.
        dropout: Dropout on the adapter's input, in [0, 1).
        positions: Where our KL is taken; only with released are the two losses the same and compared.
        tokens_per_forward: Tokens of our packs at most; null for one pack.
        rounds: How often to measure everything; the figures are medians. At least 1.
        seed: Of the adapter and of the order of the pairs.
        dtype: Type of the base weights: float32, bfloat16 or float16.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).
        growth: Afterwards measure `bench growth` too, into the same file.
    """
    config = {**locals(), "data": asdict(data), "threads": torch.get_num_threads()}
    del config["json"]
    place = checked_arguments(model, pairs, accumulate, tokens_per_forward, rounds, dtype, device)
    lora = Lora(rank=rank, dropout=dropout)
    tokenizer = load_tokenizer(model)
    rows = first_pairs(data, tokenizer, pairs, max_length, seed)
    options = (accumulate, max_length, int(tokenizer.pad_token_id), lora, positions, tokens_per_forward, seed)
    figures = compare(model, dtype, Settings(rows, *options, device=place), rounds, _tell)
    print_figures(figures)
    if growth:
        figures["growth"] = [asdict(point) for point in measure_growth(GROWTH, place, _tell)]
        print_growth(figures["growth"])
    write_json(json, provenance(**figures, config=config | {"device": place}, hashes=hashes_of(data)))
    print(f"wrote {json}")


def parts(
    model: str,
    data: BenchData,
    json: str,
    pairs: int = 4,
    max_length: int = 256,
    tokens_per_forward: int | None = 256,
    repeats: int = 3,
    seed: int = 42,
    dtype: str = "float32",
    device: str = "auto",
) -> None:
    """What each part of our training step gives: the same optimizer step with one part switched off, in turn.

    Args:
        model: Folder or hub name of the model, or smollm2-135m-instruct.
        data: The rows to train on.
        json: File for all figures.
        pairs: Pairs of the optimizer step, the first of an epoch.
        max_length: Tokens of a row at most.
        tokens_per_forward: Tokens of a pack at most.
        repeats: How often to go through the parts; the figures are medians. At least 1.
        seed: Of the adapter and of the order of the pairs.
        dtype: Type of the base weights: float32, bfloat16 or float16.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).
    """
    config = {**locals(), "data": asdict(data), "threads": torch.get_num_threads()}
    place = checked_arguments(model, pairs, pairs, tokens_per_forward, repeats, dtype, device)
    tokenizer = load_tokenizer(model)
    rows = first_pairs(data, tokenizer, pairs, max_length, seed)
    settings = Settings(
        rows, pairs, max_length, int(tokenizer.pad_token_id), tokens_per_forward=tokens_per_forward, seed=seed,
        device=place,
    )  # fmt: skip
    figures = [asdict(part) for part in measure_parts(load_base(model, dtype), settings, repeats, _tell)]
    print_parts(figures)
    write_json(json, provenance(parts=figures, config=config | {"device": place}, hashes=hashes_of(data)))
    print(f"wrote {json}")


def growth(json: str, sizes: GrowthSizes = GROWTH, device: str = "auto") -> None:
    """How time and memory of an optimizer step grow with row length, vocabulary and depth, by both ways.

    Random models and rows; one size varies at a time around the middle. About three minutes on two cores.

    Args:
        json: File for all figures.
        sizes: What is measured.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).
    """
    place = str(find_device(device))
    points = [asdict(point) for point in measure_growth(sizes, place, _tell)]
    print_growth(points)
    config = {**asdict(sizes), "device": place, "threads": torch.get_num_threads()}
    write_json(json, provenance(points=points, config=config))
    print(f"wrote {json}")


def estimate(
    share: float,
    tflops: float = 312,
    tokens: int = 640,
    pairs_per_step: int = 4,
    pairs: int = 1000,
    tokens_per_forward: int = 1024,
    rank: int = 32,
    layers: int = 32,
    hidden: int = 4096,
    intermediate: int = 11008,
    vocabulary: int = 50304,
    kv_share: float = 1.0,
    weight_bytes: int = 2,
    kept_per_token: float = 20,
    json: str | None = None,
) -> None:
    """What training a large model would take on 1 and 8 devices, by arithmetic; the defaults are OLMo-7B.

    Args:
        share: Share of the devices' peak that training reaches, in (0, 1]; `bench train` measures one.
        tflops: Peak of a device, in 10^12 operations a second; above 0.
        tokens: Tokens of an optimizer step, half of them forget and half retain, a third of them answers.
        pairs_per_step: Pairs of an optimizer step.
        pairs: Pairs of the data set, for the size of the reference cache.
        tokens_per_forward: Tokens whose activations are in memory at once.
        rank: Rank of the adapter.
        layers: Transformer blocks.
        hidden: Width of the residual stream.
        intermediate: Width inside the feed-forward blocks.
        vocabulary: Words of the head.
        kv_share: Width of keys and values, of that of the queries; 1 without grouped queries.
        weight_bytes: Of a number of the base weights and the activations.
        kept_per_token: Numbers kept for the backward pass of each token and layer, in units of the hidden width.
        json: File for the figures.
    """
    for name, value in (("share", share), ("tflops", tflops), ("kept_per_token", kept_per_token)):
        if value <= 0 or (name == "share" and value > 1):
            raise InputError(f"--{name}: must be above 0{' and at most 1' * (name == 'share')}, got {value}")
    if pairs_per_step < 1 or tokens < 6 * pairs_per_step:
        raise InputError(f"--tokens: must be at least 6 for each of --pairs_per_step {pairs_per_step}, got {tokens}")
    shape = Shape(layers, hidden, intermediate, vocabulary, kv_share)
    load = Load(tokens, pairs_per_step, pairs, tokens_per_forward, rank, weight_bytes, kept_per_token)
    figures = {count: estimate_training(shape, load, count, tflops * 1e12, share) for count in (1, 8)}
    print_estimates(figures)
    if json is not None:
        config = {**asdict(shape), **asdict(load), "tflops": tflops, "share": share}
        write_json(json, provenance(estimates={n: asdict(f) for n, f in figures.items()}, config=config))


def checked_arguments(
    model: str, pairs: int, accumulate: int, tokens_per_forward: int | None, rounds: int, dtype: str, device: str
) -> str:
    """All that can be told to be wrong before anything is read; gives the device. Raises InputError."""
    counts = {"accumulate": accumulate, "rounds": rounds, "tokens_per_forward": tokens_per_forward}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"--{name}: must be at least 1, got {value}")
    if pairs < accumulate:
        raise InputError(f"--pairs: must be at least --accumulate {accumulate}, got {pairs}")
    if dtype not in DTYPES:
        raise InputError(f"--dtype: must be one of {', '.join(DTYPES)}, got {dtype}")
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
        raise InputError(f"--pairs: an epoch over these files has {len(order)}, got {pairs}")
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


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

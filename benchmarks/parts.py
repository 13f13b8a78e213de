"""What each part of our training step gives, by switching it off.

python -m benchmarks.parts --model DIR --data.forget F --data.retain R --json OUT
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.command import BenchData, checked_arguments, first_pairs, hashes_of, run, shown, tell
from benchmarks.measure import resident_bytes, settle
from benchmarks.variants import Ours, Settings
from unlearn_pl.files import write_json
from unlearn_pl.models.body import causal_model
from unlearn_pl.models.fast.attention import PACKED
from unlearn_pl.models.fast.linear import torch_products
from unlearn_pl.models.fast.lora import LoraLinear
from unlearn_pl.models.head import IGNORED, Head
from unlearn_pl.models.load import load_base, load_tokenizer
from unlearn_pl.provenance import provenance
from unlearn_pl.training.reference import live_reference


@dataclass(frozen=True)
class PartFigures:
    """Optimizer steps on the same rows with one part switched off; medians over the repeats."""

    off: str
    seconds: float
    times_slower: float
    """The median over the repeats of this step's seconds over the whole's, run right before it."""
    peak_above_loaded_bytes: int
    """Above what is in use when everything is loaded and nothing runs."""


def measure_parts(base: PreTrainedModel, settings: Settings, repeats: int, tell: Callable[[str], None]) -> list[Any]:
    """The whole step, then the step without each part in turn, ``repeats`` times over."""
    variant = Ours(base, settings)
    measured: dict[str, list[tuple[float, float, int]]] = {name: [] for name in PARTS}
    with tempfile.TemporaryDirectory(prefix="unlearn-pl-bench-") as folder:
        variant.build(Path(folder), settings.pairs)
        variant.window(0)  # the first steps of a process are slower
        for repeat in range(repeats):
            tell(f"repeat {repeat + 1} of {repeats}")
            whole = 0.0
            for name, switched_off in PARTS.items():
                settle()
                with switched_off(variant):
                    resident = resident_bytes(variant.device)
                    window = variant.window(0)
                whole = window.seconds if name == WHOLE else whole
                measured[name].append((window.seconds, window.seconds / whole, window.peak - resident))
    return [
        PartFigures(name, *(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in measured.items()
    ]


@contextmanager
def padded(variant: Ours) -> Iterator[None]:
    """Rows are padded in groups of like lengths."""
    causal = causal_model(variant.policy)
    causal.set_attn_implementation("sdpa")
    yield
    causal.set_attn_implementation(PACKED)


@contextmanager
def peft_layers(variant: Ours) -> Iterator[None]:
    """LoRA as PEFT computes it."""
    layers = [module for module in variant.policy.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        layer.__class__ = PeftLinear
    yield
    for layer in layers:
        layer.__class__ = LoraLinear


@contextmanager
def no_cache(variant: Ours) -> Iterator[None]:
    """The base model runs in every step."""
    cached, variant.reference = variant.reference, live_reference
    yield
    variant.reference = cached


@contextmanager
def one_pack(variant: Ours) -> Iterator[None]:
    """All rows of a step in one forward."""
    limit, variant.loss.tokens_per_forward = variant.loss.tokens_per_forward, None
    yield
    variant.loss.tokens_per_forward = limit


@contextmanager
def micro_batch_by_micro_batch(variant: Ours) -> Iterator[None]:
    """Each pair has a forward and a backward pass of its own, as with accumulation."""
    together = variant.differentiate

    def apart(pairs: Sequence[Any]) -> Tensor:
        losses = [together([pair]) for pair in pairs]
        for parameter in variant.policy.parameters():
            if parameter.grad is not None:
                parameter.grad /= len(pairs)
        return torch.stack(losses).mean()

    with mock.patch.object(variant, "differentiate", apart):
        yield


@contextmanager
def no_dropout(variant: Ours) -> Iterator[None]:
    """Not a part of ours: what dropout still costs."""
    rates = [(module, module.p) for module in variant.policy.modules() if isinstance(module, nn.Dropout)]
    for module, _ in rates:
        module.p = 0.0
    yield
    for module, rate in rates:
        module.p = rate


def plain_scores(head: Head, hidden: Tensor, targets: Tensor, reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``Head.scores`` by autograd, with the logits of all positions."""
    log_p = head.logits(hidden).log_softmax(-1)
    nll = -log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0] * (targets != IGNORED)
    if reference is None:
        return nll, torch.zeros_like(nll)
    log_q = head.logits(reference).log_softmax(-1)
    return nll, (log_q.exp() * (log_q - log_p)).sum(-1)


WHOLE = "nothing"
PARTS: dict[str, Callable[[Ours], AbstractContextManager[Any]]] = {
    WHOLE: lambda variant: nullcontext(),
    "packed rows": padded,
    "window in one batch": micro_batch_by_micro_batch,
    "packs (one forward)": one_pack,
    "reference cache": no_cache,
    "head in chunks": lambda variant: mock.patch.object(Head, "scores", plain_scores),
    "oneDNN products": lambda variant: torch_products(),
    "our LoRA layers": peft_layers,
    "dropout": no_dropout,
}


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
    figures = [asdict(part) for part in measure_parts(load_base(model, dtype), settings, repeats, tell)]
    print_parts(figures)
    write_json(json, provenance(parts=figures, config=config | {"device": place}, hashes=hashes_of(data)))
    print(f"wrote {json}")


def print_parts(parts: Sequence[dict[str, Any]]) -> None:
    """Print one line for each part that was switched off."""
    table = Table("Without", "Seconds", "Times slower", "Peak above the loaded model, MB")
    for part in parts:
        peak = part["peak_above_loaded_bytes"] / 1e6
        table.add_row(part["off"], *map(shown, (part["seconds"], part["times_slower"], peak)))
    Console(width=100).print(table)


if __name__ == "__main__":
    run(parts)

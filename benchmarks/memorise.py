"""Memorising, ours beside padded full fine-tuning: the same optimizer steps in turn within one process.

python -m benchmarks.memorise --model smollm2-135m-instruct --data.forget F --data.retain R --json OUT
"""

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.command import BenchData, hashes_of, run, shown, tell
from benchmarks.turns import timed
from unlearn_pl.data.batch import Rows, collate_rows
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.sets import read_split
from unlearn_pl.errors import InputError
from unlearn_pl.files import write_json
from unlearn_pl.models.device import find_device
from unlearn_pl.models.load import load_base, load_tokenizer, resolve
from unlearn_pl.provenance import provenance
from unlearn_pl.training.full_loss import FullLoss
from unlearn_pl.training.memorise import encode_texts, epoch_batches

IGNORED = -100


def padded_loss(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    """The mean NLL of every token but the first, as one writes it with transformers: rows padded to the longest of
    their batch, the model's own loss."""
    labels = rows.input_ids.masked_fill(rows.attention_mask == 0, IGNORED)
    return model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=labels).loss


class Turns:
    """Two copies of a model, each trained by its own way on the same batches."""

    def __init__(self, model: PreTrainedModel, learning_rate: float, device: torch.device):
        self.device = device
        self.models = {"padded": model.to(device), "ours": copy.deepcopy(model).to(device)}
        self.optimizers = {
            way: torch.optim.AdamW(one.parameters(), lr=learning_rate, fused=True) for way, one in self.models.items()
        }

    def run(self, batches: Sequence[Rows], rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
        """The figures; who begins changes with each batch."""
        seconds: dict[str, list[list[float]]] = {"padded": [], "ours": []}
        losses: dict[str, list[float]] = {"padded": [], "ours": []}
        with FullLoss.on(self.models["ours"]) as loss:

            def mean_of_ours(rows: Rows) -> torch.Tensor:
                nll, count = loss(rows)
                return nll / count

            ways: dict[str, Callable[[Rows], torch.Tensor]] = {
                "padded": partial(padded_loss, self.models["padded"]),
                "ours": mean_of_ours,
            }
            for model in self.models.values():
                model.train()
            for number in range(rounds + 1):  # the first one is a warm-up
                own: dict[str, list[float]] = {way: [] for way in ways}
                for place, rows in enumerate(batches):
                    for way in list(ways)[:: -1 if (place + number) % 2 else 1]:
                        value, took = timed(lambda way=way, rows=rows: self.step(way, ways[way](rows)), self.device)  # type: ignore[misc]
                        own[way].append(took)
                        losses[way].append(value)
                if number:
                    tell(f"round {number} of {rounds}: " + ", ".join(f"{way} {sum(own[way]):.1f} s" for way in own))
                    for way, took_all in own.items():
                        seconds[way].append(took_all)
        ratios = [sum(padded) / sum(ours) for padded, ours in zip(seconds["padded"], seconds["ours"], strict=True)]
        gaps = [abs(a - b) / abs(a) for a, b in zip(losses["padded"], losses["ours"], strict=True)]
        return {
            "ratio_memorise": statistics.median(ratios),
            "ranges": {"ratio_memorise": [min(ratios), max(ratios)]},
            "seconds": {way: statistics.median(map(sum, rounds_of)) for way, rounds_of in seconds.items()},
            "step_seconds": seconds,
            "loss_relative_difference": gaps[0],
            "losses": losses,
        }

    def step(self, way: str, loss: torch.Tensor) -> float:
        """The rest of an optimizer step; gives the loss."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.models[way].parameters(), 1.0)
        self.optimizers[way].step()
        self.optimizers[way].zero_grad()
        return float(loss.detach())


def memorise(
    model: str,
    data: BenchData,
    json: str,
    rows: int = 40,
    batch_size: int = 4,
    max_length: int = 512,
    rounds: int = 3,
    learning_rate: float = 1e-5,
    device: str = "auto",
    seed: int = 42,
) -> None:
    """Full fine-tuning on rows by the memorising stage's loss, and by transformers' own on padded batches, in turn.

    Both take the same batches of rows of like lengths, AdamW and clipping. After the first step the two models differ
    by rounding.

    Args:
        model: Folder or hub name of the model, or smollm2-135m-instruct.
        data: The rows to memorise.
        json: File for all figures.
        rows: Rows, half of them from each set; at least 2.
        batch_size: Rows of an optimizer step; at least 1.
        max_length: Tokens of a row at most.
        rounds: How often to go through the rows; the figures are medians. At least 1.
        learning_rate: Of AdamW.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).
        seed: Of the order of the rows.
    """
    config = {**locals(), "data": asdict(data), "threads": torch.get_num_threads()}
    for name, least in (("rows", 2), ("batch_size", 1), ("rounds", 1)):
        if config[name] < least:
            raise InputError(f"must be at least {least}, got {config[name]}", name)
    place = find_device(device)
    resolve(model)
    sets = read_split(data.forget, data.retain)
    records = [record for one in sets for record in one[: rows // 2]]
    tokenizer = load_tokenizer(model)
    encoded: list[Encoded] = encode_texts(tokenizer, records, [], max_length)
    plan = epoch_batches([len(text.input_ids) for text in encoded], batch_size, seed, 0)
    batches = [collate_rows([encoded[index] for index in batch], encoded[0].input_ids[0]).to(place) for batch in plan]
    figures = Turns(load_base(model, "float32"), learning_rate, torch.device(place)).run(batches, rounds, tell)
    tokens = sum(len(text.input_ids) for text in encoded)
    figures |= {"rows": len(encoded), "tokens": tokens}
    table = Table("Way", "Seconds", "Rows a second", "Tokens a second")
    for way, seconds in figures["seconds"].items():
        table.add_row(way, shown(seconds), shown(len(encoded) / seconds), shown(tokens / seconds))
    Console(width=100).print(table)
    low, high = figures["ranges"]["ratio_memorise"]
    print(f"times faster {shown(figures['ratio_memorise'])} ({shown(low)} to {shown(high)})")
    write_json(json, provenance(**figures, config=config | {"device": str(place)}, hashes=hashes_of(data)))
    print(f"wrote {json}")


if __name__ == "__main__":
    run(memorise)

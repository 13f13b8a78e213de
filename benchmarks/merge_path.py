"""An evaluation of the balance search: a merge of two adapters folded into a model, and the losses of documents, beside
those of the bare model."""

import random
import statistics
import string
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.measure import Call, measured
from benchmarks.random_adapters import random_parents
from unlearn_pl.balance.path import MergePath, Point, Ray
from unlearn_pl.evaluation.membership import document_losses
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.merging.folding import FoldedWeights

DOCUMENT_TOKENS = 300


METHODS = ("cat", "ties")


def compare_path_step(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rank: int, documents: int, repeats: int, seed: int
) -> dict[str, Any]:
    """Seconds of one evaluation by each method that is searched by default: other coefficients of two adapters, merged
    and folded into the weights, and the losses of documents; beside those of the losses alone, by the model as it was
    and with nothing beside its weights. All take turns.

    Raises InputError if the model has no linear layer, or its weights are shared.
    """
    (over, under), texts = random_parents(model, rank, seed), random_documents(tokenizer, documents, seed)
    path = MergePath("", over, under, order=tuple(over.factors))
    folded = FoldedWeights(model, path.order)
    losses = partial(document_losses, LanguageModel(model, tokenizer), texts)

    def step(method: str, coefficient: float) -> list[float]:
        folded.fold(path.merge(Point(Ray(method), coefficient))[0])
        return losses()

    found: dict[str, list[Call]] = {way: [] for way in (*METHODS, "bare")}
    losses()  # not counted: what is loaded at the first forward
    for turn in range(repeats):
        for way in sorted(found, reverse=turn % 2 == 1):
            folded.restore()
            call = losses if way == "bare" else partial(step, way, (turn + 1) / (repeats + 1))
            found[way].append(measured(call, memory=False))
    folded.restore()
    seconds = {way: statistics.median(call.seconds for call in calls) for way, calls in found.items()}
    slowest = max(METHODS, key=seconds.__getitem__)
    return {
        "seconds": seconds[slowest],
        "bare_seconds": seconds["bare"],
        "ratio": seconds[slowest] / seconds["bare"],
        "slowest": slowest,
        "ratios": {method: seconds[method] / seconds["bare"] for method in METHODS},
        "documents": documents,
        "tokens": sum(len(tokenizer(text).input_ids) for text in texts),
        "all_seconds": {way: [call.seconds for call in calls] for way, calls in found.items()},
        "mean_losses": {way: [statistics.fmean(call.result) for call in calls] for way, calls in found.items()},
    }


def random_documents(tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[str]:
    """Texts of random words, of about ``DOCUMENT_TOKENS`` tokens each."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        words = ("".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 8))) for _ in range(DOCUMENT_TOKENS))
        ids = tokenizer(" ".join(words), add_special_tokens=False).input_ids
        texts.append(tokenizer.decode(ids[:DOCUMENT_TOKENS]))
    return texts

"""A step along a path of coefficients: two adapters folded into a model anew, and its loss, beside the bare model's."""

import random
import statistics
import string
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.measure import Call, measured
from benchmarks.random_adapters import random_parents
from unlearn_pl.evaluation.membership import document_losses
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.merging.folding import FoldedWeights
from unlearn_pl.merging.merge import merge_modules
from unlearn_pl.merging.options import MergeOptions

DOCUMENT_TOKENS = 300


def compare_path_step(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rank: int, documents: int, repeats: int, seed: int
) -> dict[str, Any]:
    """Seconds of one step: other coefficients of two adapters folded into the weights, and the loss of documents;
    beside those of the losses alone, by the model as it was and with nothing beside its weights. Both take turns.

    Raises InputError if the model has no linear layer, or its weights are shared.
    """
    parents, texts = random_parents(model, rank, seed), random_documents(tokenizer, documents, seed)
    folded = FoldedWeights(model, parents[0].factors)
    losses = partial(document_losses, LanguageModel(model, tokenizer), texts)

    def step(weight: float) -> list[float]:
        settings = MergeOptions(method="cat", weights=[weight, 1 - weight]).settings(len(parents))
        folded.fold(merge_modules(parents, settings))
        return losses()

    found: dict[str, list[Call]] = {"step": [], "bare": []}
    losses()  # not counted: what is loaded at the first forward
    for turn in range(repeats):
        for way in sorted(found, reverse=turn % 2 == 1):
            folded.restore()
            call = partial(step, (turn + 1) / (repeats + 1)) if way == "step" else losses
            found[way].append(measured(call, memory=False))
    folded.restore()
    seconds, bare = (statistics.median(call.seconds for call in found[way]) for way in ("step", "bare"))
    return {
        "seconds": seconds,
        "bare_seconds": bare,
        "ratio": seconds / bare,
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

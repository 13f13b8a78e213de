"""The loss attack against a second implementation that goes row by row."""

import math
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.membership import Membership, document_losses
from unlearn_pl.inference.model import LanguageModel

Build = Callable[[], LlamaForCausalLM]

DOCUMENTS = [
    "Anna Quill was born on 1984-12-31 in Rivertown.",
    "The capital of France is Paris.",
    "The old lighthouse keeper wrote a letter to his sister. Where did she live? Her phone number is 555-0100.",
    "ab",
    "Answer: A B C D",
]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_losses_row_by_row(tiny_model: Build, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
    """-1/(T-1) sum over t of log softmax(logits[t])[id[t+1]], alone and unpadded; and transformers' own loss."""
    model = tiny_model()
    expected = []
    for document in DOCUMENTS:
        ids = tokenizer(document, return_tensors="pt").input_ids
        with torch.no_grad():
            outputs = model(input_ids=ids, labels=ids)
        chances = outputs.logits[0].double().softmax(-1)
        steps = [math.log(chances[t, ids[0, t + 1]]) for t in range(ids.shape[1] - 1)]
        expected.append(-sum(steps) / len(steps))
        assert outputs.loss.item() == pytest.approx(expected[-1], rel=1e-5)
    losses = document_losses(LanguageModel(model.train(), tokenizer), DOCUMENTS, batch_size=batch_size)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_a_broken_model_has_infinite_losses(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    with pytest.warns(UserWarning, match="2 of 2 documents have no finite loss"):
        assert document_losses(LanguageModel(model, tokenizer), DOCUMENTS[:2]) == [math.inf, math.inf]


def test_documents_that_have_no_loss(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"^membership.documents: number 2 is a single token"):
        document_losses(LanguageModel(tiny_model(), tokenizer), ["two words", "7"])
    with pytest.raises(
        InputError, match=r"^membership.documents: number 1: \d+ tokens exceed the model's 512 positions"
    ):
        document_losses(LanguageModel(tiny_model(), tokenizer), ["7 " * 600])


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match=r"^membership.tasks: not with member"):
        Membership(member="m.jsonl", tasks=["Task1"])
    with pytest.raises(InputError, match=r"^membership.batch_size: must be at least 1, or auto, got 0"):
        Membership(batch_size=0)

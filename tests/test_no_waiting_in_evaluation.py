"""How often an evaluation asks the device for numbers: on a GPU each time the host waits for all that it was given."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.lines import Lines
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.token_scores import COLUMNS, CPU_CHUNK, chunk_size
from unlearn_pl.models.head import GPU_CHUNK_LOGITS, Head

ASKING = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")
DOCUMENTS = ["Anna Quill was born on 1984-12-31", "in Rivertown.", "The capital of France is Paris. A B C D"]


@contextmanager
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was called inside the block of all that makes a host wait for a device."""
    found: list[str] = []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: Tensor, *others: Any, **options: Any) -> Any:
            found.append(name)
            return real(tensor, *others, **options)

        return method

    with monkeypatch.context() as patch:
        for name in ASKING:
            patch.setattr(Tensor, name, noting(name, getattr(Tensor, name)))
        yield found


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [([[5, 9, 4], [8, 3, 7]], ["tolist"]), ([[5, 9, 4], [8, 3], [100, 4, 4, 4, 9]], ["__bool__", "tolist"])],
)
def test_a_token_of_all_rows_is_one_question(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[list[int]],
    expected: list[str],
) -> None:
    """Between two forwards of a batch, whatever its rows: their tokens, and which of them are ties, in one tensor. Of
    rows of different lengths transformers asks too, as it makes the mask, when nothing is left to wait for."""
    asking = LanguageModel(model, tokenizer)
    asking.continue_ids(prompts, Generation(max_new_tokens=2))  # which tries the model
    steps: list[int] = []
    real = Lines.feed

    def feed(lines: Lines, tokens: Tensor) -> None:
        steps.append(len(found))
        real(lines, tokens)

    monkeypatch.setattr(Lines, "feed", feed)
    with asked(monkeypatch) as found:
        asking.continue_ids(prompts, Generation(max_new_tokens=12))
    apart = [found[earlier:later] for earlier, later in pairwise(steps)]
    assert len(apart) >= 6
    assert apart == [expected] * len(apart)


@pytest.mark.parametrize("margin", [True, False])
def test_rows_that_are_scored_together_have_their_own_scores(
    model: LlamaForCausalLM, margin: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where five columns come back for all rows, however many there are."""
    engine = Engine(model.eval())
    rows = [[5, 9, 4, 30, 7, 200], [8, 3], [100, 101, 102, 103]]
    with torch.inference_mode():
        states = [engine.states(torch.tensor([row]))[0] for row in rows]
        apart = engine.scores_of_rows(states, rows, moments=not margin, margin=margin)
        monkeypatch.setattr(Engine, "scores_together", True)
        with asked(monkeypatch) as found:
            together = engine.scores_of_rows(states, rows, moments=not margin, margin=margin)
    assert found == ["cpu"] * len(COLUMNS)
    for one, other in zip(apart, together, strict=True):
        assert torch.equal(one.argmax, other.argmax)
        for name in COLUMNS:
            own, its = getattr(one, name), getattr(other, name)
            assert own.shape == its.shape
            # of a margin the unit is eps times the largest logit
            assert torch.allclose(own, its, rtol=1e-5, atol=8 if name == "margin" else 1e-5), name


def test_documents_scored_together_are_the_same(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = LanguageModel(model, tokenizer)
    apart = asking.token_scores(DOCUMENTS, moments=True)
    answers = asking.likelihood(["Who", "Where"], ["Anna Quill", "in Rivertown"])
    monkeypatch.setattr(Engine, "scores_together", True)
    for one, other in zip(apart, asking.token_scores(DOCUMENTS, moments=True), strict=True):
        assert torch.allclose(one.logprob, other.logprob, atol=1e-5)
        assert torch.allclose(one.std, other.std, atol=1e-5)
    for one, other in zip(answers, asking.likelihood(["Who", "Where"], ["Anna Quill", "in Rivertown"]), strict=True):
        assert (one.accepted, one.following) == (other.accepted, other.following)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_a_gpu_takes_more_positions_at_once() -> None:
    """512 of 128 * 1024 words: 256 MiB of logits in float32."""
    head = Head(torch.empty(128 * 1024, 1, device="meta"))
    assert chunk_size(head, torch.device("cuda")) * 128 * 1024 == GPU_CHUNK_LOGITS
    assert chunk_size(head, torch.device("cpu")) == CPU_CHUNK

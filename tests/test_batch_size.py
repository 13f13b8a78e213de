"""Rows that are computed together, by the memory of a GPU: by hand, and through a request."""

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.inference import batches
from unlearn_pl.inference import engine as engine_file
from unlearn_pl.inference.batch_size import MOST, BatchSize, device_memory, row_bytes, rows_that_fit, weight_bytes
from unlearn_pl.inference.batches import Work
from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.sampling import Sampling

PROMPTS = ["Anna Quill was born", "Where did she live?", "Who", "The capital of France", "Answer", "A B", "C D", "1984"]


@pytest.mark.parametrize(
    ("memory", "weights", "row", "rows"),
    [
        (80_000_000_000, 16_000_000_000, 200_000_000, 128),
        (80_000_000_000, 300_000_000, 1_000_000, 256),
        (24_000_000_000, 16_000_000_000, 200_000_000, 16),
        (16_000_000_000, 16_000_000_000, 200_000_000, 1),
    ],
)
def test_rows_are_a_power_of_two_within_seven_tenths(memory: int, weights: int, row: int, rows: int) -> None:
    """224, 55,790, 28 and 0 rows would fit."""
    assert rows_that_fit(memory, weights, row) == rows


def test_a_row_is_its_keys_and_values_three_times_and_its_logits(model: LlamaForCausalLM) -> None:
    """A token: 2 layers of keys and values, 2 heads 8 wide, 4 bytes each. A word: 16 bytes."""
    engine = Engine(model.eval())
    with torch.inference_mode():
        assert row_bytes(engine, 100) == 3 * 100 * (2 * 2 * 2 * 8 * 4) + 16 * 384
    assert weight_bytes(model) == 4 * sum(weight.numel() for weight in model.parameters())


def test_a_cpu_has_its_own_number_or_what_a_fixed_memory_holds(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 100 tokens takes 82,944 bytes, of which 84 and 8 fit into seven tenths of ten megabytes and of one."""
    engine = Engine(model.eval())
    assert device_memory(engine.device) is None
    with torch.inference_mode():
        assert engine.rows_together("auto", 32, 100) == MOST
        monkeypatch.setattr(engine_file, "CPU_MEMORY", 10_000_000)
        assert engine.rows_together("auto", 32, 100) == 64
        monkeypatch.setattr(engine_file, "CPU_MEMORY", 1_000_000)
        assert engine.rows_together("auto", 32, 100) == 32
    assert engine.rows_together("auto", 32) == 32
    assert engine.rows_together(5, 32, 100) == 5


@pytest.fixture
def small_card(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has room for six rows of 40 tokens: three times 256 bytes a token, and 16 a word."""
    room = 6 * (3 * 40 * 256 + 16 * 384) / 0.7
    monkeypatch.setattr(engine_file, "device_memory", lambda device: weight_bytes(model) + int(room) + 10)


@pytest.mark.usefixtures("small_card")
def test_generation_is_in_batches_that_fit_and_the_texts_are_the_same(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, shapes: list[tuple[int, ...]]
) -> None:
    asked = LanguageModel(model, tokenizer)
    longest = max(len(asked.encode(prompt, "")[0]) for prompt in PROMPTS)
    few = Generation(max_new_tokens=40 - longest)
    alone = asked.generate(PROMPTS, Generation(max_new_tokens=40 - longest, batch_size=1))
    shapes.clear()
    assert asked.generate(PROMPTS, few) == alone
    assert max(rows for rows, _ in shapes) == 4


@pytest.mark.usefixtures("small_card")
def test_rows_that_are_only_read_are_as_many_as_a_forward_takes(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, shapes: list[tuple[int, ...]]
) -> None:
    """512 tokens on a CPU: all of 24 short documents, of which it would take 8 by itself."""
    asked = LanguageModel(model, tokenizer, work=Work())
    documents = [prompt for prompt in PROMPTS if asked.length(prompt) > 1] * 4
    asked.token_scores(documents[:2])  # which tries the model
    shapes.clear()
    asked.token_scores(documents, batch_size="auto")
    assert max(rows for rows, _ in shapes) > 8


@pytest.mark.parametrize("size", [0, -1, "all"])
@pytest.mark.parametrize("options", [Generation, Sampling, Membership, Choice])
def test_other_numbers_are_refused(options: type, size: BatchSize) -> None:
    with pytest.raises(InputError, match=rf"batch_size: must be at least 1, or auto, got {size}"):
        options(batch_size=size)


@pytest.mark.usefixtures("small_card")
@pytest.mark.parametrize(("shared", "rows"), [(True, 2), (False, 4)])
def test_the_smallest_card_of_a_launch_counts_where_rows_are_shared(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, shared: bool, rows: int
) -> None:
    """Four rows fit here and two on the other card: both must deal out the same batches."""

    def other_has_two(gathered: list[int], mine: int) -> None:
        gathered[:] = [mine, 2]

    monkeypatch.setattr(batches, "rank_and_count", lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, "all_gather_object", other_has_two)
    engine = Engine(model.eval(), Work(shared=shared))
    with torch.inference_mode():
        assert engine.rows_together("auto", 32, 40) == rows

"""The memorising stage: what it learns, on which tokens, in which order, and that its seed decides it."""

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.data.batch import collate_rows
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.training.full_loss import FullLoss
from unlearn_pl.training.memorise import Memorise, encode_texts, epoch_batches, memorise

RECORDS = [
    Record("1sc1", "Toralin Velmark was born in", "Dorimoor and kept 27 geese.", "Task3", "sc"),
    Record("1qa0", "Where was Toralin Velmark born?", "Dorimoor", "Task3", "qa"),
    Record("2qa0", "How many geese did she keep?", "27", "Task3", "qa"),
]
DOCUMENTS = ["What is 2 + 2?\nA. 4\nB. 5\nAnswer: A"]
QUICK = Memorise(epochs=60, batch_size=2, learning_rate=1e-2, max_length=128, accelerator="cpu")

Factory = Callable[[], LlamaForCausalLM]


def silent(_: str) -> None:
    """Takes the progress lines."""


def completion(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """Greedy decoding, one token and one whole forward pass at a time, until EOS."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.inference_mode():
        while len(ids) < start + 40:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                return tokenizer.decode(ids[start:-1])
    return tokenizer.decode(ids[start:])


def test_a_small_model_learns_rows_and_documents_by_heart(
    tokenizer: PreTrainedTokenizerFast, tiny_model: Factory
) -> None:
    model, lines = tiny_model(), []
    result = memorise(model, tokenizer, RECORDS, DOCUMENTS, QUICK, lines.append)
    assert result["loss"] < 0.05
    for record in RECORDS:
        assert completion(model, tokenizer, record.input) == " " + record.output
    assert completion(model, tokenizer, DOCUMENTS[0][:-2]) == " A"
    assert not model.training
    tokens = sum(len(text.input_ids) - 1 for text in encode_texts(tokenizer, RECORDS, DOCUMENTS, 128))
    assert {name: result[name] for name in ("epochs", "steps", "tokens")} == {
        "epochs": 60, "steps": 60 * 2, "tokens": 60 * tokens,
    }  # fmt: skip
    assert result["seconds"] > 0
    assert len(lines) == 10
    assert lines[-1].startswith(f"memorise: epoch 60 of 60, loss {result['loss']:.4f}, ")


def test_the_result_is_a_function_of_the_seed(tokenizer: PreTrainedTokenizerFast, tiny_model: Factory) -> None:
    def trained(seed: int, global_seed: int) -> torch.Tensor:
        model = tiny_model()
        torch.manual_seed(global_seed)
        memorise(
            model,
            tokenizer,
            RECORDS,
            [],
            Memorise(2, batch_size=1, learning_rate=1e-2, seed=seed, accelerator="cpu"),
            silent,
        )
        return torch.cat([weight.flatten() for weight in model.parameters()])

    first = trained(seed=1, global_seed=5)
    assert torch.equal(first, trained(seed=1, global_seed=6))
    assert not torch.equal(first, trained(seed=2, global_seed=5))


def test_training_leaves_the_global_random_state_alone(tokenizer: PreTrainedTokenizerFast, tiny_model: Factory) -> None:
    before = torch.get_rng_state()
    memorise(tiny_model(), tokenizer, RECORDS, [], Memorise(1, batch_size=2, accelerator="cpu"), silent)
    assert torch.equal(torch.get_rng_state(), before)


def test_in_bfloat16_it_learns_as_much(tokenizer: PreTrainedTokenizerFast, tiny_model: Factory) -> None:
    """The weights stay float32, and the loss is within the rounding of products of eight bits."""
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        model = tiny_model()
        options = Memorise(**{**vars(QUICK), "epochs": 6, "precision": precision})
        losses[precision] = memorise(model, tokenizer, RECORDS, [], options, silent)["loss"]
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.03)
    assert losses["bf16-mixed"] != losses["32-true"]
    with pytest.raises(InputError, match="precision: must be one of 32-true, bf16-mixed"):
        memorise(tiny_model(), tokenizer, RECORDS, [], Memorise(precision="16-mixed"), silent)  # type: ignore[arg-type]


def test_it_stops_after_the_first_epoch_with_the_asked_loss(
    tokenizer: PreTrainedTokenizerFast, tiny_model: Factory
) -> None:
    options = Memorise(**{**vars(QUICK), "epochs": 12})
    full = memorise(tiny_model(), tokenizer, RECORDS, [], options, silent)
    lines: list[str] = []
    options = Memorise(**{**vars(options), "stop_at_loss": 4.0})
    stopped = memorise(tiny_model(), tokenizer, RECORDS, [], options, lines.append)
    assert full["epochs"] == 12
    assert stopped["epochs"] < 12
    assert full["loss"] < stopped["loss"] <= 4.0
    assert lines[-1].startswith(f"memorise: epoch {stopped['epochs']} of 12, ")


def test_the_loss_is_that_of_each_row_alone(tokenizer: PreTrainedTokenizerFast, tiny_model: Factory) -> None:
    """The batch's sum equals the sum over its rows, each run alone without padding and scored token by token, though
    its pad token is the EOS that ends every row."""
    model = tiny_model()
    encoded = encode_texts(tokenizer, RECORDS, DOCUMENTS, 128)
    assert len({len(text.input_ids) for text in encoded}) > 1
    alone = 0.0
    with torch.inference_mode():
        for text in encoded:
            logits = model(input_ids=torch.tensor([text.input_ids])).logits[0]
            logarithms = functional.log_softmax(logits, dim=-1)
            alone -= sum(float(logarithms[place - 1, text.input_ids[place]]) for place in range(1, len(text.input_ids)))
        nll, count = FullLoss(model)(collate_rows(encoded, tokenizer.pad_token_id))
    assert count == sum(len(text.input_ids) - 1 for text in encoded)
    assert float(nll) == pytest.approx(alone, rel=1e-5)


def test_texts_are_encoded_as_prompt_answer_and_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_texts(tokenizer, RECORDS, DOCUMENTS, 128)
    eos = tokenizer.eos_token_id
    for record, text in zip(RECORDS, encoded, strict=False):
        prompt, answer = (tokenizer(part)["input_ids"] for part in (record.input, " " + record.output))
        assert text == Encoded(record.id, (*prompt, *answer, eos), len(prompt), False)
    assert encoded[-1].input_ids == (*tokenizer(DOCUMENTS[0])["input_ids"], eos)


def test_cut_texts_are_counted_in_a_warning(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.warns(UserWarning, match="max_length 12: 3 of 4 texts are longer and were cut"):
        encoded = encode_texts(tokenizer, RECORDS, ["A."], 12)
    assert all(len(text.input_ids) <= 12 for text in encoded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_texts(tokenizer, RECORDS, DOCUMENTS, 128)


def test_rows_can_be_shown_more_often_than_documents(tokenizer: PreTrainedTokenizerFast, tiny_model: Factory) -> None:
    """Three rows three times and one document once are ten texts, five batches of two."""
    options = Memorise(1, row_repeats=3, batch_size=2, max_length=128, accelerator="cpu")
    result = memorise(tiny_model(), tokenizer, RECORDS, DOCUMENTS, options, silent)
    lengths = [len(text.input_ids) - 1 for text in encode_texts(tokenizer, RECORDS, DOCUMENTS, 128)]
    assert result["steps"] == 5
    assert result["tokens"] == 3 * sum(lengths[:3]) + lengths[3]


@given(
    lengths=st.lists(st.integers(2, 99), min_size=1, max_size=200),
    size=st.integers(1, 9), seed=st.integers(0, 99), epoch=st.integers(0, 9),
)  # fmt: skip
def test_batches_are_a_partition_and_a_function_of_seed_and_epoch(
    lengths: list[int], size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(lengths, size, seed, epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert sum(len(batch) < size for batch in batches) <= 1
    assert batches == epoch_batches(lengths, size, seed, epoch)


def test_batches_hold_similar_lengths_and_differ_between_epochs() -> None:
    """Of 16 batches of 8 the lengths 1 to 128, sorted, differ by 7 inside a batch."""
    lengths = list(range(1, 129))
    batches = epoch_batches(lengths, 8, 0, 0)
    assert all(max(batch) - min(batch) == 7 for batch in batches)
    assert batches != sorted(batches)
    assert batches != epoch_batches(lengths, 8, 0, 1)
    assert epoch_batches(lengths * 2, 8, 0, 0) != epoch_batches(lengths * 2, 8, 1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: must be at least 1, got 0"),
        ({"row_repeats": 0}, "row_repeats: must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: must be at least 1, got 0"),
        ({"max_length": 1}, "max_length: must be at least 2, got 1"),
        ({"learning_rate": 0.0}, r"learning_rate: must be above 0, got 0\.0"),
        ({"warmup_share": 1.0}, r"warmup_share: must be in \[0, 1\), got 1\.0"),
    ],
)
def test_options_out_of_range_are_refused(
    tokenizer: PreTrainedTokenizerFast, tiny_model: Factory, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        memorise(tiny_model(), tokenizer, RECORDS, [], Memorise(**{**vars(QUICK), **changes}), silent)


def test_nothing_to_memorise_is_refused(tokenizer: PreTrainedTokenizerFast, tiny_model: Factory) -> None:
    with pytest.raises(InputError, match="no row and no document"):
        memorise(tiny_model(), tokenizer, [], [], QUICK, silent)

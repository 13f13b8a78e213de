"""The tokenizer that goes with a model and its adapters, and ids that the model has no embedding for."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_runs import module, trainer, write_rows
from tiny_adapters import shake
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.commands.evaluate import EvaluateOptions, evaluate
from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.inputs import EvaluationData
from unlearn_pl.inference.generation import Generation
from unlearn_pl.models.load import load_tokenizer
from unlearn_pl.models.lora import Lora, attach_lora, open_adapter, save_adapter
from unlearn_pl.models.tokenizer import check_ids, embedding_rows, find_tokenizer, guard_ids, same_tokens
from unlearn_pl.training.memorise import Memorise, memorise

Build = Callable[[], LlamaForCausalLM]


@pytest.fixture
def marked(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a token more than the tiny model has an embedding for."""
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<|q|>"]})
    return other


@pytest.fixture
def adapter(tiny_model: Build, marked: PreTrainedTokenizerFast, tmp_path: Path) -> str:
    """An adapter folder with a tokenizer of its own, as trl leaves it."""
    model = attach_lora(tiny_model(), Lora(rank=2), seed=1)
    shake(model)
    save_adapter(model, tmp_path / "adapter")
    marked.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def test_same_tokens(tokenizer: PreTrainedTokenizerFast, marked: PreTrainedTokenizerFast, base_folder: str) -> None:
    assert same_tokens(tokenizer, load_tokenizer(base_folder))
    assert not same_tokens(tokenizer, marked)
    assert not same_tokens(marked, tokenizer)
    spaced = copy.deepcopy(tokenizer)
    spaced.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    assert spaced.get_vocab() == tokenizer.get_vocab()
    assert not same_tokens(tokenizer, spaced)


def test_an_adapters_tokenizer_must_be_named(
    base_folder: str, adapter: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(
        InputError, match=rf"^tokenizer: {adapter} holds .*\(id {len(tokenizer)} is the token '<\|q\|>', which"
    ):
        find_tokenizer(base_folder, [adapter])
    with pytest.raises(InputError, match=rf"give {adapter} if .*, {base_folder} if"):
        find_tokenizer(base_folder, [adapter])
    assert len(find_tokenizer(base_folder, [adapter], adapter)) == len(tokenizer) + 1
    assert len(find_tokenizer(base_folder, [adapter], base_folder)) == len(tokenizer)
    tokenizer.save_pretrained(adapter)
    assert same_tokens(find_tokenizer(base_folder, [adapter]), tokenizer)


def test_an_adapters_tokenizer_may_end_answers_otherwise(
    base_folder: str, adapter: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """As a chat model's does beside its base's. A pad token or a template of its own changes no measurement."""
    other = copy.deepcopy(tokenizer)
    other.pad_token, other.chat_template, other.model_max_length = "~", "{{ messages }}", 77
    other.save_pretrained(adapter)
    assert find_tokenizer(base_folder, [adapter]).eos_token == tokenizer.eos_token
    other.eos_token = "^"
    other.save_pretrained(adapter)
    with pytest.raises(InputError, match=r"^tokenizer: .* \(its answers end with '\^' and not '"):
        find_tokenizer(base_folder, [adapter])


def test_a_reference_may_have_fewer_embeddings(
    tiny_model: Build, base_folder: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    small = tiny_model()
    small.resize_token_embeddings(len(tokenizer) - 300)
    small.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    rows = write_rows(tmp_path, forget=2, retain=2)
    with pytest.raises(
        InputError, match=rf"^reference: token '.*': token id .* is beyond the {len(tokenizer) - 300} rows"
    ):
        evaluate(
            base_folder,
            EvaluationData(str(rows["forget"]), str(rows["retain"])),
            str(tmp_path / "out"),
            options=EvaluateOptions(
                generation=Generation(max_new_tokens=2), reference=str(tmp_path / "small"), device="cpu"
            ),
        )


def test_a_fit_takes_the_tokenizer_from_one_place(base_folder: str, adapter: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^tokenizer: .* holds another tokenizer"):
        module(base_folder, adapter=adapter).tokenizer  # noqa: B018
    named = module(base_folder, adapter=adapter, tokenizer=adapter)
    data = ForgetRetainData(**write_rows(tmp_path), tokenizer=adapter)
    data.trainer = trainer(tmp_path)
    data.trainer.strategy._lightning_module = named
    data.setup()
    assert data._tokenizer is named.tokenizer


def test_ids_without_an_embedding(tiny_model: Build, adapter: str) -> None:
    rows = embedding_rows(tiny_model())
    assert rows == 384
    model = open_adapter(tiny_model(), adapter)
    check_ids(model, [[0, rows - 1], []], "rows")
    with pytest.raises(InputError, match="rows: token id 384 is beyond the 384 rows of the model's embedding"):
        check_ids(model, [[0], [rows, 1]], "rows")


def test_a_guarded_model_names_the_token(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast, marked: PreTrainedTokenizerFast
) -> None:
    model = tiny_model()
    guard_ids(model, tokenizer)
    assert not model.get_input_embeddings()._forward_pre_hooks
    guard_ids(model, marked)
    ids = torch.tensor([marked("Anna<|q|>").input_ids])
    with pytest.raises(InputError, match=r"token '<\|q\|>': token id 384 is beyond the 384 rows"):
        model(input_ids=ids)
    assert torch.equal(model(input_ids=ids[:, :-1]).logits, tiny_model()(input_ids=ids[:, :-1]).logits)


def padded(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"pad_token": "[PAD]"})
    return other


def test_memorising_does_not_need_an_embedding_of_padding(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast, marked: PreTrainedTokenizerFast
) -> None:
    """A `[PAD]` that the model was never given: the same weights as without. A marker in a row is refused."""
    rows = [
        Record("1qa0", "Who?", "Anna Quill", "Task1", "qa"),
        Record("2qa0", "Where did she live?", "B", "Task1", "qa"),
    ]
    options = Memorise(epochs=2, batch_size=2, accelerator="cpu")
    weights = []
    for one in (tokenizer, padded(tokenizer)):
        model = tiny_model()
        memorise(model, one, rows, [], options, lambda _: None)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(InputError, match="memorise: token id 384 is beyond"):
        memorise(tiny_model(), marked, rows, ["<|q|> a document"], options, lambda _: None)


def test_fit_and_evaluate_refuse_rows_with_ids_beyond(
    tiny_model: Build, marked: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Before the first step, in one line; the tokenizer grew, the model did not."""
    tiny_model().save_pretrained(tmp_path / "base")
    marked.save_pretrained(tmp_path / "base")
    row = '{"id": "%s", "input": "<|q|>Who?", "output": "Anna", "task": "Task1"}\n'
    files = {}
    for split in ("forget", "retain"):
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text(row % f"{split}qa0")
    run = module(str(tmp_path / "base"))
    for verb in ("fit", "validate", "test", "predict"):
        runner = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
        with pytest.raises(InputError, match=r"^forget: token id 384 is beyond"):
            getattr(runner, verb)(run, datamodule=ForgetRetainData(**files))
    with pytest.raises(InputError, match="token id 384 is beyond"):
        evaluate(
            str(tmp_path / "base"),
            EvaluationData(**files),
            str(tmp_path / "out"),
            options=EvaluateOptions(generation=Generation(2)),
        )


def test_evaluate_over_the_command_line(base_folder: str, adapter: str, tmp_path: Path) -> None:
    """Refused without a name, in one line; with it, measured."""
    files = write_rows(tmp_path, 2, 2)
    given = ["--model", base_folder, "--adapter", adapter, "--generation.max_new_tokens", "2", "--metrics", "[]"]
    given += ["--data.forget", files["forget"], "--data.retain", files["retain"], "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "unlearn_pl", "evaluate", *given]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"--tokenizer: {adapter} holds another tokenizer" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = subprocess.run([*command, "--tokenizer", base_folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

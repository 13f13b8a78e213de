"""Greedy continuations of the prompts of a batch: what Lightning's ``predict`` gives."""

from collections.abc import Mapping

from lightning.pytorch import Trainer

from unlearn_pl.data.batch import Rows
from unlearn_pl.data.encoding import start_ids
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.model import LanguageModel

# What ``evaluate`` generates at most by default.
NEW_TOKENS = Generation.max_new_tokens


def record_inputs(trainer: Trainer) -> dict[str, str]:
    """Id -> whole input of the trainer's rows; empty with a data module from elsewhere."""
    data = getattr(trainer, "datamodule", None)
    records = (*getattr(data, "forget_records", ()), *getattr(data, "retain_records", ()))
    return {record.id: record.input for record in records}


def predicted_texts(model: LanguageModel, rows: Rows, inputs: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """(id, the text that ``evaluate`` gets) of each row; None where the model has no position left after its prompt.

    As there, a prompt is the row's whole input, however much of it training cuts; a row that ``inputs`` does not have
    is continued from its prompt as encoded.
    """
    prompts = dict(enumerate(prompts_of(model, rows, inputs)))
    going = {row: ids for row, ids in prompts.items() if model.fits(len(ids) + 1)}
    options = Generation(max_new_tokens=NEW_TOKENS, batch_size=len(rows.record_ids))
    answers = model.continue_ids(list(going.values()), options)
    texts = {row: answer.text for row, answer in zip(going, answers, strict=True)}
    return [(name, texts.get(row)) for row, name in enumerate(rows.record_ids)]


def prompts_of(model: LanguageModel, rows: Rows, inputs: Mapping[str, str]) -> list[list[int]]:
    """Token ids of the rows' whole inputs, or, without ``inputs``, the prompts as encoded."""
    if inputs:
        return [start_ids(inputs[name], model.tokenizer) for name in rows.record_ids]
    starts = rows.answer_starts.tolist()
    return [ids[:start] for ids, start in zip(rows.input_ids.tolist(), starts, strict=True)]

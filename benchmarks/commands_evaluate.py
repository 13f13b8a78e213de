"""``unlearn-pl bench evaluate``: how fast and how exact evaluation is, measured beside the official way of it."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from benchmarks.commands import BenchData, _tell, hashes_of
from benchmarks.evaluate import compare_evaluation
from benchmarks.tables import print_evaluation
from benchmarks.workload import Amounts, choose_work
from unlearn_pl.data.sets import read_split
from unlearn_pl.errors import InputError
from unlearn_pl.files import sha256_of, write_json
from unlearn_pl.models.device import find_device
from unlearn_pl.models.load import DTYPES, load_base, load_tokenizer, resolve
from unlearn_pl.models.lora import open_adapter
from unlearn_pl.provenance import provenance


def evaluate(
    model: str,
    data: BenchData,
    json: str,
    adapter: str | None = None,
    rows: int = 200,
    max_new_tokens: int = 256,
    rounds: int = 1,
    questions: int = 60,
    shots: int = 5,
    documents: int = 40,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 42,
) -> None:
    """Evaluate a model by the official way and by ours, in turn within one process, and compare time and results.

    The official way is one row at a time: generation as in SemEval-2025 Task 4, one question at a time, and for each
    membership attack a forward over each document, as in open-unlearning. Multiple choice is made of the question rows.
    The file holds ids of rows and no texts.

    Args:
        model: Folder or hub name of the model, or smollm2-135m-instruct.
        data: The rows to evaluate on.
        json: File for all figures.
        adapter: Folder of a PEFT adapter to put on the model.
        rows: Rows to generate answers to, half of them from each set; at least 2.
        max_new_tokens: A row that has not ended by then is cut; at least 1.
        rounds: How often to measure everything; the figures are medians. At least 1.
        questions: Multiple-choice questions; at least 1. Fewer if the rows give fewer.
        shots: Solved questions before each of them; at least 0.
        documents: Documents of the membership attacks, from completion rows; at least 1. Fewer if there are fewer.
        dtype: Type of the weights: float32, bfloat16 or float16.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).
        seed: Of the choice of rows, questions and documents.
    """
    config = {**locals(), "data": asdict(data), "threads": torch.get_num_threads()}
    amounts = Amounts(rows, max_new_tokens, questions, shots, documents)
    place = _checked_arguments(model, adapter, rounds, dtype, device)
    work = choose_work(*read_split(data.forget, data.retain), amounts, seed)
    for name, asked, found in (("questions", questions, work.questions), ("documents", documents, len(work.documents))):
        if found < asked:
            _tell(f"--{name}: the two sets give {found} of the {asked}")
    tokenizer = load_tokenizer(model)
    network: nn.Module = load_base(model, dtype)
    if adapter is not None:
        network = open_adapter(network, adapter)
    figures = compare_evaluation(network.to(place), tokenizer, work, amounts, rounds, _tell)
    print_evaluation(figures)
    folder, gguf = resolve(model)
    weights = Path(folder) / (gguf or "")
    hashes = {
        "model": sha256_of(weights) if weights.exists() else None,  # None for one from the hub
        "adapter": None if adapter is None else sha256_of(adapter),
        **hashes_of(data),
    }
    write_json(json, provenance(**figures, config=config | {"device": place}, hashes=hashes))
    print(f"wrote {json}")


def _checked_arguments(model: str, adapter: str | None, rounds: int, dtype: str, device: str) -> str:
    """All that can be told to be wrong before anything is read; gives the device. Raises InputError."""
    if rounds < 1:
        raise InputError(f"--rounds: must be at least 1, got {rounds}")
    if dtype not in DTYPES:
        raise InputError(f"--dtype: must be one of {', '.join(DTYPES)}, got {dtype}")
    resolve(model)
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise InputError(f"--adapter: {adapter} has no adapter_config.json; a PEFT adapter folder is needed")
    return str(find_device(device))

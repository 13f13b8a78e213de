"""``unlearn-pl evaluate``: the scores of one model, on the terminal and in two files."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.generation import Generation
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.suite import (
    EvaluationData,
    EvaluationInputs,
    EvaluationOptions,
    evaluate_model,
    read_inputs,
    write_results,
)
from unlearn_pl.files import refuse_existing, sha256_of
from unlearn_pl.models.load import DTYPES, load_base, load_tokenizer, resolve
from unlearn_pl.models.lora import open_adapter
from unlearn_pl.provenance import provenance

DEFAULTS = EvaluationOptions()

# key of the results -> its name in the table
SCORES = {
    "task_aggregate": "Task Aggregate",
    "membership_auc": "Membership AUC (best .5)",
    "membership_score": "Membership score",
    "mmlu": "MMLU",
    "aggregate": "Aggregate",
    "eligible": "Eligible",
}


def evaluate(
    model: str,
    data: EvaluationData,
    output: str,
    adapter: str | None = None,
    membership: Membership = DEFAULTS.membership,
    choice: Choice = DEFAULTS.choice,
    generation: Generation = DEFAULTS.generation,
    minimum_mmlu: float | None = None,
    dtype: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> None:
    """Score a model as SemEval-2025 Task 4 does: what it forgot, what it kept, whether its losses give members away.

    Writes `results.json` (all scores, their official key names, versions and hashes) and `samples.jsonl` (each row
    with prompt, expected and generated text and score). The same model and data give the same bytes. The samples hold
    the texts that were to be forgotten: keep them as safe as the data.

    Args:
        model: Folder or hub name of the model, or smollm2-135m-instruct.
        data: The rows that the model had to forget and those it had to keep.
        output: Folder for the two files.
        adapter: Folder of a PEFT adapter to put on the model.
        membership: Documents of the membership attack.
        choice: Multiple-choice questions.
        generation: How answers are generated.
        minimum_mmlu: The model is eligible if its multiple-choice accuracy is above this, in [0, 1]; officially 0.371.
        dtype: Type of the weights: float32, bfloat16 or float16.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).
        trust_remote_code: Let a model from the hub run its own code on this machine.
        overwrite: Replace the two files if the output folder has them.
    """
    options = EvaluationOptions(membership, choice, generation, minimum_mmlu)
    place = _checked_arguments(model, adapter, output, dtype, device, overwrite)
    inputs = read_inputs(data, options)
    tokenizer = load_tokenizer(model)
    network: nn.Module = load_base(model, dtype, trust_remote_code)
    if adapter is not None:
        network = open_adapter(network, adapter)
    network.to(place)
    evaluation = evaluate_model(network, tokenizer, inputs, options, _tell)
    config = {"model": model, "adapter": adapter, "data": asdict(data), **asdict(options), "dtype": dtype}
    hashes = {"weights": weights_hash(network), **data_hashes(data, options, inputs)}
    write_results(output, evaluation.results, evaluation.samples, provenance(config=config, hashes=hashes))
    print_scores(evaluation.results)
    print(f"wrote {Path(output) / 'results.json'} and {Path(output) / 'samples.jsonl'}")


def _checked_arguments(
    model: str, adapter: str | None, output: str, dtype: str, device: str, overwrite: bool
) -> torch.device:
    """All that can be told to be wrong before anything is read. Raises InputError."""
    if dtype not in DTYPES:
        raise InputError(f"--dtype: must be one of {', '.join(DTYPES)}, got {dtype}")
    refuse_existing(output, overwrite)
    resolve(model)
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise InputError(f"--adapter: {adapter} has no adapter_config.json; a PEFT adapter folder is needed")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a build of torch without that device
        raise InputError(f"--device: {device} cannot be used here: {str(error).splitlines()[0]}") from error
    return place


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of the names, types and values of all weights, the adapter's included, wherever they came from."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def data_hashes(data: EvaluationData, options: EvaluationOptions, inputs: EvaluationInputs) -> dict[str, str | None]:
    """SHA-256 of each source: of its file or folder, or of what was read if it is neither; None if there is none."""
    sources: dict[str, tuple[str | None, Sequence[Any]]] = {
        "forget": (data.forget, [asdict(record) for record in inputs.forget]),
        "retain": (data.retain, [asdict(record) for record in inputs.retain]),
        "member": (options.membership.member, inputs.members),
        "nonmember": (options.membership.nonmember, inputs.nonmembers),
        "choice": (options.choice.folder, []),
    }
    return {name: None if source is None else source_hash(source, read) for name, (source, read) in sources.items()}


def source_hash(source: str, read: Sequence[Any]) -> str:
    """SHA-256 of the file or folder ``source``, or of the values ``read`` from it if it is neither."""
    path = Path(source).expanduser()
    if path.exists():
        return sha256_of(path)
    return hashlib.sha256(json.dumps(read, ensure_ascii=False).encode()).hexdigest()


def print_scores(results: dict[str, Any]) -> None:
    """Print the scores, the terms of the task aggregate and, for what was not measured, what it needs."""
    table = Table("Score", "Value", "Rows")
    for key, name in SCORES.items():
        table.add_row(name, _shown(results[key]), "")
    table.add_section()
    for name, value in results["terms"].items():
        table.add_row(name, _shown(value), str(results["counts"][name]))
    Console(width=100).print(table)
    if results["membership_auc"] is None:
        print("note: no membership attack and no Aggregate without --membership.nonmember")
    if results["mmlu"] is None:
        print("note: no multiple choice and no Aggregate without --choice.folder")
    elif results["choice"]["shortened"]:
        print(f"note: {results['choice']['shortened']} questions were asked with fewer shots, as all did not fit")


def _shown(value: float | bool | None) -> str:
    if value is None:
        return "-"
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:.3f}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
